import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.decode import Seen, advance
from jaxrlhf.generation.prefill import prefill
from jaxrlhf.generation.seating import make_requests, seat_all
from jaxrlhf.generation.settings import SamplingSettings, per_row
from jaxrlhf.generation.slots import Slots
from jaxrlhf.models.decoder import init_params, make_model
from tests.fakes import counting_model, prompt_batch
from tests.players import CONFIG, random_prompts

COUNTING, PARAMS = counting_model()


def seated(model, params, prompts, *, columns: int = 12, room: int = 8, **settings) -> Slots:
    rows = len(prompts.tokens)
    own = per_row(SamplingSettings(**settings), rows, room)
    requests = make_requests(jax.random.key(0), prompts.row_ids, own, answers=1)
    return seat_all(model, params, prefill(model, params, prompts), requests, columns=columns, room=room)


@functools.partial(jax.jit, static_argnames="chunk")
def run(slots: Slots, limit: int, leave: int, *, chunk: int = 4) -> tuple[Slots, Seen]:
    return advance(COUNTING, PARAMS, slots, jnp.asarray(limit), jnp.asarray(leave), chunk=chunk)


def counting_slots() -> Slots:
    """Answers of 1, 3 and 6 tokens."""
    return seated(COUNTING, PARAMS, prompt_batch([[8], [6], [3]], 3), eos_ids=(9,))


@pytest.mark.parametrize("limit, leave, steps, count", [
    (4, 0, 4, [1, 3, 4]), (2, 0, 2, [1, 2, 2]), (4, 1, 3, [1, 3, 3]), (4, 2, 1, [1, 1, 1]), (4, 3, 0, [0, 0, 0]),
])  # fmt: skip
def test_a_chunk_ends_at_its_limit_or_when_few_slots_go_on(limit: int, leave: int, steps: int, count: list[int]):
    slots, seen = run(counting_slots(), limit, leave)
    assert int(seen.steps) == steps and seen.count.tolist() == count
    assert int(seen.index) == int(slots.cache.index) == 2 + steps
    assert seen.going.tolist() == [length < full for length, full in zip(count, (1, 3, 6), strict=True)]


@pytest.mark.parametrize("limit, held", [(0, 3), (1, 1), (2, 2), (4, 0)])
def test_what_is_held_is_that_of_the_longest_slot_that_goes_on(limit: int, held: int):
    slots = seated(COUNTING, PARAMS, prompt_batch([[4, 2, 5, 8], [6], []], 4), eos_ids=(9,))  # answers of 1 and 3
    assert int(run(slots, limit, 0)[1].held) == held


def test_chunks_append_where_the_last_one_ended():
    slots = counting_slots()
    for limit in (1, 4, 2, 4):
        slots, seen = run(slots, limit, 0)
    assert seen.count.tolist() == [1, 3, 6] and not seen.going.any()
    np.testing.assert_array_equal(slots.answers.tokens, [
        [9, 0, 0, 0, 0, 0, 0, 0], [7, 8, 9, 0, 0, 0, 0, 0], [4, 5, 6, 7, 8, 9, 0, 0],
    ])  # fmt: skip


def test_the_cache_of_a_chunk_is_updated_in_place():
    config = dataclasses.replace(CONFIG, num_kv_heads=2)  # with one, the compiler for CPU turns the cache around
    model = make_model(config)
    params = model.prepare(init_params(config, jax.random.key(0)))
    slots = seated(model, params, random_prompts(4), columns=2000)
    step = functools.partial(advance, model, params, chunk=4)
    analysis = jax.jit(step, donate_argnums=0).lower(slots, 4, 0).compile().memory_analysis()
    cache = sum(part.nbytes for part in jax.tree.leaves((slots.cache.keys, slots.cache.values)))
    assert analysis.alias_size_in_bytes > cache
    assert analysis.temp_size_in_bytes < cache / 4


def test_words_that_were_drawn_are_penalised():
    slots = seated(COUNTING, {"peak": jnp.float32(8.0)}, prompt_batch([[3, 1, 2]] * 2, 3), temperature=0.0,
                   repetition_penalty=np.asarray([1.0, 20.0]))  # fmt: skip
    step = jax.jit(lambda slots: advance(COUNTING, {"peak": jnp.float32(8.0)}, slots, 8, 0, chunk=8))
    tokens = step(dataclasses.replace(slots))[0].answers.tokens
    assert tokens[0].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]  # 3 again, although the prompt has it
    assert tokens[1, 0] == 3  # 8 / 20 is still more than 0
