"""Policies whose answers are known: after each word comes a certain other one."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.demo.tokenizer import EOS, build_tokenizer
from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.decoder import init_params
from jaxrlhf.trainers.start import Start


def chain(successors: Mapping[str, str], template: str | None = None) -> Start:
    """A policy that, drawn from greedily, follows a word by its successor, and by the end if it has none."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    size = len(tokenizer)
    config = ModelConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        max_positions=64,
    )
    # Blocks that add nothing leave the embedding of the last word, and the head reads which word that is.
    params = jax.tree.map(jnp.zeros_like, init_params(config, jax.random.key(0)))
    known = {tokenizer.convert_tokens_to_ids(a): tokenizer.convert_tokens_to_ids(b) for a, b in successors.items()}
    end = tokenizer.convert_tokens_to_ids(EOS)
    following = jnp.array([known.get(word, end) for word in range(size)])
    params["norm"]["scale"] = jnp.ones(size)
    params["embed_tokens"]["embedding"] = jnp.eye(size)
    params["lm_head"]["kernel"] = jax.nn.one_hot(following, size).T
    return Start(config=config, params=params, tokenizer=tokenizer)


def chain_folder(folder: Path, successors: Mapping[str, str], template: str | None = None) -> str:
    """The same as a folder."""
    start = chain(successors, template)
    return str(export_hf(folder, start.params, start.config, tokenizer=start.tokenizer))
