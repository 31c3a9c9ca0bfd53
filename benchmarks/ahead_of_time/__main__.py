"""`python -m benchmarks.ahead_of_time PART`: prints, and writes `benchmarks/results/ahead_of_time.*`."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from benchmarks.ahead_of_time.decode import CHUNK, decode_rows, decode_table
from benchmarks.ahead_of_time.decode import MODEL as DECODED
from benchmarks.ahead_of_time.first_run import LORA, first_run_rows, first_run_table
from benchmarks.ahead_of_time.head import TOKENS as HEAD_TOKENS
from benchmarks.ahead_of_time.head import WANT, head_rows, head_table
from benchmarks.ahead_of_time.train import MODEL, TOKENS, train_rows, train_table

RESULTS = Path(__file__).parents[1] / "results" / "ahead_of_time.json"
PARTS = {
    "head": (head_rows, head_table),
    "train": (train_rows, train_table),
    "decode": (decode_rows, decode_table),
    "first_run": (first_run_rows, first_run_table),
}
HEADINGS = {
    "train": f"SFT of {MODEL.num_layers} layers of width {MODEL.hidden_size}, {MODEL.vocab_size} words, bfloat16, "
    f"a row of {TOKENS} tokens a device: bytes a device",
    "decode": f"The sampler, {DECODED.num_layers} layers of width {DECODED.hidden_size}, {DECODED.vocab_size} words, "
    f"bfloat16, chunks of {CHUNK} steps: bytes a device",
    "first_run": f"LoRA of rank {LORA.rank} on Qwen2.5-0.5B, bfloat16, one H200: bytes, and a bound of the time",
    "head": f"Temporaries of the head, {HEAD_TOKENS} tokens, bfloat16, {', '.join(WANT)} wanted",
}


def main(name: str) -> None:
    """Measures one part; the others keep what was found before."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    measure, _ = PARTS[name]
    found[name] = {"versions": {"jax": jax.__version__, "libtpu": version("libtpu")}, "rows": measure()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(_markdown(found), encoding="utf-8")


def _markdown(found: dict[str, Any]) -> str:
    title = f"# Compiled for devices that were not there\n\n`python -m benchmarks.ahead_of_time {'|'.join(PARTS)}`"
    sections = [title]
    for name, (_, table) in PARTS.items():
        if name in found:
            versions = ", ".join(f"{what} {number}" for what, number in found[name]["versions"].items())
            sections += [f"## {HEADINGS[name]}", versions, "\n".join(table(found[name]["rows"]))]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] not in [[name] for name in PARTS]:
        sys.exit(f"usage: python -m benchmarks.ahead_of_time {'|'.join(PARTS)}")
    main(sys.argv[1])
