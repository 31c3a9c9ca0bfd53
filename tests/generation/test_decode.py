import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.generation.decode import generate
from jaxrlhf.generation.sampling import SamplingSettings
from jaxrlhf.types import Model, PromptBatch, Samples
from tests.fakes import VOCAB, counting_model, prompt_batch
from tests.players import CONFIG, EOS, POLICY, player_params, random_prompts

COUNTING, COUNTING_PARAMS = counting_model()
KEY = jax.random.key(0)
LENGTH = 6


def settings(rows: int, temperature: float = 1.0, eos_ids: tuple[int, ...] = (EOS,)) -> SamplingSettings:
    return SamplingSettings(
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.zeros(rows, jnp.int32),
        top_p=jnp.ones(rows, jnp.float32),
        eos_ids=jnp.asarray(eos_ids, jnp.int32),
    )


@functools.partial(jax.jit, static_argnames=("model", "answers", "max_new_tokens"))
def run(
    model: Model,
    params: Any,
    prompts: PromptBatch,
    settings: SamplingSettings,
    *,
    answers: int = 1,
    max_new_tokens: int = LENGTH,
) -> Samples:
    return generate(model, params, prompts, KEY, settings, max_new_tokens=max_new_tokens, answers=answers)


def count(prompts: list[list[int]], *, eos_ids: tuple[int, ...] = (9,), answers: int = 1, length: int = LENGTH):
    batch, rows = prompt_batch(prompts, 3), settings(len(prompts) * answers, eos_ids=eos_ids)
    return run(COUNTING, COUNTING_PARAMS, batch, rows, answers=answers, max_new_tokens=length)


