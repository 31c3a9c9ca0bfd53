import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import place_batch
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.types import Model, ModelOutput, PromptBatch, Samples
from tests.fakes import VOCAB, counting_model, prompt_batch
from tests.players import CONFIG, EOS, POLICY, player_params, random_prompts

COUNTING, COUNTING_PARAMS = counting_model()
KEY = jax.random.key(0)
LENGTH = 6
ENDING = SamplingSettings(eos_ids=(EOS,))
# Short prompts, long answers, several tokens that end one: answers of 1 to 40 tokens.
LONG, EARLY = 40, SamplingSettings(eos_ids=(EOS, 7, 12))


def count(
    prompts: list[list[int]], *, eos_ids: tuple[int, ...] = (9,), length: int = LENGTH, **options: Any
) -> Samples:
    sample = Sampler(COUNTING, max_new_tokens=length, **options)
    return sample(COUNTING_PARAMS, prompt_batch(prompts, 3), KEY, SamplingSettings(eos_ids=eos_ids))


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


@pytest.mark.parametrize("slots", [None, 2])
def test_a_prompt_of_no_tokens_gets_no_answer(slots: int | None):
    samples = count([[3, 4], [], [8], [5]], slots=slots)
    np.testing.assert_array_equal(samples.mask.sum(axis=1), [5, 0, 1, 4])
    assert samples.terminated.all()


def test_each_answer_has_its_own_most_and_fewest_tokens():
    sample = Sampler(COUNTING, max_new_tokens=LENGTH)
    settings = SamplingSettings(
        eos_ids=(9,), max_new_tokens=np.asarray([2, 6, 6]), min_new_tokens=np.asarray([0, 0, 2])
    )
    samples = sample(COUNTING_PARAMS, prompt_batch([[3], [7], [8]], 3), KEY, settings)
    np.testing.assert_array_equal(samples.tokens[:2], [[4, 5, 0, 0, 0, 0], [8, 9, 0, 0, 0, 0]])
    np.testing.assert_array_equal(samples.terminated, [False, True, False])
    assert samples.mask[2].all() and samples.tokens[2, 0] != 9


def test_each_token_of_each_answer_has_its_own_draw():
    even = {"peak": jnp.float32(0.0)}
    samples = Sampler(COUNTING, max_new_tokens=LENGTH)(even, prompt_batch([[5]] * 40, 3), KEY)
    counts = np.bincount(np.asarray(samples.tokens).ravel(), minlength=VOCAB)
    assert counts.min() > 0 and counts.max() < 25  # of 240, about 10 each
    columns = np.asarray(samples.tokens).T
    agreement = [np.mean(columns[a] == columns[b]) for a in range(LENGTH) for b in range(a)]
    assert np.mean(agreement) < 0.1  # 1 / 23 expected


def test_another_key_gives_other_answers_and_the_same_key_the_same():
    sample, params, prompts = Sampler(POLICY, max_new_tokens=LENGTH), player_params(), random_prompts(4)
    first, again, other = (sample(params, prompts, jax.random.key(seed)).tokens for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).sum() > 4


def test_a_key_of_raw_numbers_is_refused():
    with pytest.raises(TypeError, match="give a typed key, as jax.random.key makes them"):
        Sampler(COUNTING, max_new_tokens=2)(COUNTING_PARAMS, prompt_batch([[3]], 3), jax.random.PRNGKey(0))


def test_prepared_parameters_serve_several_calls():
    sample, params = Sampler(POLICY, max_new_tokens=LENGTH), player_params()
    prepared = sample.prepare(params)
    for seed in range(2):
        prompts, key = random_prompts(3, seed=seed), jax.random.key(seed)
        np.testing.assert_array_equal(sample(prepared, prompts, key).tokens, sample(params, prompts, key).tokens)


def decode(prompts: PromptBatch, settings: SamplingSettings = ENDING, **options: Any) -> Samples:
    sample = Sampler(POLICY, **{"max_new_tokens": LENGTH, **options})
    return sample(player_params(), prompts, KEY, settings)


def rows_of(samples: Samples, rows: Any) -> list[Any]:
    return [np.asarray(leaf)[rows] for leaf in jax.tree.leaves(samples)]


def assert_same(found: Any, expected: Any) -> None:
    """Tokens, mask and end alike; log-probabilities within rounding."""
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5 if left.dtype == np.float32 else 0)


