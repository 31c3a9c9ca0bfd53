"""Numerical gradients for the loss tests."""

from collections.abc import Callable

import numpy as np
import pytest

Function = Callable[[np.ndarray], float]


@pytest.fixture
def central_differences() -> Callable[[Function, np.ndarray], np.ndarray]:
    """`central_differences(function, at)`: gradient of a float64 numpy function; its error is about 1e-9."""
    return _central_differences


def _central_differences(function: Function, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    at = np.asarray(at, np.float64)
    gradient = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        bump = np.zeros_like(at)
        bump[index] = step
        gradient[index] = (function(at + bump) - function(at - bump)) / (2 * step)
    return gradient
