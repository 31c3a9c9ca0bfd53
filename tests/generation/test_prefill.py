import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.prefill import prefill, to_the_right
from tests.fakes import prompt_batch
from tests.players import POLICY, player_params, random_prompts

PARAMS = POLICY.prepare(player_params())


@functools.partial(jax.jit, static_argnames="chunk")
def run(prompts, chunk: int = 0):
    return prefill(POLICY, PARAMS, prompts, chunk=chunk)


def held(store) -> list[np.ndarray]:
    """Keys and values of the real tokens, row after row."""
    parts = [np.moveaxis(np.asarray(part), 2, 1) for part in jax.tree.leaves((store.cache.keys, store.cache.values))]
    columns = np.arange(store.cache.columns)[None, :]
    real = (columns >= np.asarray(store.cache.start)[:, None]) & (columns < int(store.cache.index))
    return [part[real] for part in parts]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 8, 100])
def test_parts_of_prompts_give_what_whole_prompts_do(chunk: int):
    prompts = random_prompts(5, width=9)
    whole, parts = run(prompts), run(prompts, chunk)
    assert whole.cache.columns == 8 and int(whole.cache.index) == 8
    for found, expected in zip(held(parts), held(whole), strict=True):
        assert len(found) == prompts.segment_ids.sum() - 5  # the last token of each is left
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_parts_that_are_padding_in_every_row_are_not_computed():
    calls = []

    def apply(*args, **options):
        jax.debug.callback(lambda: calls.append(1))
        return POLICY.apply(*args, **options)

    counted = dataclasses.replace(POLICY, apply=apply)
    prompts = prompt_batch([[5, 6, 7], [5]], 13)
    jax.block_until_ready(jax.jit(lambda prompts: prefill(counted, PARAMS, prompts, chunk=3))(prompts))
    jax.effects_barrier()
    assert len(calls) == 1  # 12 columns but the last two are empty


@pytest.mark.parametrize("prompts", [[[5], [6]], [[], []], [[5, 6], []]])
def test_the_shortest_prompts_have_room(prompts: list[list[int]]):
    store = run(prompt_batch(prompts, 2))
    assert (store.cache.index - store.cache.start).tolist() == [max(len(row) - 1, 0) - (not row) for row in prompts]
    one_wide = run(prompt_batch([row[:1] for row in prompts], 1))
    assert one_wide.tokens.shape == (2, 2)
    assert all(jnp.isfinite(part).all() for part in jax.tree.leaves(one_wide.cache))


def test_padding_goes_to_the_left():
    prompts = prompt_batch([[5, 6, 7], [8], []], 3)
    tokens, segments = (np.pad(part, ((0, 0), (1, 2))) for part in (prompts.tokens, prompts.segment_ids))
    tokens, there = to_the_right(type(prompts)(tokens=tokens, segment_ids=segments, row_ids=prompts.row_ids))
    np.testing.assert_array_equal(there[:, 3:], prompts.segment_ids != 0)
    np.testing.assert_array_equal(np.where(there, tokens, 0), [[0, 0, 0, 5, 6, 7], [0] * 5 + [8], [0] * 6])
