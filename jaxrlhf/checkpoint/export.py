"""Parameters to a folder that transformers, and whatever else reads its format, can load."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from jaxrlhf.models.config import DType, ModelConfig
from jaxrlhf.models.folder import FAMILIES
from jaxrlhf.models.tensors import Entry, flat_shapes, flatten, tensor_entries
from jaxrlhf.sharding.distributed import is_main
from jaxrlhf.sharding.place import to_host
from jaxrlhf.types import Params

if TYPE_CHECKING:  # slow to import, and needed for its name only
    from transformers import PreTrainedTokenizerBase

SHARD_BYTES = 5_000_000_000
"""The size above which weights are written as several files, as transformers does."""

_log = logging.getLogger(__name__)


def export_hf(
    folder: str | Path,
    params: Params,
    config: ModelConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    eos_token_ids: Sequence[int] | None = None,
    dtype: DType = "float32",
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Writes config, weights and tokenizer in Hugging Face format. The folder is absent or complete, never partial.

    All processes call it; each tensor is gathered by all of them, one at a time, and written by process 0.

    Args:
        folder: to create.
        params: of the model, layers stacked.
        config: the model; a scalar head makes it a sequence classifier with one label.
        tokenizer: written beside the weights; its special tokens go into the config.
        eos_token_ids: tokens that end a generation; None means the tokenizer's.
        dtype: of the written weights; "bfloat16" rounds.
        shard_bytes: size of a weight file, bytes; a larger tensor has its own file.
        overwrite: whether a folder that exists is removed first.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder exists and may not be removed, the parameters are not those of the config, or a
            weight is not finite.
    """
    folder = Path(folder)
    _make_way(folder, overwrite)
    _check_params(params, config)
    with _appear_whole(folder) as partial:
        _write_weights(partial, params, tensor_entries(config), np.dtype(dtype), shard_bytes)
        if is_main():
            _write_configs(partial, config, tokenizer, eos_token_ids, dtype)
            if tokenizer is not None:
                tokenizer.save_pretrained(str(partial))
    return folder


def plan_shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Divides tensors, in their order, over as few files as a limit allows.

    Args:
        sizes: name -> bytes.
        limit: bytes of a file; a larger tensor gets a file of its own.

    Returns:
        Names in each file.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _check_params(params: Params, config: ModelConfig) -> None:
    found = {path: leaf.shape for path, leaf in flatten(params).items()}
    expected = flat_shapes(config)
    wrong = sorted(path for path in found.keys() | expected if found.get(path) != expected.get(path))
    if wrong:
        lines = [f"{path}: shape {found.get(path)}, expected {expected.get(path)}" for path in wrong]
        raise ValueError("the parameters are not those of the config\n  " + "\n  ".join(lines))


def _make_way(folder: Path, overwrite: bool) -> None:
    """Process 0 looks for all: others may come when it has made the folder already."""
    taken = is_main() and folder.exists()
    if taken and overwrite:
        shutil.rmtree(folder)
        taken = False
    if jax.process_count() > 1:
        taken = bool(multihost_utils.broadcast_one_to_all(np.int32(taken)))
    if taken:
        raise ValueError(f"{folder} exists; export to a new folder, or remove it first")


@contextlib.contextmanager
def _appear_whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name once everything is in it and on the disk."""
    partial = folder.with_name(f".{folder.name}.partial")
    if is_main():
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
    try:
        yield partial
        if is_main():
            for file in partial.iterdir():
                _sync(file)
            partial.rename(folder)
    except BaseException:
        if is_main():
            shutil.rmtree(partial)
        raise
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"export {folder}")


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _write_weights(folder: Path, params: Params, entries: list[Entry], dtype: np.dtype, limit: int) -> None:
    flat = flatten(params)
    by_name = {entry.name: entry for entry in entries}
    shards = plan_shards({entry.name: int(np.prod(entry.shape)) * dtype.itemsize for entry in entries}, limit)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors: dict[str, np.ndarray] = {}
        for name in names:
            tensor = _published(flat[by_name[name].path], by_name[name], dtype)
            if is_main():
                tensors[name] = tensor
        if is_main():
            save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if is_main() and len(shards) > 1:
        total = sum(int(np.prod(entry.shape)) * dtype.itemsize for entry in entries)
        _write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _published(leaf: jax.Array, entry: Entry, dtype: np.dtype) -> np.ndarray:
    value = to_host(leaf if entry.layer is None else leaf[entry.layer])
    if not np.isfinite(value).all():
        raise ValueError(f"{entry.name} ({entry.path}) holds NaN or infinity; nothing was exported")
    return np.ascontiguousarray(value.T if entry.transpose else value).astype(dtype)


def _write_configs(
    folder: Path,
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    eos_token_ids: Sequence[int] | None,
    dtype: DType,
) -> None:
    tokens = _token_ids(config, tokenizer, eos_token_ids)
    raw = FAMILIES[config.model_type].write_config(config) | tokens | {"torch_dtype": dtype}
    _write_json(folder / "config.json", raw)
    if not config.scalar_head:
        _write_json(
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


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
