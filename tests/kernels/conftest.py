"""What the tests of the kernels share."""

import pytest

from jaxrlhf.kernels import blocks


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a small vocabulary several blocks, the last of which overlaps."""
    monkeypatch.setattr(blocks, "MIN_BLOCK", 384)
    monkeypatch.setattr(blocks, "MAX_BLOCK", 384)
