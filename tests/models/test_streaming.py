import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrlhf.models.quantized import quantize
from jaxrlhf.models.streaming import stream
from jaxrlhf.sharding.mesh import make_mesh

WHOLE = np.random.default_rng(0).normal(size=(3, 8, 16)).astype(np.float32)
SPECS = {
    "whole": PartitionSpec(),
    "inputs": PartitionSpec(None, "fsdp", None),
    "outputs": PartitionSpec(None, None, "tensor"),
    "both": PartitionSpec(None, "fsdp", "tensor"),
    "both on one axis": PartitionSpec(None, None, ("fsdp", "tensor")),
}


def as_it_is(values):
    return (values,)


def in_bfloat16(values):
    return (values.astype(jnp.bfloat16),)


class Reader:
    """Reads `WHOLE`, and remembers how much that was, the largest piece and which entries."""

    def __init__(self):
        self.read, self.largest, self.seen = 0, 0, np.zeros(WHOLE.shape, bool)

    def __call__(self, index):
        self.read += WHOLE[index].size
        self.largest = max(self.largest, WHOLE[index].size)
        self.seen[index] = True
        return WHOLE[index]


def sharding_of(name):
    return NamedSharding(make_mesh(2, 2, 2), SPECS[name])


@pytest.mark.parametrize("along", [(0, 1), (0, 2)])
@pytest.mark.parametrize("entries", [1, 20, 100, 384])
@pytest.mark.parametrize("name", [None, *SPECS])
def test_pieces_of_any_size_make_up_the_whole(name, entries, along):
    sharding = None if name is None else sharding_of(name)
    (found,) = stream(Reader(), WHOLE.shape, sharding, as_it_is, along, piece_bytes=4 * entries)
    np.testing.assert_array_equal(found, WHOLE)
    assert sharding is None or found.sharding == sharding


def test_pieces_are_as_small_as_asked_for_even_where_they_do_not_divide():
    reader = Reader()
    (found,) = stream(reader, WHOLE.shape, None, in_bfloat16, (0, 1), piece_bytes=4 * 48)
    assert reader.largest == 48  # 3 of 8 rows; the last piece overlaps the one before
    np.testing.assert_array_equal(found, WHOLE.astype(jnp.bfloat16))


def test_pieces_of_all_devices_together_keep_to_the_size():
    reader = Reader()
    stream(reader, WHOLE.shape, sharding_of("both"), as_it_is, (0, 2), piece_bytes=4 * 64)
    assert reader.largest == 16  # four parts


def test_columns_that_are_scaled_as_one_may_lie_on_several_devices():
    kernel, scale = quantize(WHOLE)
    for name in SPECS:
        for entries in (32, 1000):
            found = stream(Reader(), WHOLE.shape, sharding_of(name), quantize, (0, 2), piece_bytes=4 * entries)
            np.testing.assert_array_equal(found[0], kernel)
            np.testing.assert_array_equal(found[1], scale)
            assert found[0].sharding == sharding_of(name)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("entries", [16, 1000])
def test_devices_that_keep_the_same_share_one_reading_of_it(name, entries):
    reader = Reader()
    stream(reader, WHOLE.shape, sharding_of(name), as_it_is, (0, 2), piece_bytes=4 * entries)
    assert reader.read == WHOLE.size and reader.seen.all()