def test_the_next_integers_are_decoded_until_the_end_token():
    samples = count([[3, 4], [1, 5, 7], [1]])
    np.testing.assert_array_equal(samples.tokens, [[5, 6, 7, 8, 9, 0], [8, 9, 0, 0, 0, 0], [2, 3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(samples.mask, [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(samples.terminated, [True, True, False])
    assert not samples.logprobs[~samples.mask].any() and not samples.sampling_logprobs[~samples.mask].any()
    np.testing.assert_allclose(samples.logprobs, 0.0, atol=1e-5)


def test_the_end_token_may_be_the_first_or_the_last_that_fits():
    samples = count([[8], [3], [2]])
    np.testing.assert_array_equal(samples.mask.sum(axis=1), [1, 6, 6])
    np.testing.assert_array_equal(samples.terminated, [True, True, False])
    assert samples.tokens[1, -1] == 9


def test_each_of_several_end_tokens_ends_an_answer():
    samples = count([[3, 4], [11]], eos_ids=(7, 13))
    np.testing.assert_array_equal(samples.tokens, [[5, 6, 7, 0, 0, 0], [12, 13, 0, 0, 0, 0]])
    np.testing.assert_array_equal(samples.terminated, [True, True])


def test_without_an_end_token_every_answer_is_cut_off():
    samples = count([[3, 4]], eos_ids=())
    np.testing.assert_array_equal(samples.tokens, [[5, 6, 7, 8, 9, 10]])
    assert not samples.terminated.any()


def test_one_token_is_the_shortest_answer():
    samples = count([[3, 4], [8]], length=1)
    np.testing.assert_array_equal(samples.tokens, [[5], [9]])
    np.testing.assert_array_equal(samples.terminated, [False, True])


def test_the_loop_ends_when_every_row_has():
    calls = []

    def apply(params, tokens, **rest):
        jax.debug.callback(lambda: calls.append(1))
        return COUNTING.apply(params, tokens, **rest)

    counted = dataclasses.replace(COUNTING, apply=apply)
    prompts = prompt_batch([[5], [7]], 3)
    samples = run(counted, COUNTING_PARAMS, prompts, settings(2, eos_ids=(9,)), max_new_tokens=50)
    jax.block_until_ready(samples)
    jax.effects_barrier()
    np.testing.assert_array_equal(samples.mask.sum(axis=1), [4, 2])
    assert len(calls) == 4  # the prompt, and one for each token but the last


def test_each_token_of_each_row_has_its_own_draw():
    even = {"peak": jnp.float32(0.0)}
    samples = run(COUNTING, even, prompt_batch([[5]] * 40, 3), settings(40, eos_ids=()), max_new_tokens=LENGTH)
    counts = np.bincount(np.asarray(samples.tokens).ravel(), minlength=VOCAB)
    assert counts.min() > 0 and counts.max() < 25  # of 240, about 10 each
    columns = np.asarray(samples.tokens).T
    agreement = [np.mean(columns[a] == columns[b]) for a in range(LENGTH) for b in range(a)]
    assert np.mean(agreement) < 0.1  # 1 / 23 expected


def decode(prompts: PromptBatch, temperature: float = 1.0, answers: int = 1) -> Samples:
    rows = settings(prompts.tokens.shape[0] * answers, temperature)
    return run(POLICY, player_params(), prompts, rows, answers=answers)


def rows_of(samples: Samples, rows: Any) -> list[Any]:
    return [np.asarray(leaf)[rows] for leaf in jax.tree.leaves(samples)]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """Tokens, mask and end alike; log-probabilities within rounding."""
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5 if left.dtype == np.float32 else 0)


@jax.jit
def full_logits(tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """[B, T, V] of a full forward."""
    params, positions = player_params(), jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    return POLICY.apply(params, tokens, positions=positions, segment_ids=segments).hidden @ POLICY.head(params).weight.T


def test_temperature_0_is_the_stepwise_argmax_of_the_full_forward():
    prompts = prompt_batch(np.random.default_rng(3).integers(4, CONFIG.vocab_size, (4, 5)).tolist(), 5)
    samples = decode(prompts, temperature=0.0)
    rows = np.pad(prompts.tokens, ((0, 0), (0, LENGTH)))
    for end in range(5, 5 + LENGTH):
        segments = np.broadcast_to(np.arange(5 + LENGTH) < end, rows.shape).astype(np.int32)
        rows[:, end] = jnp.argmax(full_logits(rows, segments)[:, end - 1], axis=-1)
    kept = np.asarray(samples.mask)
    assert kept.sum() > 12
    np.testing.assert_array_equal(np.asarray(samples.tokens)[kept], rows[:, 5:][kept])
    np.testing.assert_array_equal(samples.terminated, (rows[:, 5:] == EOS).any(axis=1))


def test_padding_on_the_left_does_not_change_an_answer():
    prompts = random_prompts(4, width=5)
    wide = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 0), (3, 0))) if leaf.ndim == 2 else leaf, prompts)
    assert_same(rows_of(decode(wide), slice(None)), rows_of(decode(prompts), slice(None)))


def test_an_answer_depends_neither_on_neighbours_nor_on_its_slot():
    prompts = random_prompts(4)
    expected = rows_of(decode(prompts), slice(None))
    order = np.asarray([2, 0, 3, 1])
    moved = decode(jax.tree.map(lambda leaf: leaf[order], prompts))
    assert_same(rows_of(moved, np.argsort(order)), expected)
    others = random_prompts(4, seed=9)
    mixed = jax.tree.map(lambda own, other: np.concatenate([other[:3], own[3:]]), prompts, others)
    assert_same(rows_of(decode(mixed), 3), [leaf[3] for leaf in expected])


def test_several_answers_equal_the_same_prompts_prefilled_apart():
    prompts = random_prompts(2)
    together = decode(prompts, answers=2)
    first = decode(jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), prompts))  # answer 0 of each, twice
    assert_same(rows_of(together, [0, 2]), rows_of(first, [0, 2]))
    assert_same(rows_of(first, [0, 2]), rows_of(first, [1, 3]))


def test_answers_to_one_prompt_and_to_one_prompt_in_two_rows_differ():
    prompts = random_prompts(1)
    twice = dataclasses.replace(
        jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), prompts), row_ids=np.asarray([0, 1], np.int32)
    )
    tokens = np.asarray(decode(twice, answers=2).tokens).tolist()
    assert len({tuple(row) for row in tokens}) == 4


def test_log_probabilities_are_those_of_a_full_forward():
    prompts = random_prompts(2, seed=4)
    samples = decode(prompts, temperature=0.7, answers=2)
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), prompts)
    tokens = np.concatenate([repeated.tokens, samples.tokens], axis=1)
    segments = np.concatenate([repeated.segment_ids, samples.mask], axis=1).astype(np.int32)
    logits = full_logits(tokens, segments)[:, 4:-1]
    for found, temperature in [(samples.logprobs, 1.0), (samples.sampling_logprobs, 0.7)]:
        logprobs = jax.nn.log_softmax(logits / temperature)
        expected = np.take_along_axis(np.asarray(logprobs), np.asarray(samples.tokens)[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(found, np.where(samples.mask, expected, 0.0), atol=2e-5)
