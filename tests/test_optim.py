import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.lora import init_adapters
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.optim import SCHEDULES, adamw_direction, decays, learning_rate
from jaxrlhf.steps.update import init_state, make_update
from tests.fakes import hyper
from tests.players import CONFIG, player_params

B1, B2, EPS, DECAY, RATE = 0.9, 0.95, 1e-3, 0.1, 0.05
START = {"mlp": {"kernel": np.asarray([[0.5, -1.0], [2.0, 0.1]])}, "norm": {"scale": np.asarray([1.0, 0.7])}}
TARGETS = [3.0, -1.0, 0.5]


def gradients(params: Any, target: float) -> Any:
    """Of half the squared distance to the target."""
    return jax.tree.map(lambda leaf: leaf - target, params)


def adamw(decay: float) -> list[Any]:
    """AdamW in float64 numpy, one update a target; matrices decay and scales do not."""
    params, first, second, found = START, jax.tree.map(np.zeros_like, START), jax.tree.map(np.zeros_like, START), []
    weights = {"mlp": {"kernel": decay}, "norm": {"scale": 0.0}}
    for number, target in enumerate(TARGETS, 1):
        slopes = gradients(params, target)
        first = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, first, slopes)
        second = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g**2, second, slopes)
        params = jax.tree.map(
            lambda p, m, v, w, n=number: p - RATE * (m / (1 - B1**n) / (np.sqrt(v / (1 - B2**n)) + EPS) + w * p),
            params, first, second, weights,
        )  # fmt: skip
        found.append(params)
    return found


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_three_steps_of_adamw_equal_numpy(decay: float):
    def loss(params, frozen, batch, totals, hyper, key):
        return sum(jnp.sum((leaf - batch[0]) ** 2) / 2 for leaf in jax.tree.leaves(params)), {}

    optimizer = adamw_direction(b1=B1, b2=B2, eps=EPS, weight_decay=decay)
    step = jax.jit(make_update(loss, lambda batch: 1.0, optimizer))
    state = init_state(jax.tree.map(jnp.float32, START), optimizer)
    for target, expected in zip(TARGETS, adamw(decay), strict=True):
        state, _ = step(state, None, jnp.asarray([target]), hyper(learning_rate=RATE))
        chex.assert_trees_all_close(state.params, expected, rtol=1e-5)


def test_weights_decay_and_norms_do_not():
    for scalar, head in [(False, "lm_head"), (True, "score")]:
        kinds = decays(player_params(scalar))
        assert kinds["embed_tokens"]["embedding"] and kinds[head]["kernel"] and not kinds["norm"]["scale"]
        layers = kinds["layers"]
        assert layers["self_attn"]["q_proj"]["kernel"] and layers["mlp"]["down_proj"]["kernel"]
        assert not layers["input_layernorm"]["scale"] and not layers["post_attention_layernorm"]["scale"]
    adapters = init_adapters(CONFIG, LoraConfig(rank=2), jax.random.key(0))
    assert all(jax.tree.leaves(decays(adapters)))


def rates(schedule: Any, warmup_steps: int = 2, total_steps: int = 6) -> list[float]:
    return [
        learning_rate(step, peak=0.8, warmup_steps=warmup_steps, total_steps=total_steps, schedule=schedule)
        for step in range(total_steps + 2)
    ]


def test_the_rate_warms_up_and_then_stays_falls_straight_or_along_a_cosine():
    np.testing.assert_allclose(rates("constant"), [0.4] + [0.8] * 7)
    np.testing.assert_allclose(rates("linear"), [0.4, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0], atol=1e-12)
    bend = 0.4 * math.cos(math.pi / 4)
    np.testing.assert_allclose(rates("cosine"), [0.4, 0.8, 0.8, 0.4 + bend, 0.4, 0.4 - bend, 0.0, 0.0], atol=1e-12)


def test_without_warmup_the_first_rate_is_the_peak():
    for schedule in SCHEDULES:
        assert rates(schedule, warmup_steps=0)[0] == 0.8


def test_a_warmup_as_long_as_the_run_only_rises():
    np.testing.assert_allclose(rates("linear", warmup_steps=4, total_steps=4)[:4], [0.2, 0.4, 0.6, 0.8])
