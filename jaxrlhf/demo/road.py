"""The stages of the demo, each a call of a trainer on rows in memory: pretraining to PPO and DPO."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrlhf.commands.config import SamplingConfig
from jaxrlhf.commands.sampled import Answered, Prompts, encode_prompts, sample_answers
from jaxrlhf.data.config import DataConfig
from jaxrlhf.demo.config import DemoConfig
from jaxrlhf.demo.gold import gold_score, rank_with_noise
from jaxrlhf.demo.language import make_prompts
from jaxrlhf.demo.texts import make_demonstrations, make_pretraining_text
from jaxrlhf.demo.tokenizer import build_tokenizer
from jaxrlhf.models.config import ComputeConfig, ModelConfig
from jaxrlhf.models.decoder import init_params
from jaxrlhf.optim import decays
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.trainers import dpo, ppo, reward, sft
from jaxrlhf.trainers.config import DPOConfig, OptimConfig, RewardConfig, SFTConfig
from jaxrlhf.trainers.ppo_config import PPOConfig, PPOOptions
from jaxrlhf.trainers.rollout_config import RolloutConfig
from jaxrlhf.trainers.run import Trained
from jaxrlhf.trainers.start import Start

MAX_NEW_TOKENS = 24
"""Tokens of the longest answer: 23 words, the most that a demonstration has, and the end-of-sequence token."""

MAX_LENGTH = 36
"""Tokens of the longest prompt with its answer: the start token, 11 words, and the answer."""

INITIAL_SCALE = 5.0
"""Factor of fresh matrices: the usual deviation of 0.02 suits widths in the thousands, 0.1 a width of a hundred.

