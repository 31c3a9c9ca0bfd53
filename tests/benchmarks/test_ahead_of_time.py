import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.ahead_of_time import compile_for, devices, mesh_for
from benchmarks.ahead_of_time.head import IMPLEMENTATIONS, Size, head_table, program
from benchmarks.ahead_of_time.targets import bytes_wanted
from benchmarks.ahead_of_time.train import MODEL, compile_step, train_table
from jaxrlhf.models.config import ComputeConfig


def test_unknown_targets_are_named():
    with pytest.raises(ValueError, match="target 'v9' is unknown; expected one of .*'h200', 'v5e'"):
        devices("v9")


def test_what_found_no_room_is_read_from_the_error_and_other_errors_are_raised():
    found = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (17.89G) exceeds available HBM"
    assert bytes_wanted(jax.errors.JaxRuntimeError(found)) == round(17.89 * 2**30)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        bytes_wanted(jax.errors.JaxRuntimeError("INTERNAL: another"))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("size", [Size(8, 20), Size(8, 20, words=17, softcap=3.0)])
def test_all_implementations_of_the_head_are_asked_for_the_same(size, backward):
    numbers = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(numbers.normal(size=(rows, size.width)), jnp.float32) for rows in (6, size.rows))
    targets, parts = jnp.arange(6), tuple(jnp.asarray(numbers.normal(size=(3, 6)), jnp.float32))

    def outcome(implementation):
        run, given = program(size, implementation, backward=backward)
        return jax.jit(run)(hidden, weight, targets, *([parts] if given else []))

    naive, chunked, fused = (outcome(name) for name in IMPLEMENTATIONS)
    chex.assert_trees_all_close(chunked, naive, atol=1e-5)
    out, gradients = naive if backward else (naive, None)
    (loss, metrics), by = fused if backward else (fused, None)
    assert float(loss) == pytest.approx(float(sum(jnp.sum(part * out[at]) for at, part in enumerate(parts))), abs=1e-4)
    assert float(metrics["max_logit"].value) == pytest.approx(float(jnp.mean(out.max_logit)), rel=1e-5)
    chex.assert_trees_all_close(by, gradients, atol=1e-5)


def test_tables_have_a_line_for_each_row():
    head = {"target": "v5e", "head": "Llama", "pass": "forward"}
    head |= {"reference": 3 * 2**30, "chunked": 2**20, "fused": 2**31}
    assert head_table([head])[2:] == ["| v5e | Llama | forward | 3,072.0 | 1.0 | 3,072 | 20 | 2,048.0 | 1.5 |"]
    train = {"target": "v5e:2x4", "remat": "full", "fits": True, "arguments": 2**30, "temporaries": 3 * 2**29}
    train |= {"attention": "splash", "collectives": {"all-gather": 3}}
    assert train_table([train])[2:] == ["| v5e:2x4 | full | splash | 1.00 | 1.50 | 3 all-gather |"]
    lost = train | {"fits": False, "arguments": None, "attention": "", "collectives": {}}
    assert train_table([lost])[2:] == ["| v5e:2x4 | full |  |  | 1.50 (does not fit) |  |"]


def test_a_product_compiles_for_a_tpu_that_is_not_there():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    square = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    compiled = compile_for("v5e", jnp.matmul, square, square)
    assert compiled.memory_analysis().argument_size_in_bytes == 2 * 256 * 256 * 2


@pytest.mark.parametrize(("remat", "kernels"), [("dots", 3), ("full", 4)])
def test_only_full_remat_runs_the_kernel_of_attention_again(remat, kernels):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 128}
    model = dataclasses.replace(MODEL, num_layers=2, num_heads=2, num_kv_heads=1, **sizes)
    compute = ComputeConfig(dtype="bfloat16", remat=remat)
    program = compile_step(mesh_for("v5e"), compute, model, tokens=128).as_text()
    # Forward, and backward one for queries, one for keys and values.
    assert program.count('custom_call_target="tpu_custom_call"') == kernels
