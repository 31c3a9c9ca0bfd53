"""What travels between the parts: batches, rollouts, train states, and the functions that make a model.

Dimension letters: B rows of a batch, K answers to a prompt, P prompt tokens, R response tokens, T tokens, C columns
that a loss reads, S columns of a cache, D width, V vocabulary, L layers, KH key/value heads, Dh head width.

Every class here is a pytree of arrays (on the host: of numpy arrays of the same shapes), except `Model`, which is pure
functions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol

import jax

Params = Any
"""A nested dict of arrays, e.g. `{"embed_tokens": {"embedding": ...}, "layers": {...}, "norm": {...}}`."""

Metrics = dict[str, Any]
"""Metric name -> `ops.stats.Mean`, `Difference`, `Max`, `Min` or `Sum`: partial results that can be merged."""

Hyper = dict[str, jax.Array]
"""Name -> float32 scalar computed by the host for one step: learning rate, KL coefficient, temperature ..."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Sequences for a forward pass, shifted once: every `[B, T]` array describes `targets[b, t]`.

    Attributes:
        tokens: [B, T] int32, what the model reads.
        targets: [B, T] int32, the token after `tokens[b, t]`. Scorers, which predict nothing, ignore it.
        mask: [B, T] bool, True where a loss reads: at trained targets, or at the one position that carries a score.
        positions: [B, T] int32, position of each token within its segment, from 0.
        segment_ids: [B, T] int32, 0 at padding, else the number of the packed sequence, from 1. Tokens see earlier
            tokens of their own segment, and of the one that it continues.
        columns: [B, C] int32 or None. If given, every True of `mask` lies at one of these columns, so the head is
            applied to C columns instead of T. Entries equal to T are padding.
        prefix_ids: [B, T] int32, the segment that the token's own one continues, 0 if none; None, statically, where no
            segment continues another.
    """

    tokens: jax.Array
    targets: jax.Array
    mask: jax.Array
    positions: jax.Array
    segment_ids: jax.Array
    columns: jax.Array | None = None
    prefix_ids: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Two answers to each prompt. A row whose answers are all padding does not count.

    Attributes:
        answers: `TokenBatch` with leaves [B, 2, T] (`columns`: [B, 2, C]); index 0 is chosen, 1 rejected. Or, with
            `prefix_ids`, leaves [B, T] and `columns` [B, 2, C]: a row holds once, as segment 1, what both answers begin
            with, and then each answer as a segment that continues it. `columns` tell the answers apart.
        margin: [B] float32, by how much chosen should win; 0 where the data say nothing.
    """

    answers: TokenBatch
    margin: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class UnpairedBatch:
    """One answer to each prompt, good or bad by itself. A row whose answer is all padding does not count.

    Attributes:
        answers: `TokenBatch` of [B, T].
        desirable: [B] bool, whether the answer is a good one; False at padding.
        mismatched: `TokenBatch` of [B, T], each prompt with the answer of another row of the global batch; all padding
            where there is no other row.
    """

    answers: TokenBatch
    desirable: jax.Array
    mismatched: TokenBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedBatch:
    """K ranked answers to each prompt. An answer that is all padding is absent.

    Attributes:
        answers: `TokenBatch` with leaves [B, K, T] (`columns`: [B, K, C]); or with leaves [B, T] and `columns`
            [B, K, C], as in `PairBatch`, where the columns of an absent answer are padding.
        ranks: [B, K] int32, 1 is best; equal ranks are ties.
    """

    answers: TokenBatch
    ranks: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts to answer, padded on the left so that all end at the same column.

    Attributes:
        tokens: [B, P] int32.
        segment_ids: [B, P] int32, 1 at prompt tokens and 0 at padding.
        row_ids: [B] int32, the number that the random draws of a row are keyed by.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    row_ids: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Answers drawn by the sampler, in the row order of the prompts; K answers to a prompt are neighbours.

    Attributes:
        tokens: [B, R] int32, 0 after the end.
        mask: [B, R] bool, True at drawn tokens, the end-of-sequence token among them.
        terminated: [B] bool, True where an end-of-sequence token was drawn; False where the length ran out.
        logprobs: [B, R] float32, log-probability under the full softmax at temperature 1.
        sampling_logprobs: [B, R] float32, log-probability under the distribution that was drawn from.
    """

    tokens: jax.Array
    mask: jax.Array
    terminated: jax.Array
    logprobs: jax.Array
    sampling_logprobs: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """What PPO and GRPO learn from. Every [B, R] array describes `targets[:, t]` of the response.

    Where the K answers to a prompt share its row (GRPO), [B, K, R] and [B, K] stand for [B, R] and [B].

    Attributes:
        batch: `TokenBatch` of prompt and response, with `columns` [B, R] at the response targets.
        mask: [B, R] bool, True at response tokens.
        logprobs: [B, R] float32, under the policy that sampled, by the training forward.
        advantages: [B, R] float32, or [B] where all tokens of an answer share one (GRPO).
        ref_logprobs: [B, R] float32, under the reference, or None without one.
        values: [B, R] float32, by the critic before the update, or None without one.
        returns: [B, R] float32, what the critic learns, or None without one.
    """

    batch: TokenBatch
    mask: jax.Array
    logprobs: jax.Array
    advantages: jax.Array
    ref_logprobs: jax.Array | None = None
    values: jax.Array | None = None
    returns: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """What a step changes, and donates.

    Attributes:
        params: the trained parameters, float32.
        opt_state: state of the optax transformation.
        step: int32 scalar, the number of steps taken, skipped ones among them.
    """

    params: Params
    opt_state: Any
    step: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of the tokens seen so far, those of a row in neighbouring columns that end where all rows' do.

    So the next token of every row goes to the same column, and a step writes one column, wherever rows began.

    Attributes:
        keys: [L, B, KH, S, Dh], or a tuple of L arrays [B, KH, S, Dh].
        values: as `keys`.
        start: [B] int32, the column of the row's first token; what lies before it is nobody's.
        index: int32 scalar, the column that the next token is written to; the same for all rows.
    """

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    start: jax.Array
    index: jax.Array

    @property
    def columns(self) -> int:
        """Columns of a row, S."""
        return jax.tree.leaves(self.keys)[0].shape[-2]


