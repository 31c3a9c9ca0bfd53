"""What is measured, at full size and at one that a CPU does in seconds. All numbers of all sections are here."""

from __future__ import annotations

from typing import NamedTuple

from jaxrlhf.kernels.tiles import TileSize
from jaxrlhf.models.config import ComputeConfig, LayerKind, ModelConfig


class HeadShape(NamedTuple):
    """N tokens, D width, V words."""

    tokens: int
    width: int
    vocab: int

    def __str__(self) -> str:
        """As it stands in a row."""
        return f"N{self.tokens} D{self.width} V{self.vocab}"


class AttentionShape(NamedTuple):
    """Rows B of T tokens; H query heads and KH of keys and values, of width Dh."""

    rows: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        """As it stands in a row."""
        return f"B{self.rows} T{self.tokens} H{self.heads} KH{self.kv_heads} Dh{self.head_dim}"


class Training(NamedTuple):
    """A train step: `rows` full sequences of `length` tokens."""

    model: ModelConfig
    rows: int
    length: int


class Sampling(NamedTuple):
    """Sampling `new` tokens after prompts of `prompt`, at each of these batch sizes."""

    model: ModelConfig
    batches: tuple[int, ...]
    prompt: int
    new: int


class Iteration(NamedTuple):
    """An iteration of DPO, GRPO and PPO.

    `pairs` of `pair_length` tokens, of which `pair_prompt` are the prompt; `prompts` of `prompt` tokens with `answers`
    (GRPO) of `new` tokens each, learned from in `micro_batches`. PPO has one answer to each of prompts * answers.
    """

    model: ModelConfig
    pairs: int
    pair_length: int
    pair_prompt: int
    prompts: int
    answers: int
    prompt: int
    new: int
    micro_batches: int


class Shapes(NamedTuple):
    """The shapes of all sections; see `FULL`."""

    ragged: tuple[HeadShape, ...]  # correctness
    attention: tuple[AttentionShape, ...]  # correctness
    suite: tuple[str, ...]  # correctness: folders of tests
    squares: tuple[int, ...]  # peaks: sides of square products
    product: HeadShape  # peaks: the head's
    copy_mib: int  # peaks: what is read, and written again
    heads: tuple[HeadShape, ...]  # head: the first two with all that can be wanted
    tiles: tuple[TileSize, ...]  # head: others than the platform's, at the first shape
    training: Training
    variants: dict[str, ComputeConfig]  # train: ways to compute it
    sampling: Sampling
    iteration: Iteration


def _llama(vocab: int, width: int, mlp: int, layers: int, heads: int, kv_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        max_positions=8192,
        pattern=(LayerKind(rope_theta=500_000.0),),
        tie_embeddings=True,
    )


ONE_BILLION = _llama(128256, 2048, 8192, 16, 32, 8)
"""1.24 billion parameters, the sizes of Llama 3.2 1B."""

HALF_BILLION = _llama(128256, 1024, 4096, 24, 16, 8)
"""0.51 billion parameters: PPO holds two trained models and two frozen ones."""

VARIANTS = {
    "remat full": ComputeConfig(dtype="bfloat16", remat="full"),
    "remat dots": ComputeConfig(dtype="bfloat16", remat="dots"),
    "remat none": ComputeConfig(dtype="bfloat16", remat="none"),
    "remat full, attention xla": ComputeConfig(dtype="bfloat16", remat="full", attention="xla"),
    "remat dots, 4 layers unrolled": ComputeConfig(dtype="bfloat16", remat="dots", scan_unroll=4),
}
"""Ways to compute the train step. Attention is the fastest that can run, unless it is said."""

FULL = Shapes(
    ragged=(HeadShape(7, 48, 1000), HeadShape(33, 64, 4097), HeadShape(130, 128, 9001), HeadShape(257, 512, 32003)),
    attention=(AttentionShape(3, 383, 8, 2, 64), AttentionShape(2, 768, 4, 2, 128)),  # 383 = prompt + answer - 1
    suite=("tests/kernels", "tests/ops", "tests/losses", "tests/generation"),
    squares=(4096, 8192, 16384),
    product=HeadShape(8192, 4096, 131072),
    copy_mib=4096,
    heads=(
        HeadShape(8192, 4096, 128256),
        HeadShape(8192, 4096, 131072),
        HeadShape(4096, 4096, 128256),
        HeadShape(16384, 4096, 128256),
        HeadShape(8192, 2560, 262144),
        HeadShape(8192, 4096, 151936),
        HeadShape(8192, 2048, 32000),
        HeadShape(1024, 4096, 128256),
        HeadShape(32768, 4096, 128256),
    ),
    tiles=(
        TileSize(8192, 2048),
        TileSize(8192, 4096),
        TileSize(8192, 8192),
        TileSize(4096, 8192),
        TileSize(2048, 8192),
    ),
    training=Training(ONE_BILLION, rows=4, length=4096),
    variants=VARIANTS,
    sampling=Sampling(ONE_BILLION, batches=(1, 32, 128, 512), prompt=128, new=256),
    iteration=Iteration(
        HALF_BILLION,
        pairs=16,
        pair_length=1024,
        pair_prompt=256,
        prompts=32,
        answers=8,
        prompt=128,
        new=256,
        micro_batches=4,
    ),
)

_SMALL = _llama(96, 32, 64, 2, 4, 2)

TINY = Shapes(
    ragged=(HeadShape(7, 24, 100), HeadShape(33, 32, 1031)),
    attention=(AttentionShape(3, 37, 4, 2, 8),),
    suite=("tests/ops/test_moments.py",),
    squares=(32, 64),
    product=HeadShape(32, 24, 96),
    copy_mib=1,
    heads=(HeadShape(32, 24, 96), HeadShape(16, 24, 160)),
    tiles=(TileSize(16, 32),),
    training=Training(_SMALL, rows=2, length=24),
    variants={name: VARIANTS[name] for name in ("remat full", "remat dots")},
    sampling=Sampling(_SMALL, batches=(4,), prompt=8, new=8),
    iteration=Iteration(
        _SMALL, pairs=4, pair_length=24, pair_prompt=8, prompts=2, answers=4, prompt=8, new=8, micro_batches=2
    ),
)
