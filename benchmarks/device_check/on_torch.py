"""What contestants of torch share: the device, waiting for it, and its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.device_check.contest import Runner

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def ready(start: Callable[[], Any]) -> Runner:
    """A contestant of torch; its peak is that of the allocator from now on."""
    if DEVICE == "cpu":
        return Runner(start, lambda result: result)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return Runner(start, lambda result: torch.cuda.synchronize(), peak=torch.cuda.max_memory_allocated)


def device_name() -> str:
    """The device's name, as jax has it too."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
