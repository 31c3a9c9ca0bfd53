"""`make_sampler`: the compiled sampler with its settings as plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxrlhf.generation.decode import generate
from jaxrlhf.generation.sampling import SamplingSettings
from jaxrlhf.types import Model, Params, PromptBatch, Samples


class SampleFn(Protocol):
    """What `make_sampler` returns."""

    def __call__(
        self,
        params: Params,
        prompts: PromptBatch,
        key: jax.Array,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Samples:
        """Answers [B, P] prompts with B * answers rows; `key` is consumed."""
        ...


def make_sampler(
    model: Model,
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    answers: int = 1,
    prepare: Callable[[Params], Params] | None = None,
    out_shardings: Any = None,
) -> SampleFn:
    """Builds `sample(params, prompts, key, *, temperature, top_k, top_p) -> Samples`, compiled once a prompt width.

    Temperature, top-k, top-p and the key are traced: changing them recompiles nothing.

    Args:
        model: the policy.
        eos_ids: tokens that end an answer.
        max_new_tokens: tokens of the longest answer.
        answers: answers to each prompt.
        prepare: applied to the parameters once before the loop, e.g. `models.decoder.unstack_layers`.
        out_shardings: where the answers go; None leaves it to the compiler.
    """

    def run(params: Params, prompts: PromptBatch, key: jax.Array, temperature: Any, top_k: Any, top_p: Any) -> Samples:
        rows = prompts.tokens.shape[0] * answers
        settings = SamplingSettings(
            temperature=jnp.full(rows, temperature, jnp.float32),
            top_k=jnp.full(rows, top_k, jnp.int32),
            top_p=jnp.full(rows, top_p, jnp.float32),
            eos_ids=jnp.asarray(eos_ids, jnp.int32),
        )
        params = params if prepare is None else prepare(params)
        return generate(model, params, prompts, key, settings, max_new_tokens=max_new_tokens, answers=answers)

    compiled = jax.jit(run, out_shardings=out_shardings)

    def sample(
        params: Params,
        prompts: PromptBatch,
        key: jax.Array,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Samples:
        return compiled(params, prompts, key, jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))

    return sample
