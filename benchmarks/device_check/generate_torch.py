"""The section `generate`, its second half: transformers' `generate` in bfloat16."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.device_check import on_torch
from benchmarks.device_check.ceilings import Ceilings
from benchmarks.device_check.contest import Contestant, Runner, hold
from benchmarks.device_check.generate import row_of, worth_of
from benchmarks.device_check.shapes import Sampling, Shapes
from benchmarks.device_check.sheet import Sheet
from benchmarks.device_check.train_torch import make_model

CACHES = {"transformers, dynamic cache": None, "transformers, static cache": "static"}
"""Name -> `cache_implementation`. With the static one transformers compiles the model, where it works."""


def measure(sheet: Sheet, shapes: Shapes, ceilings: Ceilings | None) -> None:
    """Writes rows for both caches at each batch size; all rows draw as many tokens, at temperature 1."""
    sampling = shapes.sampling
    model = make_model(sampling.model, torch.bfloat16).eval()
    for name, cache in CACHES.items():
        for batch in sampling.batches:
            contestant = Contestant(
                row=row_of(sampling, batch, "bfloat16", name),
                prepare=lambda batch=batch, cache=cache: _prepare(model, sampling, batch, cache),
                worth=worth_of(sampling, batch, ceilings),
            )
            hold(sheet, [contestant], rounds=3)


def _prepare(model: Any, sampling: Sampling, batch: int, cache: str | None) -> Runner:
    tokens = torch.randint(3, sampling.model.vocab_size, (batch, sampling.prompt), device=on_torch.DEVICE)
    more = {} if cache is None else {"cache_implementation": cache}

    def start() -> torch.Tensor:
        return model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=sampling.new,
            max_new_tokens=sampling.new,
            pad_token_id=0,
            **more,
        )

    return on_torch.ready(start)
