"""Adapters to a folder that PEFT, and whatever else reads its layout, can load.

Where several of our matrices are published as one (the queries, keys and values of GPT-2), their adapters become one of
their ranks together, whose B is block-diagonal: the function is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from jaxrlhf.checkpoint.card import Card, render_card
from jaxrlhf.checkpoint.whole_folder import appear_whole, make_way, write_json
from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.folder import ADAPTER
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.models.peft import PREFIX, SCORE, WEIGHTS, beside, module_of
from jaxrlhf.models.tensors import Entry, flatten, tensor_entries
from jaxrlhf.sharding.distributed import is_main
from jaxrlhf.sharding.place import to_host
from jaxrlhf.types import Params

if TYPE_CHECKING:  # slow to import, and needed for its name only
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


def export_adapter(
    folder: str | Path,
    adapters: Params,
    config: ModelConfig,
    lora: LoraConfig,
    *,
    base: str | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: Card | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes adapters, and a tokenizer, in the layout of PEFT. The folder is absent or complete, never partial.

    All processes call it; process 0 writes.

    Args:
        folder: to create.
        adapters: as `lora.init_adapters` makes them, and `score/kernel` for a reward model.
        config: the model that they stand beside.
        lora: what they were made by.
        base: folder or hub id of that model, by which others find it; None where it has none.
        tokenizer: written beside them.
        card: what README.md says of the model; None writes none.
        overwrite: whether a folder that exists is removed first.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder exists and may not be removed, or a weight is not finite.
    """
    folder = Path(folder)
    make_way(folder, overwrite)
    tensors, options = to_peft(to_host(adapters), config, lora)
    bad = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{', '.join(bad)} hold NaN or infinity; nothing was exported")
    if base is not None and (Path(base) / ADAPTER).is_file():
        _log.warning(
            "%s stands over other adapters, in %s; PEFT loads adapters over a whole model alone: for it, export this "
            "run with merge=true",
            folder,
            base,
        )
    with appear_whole(folder) as partial:
        if is_main():
            save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
            write_json(partial / ADAPTER, {"base_model_name_or_path": base, **options})
            if card is not None:
                (partial / "README.md").write_text(render_card(card, adapters=True), encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(str(partial))
    return folder


def to_peft(adapters: Params, config: ModelConfig, lora: LoraConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Adapters under the names of PEFT, and what its config says of them.

    Args:
        adapters: nested dict of numpy arrays, as `lora.init_adapters` makes them, and `score/kernel` for a reward
            model.
        config: the model.
        lora: what the adapters were made by.

    Returns:
        Contents of `adapter_model.safetensors`; and of `adapter_config.json`, without the base.
    """
    flat, entries = flatten(adapters), tensor_entries(config)
    chosen = [entry for entry in entries if any(beside(path, "lora_a") in flat for path in entry.paths)]
    tensors: dict[str, np.ndarray] = {}
    for entry in chosen:
        a, b = _published(entry, flat)
        tensors[f"{PREFIX}{module_of(entry)}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module_of(entry)}.lora_B.weight"] = b
    if SCORE in flat:
        tensors[f"{PREFIX}score.weight"] = flat[SCORE]
    ranks = {module_of(entry): tensors[f"{PREFIX}{module_of(entry)}.lora_A.weight"].shape[0] for entry in chosen}
    names = _short_names(ranks, {module_of(entry) for entry in entries})
    others = {names[module]: rank for module, rank in ranks.items() if rank != lora.rank}
    return tensors, {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if SCORE in flat else "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": _alpha(lora, lora.rank or 1),
        "use_rslora": lora.rslora,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(set(names.values())),
        "rank_pattern": others,
        "alpha_pattern": {name: _alpha(lora, rank) for name, rank in others.items()},
        "modules_to_save": ["score"] if SCORE in flat else None,
        "fan_in_fan_out": not any(entry.transpose for entry in chosen),
        "bias": "none",
        "inference_mode": True,
    }


def _published(entry: Entry, flat: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A [R, in] and B [out, R] of a module: those of its matrices, R being their ranks together."""
    own = [path for path in entry.paths if beside(path, "lora_a") in flat]
    a = np.concatenate([flat[beside(path, "lora_a")][entry.layer] for path in own], axis=1)
    rank, blocks = a.shape[1] // len(own), []
    for path, shape in zip(entry.paths, entry.shapes, strict=True):
        block = np.zeros((a.shape[1], shape[-1]), np.float32)
        if path in own:
            start = own.index(path) * rank
            block[start : start + rank] = flat[beside(path, "lora_b")][entry.layer]
        blocks.append(block)
    joined = entry.join(blocks)
    return np.ascontiguousarray(a.T), np.ascontiguousarray(joined if entry.transpose else joined.T)


def _short_names(ranks: Mapping[str, int], modules: Iterable[str]) -> dict[str, str]:
    """Module -> the shortest end of its name that no module has which is another or has another rank.

    PEFT finds modules by the ends of their names: `q_proj`, but `attn.c_proj` where there is an `mlp.c_proj` too.
    """

    def shortest(module: str, rank: int) -> str:
        parts = module.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        return next(end for end in ends if all(ranks.get(m) == rank for m in modules if f".{m}".endswith(f".{end}")))

    return {module: shortest(module, rank) for module, rank in ranks.items()}


def _alpha(lora: LoraConfig, rank: int) -> float:
    alpha = lora.scale * (rank**0.5 if lora.rslora else rank)
    return int(alpha) if alpha == int(alpha) else alpha
