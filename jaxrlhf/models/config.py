"""What a decoder is made of, and how it is computed: plain data, readable without jax."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrlhf.config_checks import check, positive

DType = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "full"]
AttentionBackend = Literal["xla", "cudnn", "splash"]
AttentionChoice = Literal["auto", AttentionBackend]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Rotary angles divided by `factor`: positions are interpolated.

    Attributes:
        factor: how many times longer the context became, at least 1.
    """

    factor: float

    def __post_init__(self) -> None:
        """Checks the range."""
        check(self, (self.factor >= 1, f"factor={self.factor} must be at least 1"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Rotary frequencies of Llama 3.1: slow ones are divided by `factor`, fast ones kept, those between are blended.

    Attributes:
        factor: how many times longer the context became, at least 1.
        low_freq_factor: wavelengths above `original_max_positions / low_freq_factor` are slow; positive.
        high_freq_factor: wavelengths below `original_max_positions / high_freq_factor` are fast; above the low factor.
        original_max_positions: context length of the model before it was stretched, positive.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        """Checks ranges, and that the factors leave something to blend between."""
        check(
            self,
            *positive(self, "low_freq_factor", "original_max_positions"),
            (self.factor >= 1, f"factor={self.factor} must be at least 1"),
            (
                self.high_freq_factor > self.low_freq_factor,
                f"high_freq_factor={self.high_freq_factor} must be above low_freq_factor={self.low_freq_factor}",
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and options of a decoder-only transformer. All sizes are positive.

    Attributes:
        vocab_size: rows of the embedding, V.
        hidden_size: width, D.
        intermediate_size: width of the gated MLP, F.
        num_layers: number of blocks, L.
        num_heads: query heads, H.
        num_kv_heads: key and value heads, KH; divides `num_heads`.
        head_dim: width of a head, Dh; even. `num_heads * head_dim` need not be `hidden_size`.
        max_positions: the longest sequence that the model was made for, tokens.
        rope_theta: base of the rotary frequencies, positive.
        rope_scaling: how the rotary frequencies were stretched; None if they were not.
        rms_eps: added to the mean square before the root, positive.
        tie_embeddings: whether the unembedding is the embedding.
        scalar_head: whether the head is one score a token (reward and value models) instead of the unembedding.
        model_type: `model_type` of the published config, which names the tables in `models/families`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 10000.0
    rope_scaling: LinearScaling | Llama3Scaling | None = None
    rms_eps: float = 1e-5
    tie_embeddings: bool = False
    scalar_head: bool = False
    model_type: str = "llama"

    def __post_init__(self) -> None:
        """Checks sizes, and sizes against each other."""
        check(
            self,
            *positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_layers", "max_positions"),
            *positive(self, "num_heads", "num_kv_heads", "head_dim", "rope_theta", "rms_eps"),
            (
                self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads == 0,
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}",
            ),
            (self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even: rotary embeddings turn pairs"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the decoder is computed. Changes speed and memory, and results only within rounding.

    Attributes:
        dtype: of activations and matrix products; parameters stay float32, and norms and softmax are summed in it.
            "bfloat16" is the faster one on accelerators, where the fastest attention asks for it, and on CPUs that
            multiply it in hardware.
        remat: what the backward pass recomputes of each block: "none" (most memory), "dots" (all but the products with
            weights and the kernels of attention), "full" (everything but the input of the block; least memory).
        scan_unroll: blocks per iteration of the loop over layers, at least 1; more may run a little faster, compiles
            longer and takes more memory. At `num_layers` or above there is no loop left.
        attention: what mixes tokens outside decoding: "xla" (any device), "cudnn" (NVIDIA GPUs, bfloat16), "splash"
            (TPUs), or "auto", the fastest that can run.
    """

    dtype: DType = "float32"
    remat: Remat = "none"
    scan_unroll: int = 1
    attention: AttentionChoice = "auto"

    def __post_init__(self) -> None:
        """Checks the choices and the range."""
        check(self, *positive(self, "scan_unroll"))
