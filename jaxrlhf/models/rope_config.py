"""How rotary frequencies were stretched to a longer context: plain data, readable without jax."""

from __future__ import annotations

import dataclasses

from jaxrlhf.config_checks import check, positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Rotary angles divided by `factor`: positions are interpolated.

    Attributes:
        factor: how many times longer the context became, at least 1.
    """

    factor: float

    def __post_init__(self) -> None:
        """Checks the range."""
        check(self, (self.factor >= 1, f"factor={self.factor} must be at least 1"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Rotary frequencies of Llama 3.1: slow ones are divided by `factor`, fast ones kept, those between are blended.

    Attributes:
        factor: how many times longer the context became, at least 1.
        low_freq_factor: wavelengths above `original_max_positions / low_freq_factor` are slow; positive.
        high_freq_factor: wavelengths below `original_max_positions / high_freq_factor` are fast; above the low factor.
        original_max_positions: context length of the model before it was stretched, positive.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        """Checks ranges, and that the factors leave something to blend between."""
        check(
            self,
            *positive(self, "low_freq_factor", "original_max_positions"),
            (self.factor >= 1, f"factor={self.factor} must be at least 1"),
            (
                self.high_freq_factor > self.low_freq_factor,
                f"high_freq_factor={self.high_freq_factor} must be above low_freq_factor={self.low_freq_factor}",
            ),
        )
