"""Adapters as the package PEFT keeps them: adapter_config.json, and two matrices a module in a safetensors file.

Where one published module holds several of our matrices (the queries, keys and values of GPT-2), its A stands beside
each of them and its B is divided. `checkpoint/peft.py` is the other direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from jaxrlhf.config_checks import is_pattern
from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.folder import ADAPTER, FAMILIES, is_reward_adapter, lineage, read_json
from jaxrlhf.models.tensors import Entry, Index, flatten, tensor_entries
from jaxrlhf.models.weights import Edit
from jaxrlhf.types import Params

WEIGHTS = "adapter_model.safetensors"
"""The file that holds an adapter's matrices, beside `folder.ADAPTER`."""

PREFIX = "base_model.model."
"""What stands before published names in it."""

SCORE = "score/kernel"
"""Path of the score head."""

_DTYPES = ("F32", "BF16", "F16")
_SHOWN = 5  # names of each kind in an error

# Keys that do not change what the tensors mean. All others are of options, which are refused unless they are off.
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_ONLY = {
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),  # others change the base
}
"""Keys with more than on and off, and the values that are supported."""

_ADVICE = "merge it with PEFT (merge_and_unload), and give the whole model"


def read_adapter(folder: Path, config: ModelConfig) -> Params:
    """Reads an adapter, whose scale goes into B: what it adds to a matrix is A B.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        config: the model that it stands beside; with a scalar head the adapter may bring one.

    Returns:
        Nested dict of float32 numpy arrays, as `lora.init_adapters` names them, and `score/kernel` if it is there. All
        have the largest rank that a module has; where it is smaller, or a layer has none, the rest is 0.

    Raises:
        ValueError: naming options that are not supported, or tensors that do not fit the model.
    """
    options = read_json(folder / ADAPTER)
    _check_options(folder / ADAPTER, options)
    tensors = _read_tensors(folder / WEIGHTS)
    entries = {module_of(entry): entry for entry in tensor_entries(config) if _has_adapters(entry)}
    score = tensors.pop("score.weight", None) if config.scalar_head else None
    if score is None and is_reward_adapter(folder):
        raise ValueError(f"{folder / WEIGHTS} is of a reward model, and has no score.weight")
    _refuse_outside(folder / WEIGHTS, tensors, config)
    pairs = _pairs(folder / WEIGHTS, tensors, entries)
    _check_layers(folder / WEIGHTS, pairs, entries, options)
    flat = _zeros(config, pairs, entries)
    for module, (a, b) in pairs.items():
        entry, rank = entries[module], a.shape[0]
        b = b * _scale(options, module, rank)
        for path, shape in zip(entry.paths, entry.shapes, strict=True):
            runs = entry.runs(path, slice(0, shape[-1]))
            flat[beside(path, "lora_a")][entry.layer, :, :rank] = a.T
            flat[beside(path, "lora_b")][entry.layer, :rank] = np.concatenate([b[run] for run in runs]).T
    if score is not None:
        flat[SCORE] = score
    return traverse_util.unflatten_dict(flat, sep="/")


def read_adapters(folder: Path, config: ModelConfig) -> list[Params]:
    """Reads all adapters that a model is made of, the innermost first; none if it is a whole one.

    Args:
        folder: of the model.
        config: see `read_adapter`.

    Raises:
        ValueError: see `folder.lineage` and `read_adapter`.
    """
    *folders, _ = lineage(folder)
    return [read_adapter(adapter, config) for adapter in reversed(folders)]


def whole_name(folder: Path, name: str) -> str:
    """The name of the model under all adapters: a hub id as it is, a folder from the root.

    Args:
        folder: of a model, or of an adapter.
        name: by which it was found.
    """
    *adapters, _ = lineage(folder)
    named = read_json(adapters[-1] / ADAPTER)["base_model_name_or_path"] if adapters else name
    return str(Path(named).resolve()) if Path(named).is_dir() else named


def adding(adapters: Sequence[Params]) -> Edit:
    """An edit for `weights.load_params` that adds adapters, as `read_adapter` gives them, to their matrices."""
    flats = [flatten(adapter) for adapter in adapters]

    def edit(path: str, layer: int | None, index: Index, values: np.ndarray) -> np.ndarray:
        a, b = beside(path, "lora_a"), beside(path, "lora_b")
        for flat in flats:
            if path.endswith("/kernel") and a in flat:
                values = values + flat[a][layer][index[0]] @ flat[b][layer][:, index[1]]
        return values

    return edit


def module_of(entry: Entry) -> str:
    """The published name of the module that a tensor is in."""
    return entry.name.rpartition(".")[0]


def beside(path: str, name: str) -> str:
    """The path of what stands beside a parameter under another name."""
    return f"{path.rpartition('/')[0]}/{name}"


