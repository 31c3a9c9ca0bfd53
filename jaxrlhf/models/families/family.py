"""What a model family is: one table for its config, one for its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrlhf.models.config import ModelConfig


class Tensor(NamedTuple):
    """One row of a weight table.

    Attributes:
        name: published name; `{layer}` stands for the number of the block.
        path: of the parameter, or several where one published tensor holds them one after another along its outputs.
            Those with `{layer}` in the name are stacked on a leading axis.
        transpose: whether the published matrix is [out, in] and ours [in, out].
        by_head: whether several parameters alternate head by head: those of the first head, those of the second ...
    """

    name: str
    path: str | tuple[str, ...]
    transpose: bool = False
    by_head: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How published checkpoints of one `model_type` map to the decoder. The tables serve loading and export alike.

    Attributes:
        architecture: published name of the language model.
        scalar_architecture: published name of the model with one score a token.
        tensors: all weights, with every head; a model has those whose paths are among its parameters.
        ignored: regular expressions of published tensors that hold nothing that is learned.
        read_config: (contents of `config.json`, name of the file for messages) -> `ModelConfig`.
        write_config: `ModelConfig` -> contents of `config.json`, without token ids.
    """

    architecture: str
    scalar_architecture: str
    tensors: tuple[Tensor, ...]
    ignored: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any], str], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]
