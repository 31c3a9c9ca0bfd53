"""One part of a section, in this process.

python -m benchmarks.device_check.part PART --section SECTION --platform gpu --folder FOLDER --seconds S [--tiny]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.device_check.ceilings import Ceilings, read_ceilings
from benchmarks.device_check.clock import Clock
from benchmarks.device_check.shapes import FULL, TINY, Shapes
from benchmarks.device_check.sheet import Sheet


class Told(NamedTuple):
    """What a part is told."""

    section: str
    platform: str  # as jax calls it: "gpu", "tpu", or "cpu" if it is tiny
    folder: Path
    shapes: Shapes
    clock: Clock
    tiny: bool

    def sheet(self, device: str) -> Sheet:
        """Where its rows go."""
        return Sheet(self.folder / f"{self.section}.jsonl", self.section, device, self.clock)

    def ceilings(self, device: str) -> Ceilings | None:
        """What its fractions are of."""
        return read_ceilings(self.folder, device)


def _oracle(told: Told) -> None:
    from benchmarks.device_check import attention, correctness

    sheet = told.sheet(_jax_device(told))
    correctness.measure(sheet, told.shapes)
    attention.measure(sheet, told.shapes, told.platform)


def _suite(told: Told) -> None:
    from benchmarks.device_check import suite

    suite.measure(told.sheet(told.platform), told.shapes, told.platform)  # a TPU serves one process: not this one


def _peaks(told: Told) -> None:
    from benchmarks.device_check import peaks

    peaks.measure(told.sheet(_jax_device(told)), told.shapes)


def _head(told: Told) -> None:
    from benchmarks.device_check import head

    device = _jax_device(told)
    # Torch's compiler takes longer than all else that is tiny.
    peers = {"peers": told.platform != "tpu", "compile_torch": not told.tiny}
    head.measure(told.sheet(device), told.shapes, told.ceilings(device), **peers)


def _train(told: Told) -> None:
    from benchmarks.device_check import train

    device = _jax_device(told)
    train.measure(told.sheet(device), told.shapes, told.ceilings(device))


def _train_torch(told: Told) -> None:
    device = _torch_device(told)
    if device is not None:
        from benchmarks.device_check import train_torch

        train_torch.measure(told.sheet(device), told.shapes, told.ceilings(device))


def _generate(told: Told) -> None:
    from benchmarks.device_check import generate

    device = _jax_device(told)
    generate.measure(told.sheet(device), told.shapes, told.ceilings(device))


def _generate_torch(told: Told) -> None:
    device = _torch_device(told)
    if device is not None:
        from benchmarks.device_check import generate_torch

        generate_torch.measure(told.sheet(device), told.shapes, told.ceilings(device))


def _iteration(method: str) -> Callable[[Told], None]:
    def run(told: Told) -> None:
        from benchmarks.device_check import iterations

        iterations.measure(told.sheet(_jax_device(told)), told.shapes, method)

    return run


PARTS: dict[str, Callable[[Told], None]] = {
    "oracle": _oracle,
    "suite": _suite,
    "peaks": _peaks,
    "head": _head,
    "train": _train,
    "train_torch": _train_torch,
    "generate": _generate,
    "generate_torch": _generate_torch,
    **{method: _iteration(method) for method in ("dpo", "grpo", "ppo")},
}
"""Name -> what it does. Each imports what it needs itself: torch's parts never start jax on the device."""


def _jax_device(told: Told) -> str:
    """The device's name.

    Raises:
        RuntimeError: if jax does not see the platform.
    """
    import jax

    device = jax.devices()[0]
    if device.platform != told.platform:
        raise RuntimeError(f"jax sees {jax.devices()}, no {told.platform}; on a CPU use --tiny")
    return device.device_kind


def _torch_device(told: Told) -> str | None:
    """The device's name; None, written down, if torch or transformers are not installed.

    Raises:
        RuntimeError: if torch sees no GPU where there should be one.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        told.sheet(told.platform).add(name=told.section, skipped=f"not installed: {', '.join(missing)}")
        return None
    from benchmarks.device_check import on_torch

    if told.platform == "gpu" and on_torch.DEVICE != "cuda":
        raise RuntimeError("torch sees no GPU; on a CPU use --tiny")
    return on_torch.device_name()


def main(arguments: list[str]) -> None:
    """Runs the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--section", required=True, help="whose rows these are")
    parser.add_argument("--platform", required=True, choices=("gpu", "tpu"))
    parser.add_argument("--folder", required=True, type=Path, help="where SECTION.jsonl goes")
    parser.add_argument("--seconds", required=True, type=float, help="that rows may take")
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU")
    given = parser.parse_args(arguments)
    told = Told(
        section=given.section,
        platform="cpu" if given.tiny else given.platform,
        folder=given.folder,
        shapes=TINY if given.tiny else FULL,
        clock=Clock(given.seconds),
        tiny=given.tiny,
    )
    PARTS[given.part](told)


if __name__ == "__main__":
    main(sys.argv[1:])
