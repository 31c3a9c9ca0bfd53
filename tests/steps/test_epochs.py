import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.steps.epochs import row_order


def test_every_epoch_visits_every_row_once():
    order = row_order(jax.random.key(0), rows=12, epochs=3, mini_batches=4)
    assert order.shape == (12, 3)
    epochs = order.reshape(3, 12)
    np.testing.assert_array_equal(jnp.sort(epochs, axis=1), np.tile(np.arange(12), (3, 1)))
    np.testing.assert_array_equal(order[:4], [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]])  # as it was sampled
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
