"""Options of the device mesh."""

from __future__ import annotations

import dataclasses

from jaxrlhf.config_checks import check, positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are divided. The sizes multiply to the number of devices; one of them may be -1, the rest.

    Attributes:
        data: groups of devices that hold the same parameters and different rows.
        fsdp: devices that split rows and parameters; gathered when used.
        tensor: devices that split the width of each layer and the vocabulary; best kept within one machine.
        cpu_devices: into how many devices a machine without accelerators divides its cores. XLA leaves much of a small
            model on one core; with as many devices as cores, each works on its own rows. Positive; None leaves jax's
            default, 1.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    cpu_devices: int | None = None

    def __post_init__(self) -> None:
        """Checks the range; the other sizes are checked where the number of devices is known."""
        check(self, *positive(self, "cpu_devices"))
