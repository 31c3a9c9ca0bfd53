"""`jaxrlhf export`: a checkpoint of a run as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.checkpoint.manifest import read_manifest
from jaxrlhf.checkpoint.state import Checkpoints
from jaxrlhf.commands.config import ExportConfig
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import with_template
from jaxrlhf.models.folder import find_folder, read_config
from jaxrlhf.trainers.start import resolve, stop_ids
from jaxrlhf.types import Params

log = logging.getLogger(__name__)


def run(config: ExportConfig) -> None:
    """Writes the parameters of a checkpoint, and the tokenizer with the chat template that the run trained with."""
    from transformers import AutoTokenizer

    folder = Path(config.run)
    if not (folder / "config.yaml").exists():
        raise ValueError(f"{folder} is not the folder of a run: it has no config.yaml")
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.latest() if config.step is None else config.step
    if step is None or step not in checkpoints.steps():
        raise ValueError(f"{folder} has no checkpoint {'' if step is None else step}; it has {checkpoints.steps()}")
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    base = find_folder(resolve(settings["model"]))
    params = read_params(folder / "checkpoints", step)
    model = dataclasses.replace(read_config(base), scalar_head="score" in params)
    tokenizer = with_template(AutoTokenizer.from_pretrained(base), DataConfig(**settings["data"]))
    stops = None if model.scalar_head else stop_ids(tokenizer, base)
    export_hf(config.out, params, model, tokenizer=tokenizer, eos_token_ids=stops, dtype=config.dtype)
    log.info("wrote step %d of %s to %s", step, folder, config.out)


def read_params(folder: Path, step: int) -> Params:
    """The parameters of the policy, or of the one model that a run trained, in host memory.

    Args:
        folder: of the run's checkpoints.
        step: one of them.
    """
    layouts = read_manifest(folder / str(step))["leaves"]
    like: dict[str, Any] = {}
    for name, (dtype, shape) in layouts.items():
        *path, last = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), path, like)[last] = np.zeros(shape, dtype)
    state = Checkpoints(folder).restore(step, like)
    return state["models"]["policy"]["params"] if "models" in state else state["params"]
