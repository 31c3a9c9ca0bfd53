import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.generation.prefill import prefill
from jaxrlhf.generation.seating import make_requests, no_slots, seat
from jaxrlhf.generation.settings import SamplingSettings, per_row
from jaxrlhf.generation.slots import Answers, Prefilled, Requests, Slots, no_answers
from tests.players import POLICY, player_params, random_prompts

PARAMS = POLICY.prepare(player_params())
SLOTS, ROOM, COLUMNS, INDEX = 4, 6, 12, 9
# Prompts 2 and 0 of the store go to slots 3 and 1 as requests 4 and 5; slots 0 and 2 go on.
SOURCES, TARGETS, NUMBERS = [2, 0, 0, 0], [3, 1, 4, 4], [4, 5, 0, 0]
TAKEN, ON = np.asarray([3, 1]), np.asarray([0, 2])


def asked() -> tuple[Prefilled, Requests]:
    """A store of three prompts in 5 columns, and a request of its own settings to each of six prompts."""
    store = prefill(POLICY, PARAMS, random_prompts(3, width=6, seed=1))
    settings = per_row(SamplingSettings(temperature=np.arange(1.0, 7.0), eos_ids=(3,)), 6, ROOM)
    return store, make_requests(jax.random.key(0), jnp.arange(6), settings, answers=1)


def slots_in_use(requests: Requests) -> Slots:
    """Slots of requests 0 to 3, which have all written something; the cache holds NaN."""
    empty = no_slots(POLICY, PARAMS, requests, slots=SLOTS, room=ROOM)
    cache = jax.tree.map(lambda part: jnp.full_like(part, jnp.nan), POLICY.init_cache(SLOTS, COLUMNS))
    cache = dataclasses.replace(cache, start=jnp.arange(1, 5), index=jnp.asarray(INDEX))
    answers = no_answers(SLOTS, ROOM)
    return dataclasses.replace(
        empty,
        request=jnp.arange(SLOTS),
        cache=cache,
        token=jnp.full(SLOTS, 33),
        going=jnp.asarray([True, False, True, False]),
        words=jnp.full_like(empty.words, 7),
        answers=dataclasses.replace(
            answers,
            tokens=jnp.arange(SLOTS * ROOM).reshape(SLOTS, ROOM),
            count=jnp.asarray([1, 2, 3, 4]),
            terminated=jnp.ones(SLOTS, bool),
        ),
    )


def reseated() -> tuple[Slots, Slots, Answers, Prefilled, Requests]:
    """The slots before and after, the result, and what it was made of."""
    store, requests = asked()
    before, columns = slots_in_use(requests), (jnp.asarray(part) for part in (SOURCES, TARGETS, NUMBERS))
    after, result = jax.jit(seat)(before, no_answers(6, ROOM), store, requests, *columns)
    return before, after, result, store, requests


def rows_of(slots: Slots, rows: np.ndarray) -> list[np.ndarray]:
    """Every array of the slots but the index, at some of the slots."""
    cache, keys = slots.cache, jax.random.key_data(slots.keys)
    parts = dataclasses.replace(slots, keys=keys, cache=dataclasses.replace(cache, keys=(), values=(), index=()))
    held = jax.tree.leaves((cache.keys, cache.values))
    return [np.asarray(part)[rows] for part in [*jax.tree.leaves(parts), *held]]


def test_slots_that_go_on_stay_as_they_are():
    before, after, *_ = reseated()
    for old, new in zip(rows_of(before, ON), rows_of(after, ON), strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(after.cache.index) == INDEX


def test_a_new_request_brings_its_prompt_key_and_settings_and_has_no_answer_yet():
    _, after, _, store, requests = reseated()
    assert after.request.tolist() == [0, 5, 2, 4]
    assert after.going.all()
    np.testing.assert_array_equal(after.token[TAKEN], store.tokens[np.asarray([2, 0]), -1])
    assert (after.keys[TAKEN] == requests.keys[np.asarray([4, 5])]).all()
    assert after.settings.temperature.tolist() == [1, 6, 1, 5]
    assert after.answers.count.tolist() == [1, 0, 3, 0]
    assert after.answers.terminated.tolist() == [True, False, True, False]


def test_a_prompt_ends_before_the_index_and_the_rest_of_the_row_is_cleared():
    _, after, _, store, _ = reseated()
    held = np.asarray(store.cache.index - store.cache.start)
    assert (INDEX - after.cache.start)[TAKEN].tolist() == held[[2, 0]].tolist()
    kept = jax.tree.leaves((store.cache.keys, store.cache.values))
    for found, prompts in zip(jax.tree.leaves((after.cache.keys, after.cache.values)), kept, strict=True):
        for source, target in [(2, 3), (0, 1)]:
            expected = np.zeros(found[target].shape, np.float32)
            expected[:, INDEX - store.cache.columns : INDEX] = prompts[source]
            np.testing.assert_array_equal(found[target], expected)


def test_words_that_a_former_request_marked_are_forgotten():
    _, after, *_ = reseated()
    ends = np.zeros(after.words.shape[1])
    ends[3] = 4
    np.testing.assert_array_equal(after.words[TAKEN], [ends, ends])


def test_what_slots_have_written_is_collected_before_it_is_forgotten():
    before, _, result, *_ = reseated()
    assert result.count.tolist() == [1, 2, 3, 4, 0, 0]
    assert result.terminated.tolist() == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(result.tokens[:4], before.answers.tokens)


def test_slots_begin_idle_with_the_least_cache_and_requests_that_there_are_not():
    _, requests = asked()
    slots = no_slots(POLICY, PARAMS, requests, slots=SLOTS, room=ROOM)
    assert not slots.going.any() and (slots.request == 6).all()
    assert slots.cache.columns == 1 and int(slots.cache.index) == 0
    assert slots.words.shape == (SLOTS, 40) and slots.answers.tokens.shape == (SLOTS, ROOM)
