import pytest

from jaxrlhf.models.rope_config import LinearScaling, Llama3Scaling


def test_scaling_needs_room_between_its_factors():
    with pytest.raises(ValueError, match="high_freq_factor=1.0 must be above low_freq_factor=1.0"):
        Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=64)


def test_scaling_only_stretches():
    with pytest.raises(ValueError, match="factor=0.5 must be at least 1"):
        LinearScaling(factor=0.5)
    with pytest.raises(ValueError, match="original_max_positions=0 must be positive; factor=0.0 must be at least 1"):
        Llama3Scaling(factor=0.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=0)
