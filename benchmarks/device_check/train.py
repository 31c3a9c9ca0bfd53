"""The section `train`: one step of supervised fine-tuning, by each way to compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from benchmarks.device_check.ceilings import Ceilings, of_products
from benchmarks.device_check.compiled import compile_for, memory_of, peak_bytes
from benchmarks.device_check.contest import Contestant, Runner, hold
from benchmarks.device_check.models import OPTIMIZER, hyper, parameter_count, random_params, sequences, size_of
from benchmarks.device_check.shapes import Shapes, Training
from benchmarks.device_check.sheet import Row, Sheet
from benchmarks.device_check.units import train_flops
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import make_model
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import init_state, make_update

IN_TURNS = 3


def measure(sheet: Sheet, shapes: Shapes, ceilings: Ceilings | None) -> None:
    """Writes a row for each way to compute the step. The first take turns in training one state, the others follow.

    Compiling takes most of the time; were all to take turns, one that takes too long would leave no row at all.
    """
    training = shapes.training
    steps = _Steps(training)
    contestants = [
        Contestant(
            row=row_of(training, "bfloat16, weights float32", f"jaxrlhf, {name}"),
            prepare=lambda compute=compute: steps.prepare(compute),
            worth=worth_of(training, ceilings),
        )
        for name, compute in shapes.variants.items()
    ]
    hold(sheet, contestants[:IN_TURNS], rounds=5)
    for contestant in contestants[IN_TURNS:]:
        hold(sheet, [contestant], rounds=5)


def row_of(training: Training, dtype: str, implementation: str) -> Row:
    """What a row says of a step."""
    shape = f"{size_of(training.model)}, {training.rows} x {training.length}"
    return {"name": "SFT step", "shape": shape, "dtype": dtype, "implementation": implementation}


def worth_of(training: Training, ceilings: Ceilings | None) -> Callable[[float], Row]:
    """Seconds of a step to tokens/s and model FLOP/s; their fraction of the fastest product is the MFU."""
    config = training.model
    attention = {"layers": config.num_layers, "attention_width": config.num_heads * config.head_dim}
    flops = train_flops(parameter_count(config), attention, training.rows, training.length)
    tokens = training.rows * training.length
    return lambda seconds: {"tokens_per_s": tokens / seconds, **of_products(flops, seconds, ceilings)}


class _Steps:
    """The state that all variants train in turn, made with the first: there is not room for one each."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._batch = sequences(training.model, training.rows, training.length)
        self._state: Any = None

    def prepare(self, compute: ComputeConfig) -> Runner:
        """Compiles the step of a variant."""
        if self._state is None or any(leaf.is_deleted() for leaf in jax.tree.leaves(self._state)):  # a step failed
            self._state = jax.jit(lambda params: init_state(params, OPTIMIZER))(random_params(self._training.model))
        step = make_update(sft_loss(make_model(self._training.model, compute)), sft_totals, OPTIMIZER)
        compiled = compile_for(step, self._state, None, self._batch, hyper(), donate=[0])

        def start() -> Any:
            self._state, metrics = compiled(self._state, None, self._batch, hyper())
            return metrics

        return Runner(start, jax.block_until_ready, memory_of(compiled), peak_bytes)
