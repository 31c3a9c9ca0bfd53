"""Torch's contestants of the section `head`: cross-entropy of materialised logits, and Liger's fused one."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from benchmarks.device_check import on_torch
from benchmarks.device_check.contest import LeftOut, Runner

if TYPE_CHECKING:
    from benchmarks.device_check.head import Task


def runner(task: Task, implementation: str) -> Runner:
    """The mean negative log-likelihood of random targets, and for "fwd+bwd" its gradients.

    Args:
        task: shape and mode.
        implementation: "torch", "torch, float32 logits", "torch.compile" or "liger".

    Raises:
        LeftOut: if Liger is not installed.
    """
    tokens, width, vocab = task.shape
    backward = task.mode == "fwd+bwd"
    made: dict[str, Any] = {"device": on_torch.DEVICE, "dtype": torch.bfloat16}
    hidden = torch.randn(tokens, width, **made).requires_grad_(backward)
    weight = (torch.randn(vocab, width, **made) / width**0.5).requires_grad_(backward)
    targets = torch.randint(vocab, (tokens,), device=on_torch.DEVICE)
    loss_of = _losses(implementation)

    def start() -> Any:
        if not backward:
            with torch.no_grad():
                return loss_of(hidden, weight, targets)
        return torch.autograd.grad(loss_of(hidden, weight, targets), (hidden, weight))

    return on_torch.ready(start)


def _losses(implementation: str) -> Any:
    if implementation == "liger":
        if importlib.util.find_spec("liger_kernel") is None:
            raise LeftOut("liger-kernel is not installed")
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore[reportMissingImports]

        fused = LigerFusedLinearCrossEntropyLoss()
        return lambda hidden, weight, targets: fused(weight, hidden, targets)
    if implementation == "torch, float32 logits":  # as transformers computes them
        return lambda hidden, weight, targets: F.cross_entropy((hidden @ weight.T).float(), targets)
    return torch.compile(_cross_entropy) if implementation == "torch.compile" else _cross_entropy


def _cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(hidden @ weight.T, targets)
