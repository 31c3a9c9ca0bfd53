"""Adapters to a folder that PEFT, and whatever else reads its layout, can load.

PEFT knows one adapter over a whole model. So adapters that stand over others become one with these, A = [A1; A2] and
B = [s1 B1, s2 B2]. Where several of our matrices are published as one (the queries, keys and values of GPT-2), their
adapters become one of their ranks together, whose B is block-diagonal. In both cases the function is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrlhf.checkpoint.card import Card, render_card
from jaxrlhf.checkpoint.shards import open_shard
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


def export_adapter(
    folder: str | Path,
    adapters: Params,
    config: ModelConfig,
    lora: LoraConfig,
    *,
    base: str | None,
    earlier: Sequence[Params] = (),
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
        base: folder or hub id of the whole model under all adapters, by which others find it; None where it has none.
        earlier: adapters that these stand over, as `models.peft.read_adapters` gives them; they are written with these
            as one.
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
    tensors, options = to_peft(to_host(adapters), config, lora, earlier)
    bad = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{', '.join(bad)} hold NaN or infinity; nothing was exported")
    with appear_whole(folder) as partial:
        if is_main():
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            with open_shard(partial / WEIGHTS, shapes, np.dtype(np.float32)) as append:
                for tensor in tensors.values():
                    append(tensor)
            write_json(partial / ADAPTER, {"base_model_name_or_path": base, **options})
            if card is not None:
                (partial / "README.md").write_text(render_card(card, adapters=True), encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(str(partial))
    return folder


def to_peft(
    adapters: Params, config: ModelConfig, lora: LoraConfig, earlier: Sequence[Params] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Adapters under the names of PEFT, and what its config says of them.

    Args:
        adapters: nested dict of numpy arrays, as `lora.init_adapters` makes them, and `score/kernel` for a reward
            model.
        config: the model.
        lora: what the adapters were made by.
        earlier: see `export_adapter`; their score heads are not written.

    Returns:
        Contents of `adapter_model.safetensors`; and of `adapter_config.json`, without the base.
    """
    entries = tensor_entries(config)
    joint = _joint_adapters(entries, flatten(adapters), lora, [flatten(other) for other in earlier])
    chosen = [entry for entry in entries if entry.paths in joint]
    tensors: dict[str, np.ndarray] = {}
    for entry in chosen:
        a, b = _published(entry, joint[entry.paths])
        tensors[f"{PREFIX}{module_of(entry)}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module_of(entry)}.lora_B.weight"] = b
    if "score" in adapters:
        tensors[f"{PREFIX}score.weight"] = flatten(adapters)[SCORE]
    ranks = {module_of(entry): joint[entry.paths].rank for entry in chosen}
    # Scales of their own, which adapters over each other have, are in B.
    written = LoraConfig(rank=max(ranks.values()), alpha=max(ranks.values())) if earlier else lora
    names = _short_names(ranks, {module_of(entry) for entry in entries})
    others = {names[module]: rank for module, rank in ranks.items() if rank != written.rank}
    return tensors, {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if "score" in adapters else "CAUSAL_LM",
        "r": written.rank,
        "lora_alpha": _alpha(written, written.rank or 1),
        "use_rslora": written.rslora,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(set(names.values())),
        "rank_pattern": others,
        "alpha_pattern": {name: _alpha(written, rank) for name, rank in others.items()},
        "modules_to_save": ["score"] if "score" in adapters else None,
        "fan_in_fan_out": not any(entry.transpose for entry in chosen),
        "bias": "none",
        "inference_mode": True,
    }


class _Joint(NamedTuple):
    """One adapter of all layers for matrices that are published together: A [L, in, R], and of each a B [L, R, out]."""

    a: np.ndarray
    b: tuple[np.ndarray, ...]

    @property
    def rank(self) -> int:
        return self.a.shape[-1]


def _joint_adapters(
    entries: Iterable[Entry],
    flat: Mapping[str, np.ndarray],
    lora: LoraConfig,
    earlier: Sequence[Mapping[str, np.ndarray]],
) -> dict[tuple[str, ...], _Joint]:
    """Paths of what is published together -> its adapter, with earlier ones before it if there are any."""
    found = {}
    for paths, shapes in {entry.paths: entry.shapes for entry in entries}.items():
        widths = [shape[-1] for shape in shapes]
        parts = [_used(joint) for other in earlier if (joint := _joint(other, paths, widths, 1.0))]
        own = _joint(flat, paths, widths, lora.scale if earlier else 1.0)
        parts = [part for part in [*parts, own] if part is not None and part.rank]
        if parts:
            columns = zip(*(part.b for part in parts), strict=True)
            whole = tuple(np.concatenate(column, axis=1) for column in columns)
            found[paths] = _Joint(np.concatenate([part.a for part in parts], axis=2), whole)
    return found


def _joint(flat: Mapping[str, np.ndarray], paths: Sequence[str], widths: Sequence[int], scale: float) -> _Joint | None:
    """The adapters of matrices that are published together as one, or None if none of them has any."""
    own = [path for path in paths if beside(path, "lora_a") in flat]
    if not own:
        return None
    a = [flat[beside(path, "lora_a")] for path in own]
    shared = all(np.array_equal(a[0], other) for other in a[1:])  # read from one published adapter
    layers, _, rank = a[0].shape
    whole = a[0] if shared else np.concatenate(a, axis=2)
    blocks = []
    for path, width in zip(paths, widths, strict=True):
        block = np.zeros((layers, whole.shape[2], width), np.float32)
        if path in own:
            start = 0 if shared else own.index(path) * rank
            block[:, start : start + rank] = scale * flat[beside(path, "lora_b")]
        blocks.append(block)
    return _Joint(whole, tuple(blocks))


def _used(joint: _Joint) -> _Joint:
    """Without the ranks that add nothing, with which `read_adapter` fills up those of lower rank."""
    used = joint.a.any(axis=(0, 1)) & np.any([b.any(axis=(0, 2)) for b in joint.b], axis=0)
    return _Joint(joint.a[:, :, used], tuple(b[:, used] for b in joint.b))


def _published(entry: Entry, joint: _Joint) -> tuple[np.ndarray, np.ndarray]:
    """A [R, in] and B [out, R] of a module, as PEFT keeps them."""
    joined = entry.join([b[entry.layer] for b in joint.b])
    a = joint.a[entry.layer]
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
