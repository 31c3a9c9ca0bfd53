"""What a decoder is made of, and how it is computed: plain data, readable without jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxrlhf.config_checks import check, positive
from jaxrlhf.models.rope_config import LinearScaling, Llama3Scaling

DType = Literal["float32", "bfloat16"]
ExportDType = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "dots", "full"]
AttentionBackend = Literal["xla", "cudnn", "splash"]
AttentionChoice = Literal["auto", AttentionBackend]
Norm = Literal["rms", "layer"]
NormPlacement = Literal["pre", "post", "both"]
QKNorm = Literal["none", "head", "width"]
Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What the layers of one model may differ in.

    Attributes:
        window: how many tokens a token sees, itself and those before it; positive; None means all.
        rope_theta: base of the rotary frequencies, positive; None means that queries and keys are not turned.
        rope_scaling: how the rotary frequencies were stretched; None if they were not.
    """

    window: int | None = None
    rope_theta: float | None = 10000.0
    rope_scaling: LinearScaling | Llama3Scaling | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(
            self,
            *positive(self, "window", "rope_theta"),
            (
                self.rope_theta is not None or self.rope_scaling is None,
                f"rope_scaling={self.rope_scaling} has no effect without rope_theta",
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and options of a decoder-only transformer. All sizes are positive.

    Attributes:
        vocab_size: rows of the embedding, V.
        hidden_size: width, D.
        intermediate_size: width of the MLP, F.
        num_layers: number of blocks, L.
        num_heads: query heads, H.
        num_kv_heads: key and value heads, KH; divides `num_heads`.
        head_dim: width of a head, Dh. `num_heads * head_dim` need not be `hidden_size`.
        max_positions: the longest sequence that the model was made for, tokens.
        pattern: the kinds of layers, which they take in turn: layer i is of kind i modulo their number.
        rotary_dim: how much of a head turns with the position, its first entries; even; None means all.
        learned_positions: whether embeddings of positions are added to those of tokens.
        norm: "rms" (root mean square, a scale) or "layer" (mean and variance, a scale and a bias).
        norm_eps: added to the mean square or variance before the root, positive.
        norm_offset: added to each scale: 1 where scales are published as differences from it, else 0.
        norm_placement: which of a block's attention and MLP are normalised: what they read ("pre"), what they add to
            the stream ("post"), or both ("both").
        parallel_residual: whether attention and MLP of a block read the same stream, rather than one after the other.
        qk_norm: the RMS norm of queries and keys before they turn: "none", "head" (each head by itself) or "width" (all
            heads as one vector).
        qkv_bias: whether the projections to queries, keys and values have biases.
        out_bias: whether the projection after attention has a bias.
        mlp_bias: whether the projections of the MLP have biases.
        activation: of the MLP; "gelu_tanh" is the approximation.
        gated_mlp: whether the activation is multiplied by a second projection.
        embedding_scale: factor of the embeddings of tokens, positive.
        query_scale: factor of queries, positive; None means 1 / sqrt(Dh).
        attention_softcap: scores s become softcap * tanh(s / softcap); positive; None leaves them.
        final_softcap: the same of the logits.
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
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    rotary_dim: int | None = None
    learned_positions: bool = False
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    norm_placement: NormPlacement = "pre"
    parallel_residual: bool = False
    qk_norm: QKNorm = "none"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    gated_mlp: bool = True
    embedding_scale: float = 1.0
    query_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    tie_embeddings: bool = False
    scalar_head: bool = False
    model_type: str = "llama"

    def __post_init__(self) -> None:
        """Checks sizes, and sizes against each other."""
        turned = self.turned_dim
        check(
            self,
            *positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_layers", "max_positions"),
            *positive(self, "num_heads", "num_kv_heads", "head_dim", "rotary_dim", "norm_eps", "embedding_scale"),
            *positive(self, "query_scale", "attention_softcap", "final_softcap"),
            (
                self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads == 0,
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}",
            ),
            (bool(self.pattern), "pattern is empty; name one kind of layer at least"),
            (turned % 2 == 0, f"{turned} entries of a head cannot turn in pairs; the number must be even"),
            (turned <= self.head_dim, f"rotary_dim={self.rotary_dim} is more than head_dim={self.head_dim}"),
            (self.norm_offset in (0.0, 1.0), f"norm_offset={self.norm_offset} must be 0 or 1"),
        )

    @property
    def turned_dim(self) -> int:
        """How many entries of a head turn with the position; 0 if none does."""
        if all(kind.rope_theta is None for kind in self.pattern):
            return 0
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def attention_scale(self) -> float:
        """The factor of attention's scores."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    def kind(self, layer: int) -> LayerKind:
        """The kind of a layer, counted from 0."""
        return self.pattern[layer % len(self.pattern)]


def pattern_of(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest pattern that gives the layers these kinds when they take it in turn.

    Args:
        kinds: of the layers, first to last; at least one.
    """
    lengths = range(1, len(kinds) + 1)
    fits = (n for n in lengths if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
    return tuple(kinds[: next(fits)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How the decoder is computed. Changes speed and memory, and results only within rounding.

    Attributes:
        dtype: of activations and matrix products; parameters stay float32, and norms and softmax are summed in it.
            "bfloat16" is the faster one on accelerators, where the fastest attention asks for it, and on CPUs that
            multiply it in hardware.
        remat: what the backward pass recomputes of each block: "none" (most memory), "dots" (all but the products with
            weights and the kernels of attention; adapters too), "full" (everything but the input of the block; least
            memory).
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
