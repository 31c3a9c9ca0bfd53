"""Sampling on a CPU: what shared prompts, refilled slots, draws and bfloat16 are worth, and how far the limit is.

    NPROC=1 python -m benchmarks.sampling [steps groups slots small] [--rounds 3] [--models DIR ...] [--out FILE]

Everything runs in one process and one thread, in turns (A B A B ...), warmed up, and CPU-seconds are counted: others
use this machine. The model is a random Llama of 57.9 M parameters (8 layers, width 512, 8 heads on 4, vocabulary
32,000); `small` samples the pretrained models of the folders beside transformers' `generate`, where torch is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("NPROC", "1")
os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax  # noqa: E402  (the threads are set before jax is imported)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jaxrlhf.generation import Sampler, SamplingSettings, pad_prompts  # noqa: E402
from jaxrlhf.models.config import ComputeConfig, ModelConfig  # noqa: E402
from jaxrlhf.models.decoder import init_params, make_model  # noqa: E402
from jaxrlhf.models.load import load_policy  # noqa: E402
from jaxrlhf.types import Params, PromptBatch  # noqa: E402

CONFIG = ModelConfig(
    vocab_size=32_000,
    hidden_size=512,
    intermediate_size=1536,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    max_positions=2048,
)
SMALL = Path(__file__).parents[1] / "tests" / "assets" / "stories260k-llama"
Row = dict[str, Any]


def turns(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU-seconds of each contestant, called in turns after one call each to warm up."""
    for call in contestants.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            before = time.process_time()
            jax.block_until_ready(call())
            seconds[name].append(time.process_time() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def prompts_of(count: int, width: int) -> PromptBatch:
    """Prompts of random tokens, all as long as the batch is wide."""
    tokens = np.random.default_rng(0).integers(3, CONFIG.vocab_size, (count, width)).astype(np.int32)
    rows = np.arange(count, dtype=np.int32)
    return PromptBatch(tokens=tokens, segment_ids=np.ones_like(tokens), row_ids=rows)


def steps(params: Params, rounds: int) -> Iterable[Row]:
    """128 tokens after 64, 8 and 32 rows: the dtypes and draws in turns, and the fraction of the limit."""
    for batch in (8, 32):
        prompts, calls = prompts_of(batch, 64), {}
        for dtype in ("float32", "bfloat16"):
            for draw in ("gumbel", "cumulative"):
                sample = Sampler(make_model(CONFIG, ComputeConfig(dtype=dtype)), max_new_tokens=128, draw=draw)
                calls[f"{dtype}, {draw}"] = _call(sample, params, prompts)
        for name, seconds in turns(calls, rounds).items():
            row = {"section": "steps", "rows": batch, "what": name, "cpu_s": seconds, "ms_a_step": seconds / 129 * 1e3}
            if name.startswith("float32"):
                row |= limit(batch, 129, 128, seconds)
            yield row


def limit(batch: int, count: int, columns: int, seconds: float) -> Row:
    """What reading weights and cache, and multiplying, take at the rates of this machine; `columns` on average.

    The products of a step are [batch, D] x [D, F]: the rate of multiplication is that of such products where the
    weights are in the processor's cache, the rate of reading that of the maximum of 256 MiB.
    """
    weights = CONFIG.num_layers * (512 * 512 * 2 + 512 * 256 * 2 + 3 * 512 * 1536) + 512 * CONFIG.vocab_size
    cache = 2 * CONFIG.num_layers * batch * columns * CONFIG.num_kv_heads * CONFIG.head_dim
    flops = 2 * batch * weights + 4 * batch * columns * CONFIG.num_layers * CONFIG.num_heads * CONFIG.head_dim
    reading, multiplying = (weights + cache) * 4 / read_rate(), flops / multiply_rate(batch)
    least = max(reading, multiplying) * count
    return {
        "reading_ms": reading * 1e3, "multiplying_ms": multiplying * 1e3, "fraction_of_limit": least / seconds,
    }  # fmt: skip


def read_rate() -> float:
    """Bytes a second of the maximum of an array that no cache holds."""
    array = jnp.ones((64, 2**20), jnp.float32)
    run = jax.jit(lambda x: jnp.max(x, axis=1))
    return array.nbytes / min(turns({"": lambda: run(array)}, 1)[""] for _ in range(5))


def multiply_rate(batch: int) -> float:
    """FLOPs a second of [batch, 512] x [512, 512], over and over."""
    x, weight = jnp.ones((batch, 512)), jnp.eye(512)
    run = jax.jit(lambda x: jax.lax.fori_loop(0, 2000, lambda _, x: x @ weight, x))
    return 2000 * 2 * batch * 512 * 512 / min(turns({"": lambda: run(x)}, 1)[""] for _ in range(5))


def groups(params: Params, rounds: int) -> Iterable[Row]:
    """8 answers of 32 tokens to prompts of 512: the prompt prefilled once, once a row, and rows one after another."""
    model, prompts = make_model(CONFIG), prompts_of(1, 512)
    apart = jax.tree.map(lambda leaf: np.repeat(leaf, 8, axis=0), prompts)
    one = _call(Sampler(model, max_new_tokens=32), params, prompts)
    calls = {
        "a group of 8": _call(Sampler(model, max_new_tokens=32, answers=8), params, prompts),
        "8 rows, each with its prompt": _call(Sampler(model, max_new_tokens=32), params, apart),
        "8 one after another": lambda: [one() for _ in range(8)],
    }
    seconds = turns(calls, rounds)
    for name, value in seconds.items():
        yield {"section": "groups", "what": name, "cpu_s": value, "ratio": value / seconds["a group of 8"]}


def slots(params: Params, rounds: int) -> Iterable[Row]:
    """64 requests of exponential lengths (mean 64, at most 512), prompts of 64 tokens: 8 slots, and batches of 8."""
    lengths = np.ceil(np.random.default_rng(0).exponential(64, 64)).clip(1, 512).astype(np.int32)
    prompts, key, model = prompts_of(64, 64), jax.random.key(0), make_model(CONFIG)
    refilled = Sampler(model, max_new_tokens=512, slots=8)
    batches, taken = Sampler(model, max_new_tokens=512), {}

    def in_slots() -> Any:
        samples = refilled(params, prompts, key, SamplingSettings(max_new_tokens=lengths))
        taken["8 slots"] = refilled.steps
        return samples

    def in_batches() -> Any:
        parts, count = [], 0
        for start in range(0, 64, 8):
            part = jax.tree.map(lambda leaf, start=start: leaf[start : start + 8], prompts)
            own = SamplingSettings(max_new_tokens=lengths[start : start + 8])
            parts.append(batches(params, part, key, own))
            count += batches.steps
        taken["batches of 8"] = count
        return parts

    seconds = turns({"8 slots": in_slots, "batches of 8": in_batches}, rounds)
    for name, value in seconds.items():
        yield {
            "section": "slots", "what": name, "cpu_s": value, "steps": taken[name], "tokens": int(lengths.sum()),
            "ratio": value / seconds["8 slots"], "ratio_of_steps": taken[name] / taken["8 slots"],
        }  # fmt: skip


def small(folders: Iterable[Path], rounds: int) -> Iterable[Row]:
    """1 and 8 answers of 128 tokens to prompts of 8 by pretrained models, beside transformers."""
    for folder in folders:
        policy = load_policy(folder)
        tokens = np.random.default_rng(0).integers(3, policy.config.vocab_size, (8, 8)).astype(np.int32)
        for count in (1, 8):
            own = pad_prompts(tokens[:count].tolist())
            calls = {"jaxrlhf": _call(Sampler(policy.model, max_new_tokens=128), policy.params, own)}
            calls |= _transformers(folder, tokens[:count])
            seconds = turns(calls, 5 * rounds)
            for name, value in seconds.items():
                row = {"section": "small", "model": folder.name, "rows": count, "what": name, "cpu_s": value}
                yield row | {"ratio": value / seconds["jaxrlhf"]}


def _transformers(folder: Path, tokens: np.ndarray) -> dict[str, Callable[[], Any]]:
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        print(f"without transformers' generate: {error}", file=sys.stderr)
        return {}
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor(tokens).long()

    def call() -> Any:
        with torch.inference_mode():
            options = {"do_sample": True, "top_k": 0, "max_new_tokens": 128, "pad_token_id": 0}
            return model.generate(ids, attention_mask=torch.ones_like(ids), **options).numpy()

    return {"transformers": call}


def _call(sample: Sampler, params: Params, prompts: PromptBatch) -> Callable[[], Any]:
    keys = iter(range(10**9))
    return lambda: sample(params, prompts, jax.random.key(next(keys)))


def main() -> None:
    """Measures and prints JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {"steps": steps, "groups": groups, "slots": slots, "small": small}
    parser.add_argument("sections", nargs="*", choices=[*sections, []], default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=Path, nargs="+", default=[SMALL])
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    params = jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(0))
    rows = []
    for name in asked.sections or sections:
        given: Any = asked.models if name == "small" else params
        for row in sections[name](given, asked.rounds):
            rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
            print(json.dumps(rows[-1]), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps({"jax": jax.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
