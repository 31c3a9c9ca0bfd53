"""Options of the device mesh."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are divided. The sizes multiply to the number of devices; one of them may be -1, the rest.

    Attributes:
        data: groups of devices that hold the same parameters and different rows.
        fsdp: devices that split rows and parameters; gathered when used.
        tensor: devices that split the width of each layer and the vocabulary; best kept within one machine.
        cpu_devices: into how many devices a machine without accelerators divides its cores. XLA leaves much of a small
            model on one core; with as many devices as cores, each works on its own rows. None leaves jax's default, 1.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    cpu_devices: int | None = None

    def __post_init__(self) -> None:
        """Checks the range of what make_mesh cannot check.

        Raises:
            ValueError: if the number of CPU devices is not positive.
        """
        if self.cpu_devices is not None and self.cpu_devices < 1:
            raise ValueError(f"cpu_devices={self.cpu_devices} must be positive")