class ModelOutput(NamedTuple):
    """What `Model.apply` returns.

    Attributes:
        hidden: [B, T, D], after the last norm, before the head.
        cache: the cache with the new tokens in it, or None.
        aux: dict of scalar losses of the layers (a router's, say); empty for dense models.
    """

    hidden: jax.Array
    cache: KVCache | None
    aux: dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The unembedding: logits = softcap(scale * (hidden @ weight.T) + bias), columns from `vocab_size` on cut off.

    Attributes:
        weight: [V, D], or [D, V] if `layout` says so. For a reward or value model V is 1.
        bias: [V] or None.
        softcap: if given, logits become softcap * tanh(logits / softcap). Static.
        scale: factor of the raw logits. Static.
        vocab_size: number of real words if `weight` is padded; None means all. Static.
        layout: "vd" or "dv", the axes of `weight`. Static.
    """

    weight: jax.Array
    bias: jax.Array | None = None
    softcap: float | None = dataclasses.field(default=None, metadata={"static": True})
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    vocab_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    layout: Literal["vd", "dv"] = dataclasses.field(default="vd", metadata={"static": True})

    def __post_init__(self) -> None:
        """Raises ValueError for another layout."""
        if self.layout not in ("vd", "dv"):
            raise ValueError(f'layout={self.layout!r} is unknown; expected "vd" or "dv"')

    @property
    def vocab_axis(self) -> int:
        """The axis of `weight` that words are on."""
        return self.layout.index("v")

    @property
    def words(self) -> int:
        """Words of the vocabulary, without padding."""
        return self.weight.shape[self.vocab_axis] if self.vocab_size is None else self.vocab_size


class LogprobOut(NamedTuple):
    """What `kernels.linear_logprobs` returns; each field has the shape of `targets` and is float32, or None.

    Attributes:
        logp: log-probability of the target.
        lse: log of the sum of exp(logits).
        entropy: entropy of the distribution, nats.
        max_logit: the largest logit; the target is the argmax where `logp >= max_logit - lse`, which rounds alike on
            both sides.
        kl: KL(policy || reference) of the whole distribution, nats, >= 0 but for the last digit.
        ref_logp: log-probability of the target under the reference.
    """

    logp: jax.Array | None = None
    lse: jax.Array | None = None
    entropy: jax.Array | None = None
    max_logit: jax.Array | None = None
    kl: jax.Array | None = None
    ref_logp: jax.Array | None = None


class ApplyFn(Protocol):
    """Tokens to hidden states; see `Model`."""

    def __call__(
        self,
        params: Params,
        tokens: jax.Array,
        *,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: KVCache | None = None,
        key: jax.Array | None = None,
        prefix_ids: jax.Array | None = None,
    ) -> ModelOutput:
        """Runs the trunk on [B, T] tokens."""
        ...


class HeadFn(Protocol):
    """Parameters to the head; see `Model`."""

    def __call__(self, params: Params) -> Head:
        """Returns the head, which the kernel applies."""
        ...


class CacheFn(Protocol):
    """Shape to an empty cache; see `Model`."""

    def __call__(self, batch: int, length: int, dtype: Any = None) -> KVCache:
        """Returns an empty cache; `dtype` None means the compute dtype."""
        ...


class PrepareFn(Protocol):
    """Parameters to those that decoding reads; see `Model`."""

    def __call__(self, params: Params) -> Params:
        """Returns the same model in the form that a loop of single tokens reads fastest."""
        ...


def _as_they_are(params: Params) -> Params:
    return params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model is pure functions. Steps, sampler and evaluation take any; tests hand them a fake one.

    Attributes:
        apply: `apply(params, tokens, *, positions, segment_ids, cache=None, key=None, prefix_ids=None) -> ModelOutput`.
            With a cache the T tokens are written to columns `cache.index ...` and attend to those from `cache.start`
            on; `segment_ids` are 1, or 0 before the start of a row. `params` are prepared ones then. `key` is for
            dropout. `prefix_ids` is that of `TokenBatch`, and left out where it is None; a model without it
            takes every batch but those whose answers share a row.
        head: `head(params) -> Head`, scalar (V = 1) for reward and value models.
        init_cache: `init_cache(batch, length, dtype=None) -> KVCache`, empty, every row starting at column 0.
        prepare: `prepare(params) -> params`, once before a loop of many single tokens: what `apply` reads with a cache.
            `apply` and `head` take both forms otherwise.
    """

    apply: ApplyFn
    head: HeadFn
    init_cache: CacheFn
    prepare: PrepareFn = _as_they_are
