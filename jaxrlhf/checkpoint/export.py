"""Parameters to a folder that transformers, and whatever else reads its format, can load."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxrlhf.checkpoint.card import Card, render_card
from jaxrlhf.checkpoint.shards import open_shard, plan_shards
from jaxrlhf.checkpoint.whole_folder import appear_whole, make_way, write_json
from jaxrlhf.models.config import ExportDType, ModelConfig
from jaxrlhf.models.folder import FAMILIES
from jaxrlhf.models.published import INDEX
from jaxrlhf.models.quantized import dequantize
from jaxrlhf.models.tensors import Entry, flat_shapes, flatten, tensor_entries
from jaxrlhf.sharding.distributed import is_main
from jaxrlhf.sharding.place import to_host
from jaxrlhf.types import Params

if TYPE_CHECKING:  # slow to import, and needed for its name only
    from transformers import PreTrainedTokenizerBase

SHARD_BYTES = 5_000_000_000
"""The size above which weights are written as several files, as transformers does."""

_SCALE = "_scale"  # what the path of a kernel in 8 bits is followed by in that of its scales

_log = logging.getLogger(__name__)


def export_hf(
    folder: str | Path,
    params: Params,
    config: ModelConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    eos_token_ids: Sequence[int] | None = None,
    card: Card | None = None,
    dtype: ExportDType = "float32",
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Writes config, weights and tokenizer in Hugging Face format. The folder is absent or complete, never partial.

    All processes call it; each tensor is gathered by all of them, one at a time, and written by process 0. The chat
    template is written with the tokenizer.

    Args:
        folder: to create.
        params: of the model, layers stacked, in any dtype that a base is kept in (`models.quantized`).
        config: the model; a scalar head makes it a sequence classifier with one label.
        tokenizer: written beside the weights; its special tokens go into the config.
        eos_token_ids: tokens that end a generation; None means the tokenizer's.
        card: what README.md says of the model; None writes none.
        dtype: of the written weights; "bfloat16" and "float16" round.
        shard_bytes: size of a weight file, bytes; a larger tensor has its own file.
        overwrite: whether a folder that exists is removed first.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder exists and may not be removed, the parameters are not those of the config or hold
            adapters, or a weight is not finite, or not in float16 where that is asked for.
    """
    folder = Path(folder)
    make_way(folder, overwrite)
    _check_params(params, config)
    with appear_whole(folder) as partial:
        _write_weights(partial, params, tensor_entries(config), np.dtype(dtype), shard_bytes)
        if is_main():
            _write_configs(partial, config, tokenizer, eos_token_ids, dtype)
            if card is not None:
                (partial / "README.md").write_text(render_card(card), encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(str(partial))
    return folder


def _check_params(params: Params, config: ModelConfig) -> None:
    flat = flatten(params)
    adapters = [path for path in flat if path.endswith(("lora_a", "lora_b"))]
    if adapters:
        raise ValueError(
            f"the parameters hold adapters ({adapters[0]} and {len(adapters) - 1} more), for which this format has no "
            "place; merge them into the matrices, or export them by themselves"
        )
    found = {path: leaf.shape for path, leaf in flat.items() if not path.endswith(_SCALE)}
    expected = flat_shapes(config)
    wrong = sorted(path for path in found.keys() | expected if found.get(path) != expected.get(path))
    if wrong:
        lines = [f"{path}: shape {found.get(path)}, expected {expected.get(path)}" for path in wrong]
        raise ValueError("the parameters are not those of the config\n  " + "\n  ".join(lines))


def _write_weights(folder: Path, params: Params, entries: list[Entry], dtype: np.dtype, limit: int) -> None:
    flat = flatten(params)
    by_name = {entry.name: entry for entry in entries}
    sizes = {entry.name: math.prod(entry.shape) * dtype.itemsize for entry in entries}
    shards = plan_shards(sizes, limit)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        shapes = {name: by_name[name].shape for name in names}
        with open_shard(folder / file, shapes, dtype) if is_main() else contextlib.nullcontext(_forget) as append:
            for name in names:
                append(_published(flat, by_name[name], dtype))
        weight_map |= dict.fromkeys(names, file)
    if is_main() and len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def _forget(tensor: np.ndarray) -> None:
    """What the other processes do with a tensor."""


def _published(flat: dict[str, jax.Array], entry: Entry, dtype: np.dtype) -> np.ndarray:
    parts = [_value(flat, path, entry.layer) for path in entry.paths]
    for path, part in zip(entry.paths, parts, strict=True):
        if not np.isfinite(part).all():
            raise ValueError(f"{entry.name} ({path}) holds NaN or infinity; nothing was exported")
    whole = entry.join(parts)
    with np.errstate(over="ignore"):  # it is an error of ours, with a name
        rounded = whole.astype(dtype, copy=False)
    if not np.isfinite(rounded).all():
        raise ValueError(
            f"{entry.name} ({', '.join(entry.paths)}) holds {np.abs(whole).max():.4g}, and {dtype.name} ends at "
            f"{float(np.finfo(dtype).max):.4g}; export as bfloat16 or float32. Nothing was exported"
        )
    return rounded


def _value(flat: dict[str, jax.Array], path: str, layer: int | None) -> np.ndarray:
    """A parameter, or that of one layer, on the host in float32."""
    kept = [flat[name] for name in (path, path + _SCALE) if name in flat]
    values = kept if layer is None else [_layer(leaf, layer) for leaf in kept]
    return to_host(values[0] if len(values) == 1 else dequantize(*values)).astype(np.float32, copy=False)


@jax.jit
def _layer(stacked: jax.Array, layer: int) -> jax.Array:
    """One layer; compiled once for all of them."""
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


def _write_configs(
    folder: Path,
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    eos_token_ids: Sequence[int] | None,
    dtype: ExportDType,
) -> None:
    tokens = _token_ids(config, tokenizer, eos_token_ids)
    raw = FAMILIES[config.model_type].write_config(config) | tokens | {"torch_dtype": dtype}
    write_json(folder / "config.json", raw)
    if not config.scalar_head:
        write_json(
            folder / "generation_config.json", {name: value for name, value in tokens.items() if value is not None}
        )


def _token_ids(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None, eos_token_ids: Sequence[int] | None
) -> dict[str, Any]:
    bos, eos, pad = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))
    ends = [eos] if eos_token_ids is None else list(eos_token_ids)
    if config.scalar_head and pad is not None and pad in ends:
        # transformers scores the last token that is not padding. With this id, that would be the one before the end.
        _log.warning("pad_token_id=%d also ends answers, so it is left out: transformers scores one row at a time", pad)
        pad = None
    return {"bos_token_id": bos, "eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": pad}
