import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.models.config import LayerKind
from jaxrlhf.models.rope_config import LinearScaling, Llama3Scaling
from jaxrlhf.models.rotary import rotary_angles, rotary_frequencies, rotate


def test_frequencies_fall_geometrically_from_one():
    np.testing.assert_allclose(rotary_frequencies(LayerKind(), 8), [1.0, 0.1, 0.01, 0.001], rtol=1e-6)


def test_linear_scaling_divides_all_frequencies():
    kind = LayerKind(rope_scaling=LinearScaling(factor=4.0))
    np.testing.assert_allclose(rotary_frequencies(kind, 8), [0.25, 0.025, 0.0025, 0.00025], rtol=1e-6)


def test_llama3_scaling_keeps_fast_divides_slow_and_blends_between():
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=128)
    # Turns within 128 positions: 20.4 (fast), 2.037 (between), 0.2 and 0.02 (slow).
    kept = (128 * 0.1 / (2 * np.pi) - 1.0) / 3.0
    expected = [1.0, 0.1 * (kept + (1 - kept) / 8), 0.01 / 8, 0.001 / 8]
    np.testing.assert_allclose(rotary_frequencies(LayerKind(rope_scaling=scaling), 8), expected, rtol=1e-6)


def test_pairs_are_halves_apart():
    x = jnp.asarray([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    turned = rotate(x, *rotary_angles(jnp.asarray([[3]]), LayerKind(), 4))  # frequencies 1 and 0.01
    np.testing.assert_allclose(turned.ravel(), [np.cos(3.0), 0.0, np.sin(3.0), 0.0], atol=1e-6)


def test_scores_depend_on_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 8))

    def score(query_position, key_position):
        turned = [
            rotate(x, *rotary_angles(jnp.asarray([[p]]), LayerKind(), 8))
            for x, p in [(query, query_position), (key, key_position)]
        ]
        return jnp.sum(turned[0] * turned[1])

    np.testing.assert_allclose(score(7, 3), score(27, 23), rtol=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_angles_are_float32_whatever_the_heads_are():
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 8))
    angles = rotary_angles(jnp.asarray([[1001]]), LayerKind(), 8)
    turned = rotate(x.astype(jnp.bfloat16), *angles)
    assert turned.dtype == jnp.bfloat16
    exact = rotate(x.astype(jnp.bfloat16).astype(jnp.float32), *angles)
    np.testing.assert_array_equal(turned, exact.astype(jnp.bfloat16))


def test_the_last_entries_of_a_head_stay_where_only_the_first_turn():
    x = jax.random.normal(jax.random.key(0), (1, 2, 1, 8))
    angles = rotary_angles(jnp.asarray([[5, 6]]), LayerKind(), 4)
    turned = rotate(x, *angles)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(turned[..., :4], rotate(x[..., :4], *angles))