@jax.jit
def full_logits(tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """[B, T, V] of a full forward."""
    params, positions = player_params(), jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    return POLICY.apply(params, tokens, positions=positions, segment_ids=segments).hidden @ POLICY.head(params).weight.T


def test_temperature_0_is_the_stepwise_argmax_of_the_full_forward():
    prompts = prompt_batch(np.random.default_rng(3).integers(4, CONFIG.vocab_size, (4, 5)).tolist(), 5)
    samples = decode(prompts, dataclasses.replace(ENDING, temperature=0.0))
    rows = np.pad(prompts.tokens, ((0, 0), (0, LENGTH)))
    for end in range(5, 5 + LENGTH):
        segments = np.broadcast_to(np.arange(5 + LENGTH) < end, rows.shape).astype(np.int32)
        rows[:, end] = jnp.argmax(full_logits(rows, segments)[:, end - 1], axis=-1)
    kept = np.asarray(samples.mask)
    assert kept.sum() > 12
    np.testing.assert_array_equal(np.asarray(samples.tokens)[kept], rows[:, 5:][kept])
    np.testing.assert_array_equal(samples.terminated, (rows[:, 5:] == EOS).any(axis=1))


@pytest.mark.parametrize("left, right", [(3, 0), (0, 3), (2, 1)])
def test_padding_on_either_side_does_not_change_an_answer(left: int, right: int):
    prompts = random_prompts(4, width=5)
    wide = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 0), (left, right))) if leaf.ndim == 2 else leaf, prompts)
    assert_same(decode(wide), decode(prompts))


def test_an_answer_depends_neither_on_neighbours_nor_on_its_place():
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
    samples = decode(prompts, dataclasses.replace(ENDING, temperature=0.7), answers=2)
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), prompts)
    tokens = np.concatenate([repeated.tokens, samples.tokens], axis=1)
    segments = np.concatenate([repeated.segment_ids, samples.mask], axis=1).astype(np.int32)
    logits = full_logits(tokens, segments)[:, 4:-1]
    for found, temperature in [(samples.logprobs, 1.0), (samples.sampling_logprobs, 0.7)]:
        logprobs = jax.nn.log_softmax(logits / temperature)
        expected = np.take_along_axis(np.asarray(logprobs), np.asarray(samples.tokens)[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(found, np.where(samples.mask, expected, 0.0), atol=2e-5)


def one_at_a_time(prompts: PromptBatch) -> list[Samples]:
    sample = Sampler(POLICY, max_new_tokens=LONG, answers=2)
    rows = [jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], prompts) for row in range(len(prompts.tokens))]
    return [sample(player_params(), row, KEY, EARLY) for row in rows]


@pytest.mark.parametrize("slots, chunk, prefill_chunk", [(5, 64, 0), (4, 3, 2), (1, 64, 0)])
def test_refilled_slots_equal_one_prompt_at_a_time(monkeypatch, slots: int, chunk: int, prefill_chunk: int):
    monkeypatch.setattr("jaxrlhf.generation.columns._LEAST", 16)  # so that the cache grows, shrinks and moves
    prompts = random_prompts(8, width=9, seed=5)
    prompts.segment_ids[3] = 0
    sample = Sampler(POLICY, max_new_tokens=LONG, answers=2, slots=slots, chunk=chunk, prefill_chunk=prefill_chunk)
    found = sample(player_params(), prompts, KEY, EARLY)
    lengths = np.asarray(found.mask).sum(axis=1)
    assert lengths[[6, 7]].tolist() == [0, 0] and lengths.max() > 20 and np.median(lengths) < 15
    for number, alone in enumerate(one_at_a_time(prompts)):
        assert_same(rows_of(found, slice(2 * number, 2 * number + 2)), alone)
    assert sample.steps >= lengths.sum() / slots


