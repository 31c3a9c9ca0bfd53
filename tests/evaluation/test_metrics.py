import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.evaluation.metrics import average
from jaxrlhf.ops.stats import Sum, max_of, mean_of, min_of


def measured(values: list[float], real: list[bool]):
    array, mask = jnp.asarray(values), jnp.asarray(real)
    return {
        "loss": mean_of(array, mask),
        "lowest": min_of(array, mask),
        "highest": max_of(array, mask),
        "count": Sum(jnp.sum(mask, dtype=jnp.float32)),
    }


def test_uneven_batches_weigh_by_what_they_count():
    batches = [([1.0, 2.0, 3.0], [True] * 3), ([10.0, 99.0, jnp.nan], [True, False, False])]
    found = average(measured(*batch) for batch in batches)
    # (1 + 2 + 3 + 10) / 4; the mean of the two means would be 6.
    assert found == {"loss": 4.0, "lowest": 1.0, "highest": 10.0, "count": 4.0}
    assert all(isinstance(value, float) for value in found.values())


def test_a_batch_of_padding_changes_nothing():
    one, padding = measured([1.0, 4.0], [True, True]), measured([7.0, 7.0], [False, False])
    assert average([one, padding]) == average([one])


def test_what_was_never_counted_is_nan():
    assert np.isnan(average([measured([7.0], [False])])["loss"])


def test_no_batches_are_an_error():
    with pytest.raises(ValueError, match="no batches"):
        average([])
