"""`python -m benchmarks.ahead_of_time head|train`: measures, prints, and writes benchmarks/results/ahead_of_time.*."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from benchmarks.ahead_of_time.head import TOKENS as HEAD_TOKENS
from benchmarks.ahead_of_time.head import WANT, head_rows, head_table
from benchmarks.ahead_of_time.train import MODEL, TOKENS, train_rows, train_table

RESULTS = Path(__file__).parents[1] / "results" / "ahead_of_time.json"
PARTS = {"head": (head_rows, head_table), "train": (train_rows, train_table)}
HEADINGS = {
    "train": f"SFT of {MODEL.num_layers} layers of width {MODEL.hidden_size}, {MODEL.vocab_size} words, bfloat16, "
    f"a row of {TOKENS} tokens a device: bytes a device",
    "head": f"Temporaries of the head, {HEAD_TOKENS} tokens, bfloat16, {', '.join(WANT)} wanted",
}


def main(name: str) -> None:
    """Measures one part; the other keeps what was found before."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    measure, _ = PARTS[name]
    found[name] = {"versions": {"jax": jax.__version__, "libtpu": version("libtpu")}, "rows": measure()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(_markdown(found), encoding="utf-8")


def _markdown(found: dict[str, Any]) -> str:
    title = "# Compiled for devices that were not there\n\n`python -m benchmarks.ahead_of_time head|train`"
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
