"""A published folder to a model that runs: policies, and reward or value models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxrlhf.models.config import ComputeConfig, ModelConfig
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.models.folder import find_folder, read_config
from jaxrlhf.models.weights import LoadReport, load_params
from jaxrlhf.sharding.rules import RULES, Rules, shardings_for
from jaxrlhf.types import Model, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model, its parameters and where they came from.

    Attributes:
        model: the three functions.
        params: float32.
        config: sizes and options, which export needs.
        report: what became of each tensor of the folder.
    """

    model: Model
    params: Params
    config: ModelConfig
    report: LoadReport


def load_policy(
    path: str | Path,
    *,
    compute: ComputeConfig | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    revision: str | None = None,
) -> Loaded:
    """Loads a language model.

    Args:
        path: a folder in Hugging Face format, or `owner/name` on the hub.
        compute: how to compute it; None means `ComputeConfig()`.
        mesh: where the parameters go; None means the default device.
        rules: how they are divided over the mesh.
        revision: commit, tag or branch on the hub.

    Returns:
        `Loaded`, whose head is the unembedding.

    Raises:
        ValueError: see `find_folder`, `read_config`, `load_params`; or if it is a reward model.
    """
    folder = find_folder(path, revision)
    config = read_config(folder)
    if config.scalar_head:
        raise ValueError(f"{folder} is a model with a score head (a reward model); a policy needs a language model")
    return _load(folder, config, compute, mesh, rules, new_score=False, key=None)


def load_scalar(
    path: str | Path,
    *,
    compute: ComputeConfig | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    revision: str | None = None,
    key: jax.Array | None = None,
) -> Loaded:
    """Loads a reward or value model, or makes one of a language model by a new score head; the report says which.

    Args:
        path: a folder in Hugging Face format, or `owner/name` on the hub.
        compute: how to compute it; None means `ComputeConfig()`.
        mesh: where the parameters go; None means the default device.
        rules: how they are divided over the mesh.
        revision: commit, tag or branch on the hub.
        key: for a new score head, which without it is zero; not used where the folder has one.

    Returns:
        `Loaded`, whose head is the score.

    Raises:
        ValueError: see `find_folder`, `read_config`, `load_params`.
    """
    folder = find_folder(path, revision)
    config = read_config(folder)
    scalar = dataclasses.replace(config, scalar_head=True)
    return _load(folder, scalar, compute, mesh, rules, new_score=not config.scalar_head, key=key)


def _load(
    folder: Path,
    config: ModelConfig,
    compute: ComputeConfig | None,
    mesh: Mesh | None,
    rules: Rules,
    *,
    new_score: bool,
    key: jax.Array | None,
) -> Loaded:
    shardings, kept = (None, []) if mesh is None else shardings_for(param_shapes(config), mesh, rules)
    params, report = load_params(folder, config, shardings=shardings, new_score=new_score, key=key)
    report = dataclasses.replace(report, kept_whole=tuple(kept))
    return Loaded(model=make_model(config, compute), params=params, config=config, report=report)
