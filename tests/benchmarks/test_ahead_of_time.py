import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.ahead_of_time import compile_for, devices, mesh_for
from benchmarks.ahead_of_time.decode import MODEL as DECODED
from benchmarks.ahead_of_time.decode import compile_chunk, decode_table
from benchmarks.ahead_of_time.head import IMPLEMENTATIONS, Size, head_table, program
from benchmarks.ahead_of_time.hlo import Program, exchanged
from benchmarks.ahead_of_time.targets import bytes_wanted
from benchmarks.ahead_of_time.train import MODEL, compile_step, train_table
from jaxrlhf.models.config import ComputeConfig

LOOP = """HloModule tiny

%moved (p: bf16[4,8,16], at: s32[]) -> f32[1,8,16] {
  %p = bf16[4,8,16]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %next = s32[] add(%at, %at)
  %part = bf16[1,8,16]{2,1,0} dynamic-slice(%p, %next, %at, %at), dynamic_slice_sizes={1,8,16}
  ROOT %wide = f32[1,8,16]{2,1,0} convert(%part)
}

%written (p: bf16[4,8,16], new: bf16[1,8,16], at: s32[]) -> bf16[4,8,16] {
  %p = bf16[4,8,16]{2,1,0} parameter(0)
  %new = bf16[1,8,16]{2,1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %put = bf16[4,8,16]{2,1,0} dynamic-update-slice(%p, %new, %at, %at, %at)
}

%layer (carry: (s32[], bf16[4,8,16])) -> (s32[], bf16[4,8,16]) {
  %carry = (s32[], bf16[4,8,16]{2,1,0}) parameter(0)
  %cache = bf16[4,8,16]{2,1,0} get-tuple-element(%carry), index=1
  %slice.1 = f32[1,8,16]{2,1,0} fusion(%cache, %at), kind=kLoop, calls=%moved
  %near = f32[1,8,16]{2,1,0:T(8,128)S(1)} fusion(%cache, %at), kind=kLoop, calls=%moved
  %sum = bf16[1,8,16]{2,1,0} all-reduce(%slice.1), to_apply=%add
  %put = bf16[4,8,16]{2,1,0} fusion(%cache, %sum, %at), kind=kLoop, calls=%written
  ROOT %out = (s32[], bf16[4,8,16]{2,1,0}) tuple(%at, %put)
}

%step (carry: (s32[], bf16[4,8,16])) -> (s32[], bf16[4,8,16]) {
  %carry = (s32[], bf16[4,8,16]{2,1,0}) parameter(0)
  %logits = f32[8,64]{1,0} add(%at, %at)
  ROOT %layers = (s32[], bf16[4,8,16]{2,1,0}) while(%carry), condition=%test, body=%layer
}

ENTRY %main (keys: bf16[4,8,16]) -> (s32[], bf16[4,8,16]) {
  %turned = bf16[4,8,16]{0,1,2} copy(%keys)
  %start = (s32[], bf16[4,8,16]{2,1,0}) tuple(%zero, %turned)
  ROOT %steps = (s32[], bf16[4,8,16]{2,1,0}) while(%start), condition=%test, body=%step
}
"""


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


def test_what_a_step_copies_and_exchanges_is_read_from_the_program():
    program = Program(LOOP)
    step = program.step("bf16[4,8,16]", inner=4)
    # In each of four layers a slice is made float32 in memory; another stays near the cores, the write is in place.
    assert program.copied(step, least=8 * 16 * 4) == 4 * 8 * 16 * 4
    assert program.copied(step, least=8 * 16 * 4 + 1) == 0
    assert program.as_large(step, least=8 * 16 * 4) == ["add f32[8,64]", "fusion f32[1,8,16]"]
    assert exchanged(step) == {"all-reduce": (4, 4 * 8 * 16 * 2)}
    with pytest.raises(ValueError, match="no loop of the program carries f32"):
        program.step("f32[4,8,16]")


def test_programs_of_the_sampler_have_a_line_each():
    row = {"target": "v5e:2x4", "mesh": "tensor 8", "program": "prefill", "slots": 8, "columns": 2047}
    row |= {"weights": 2**31, "cache": 2**28, "arguments": 2**31, "aliased": 0, "temporaries": 2**20, "copied": None}
    assert decode_table([row])[2:] == [
        "| v5e:2x4 | tensor 8 | prefill | 8 x 2047 | 2.00 | 0.25 | 2.00 | 0.00 | 1 |  |  |  |  |  |"
    ]
    row |= {"program": "advance", "copied": 2**21, "as_large": [], "collectives": {"all-reduce": (72, 2**21)}}
    row |= {"bound": 0.0049, "flops": None}
    assert decode_table([row])[2].endswith(" | 1 | 2 | none | 72 all-reduce: 2.0 MiB | 4.9 |  |")


def test_a_chunk_for_a_tpu_has_one_cache_and_reads_it_where_it_is():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_layers": 2}
    model = dataclasses.replace(DECODED, num_heads=2, num_kv_heads=1, **sizes)
    _, cache, made = compile_chunk(mesh_for("v5e"), model, slots=64, columns=2048)
    held, memory = cache.keys.size * 2, made.compiled.memory_analysis()
    assert memory.alias_size_in_bytes > 2 * held and memory.temp_size_in_bytes < held / 2
    program = Program(made.compiled.as_text())
    assert program.as_large(program.step("bf16[2,64,1,2048,128]"), least=held // 2) == []


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