From 0.02 attention starts flat, and many hundred steps pass before the model looks anything up in the prompt.
"""

Row = dict[str, Any]


def fresh_model(config: DemoConfig) -> Start:
    """A tiny Llama with random parameters."""
    tokenizer = build_tokenizer()
    width = config.sizes.hidden_size
    model = ModelConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_layers=config.sizes.layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=width // 4,
        max_positions=64,
        tie_embeddings=True,
    )
    params = init_params(model, jax.random.key(config.seed))
    params = jax.tree.map(lambda leaf, matrix: INITIAL_SCALE * leaf if matrix else leaf, params, decays(params))
    return Start(config=model, params=params, tokenizer=tokenizer)


def seed_of(config: DemoConfig, use: int) -> int:
    """A seed for each use of random numbers, from 0 to 9, that no other use and no other demo has."""
    return 10 * config.seed + use


def compute(model: Start) -> ComputeConfig:
    """All layers in a row and not in a loop: faster, and soon compiled where there are few."""
    return ComputeConfig(scan_unroll=model.config.num_layers)


def pretrain(config: DemoConfig) -> Trained:
    """Teaches the language to a fresh model, on plain text."""
    model = fresh_model(config)
    return sft.run(
        SFTConfig(
            out=_folder(config, "pretrain"),
            batch_size=32,
            steps=config.sizes.pretraining_steps,
            seed=config.seed,
            log_every=50,
            data=DataConfig(max_length=48, packing=True),
            optim=OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20),
            compute=compute(model),
        ),
        model=model,
        dataset=make_pretraining_text(seed_of(config, 0), 16000),
    )


def fine_tune(config: DemoConfig, base: Start) -> Trained:
    """Teaches the model to answer, on demonstrations of mixed quality."""
    return sft.run(
        SFTConfig(
            out=_folder(config, "sft"),
            batch_size=64,
            steps=config.sizes.sft_steps,
            seed=config.seed,
            log_every=10,
            data=DataConfig(max_length=MAX_LENGTH),
            optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=10),
            compute=compute(base),
        ),
        model=base,
        dataset=make_demonstrations(seed_of(config, 1), 6400),
        eval_dataset=make_demonstrations(seed_of(config, 2), 256),
    )


def rank(config: DemoConfig, policy: Start, prompts: list[str], seed: int) -> list[Row]:
    """Samples answers to each prompt, and lets the gold function rank 4 to 7 of them with label noise.

    Empty answers and doubles are left out, and so is a prompt that fewer than four answers remain to.
    """
    answered = sample(policy, prompts, answers=7, seed=seed)
    rng = np.random.default_rng(seed)
    rows = []
    for prompt, completions in zip(prompts, answered.completions, strict=True):
        kept = list(dict.fromkeys(text for text in completions if text))[: int(rng.integers(4, 8))]
        if len(kept) < 4:
            continue
        ranks = rank_with_noise([gold_score(prompt, text) for text in kept], rng)
        rows.append({"prompt": prompt, "completions": kept, "ranks": ranks})
    return rows


def train_reward(config: DemoConfig, base: Start, rows: list[Row], held_out: list[Row]) -> Trained:
    """Trains the K-wise reward model on the rankings."""
    return reward.run(
        RewardConfig(
            out=_folder(config, "reward"),
            batch_size=8,
            steps=config.sizes.reward_steps,
            seed=config.seed,
            log_every=50,
            data=DataConfig(max_length=MAX_LENGTH),
            optim=OptimConfig(learning_rate=7e-4, schedule="cosine", warmup_steps=20, weight_decay=0.01),
            compute=compute(base),
        ),
        model=base,
        dataset=rows,
        eval_dataset=held_out,
    )


def train_ppo(config: DemoConfig, policy: Start, scorer: Start, held_out: list[str]) -> Trained:
    """Trains the policy against the reward model, and looks at its answers to held-out prompts on the way."""
    return ppo.run(
        dataclasses.replace(ppo_config(config, policy), eval_every=10),
        model=policy,
        reward_model=scorer,
        dataset=ppo_prompts(config),
        eval_dataset=[{"prompt": prompt} for prompt in held_out],
    )


def ppo_config(config: DemoConfig, policy: Start) -> PPOConfig:
    """How PPO is run."""
    return PPOConfig(
        out=_folder(config, "ppo"),
        batch_size=128,
        steps=config.sizes.ppo_steps,
        seed=config.seed,
        log_every=2,
        optim=OptimConfig(learning_rate=3e-4, schedule="constant"),
        compute=compute(policy),
        ppo=PPOOptions(kl_coef=0.05, epochs=2, mini_batches=2, critic_learning_rate=1e-3, missing_eos_penalty=2.0),
        rollout=RolloutConfig(max_new_tokens=MAX_NEW_TOKENS),
    )


def ppo_prompts(config: DemoConfig) -> list[Row]:
    """The prompts that PPO answers."""
    return [{"prompt": prompt} for prompt in make_prompts(seed_of(config, 4), 6400)]


def train_dpo(config: DemoConfig, policy: Start, rows: list[Row]) -> Trained:
    """Trains the policy on the same preferences directly: the best against the worst answer to each prompt."""
    return dpo.run(
        DPOConfig(
            out=_folder(config, "dpo"),
            beta=0.5,
            batch_size=32,
            steps=config.sizes.dpo_steps,
            seed=config.seed,
            log_every=5,
            data=DataConfig(max_length=MAX_LENGTH),
            optim=OptimConfig(learning_rate=1e-4, schedule="cosine", warmup_steps=10),
            compute=compute(policy),
        ),
        model=policy,
        dataset=[extreme_pair(row) for row in rows],
    )


def sample(policy: Start, prompts: list[str], *, answers: int, seed: int) -> Answered:
    """Samples a number of answers to each prompt."""
    sampling = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    return sample_answers(policy, encode(policy, prompts), sampling, compute=compute(policy), answers=answers)


def encode(policy: Start, prompts: list[str]) -> Prompts:
    """Encodes prompts for sampling, in their order."""
    rows = [{"prompt": prompt} for prompt in prompts]
    return encode_prompts([rows], policy.tokenizer, DataConfig(max_length=MAX_LENGTH), make_mesh(), batch_size=128)


def extreme_pair(row: Row) -> Row:
    """The pair that noise has turned round least often; a first and a last rank always differ."""
    ranked = sorted(zip(row["ranks"], row["completions"], strict=True), key=lambda pair: pair[0])
    return {"prompt": row["prompt"], "chosen": ranked[0][1], "rejected": ranked[-1][1]}


def _folder(config: DemoConfig, stage: str) -> str:
    return str(Path(config.out) / stage)
