import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.columns import bucket, make_room
from jaxrlhf.generation.seating import no_slots
from jaxrlhf.generation.settings import SamplingSettings, per_row
from jaxrlhf.generation.slots import Requests
from jaxrlhf.models.decoder import make_model
from tests.players import CONFIG, POLICY, player_params


def test_sizes_are_few_and_at_most_half_as_much_again():
    sizes = [bucket(needed, 10_000) for needed in range(1, 1100)]
    assert sorted(set(sizes)) == [64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536]
    assert all(needed <= size for needed, size in enumerate(sizes, start=1))
    assert all(size <= 1.5 * needed for needed, size in enumerate(sizes, start=1) if needed > 64)


def test_no_size_is_more_than_enough():
    assert [bucket(needed, 150) for needed in (5, 64, 65, 129, 150)] == [64, 64, 96, 150, 150]
    assert bucket(3, 100, least=16) == 16 and bucket(3, 10, least=16) == 10


def slots_of(columns: int, index: int, start: list[int]):
    """Slots whose cache holds in each column its number."""
    requests = Requests(keys=jax.random.split(jax.random.key(0), 2), settings=per_row(SamplingSettings(), 2, 4))
    params = POLICY.prepare(player_params())
    empty, numbers = POLICY.init_cache(len(start), columns), np.arange(columns, dtype=np.float32)[:, None]
    numbered = jax.tree.map(lambda old: jnp.broadcast_to(numbers, old.shape), empty.keys)
    cache = dataclasses.replace(empty, keys=numbered, start=jnp.asarray(start), index=jnp.asarray(index))
    return dataclasses.replace(no_slots(POLICY, params, requests, slots=len(start), room=4), cache=cache)


def columns_of(slots) -> list[list[float]]:
    return [np.asarray(part[0, 0, :, 0]).tolist() for part in jax.tree.leaves(slots.cache.keys)]


@pytest.mark.parametrize("behind, size, columns", [
    (0, 8, [3, 4, 5, 6, 7, 0, 0, 0]),  # what is held begins at the left end
    (6, 12, [2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0]),  # a prompt of 6 columns has room before the index
])  # fmt: skip
def test_what_is_held_moves_to_the_left_and_has_room(monkeypatch, behind: int, size: int, columns: list[int]):
    monkeypatch.setattr("jaxrlhf.generation.columns._LEAST", 4)
    slots = slots_of(8, 8, [3, 6])
    before = jax.tree.leaves((slots.cache.keys, slots.cache.values))
    slots, index = make_room(slots, 8, held=5, behind=behind, ahead=3, most=20)
    assert index == int(slots.cache.index) == max(5, behind)
    assert (index - slots.cache.start).tolist() == [5, 2]  # tokens that are held
    assert slots.cache.columns == size and columns_of(slots) == [columns] * CONFIG.num_layers
    assert all(part.is_deleted() for part in before)


def test_more_room_behind_the_index_than_there_were_columns(monkeypatch):
    monkeypatch.setattr("jaxrlhf.generation.columns._LEAST", 4)
    slots, index = make_room(slots_of(4, 2, [1, 2]), 2, held=1, behind=7, ahead=2, most=9)
    assert index == 7 and columns_of(slots)[0] == [0, 0, 0, 0, 0, 0, 1, 2, 3]
    assert slots.cache.start.tolist() == [6, 7]


def test_a_stacked_cache_moves_as_well(monkeypatch):
    monkeypatch.setattr("jaxrlhf.models.decoding.target_platform", lambda: "tpu")
    monkeypatch.setattr("jaxrlhf.generation.columns._LEAST", 4)
    assert not isinstance(make_model(CONFIG).init_cache(1, 2).keys, tuple)
    slots = slots_of(6, 6, [2, 5])
    slots, index = make_room(slots, 6, held=1, behind=0, ahead=3, most=20)
    assert index == 1 and slots.cache.keys[1, 1, 0, :, 0].tolist() == [5, 0, 0, 0]
