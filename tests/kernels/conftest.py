"""What the tests of the kernels share."""

import pytest

from jaxrlhf.kernels import tiles


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a small problem several tiles: the last of columns overlaps, the last of rows is not full."""
    monkeypatch.setitem(tiles.TILES, "cpu", tiles.TileSize(8, 384))