def _scale(options: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor of what a module's adapter adds; keys of `alpha_pattern` are expressions for ends of names."""
    patterns = options.get("alpha_pattern") or {}
    own = [value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    alpha = own[0] if own else options.get("lora_alpha", 8)
    return alpha / (rank**0.5 if options.get("use_rslora") else rank)


def _check_options(file: Path, options: Mapping[str, Any]) -> None:
    kind = options.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"{file}: peft_type={kind!r}, where only 'LORA' is supported; {_ADVICE}")
    if wrong := _bad_alphas(options):
        raise ValueError(f"{file}: {'; '.join(wrong)}")
    problems = [
        f"{key}={options[key]!r}, where only {', '.join(map(repr, only))} is supported"
        for key, only in _ONLY.items()
        if key in options and options[key] not in only
    ]
    extra = set(options.get("modules_to_save") or ()) - {"score", "classifier"}
    if extra:
        problems.append(f"modules_to_save has {', '.join(sorted(extra))}, where only score is supported")
    known = _HARMLESS | _ONLY.keys() | {"modules_to_save", "peft_type"}
    problems += [f"{key}={value!r} is not supported" for key, value in options.items() if key not in known and value]
    if problems:
        raise ValueError(f"{file}: {'; '.join(problems)}; {_ADVICE}")


def _bad_alphas(options: Mapping[str, Any]) -> list[str]:
    patterns = options.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(is_pattern, patterns)):
        return [f"alpha_pattern={patterns!r}, where an object from regular expressions to numbers is expected"]
    numbers = {"lora_alpha": options.get("lora_alpha", 8), **patterns}
    return [f"{key}={value!r} is no number" for key, value in numbers.items() if not isinstance(value, int | float)]


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Name without the prefix -> float32 array."""
    try:
        with safe_open(file, framework="numpy") as opened:
            wrong = [name for name in opened.keys() if opened.get_slice(name).get_dtype() not in _DTYPES]  # noqa: SIM118
            if wrong:
                raise ValueError(f"{file}: {_some(wrong)} are of a dtype other than {', '.join(_DTYPES)}")
            return {
                name.removeprefix(PREFIX): opened.get_tensor(name).astype(np.float32)
                for name in opened.keys()  # noqa: SIM118
            }
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error})") from error


def _refuse_outside(file: Path, tensors: Iterable[str], config: ModelConfig) -> None:
    """Refuses adapters, and weights, of what is not in a block: embeddings, a head, the last norm."""
    modules = [row.name.rpartition(".")[0] for row in FAMILIES[config.model_type].tensors if "{layer}" not in row.name]
    found = [module for module in modules if any(name.startswith(f"{module}.") for name in tensors)]
    if found:
        raise ValueError(f"{file}: adapters of {', '.join(found)} are not supported; {_ADVICE}")


def _pairs(
    file: Path, tensors: Mapping[str, np.ndarray], entries: Mapping[str, Entry]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Module -> its A [r, in] and B [out, r], once all tensors are known to be such."""
    names = {f"{module}.lora_{side}.weight": module for module in entries for side in "AB"}
    problems = {"unexpected": [name for name in tensors if name not in names]}
    modules = list(dict.fromkeys(names[name] for name in tensors if name in names))
    keys = {module: (f"{module}.lora_A.weight", f"{module}.lora_B.weight") for module in modules}
    problems["missing"] = [name for both in keys.values() for name in both if name not in tensors]
    pairs = {module: (tensors[a], tensors[b]) for module, (a, b) in keys.items() if a in tensors and b in tensors}
    problems["of another shape than the model's"] = [
        f"{module} with {a.shape} and {b.shape}" for module, (a, b) in pairs.items() if not _fits(entries[module], a, b)
    ]
    lines = [f"{len(found)} {kind}: {_some(found)}" for kind, found in problems.items() if found]
    if lines:
        raise ValueError(f"{file}: the tensors do not fit the base\n  " + "\n  ".join(lines))
    return pairs


def _fits(entry: Entry, a: np.ndarray, b: np.ndarray) -> bool:
    outputs, inputs = entry.shape if entry.transpose else entry.shape[::-1]
    return a.ndim == b.ndim == 2 and a.shape[1] == inputs and b.shape[0] == outputs and a.shape[0] == b.shape[1]


def _check_layers(
    file: Path, pairs: Mapping[str, Any], entries: Mapping[str, Entry], options: Mapping[str, Any]
) -> None:
    """Refuses a file whose adapters stop half way, unless the config says that only some layers have any."""
    if options.get("layers_to_transform") is not None:
        return
    kinds = {entry.paths for module, entry in entries.items() if module in pairs}
    absent = [module for module, entry in entries.items() if entry.paths in kinds and module not in pairs]
    if absent:
        raise ValueError(f"{file}: other layers have adapters, and none has {_some(absent)}; is the file whole?")


def _zeros(
    config: ModelConfig, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], entries: Mapping[str, Entry]
) -> dict[str, np.ndarray]:
    rank = max((a.shape[0] for a, _ in pairs.values()), default=0)
    flat: dict[str, np.ndarray] = {}
    for module in pairs:
        for path, (inputs, outputs) in zip(entries[module].paths, entries[module].shapes, strict=True):
            flat[beside(path, "lora_a")] = np.zeros((config.num_layers, inputs, rank), np.float32)
            flat[beside(path, "lora_b")] = np.zeros((config.num_layers, rank, outputs), np.float32)
    return flat


def _has_adapters(entry: Entry) -> bool:
    return entry.layer is not None and entry.paths[0].endswith("/kernel")


def _some(found: list[str]) -> str:
    rest = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + rest
