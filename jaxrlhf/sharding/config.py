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
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
