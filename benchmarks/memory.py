"""What the vocabulary costs a train step: temporaries of the compiled SFT, DPO and PPO steps at two vocabularies.

    python benchmarks/memory.py

Nothing is allocated: the steps are lowered with shapes and compiled for this machine. A step that held logits would
grow by batch x tokens x vocabulary; ours may grow by three float32 copies of the unembedding (gradient, clipped
gradient, direction), and 64 MiB.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.optim import adamw_direction
from jaxrlhf.steps.dpo import dpo_totals, preference_loss
from jaxrlhf.steps.ppo import PolicyBatch, policy_loss, policy_totals
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import init_state, make_update
from jaxrlhf.types import PairBatch, Rollout, TokenBatch

ROWS, TOKENS, WIDTH = 8, 256, 128
SMALL, LARGE = 8_192, 131_072
MIB = 2**20


def growth(method: str, *, tied: bool = False) -> dict[str, float]:
    """Temporaries of a method's step at both vocabularies, and the growth that is allowed, MiB."""
    small, large = (_temporaries(method, vocab, tied) for vocab in (SMALL, LARGE))
    allowed = 3 * (LARGE - SMALL) * WIDTH * 4 + 64 * MIB
    logits = ROWS * TOKENS * (LARGE - SMALL) * 4
    return {
        "small": small / MIB,
        "large": large / MIB,
        "growth": (large - small) / MIB,
        "allowed": allowed / MIB,
        "logits_would_be": logits / MIB,
    }


def _temporaries(method: str, vocab: int, tied: bool) -> int:
    config = ModelConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=WIDTH // 4,
        max_positions=TOKENS,
        tie_embeddings=tied,
    )
    step, frozen, batch, hyper = _STEPS[method](config)
    state = jax.eval_shape(lambda params: init_state(params, _optimizer()), param_shapes(config))
    scalars = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in ("learning_rate", "max_grad_norm", *hyper)}
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch, scalars).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _optimizer() -> Any:
    return adamw_direction(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)


def _tokens(*shape: int) -> TokenBatch:
    whole = jax.ShapeDtypeStruct(shape, jnp.int32)
    return TokenBatch(
        tokens=whole,
        targets=whole,
        mask=jax.ShapeDtypeStruct(shape, jnp.bool_),
        positions=whole,
        segment_ids=whole,
    )


def _sft(config: ModelConfig) -> tuple[Any, ...]:
    return make_update(sft_loss(make_model(config)), sft_totals, _optimizer()), None, _tokens(ROWS, TOKENS), ()


def _dpo(config: ModelConfig) -> tuple[Any, ...]:
    batch = PairBatch(answers=_tokens(ROWS // 2, 2, TOKENS), margin=jax.ShapeDtypeStruct((ROWS // 2,), jnp.float32))
    step = make_update(preference_loss(make_model(config)), dpo_totals, _optimizer())
    return step, {"reference": param_shapes(config)}, batch, ("beta",)


def _ppo(config: ModelConfig) -> tuple[Any, ...]:
    values = jax.ShapeDtypeStruct((ROWS, TOKENS // 2), jnp.float32)
    columns = jax.ShapeDtypeStruct((ROWS, TOKENS // 2), jnp.int32)
    rollout = Rollout(
        batch=dataclasses.replace(_tokens(ROWS, TOKENS), columns=columns),
        mask=jax.ShapeDtypeStruct((ROWS, TOKENS // 2), jnp.bool_),
        logprobs=values,
        ref_logprobs=values,
        values=values,
        advantages=values,
        returns=values,
    )
    step = make_update(policy_loss(make_model(config)), policy_totals, _optimizer())
    return step, None, PolicyBatch(rollout), ("temperature", "clip_eps", "entropy_coef")


_STEPS: dict[str, Callable[[ModelConfig], tuple[Any, ...]]] = {"sft": _sft, "dpo": _dpo, "ppo": _ppo}


if __name__ == "__main__":
    for name in _STEPS:
        for tied in (False, True):
            found = growth(name, tied=tied)
            print(json.dumps({"step": name, "tied": tied, **{key: round(value, 1) for key, value in found.items()}}))
