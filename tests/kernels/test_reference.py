import math

import jax.numpy as jnp
import numpy as np

from jaxrlhf.kernels.inputs import Given, Side
from jaxrlhf.kernels.reference import reference_logprobs
from jaxrlhf.types import Head


def test_two_words_at_half_temperature():
    # Logits (ln 2, 0) / 0.5 = (ln 4, 0): probabilities 4/5 and 1/5.
    hidden, head = jnp.ones((1, 1)), Head(weight=jnp.asarray([[math.log(2.0)], [0.0]]))
    given = Given(jnp.asarray([1]), None, jnp.asarray(0.5))
    out = reference_logprobs((Side(hidden, head),), given, frozenset({"logp", "lse", "entropy", "max_logit"}), 1)
    np.testing.assert_allclose(out.logp, [math.log(0.2)], rtol=1e-6)
    np.testing.assert_allclose(out.lse, [math.log(5.0)], rtol=1e-6)
    np.testing.assert_allclose(out.entropy, [-0.8 * math.log(0.8) - 0.2 * math.log(0.2)], rtol=1e-6)
    np.testing.assert_allclose(out.max_logit, [math.log(4.0)], rtol=1e-6)
