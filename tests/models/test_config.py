import dataclasses
import subprocess
import sys

import pytest

from jaxrlhf.models.config import ComputeConfig, LinearScaling, Llama3Scaling
from tests.models.tiny import TINY


def test_configs_are_read_without_jax():
    code = "import sys, jaxrlhf.models.config, jaxrlhf.sharding.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_size_that_is_not_positive_is_named_at_once():
    with pytest.raises(ValueError, match="vocab_size=0 must be positive; num_layers=-1 must be positive"):
        dataclasses.replace(TINY, vocab_size=0, num_layers=-1)


def test_key_value_heads_divide_the_query_heads():
    with pytest.raises(ValueError, match="num_kv_heads=3 does not divide num_heads=4"):
        dataclasses.replace(TINY, num_kv_heads=3)


def test_odd_heads_cannot_be_rotated():
    with pytest.raises(ValueError, match="head_dim=7 must be even"):
        dataclasses.replace(TINY, head_dim=7)


def test_scaling_needs_room_between_its_factors():
    with pytest.raises(ValueError, match="high_freq_factor=1.0 must be above low_freq_factor=1.0"):
        Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=64)


def test_scaling_only_stretches():
    with pytest.raises(ValueError, match="factor=0.5 must be at least 1"):
        LinearScaling(factor=0.5)
    with pytest.raises(ValueError, match="original_max_positions=0 must be positive; factor=0.0 must be at least 1"):
        Llama3Scaling(factor=0.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "dtype",
            "float16",
            "dtype='float16' is unknown; expected one of 'float32', 'bfloat16'; did you mean 'bfloat16'",
        ),
        ("remat", "some", "remat='some' is unknown; expected one of 'none', 'dots', 'full'"),
        ("scan_unroll", 0, "scan_unroll=0 must be positive"),
    ],
)
def test_compute_options_are_checked(field, value, message):
    with pytest.raises(ValueError, match=message):
        ComputeConfig(**{field: value})
