"""`jaxrlhf export`: a checkpoint of a run as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.checkpoint.manifest import read_manifest
from jaxrlhf.checkpoint.peft import export_adapter
from jaxrlhf.checkpoint.state import Checkpoints
from jaxrlhf.commands.config import ExportConfig
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import with_template
from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.folder import lineage, read_config
from jaxrlhf.models.load import load_policy, load_scalar
from jaxrlhf.models.lora import merge
from jaxrlhf.models.lora_config import LoraConfig
from jaxrlhf.models.peft import read_adapters, whole_name
from jaxrlhf.ops.trees import overlay
from jaxrlhf.trainers.base import check_base, find_base
from jaxrlhf.trainers.card import recorded_card
from jaxrlhf.trainers.start import resolve, stop_ids, tokenizer_folder
from jaxrlhf.types import Params

log = logging.getLogger(__name__)


def run(config: ExportConfig) -> None:
    """Writes the parameters of a checkpoint, and the tokenizer with the chat template that the run trained with.

    Of a run with adapters it writes these alone, or merged into the base as it was published, whatever dtype the run
    kept it in.
    """
    from transformers import AutoTokenizer

    folder = Path(config.run)
    if not (folder / "config.yaml").exists():
        raise ValueError(f"{folder} is not the folder of a run: it has no config.yaml")
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.latest() if config.step is None else config.step
    if step is None or step not in checkpoints.steps():
        raise ValueError(f"{folder} has no checkpoint {'' if step is None else step}; it has {checkpoints.steps()}")
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    lora = _lora_of(settings)
    _check_merge(config, lora)
    record = checkpoints.record(step)
    card = recorded_card(record)
    base, name = _find_base(config, lora, record.get("base"), settings["model"])
    params = read_params(folder / "checkpoints", step)
    model = dataclasses.replace(read_config(base), scalar_head="score" in params)
    tokenizer = with_template(AutoTokenizer.from_pretrained(tokenizer_folder(base)), DataConfig(**settings["data"]))
    if lora.rank is not None and not config.merge:
        named, earlier = whole_name(base, name), read_adapters(base, model)
        export_adapter(config.out, params, model, lora, base=named, earlier=earlier, tokenizer=tokenizer, card=card)
    else:
        whole = params if lora.rank is None else _merged(base, params, model, lora)
        stops = None if model.scalar_head else stop_ids(tokenizer, lineage(base)[-1])
        export_hf(config.out, whole, model, tokenizer=tokenizer, eos_token_ids=stops, card=card, dtype=config.dtype)
    log.info("wrote step %d of %s to %s", step, folder, config.out)


def _find_base(
    config: ExportConfig, lora: LoraConfig, recorded: Mapping[str, str] | None, typed: str
) -> tuple[Path, str]:
    """The folder that tells of the model and its tokenizer, and that adapters stand over; and the name it is found by.

    A run that trained the whole model has told of it in its own export.

    Args:
        config: what is asked.
        lora: of the run.
        recorded: see `trainers.base.base_record`; None in a checkpoint of an earlier version.
        typed: name of the model in the config of the run.
    """
    run = Path(config.run)
    own = run / "export"
    if lora.rank is None and config.base is None and (own / "config.json").is_file():
        return own, str(own)
    name = config.base or (typed if recorded is None else recorded["name"])
    base = find_base(run, name)
    if lora.rank is not None:
        check_base(run, base, recorded)
    return base, resolve(name)


def _lora_of(settings: Mapping[str, Any]) -> LoraConfig:
    """The section `lora` of a run's config, which the config of an earlier version has not."""
    given = settings.get("lora")
    return LoraConfig() if given is None else LoraConfig(**{**given, "targets": tuple(given["targets"])})


def _check_merge(config: ExportConfig, lora: LoraConfig) -> None:
    if config.merge and lora.rank is None:
        raise ValueError(f"merge=true has no effect: {config.run} trained the whole model, without adapters")
    if config.dtype != "float32" and lora.rank is not None and not config.merge:
        raise ValueError(f"dtype={config.dtype} has no effect on adapters, which are float32; set merge=true too")


def _merged(base: Path, adapters: Params, model: ModelConfig, lora: LoraConfig) -> Params:
    loaded = (load_scalar if model.scalar_head else load_policy)(base)
    return merge(overlay(loaded.params, adapters), lora.scale)


def read_params(folder: Path, step: int) -> Params:
    """The parameters of the policy, or of the one model that a run trained, in host memory: all that it trained.

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