def test_nothing_of_a_former_answer_stays_in_a_slot():
    """Not even NaN, which a weight of 0 would keep; nor that it ended by itself."""
    params = player_params()
    params["embed_tokens"]["embedding"] = params["embed_tokens"]["embedding"].at[5].set(jnp.nan)
    prompts = prompt_batch([[6, 5, 8], [6, 7], [9, 8]], 3)
    settings = SamplingSettings(eos_ids=tuple(range(6, 40)), max_new_tokens=2, min_new_tokens=np.asarray([0, 2, 0]))
    apart, refilled = (
        Sampler(POLICY, max_new_tokens=4, slots=slots)(params, prompts, KEY, settings) for slots in (None, 1)
    )
    assert jnp.isnan(refilled.logprobs[0]).any() and jnp.isfinite(refilled.logprobs[1:]).all()
    assert_same(rows_of(refilled, slice(1, None)), rows_of(apart, slice(1, None)))
    assert apart.terminated[2] and not apart.terminated[1]


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)])
def test_further_calls_compile_nothing_on_a_mesh(mesh: tuple[int, int, int]):
    sample = Sampler(POLICY, max_new_tokens=LENGTH, slots=8, chunk=2)
    devices = make_mesh(*mesh)
    with jax.set_mesh(devices):
        params = jax.device_put(player_params(), shardings_for(player_params(), devices)[0])
        counts = []
        for number in range(3):
            prompts, key = place_batch(random_prompts(16, seed=number), devices), jax.random.key(number)
            with compilations() as compiled:
                sample(params, prompts, key, ENDING)
            counts.append(len(compiled))
    assert counts[0] > 5 and counts[1:] == [0, 0]


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs that are compiled meanwhile."""
    names: list[str] = []

    def note(event: str, duration: float, **options: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(options.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_refilled_slots_take_fewer_steps():
    prompts = random_prompts(16, seed=2)
    lengths = np.random.default_rng(0).geometric(1 / 8, 16).clip(1, LONG).astype(np.int32)
    steps = {}
    for slots in (4, 16):
        sample = Sampler(POLICY, max_new_tokens=LONG, slots=slots)
        found = sample(player_params(), prompts, KEY, SamplingSettings(max_new_tokens=lengths))
        np.testing.assert_array_equal(np.asarray(found.mask).sum(axis=1), lengths)
        steps[slots] = sample.steps
    assert steps[16] == lengths.max()
    in_batches = sum(lengths[start : start + 4].max() for start in range(0, 16, 4))
    assert lengths.sum() / 4 <= steps[4] < 0.8 * in_batches


@pytest.mark.parametrize("chunk", [4, 64])
def test_the_length_of_chunks_and_of_the_cache_change_nothing(monkeypatch, chunk: int):
    prompts = random_prompts(3, seed=1)
    expected = decode(prompts, EARLY, max_new_tokens=LONG)
    monkeypatch.setattr("jaxrlhf.generation.columns._LEAST", 8)
    assert_same(decode(prompts, EARLY, max_new_tokens=LONG, chunk=chunk), expected)


@pytest.mark.parametrize("prompt, prefill_chunk, length, columns", [
    (3, 0, 6, 24),  # 15 of the narrowest store and 6 of a chunk, though prompts may have 40
    (40, 0, 6, 48),  # 39 + 6
    (40, 0, 26, 92),  # 39 + 26, of which `bucket` makes 96, but prompts and answers have no more
    (40, 30, 6, 76),  # 60, in two parts, and 6, of which it makes 96
])  # fmt: skip
def test_the_cache_is_as_long_as_prompts_and_answers_need(
    monkeypatch, prompt: int, prefill_chunk: int, length: int, columns: int
):
    monkeypatch.setattr("jaxrlhf.generation.columns._LEAST", 4)
    found = set()

    def apply(*args: Any, cache: Any, **options: Any) -> ModelOutput:
        if args[1].shape[1] == 1:
            found.add(cache.columns)
        return COUNTING.apply(*args, cache=cache, **options)

    sample = Sampler(
        dataclasses.replace(COUNTING, apply=apply), max_new_tokens=length, slots=2, prefill_chunk=prefill_chunk
    )
    sample(COUNTING_PARAMS, prompt_batch([[5] * prompt] * 5, 40), KEY)
    assert max(found) == columns


def traced(model: Model, traces: int) -> Model:
    """The model, whose `apply` may be traced so many times."""

    @chex.assert_max_traces(n=traces)
    def apply(*args: Any, **options: Any) -> ModelOutput:
        return model.apply(*args, **options)

    return dataclasses.replace(model, apply=apply)


@pytest.mark.parametrize("slots", [None, 2])
def test_settings_key_and_prompts_compile_nothing_and_a_new_width_does(slots: int | None):
    chex.clear_trace_counter()
    sample = Sampler(traced(POLICY, 2), max_new_tokens=LENGTH, slots=slots)  # the prompts, a step
    params, found = player_params(), set()
    for number, settings in enumerate(
        [
            ENDING,
            SamplingSettings(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, eos_ids=(1, 2)),
            SamplingSettings(temperature=np.linspace(0.0, 2.0, 4), repetition_penalty=1.5, forbidden_ids=(8, 9)),
            SamplingSettings(min_new_tokens=2, max_new_tokens=np.asarray([2, 3, 4, 6]), eos_ids=()),
        ]
    ):
        prompts = random_prompts(4, seed=number)
        found.add(np.asarray(sample(params, prompts, jax.random.key(number), settings).tokens).tobytes())
    assert len(found) == 4
    with pytest.raises(AssertionError, match="traced"):
        sample(params, random_prompts(4, width=8), KEY, ENDING)


def test_lengths_and_numbers_of_prompts_compile_a_bounded_number_of_programs():
    chex.clear_trace_counter()
    # Two widths of prompts (16 and what is left) and one step; 3 slots whatever the number of prompts.
    sample = Sampler(traced(POLICY, 3), max_new_tokens=20, slots=3)
    for seed in range(3):
        prompts = random_prompts(7, width=20, seed=seed)
        sample(player_params(), prompts, KEY, dataclasses.replace(ENDING, max_new_tokens=5 * (seed + 1)))


@pytest.mark.parametrize("wrong, message", [
    ({"max_new_tokens": 0}, "max_new_tokens"), ({"answers": 0}, "answers"), ({"slots": 0}, "slots"),
    ({"chunk": 0}, "chunk"), ({"prefill_chunk": -1}, "prefill_chunk"), ({"draw": "inverse"}, "draw"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Sampler(POLICY, **{"max_new_tokens": LENGTH, **wrong})
