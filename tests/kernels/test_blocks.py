import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.kernels.blocks import Walk, block_length, block_logits, blocks_of, columns_of, first_of, fresh_of
from jaxrlhf.kernels.reference import logits_of
from jaxrlhf.types import Head

WALK = Walk(rows=10, vocab_size=8, block=4)  # blocks at 0, 4 and 6: columns 6 and 7 come twice, 8 and 9 are padding


@pytest.mark.parametrize(
    ("rows", "vocab", "length"),
    [
        (1, 300, 300),  # never more than the vocabulary
        (1, 100_000, 8192),  # MAX_BLOCK, though one row would fit whole
        (2048, 100_000, 4096),  # 32 MiB / (4 bytes * 2048 rows)
        (3000, 100_000, 2688),  # 2796 fit; 2688 = 21 * 128
        (10**6, 100_000, 512),  # MIN_BLOCK, over the budget
        (0, 100_000, 8192),
    ],
)
def test_block_length(rows: int, vocab: int, length: int):
    assert block_length(rows, vocab) == length


def test_every_column_of_the_vocabulary_is_fresh_once():
    fresh = []
    for block in blocks_of(WALK):
        first = first_of(block, WALK)
        fresh += columns_of(first, WALK)[fresh_of(first, block, WALK)].tolist()
    assert fresh == list(range(8))


def test_logits_of_the_blocks_are_the_logits():
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (2, 10))
    head = Head(weight=weight, bias=jnp.asarray(rng.normal(size=10), jnp.float32), softcap=2.0, scale=0.5)
    for block in blocks_of(WALK):
        first = int(first_of(block, WALK))
        z, slope = block_logits(hidden, head, jnp.asarray(0.5), jnp.asarray(first), WALK)
        expected = logits_of(hidden, head)[:, first : first + 4]
        np.testing.assert_allclose(z, expected / 0.5, rtol=1e-6)
        np.testing.assert_allclose(slope, 1 - (expected / 2.0) ** 2, rtol=1e-5)  # tanh' = 1 - tanh^2
