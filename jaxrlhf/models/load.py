"""A published folder to a model that runs: policies, and reward or value models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrlhf.models.config import ComputeConfig, ModelConfig
from jaxrlhf.models.decoder import make_model
from jaxrlhf.models.folder import check_labels, find_folder, lineage, read_config
from jaxrlhf.models.kept import kept_shapes
from jaxrlhf.models.lora_config import BaseDType
from jaxrlhf.models.peft import adding, read_adapters
from jaxrlhf.models.published import published_tensors
from jaxrlhf.models.weights import LoadReport, load_params
from jaxrlhf.sharding.rules import RULES, Rules, shardings_for
from jaxrlhf.types import Model, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model, its parameters and where they came from.

    Attributes:
        model: the three functions.
        params: in the dtype that was asked for.
        config: sizes and options, which export needs.
        report: what became of each tensor of the folder.
        adapters: those that were added to it, the innermost first, as `peft.read_adapters` gives them.
    """

    model: Model
    params: Params
    config: ModelConfig
    report: LoadReport
    adapters: tuple[Params, ...] = ()


def load_policy(
    path: str | Path,
    *,
    compute: ComputeConfig | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    revision: str | None = None,
    dtype: BaseDType = "float32",
) -> Loaded:
    """Loads a language model.

    Args:
        path: a folder in Hugging Face format, or of an adapter in that of PEFT, or `owner/name` on the hub.
        compute: how to compute it; None means `ComputeConfig()`.
        mesh: where the parameters go; None means the default device.
        rules: how they are divided over the mesh.
        revision: commit, tag or branch on the hub.
        dtype: that the parameters are kept in; see `load_params`.

    Returns:
        `Loaded`, whose head is the unembedding.

    Raises:
        ValueError: see `find_folder`, `read_config`, `load_params`; or if it is a reward model.
    """
    folder = find_folder(path, revision)
    config = read_config(folder)
    if config.scalar_head:
        raise ValueError(f"{folder} is a model with a score head (a reward model); a policy needs a language model")
    return _load(folder, config, compute, mesh, rules, dtype=dtype, key=None)


def load_scalar(
    path: str | Path,
    *,
    compute: ComputeConfig | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    revision: str | None = None,
    dtype: BaseDType = "float32",
    key: jax.Array | None = None,
) -> Loaded:
    """Loads a reward or value model, or makes one of a language model by a new score head; the report says which.

    Args:
        path: a folder in Hugging Face format, or of an adapter in that of PEFT, or `owner/name` on the hub.
        compute: how to compute it; None means `ComputeConfig()`.
        mesh: where the parameters go; None means the default device.
        rules: how they are divided over the mesh.
        revision: commit, tag or branch on the hub.
        dtype: that the parameters are kept in; see `load_params`.
        key: for a new score head, which without it is zero; not used where the folder has one.

    Returns:
        `Loaded`, whose head is the score.

    Raises:
        ValueError: see `find_folder`, `read_config`, `load_params`.
    """
    folder = find_folder(path, revision)
    config = read_config(folder)
    scalar = dataclasses.replace(config, scalar_head=True)
    return _load(folder, scalar, compute, mesh, rules, dtype=dtype, key=key)


def _load(
    folder: Path,
    config: ModelConfig,
    compute: ComputeConfig | None,
    mesh: Mesh | None,
    rules: Rules,
    *,
    dtype: BaseDType,
    key: jax.Array | None,
) -> Loaded:
    *folders, base = lineage(folder)
    adapters = read_adapters(folder, config)
    has_score = read_config(base).scalar_head
    if has_score:
        _check_score(base)
    new_score = config.scalar_head and not has_score
    shardings, kept = (None, []) if mesh is None else shardings_for(kept_shapes(config, dtype), mesh, rules)
    edit = adding(adapters) if adapters else None
    params, report = load_params(
        base, config, shardings=shardings, dtype=dtype, edit=edit, new_score=new_score, key=key
    )
    heads = [adapter["score"] for adapter in adapters if "score" in adapter]
    if heads:
        params = {**params, "score": jax.tree.map(_in_place_of, params["score"], heads[-1])}
    initialised = () if heads else report.initialised
    report = dataclasses.replace(
        report, kept_whole=tuple(kept), initialised=initialised, adapters=tuple(reversed(folders))
    )
    model = make_model(config, compute)
    return Loaded(model=model, params=params, config=config, report=report, adapters=tuple(adapters))


def _check_score(folder: Path) -> None:
    """Counts the labels by the weights: a config that says nothing of them may be of two, the default there."""
    score = published_tensors(folder).get("score.weight")
    if score is not None:
        check_labels(score.shape[0], str(score.file))


def _in_place_of(old: jax.Array, new: np.ndarray) -> jax.Array:
    return jax.device_put(new.astype(old.dtype), old.sharding)
