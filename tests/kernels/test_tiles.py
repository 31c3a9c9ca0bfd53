import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.kernels import tiles as module
from jaxrlhf.kernels.tiles import (
    Tiles,
    TileSize,
    column_tiles,
    columns_of,
    into_places,
    out_of_places,
    over_rows,
    plan_rows,
    plan_tiles,
    put_tile,
    take_tile,
    tile_size,
)

TILES = Tiles(rows=2, row_tiles=3, columns=4, vocab=10, vocab_size=8)  # columns at 0, 4 and 6: 6 and 7 come twice


@pytest.mark.parametrize(
    ("rows", "vocab", "expected"),
    [
        (1, 300, (1, 1, 300)),  # never more than there is
        (64, 9000, (64, 1, 512)),
        (65, 9000, (40, 2, 512)),  # two of nearly equal height, a multiple of 8
        (1000, 512, (64, 16, 512)),
        (0, 5, (0, 1, 5)),
    ],
)
def test_plan_of_tiles(rows: int, vocab: int, expected: tuple[int, int, int]):
    assert plan_tiles(rows, vocab, vocab, TileSize(64, 512))[:3] == expected


def test_tiles_are_those_of_the_platform_that_is_compiled_for(monkeypatch: pytest.MonkeyPatch):
    assert tile_size() == module.TILES["cpu"]
    device = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        assert tile_size() == module.TILES["gpu"]


def test_every_word_is_fresh_once():
    fresh = []
    for tile in column_tiles(TILES):
        columns = columns_of(tile, TILES, offset=100)
        fresh += (columns.words[columns.fresh] - 100).tolist()
    assert fresh == []  # the part that begins with word 100 is all padding
    for tile in column_tiles(TILES):
        columns = columns_of(tile, TILES)
        fresh += columns.words[columns.fresh].tolist()
    assert fresh == list(range(8))


def test_kept_rows_come_first_and_the_others_are_not_visited():
    mask = jnp.asarray([False, True, False, True, True])
    rows = plan_rows(mask, 5, TILES)
    np.testing.assert_array_equal(rows.order, [1, 3, 4, 5, 5, 5])
    assert rows.tiles == 2
    visited = over_rows(
        lambda tile, seen: put_tile(seen, take_tile(seen, tile, TILES) + 1, tile, TILES), jnp.zeros(6), rows, TILES
    )
    np.testing.assert_array_equal(visited, [1, 1, 1, 1, 0, 0])


def test_no_row_kept_visits_nothing():
    for row_tiles, height in ((3, 2), (1, 6)):
        tiles = TILES._replace(row_tiles=row_tiles, rows=height)
        rows = plan_rows(jnp.zeros(6, bool), 6, tiles)
        assert over_rows(lambda tile, count: count + 1, jnp.asarray(0), rows, tiles) == 0


def test_rows_without_a_mask_stay_as_they_are():
    assert plan_rows(None, 6, TILES) == (None, 3)
    np.testing.assert_array_equal(plan_rows(None, 5, TILES).order, [0, 1, 2, 3, 4, 5])


def test_into_places_and_back():
    values = jnp.arange(1.0, 6.0)
    rows = plan_rows(jnp.asarray([False, True, False, True, True]), 5, TILES)
    placed = into_places(rows, values)
    np.testing.assert_array_equal(placed, [2, 4, 5, 0, 0, 0])
    np.testing.assert_array_equal(out_of_places(rows, placed, 5), [0, 2, 0, 4, 5])
    np.testing.assert_array_equal(take_tile(placed, 1, TILES), [5, 0])
