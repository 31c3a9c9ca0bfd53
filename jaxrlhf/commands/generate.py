"""`jaxrlhf generate`: answers to a file of prompts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import jax

from jaxrlhf.commands.answers import encode_prompts, sample_answers
from jaxrlhf.commands.config import GenerateConfig
from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.sharding.distributed import initialize, is_main
from jaxrlhf.sharding.mesh import check_batch, open_mesh
from jaxrlhf.trainers.start import load_start

log = logging.getLogger(__name__)


def run(config: GenerateConfig) -> None:
    """Writes one JSON line a prompt: its columns, and `completion`, or `completions` if several were asked for."""
    initialize()
    mesh = open_mesh(config.mesh)
    check_batch(mesh, "batch_size", config.batch_size)
    with jax.set_mesh(mesh):
        policy = load_start(config.model, mesh)
        source = DatasetConfig(path=config.dataset)
        prompts = encode_prompts([source], policy.tokenizer, config.data, mesh, batch_size=config.batch_size)
        sampling = config.sampling
        answered = sample_answers(
            policy,
            prompts,
            compute=config.compute,
            max_new_tokens=sampling.max_new_tokens,
            answers=config.answers,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
    if not is_main():
        return
    path = Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for prompt, columns, texts in zip(prompts.texts, prompts.columns, answered.completions, strict=True):
            answer = {"completion": texts[0]} if config.answers == 1 else {"completions": texts}
            file.write(json.dumps({**columns, "prompt": prompt, **answer}, ensure_ascii=False) + "\n")
    ended = float(answered.terminated.mean())
    log.info("wrote %d answers to %s; %.0f %% ended by themselves", answered.lengths.size, path, 100 * ended)
