import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.ops import logprobs_from_logits
from jaxrlhf.steps.scoring import (
    at_columns,
    flat_answers,
    num_tokens,
    present,
    sequence_logprobs,
    sequence_scores,
    token_logprobs,
    token_values,
)
from jaxrlhf.types import Head, TokenBatch
from tests.fakes import bigram_model, grouped, score_batch, token_batch
from tests.players import CONFIG, POLICY, SCORER, player_params

TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def compacted(batch: TokenBatch, extra: int = 0) -> TokenBatch:
    """The batch with the columns of its mask named, and `extra` columns of padding."""
    width = batch.mask.shape[1]
    count = int(batch.mask.sum(axis=1).max()) + extra
    columns = np.full((batch.mask.shape[0], count), width, np.int32)
    for row, mask in enumerate(np.asarray(batch.mask)):
        columns[row, : mask.sum()] = np.flatnonzero(mask)
    return dataclasses.replace(batch, columns=columns)


@pytest.mark.parametrize("score", [token_logprobs, token_values])
def test_naming_columns_changes_neither_values_nor_gradients(score):
    model, params = bigram_model(scalar=score is token_values)
    full = token_batch([6, 2, 0, 5], 6, prompt=2)

    @jax.jit
    def run(params, batch):
        def total(params):
            out = score(model, params, batch)
            values = out[0].logp if isinstance(out, tuple) else out
            return jnp.sum(values**2), values

        return jax.value_and_grad(total, has_aux=True)(params)

    few = compacted(full, extra=1)
    assert few.columns is not None and few.columns.shape == (4, 6)
    ((_, values), gradients), ((_, picked), other_gradients) = run(params, full), run(params, few)
    chex.assert_trees_all_close(other_gradients, gradients, rtol=1e-6, atol=1e-7)
    for row, mask in enumerate(full.mask):
        np.testing.assert_allclose(picked[row, : mask.sum()], values[row][mask], rtol=1e-6)
        assert not picked[row, mask.sum() :].any()


def test_columns_of_padding_give_zero_and_false():
    batch = dataclasses.replace(token_batch([3, 2], 3), columns=np.asarray([[1, 3], [3, 3]], np.int32))
    np.testing.assert_array_equal(at_columns(batch, batch.mask), [[True, False], [False, False]])
    values = 1.0 + jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(at_columns(batch, values), [[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])


def test_log_probabilities_at_a_temperature_by_hand():
    model, params = bigram_model()
    batch = token_batch([4, 2], 4)
    out, mask = token_logprobs(model, params, batch, temperature=0.5)
    logits = params["embed_tokens"]["embedding"][batch.tokens] @ params["lm_head"]["kernel"].T / 0.5
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(out.logp, jnp.where(batch.mask, expected, 0.0), rtol=1e-5)
    np.testing.assert_array_equal(mask, batch.mask)
    np.testing.assert_allclose(sequence_logprobs(out.logp, mask), np.sum(out.logp, axis=1), rtol=1e-6)


def test_packed_rows_equal_rows_apart():
    rows, params = token_batch([4, 6, 3], 6, prompt=2, vocab=CONFIG.vocab_size), player_params()
    pieces = [jax.tree.map(lambda leaf, row=row, end=end: leaf[row, :end], rows) for row, end in enumerate([4, 6, 3])]
    packed = jax.tree.map(lambda *leaves: np.concatenate(leaves)[None], *pieces)
    packed = dataclasses.replace(packed, segment_ids=np.repeat([1, 2, 3], [4, 6, 3])[None].astype(np.int32))
    columns = jnp.broadcast_to(jnp.arange(6), (3, 6))
    hidden = POLICY.apply(params, rows.tokens, positions=columns, segment_ids=rows.segment_ids).hidden
    apart = logprobs_from_logits(hidden @ POLICY.head(params).weight.T, rows.targets) * rows.mask
    together = jax.jit(lambda batch: token_logprobs(POLICY, params, batch)[0].logp)(packed)
    found = np.split(np.asarray(together[0]), [4, 10])
    for row, piece in enumerate(found):
        np.testing.assert_allclose(piece, apart[row, : piece.size], **TIGHT)
    assert abs(float(together.sum())) > 10.0


def test_the_score_is_that_of_the_last_token_wherever_the_padding_is():
    tokens, params = token_batch([5, 5], 5, vocab=CONFIG.vocab_size).tokens, player_params(scalar=True)
    run = jax.jit(lambda batch: sequence_scores(SCORER, params, batch))

    def score(left: int, right: int) -> jax.Array:
        sides = ((0, 0), (left, right))
        padded = np.pad(tokens, sides, constant_values=7)
        segments = np.pad(np.ones((2, 5), np.int32), sides)
        positions = np.pad(np.tile(np.arange(5, dtype=np.int32), (2, 1)), sides)
        mask = np.tile(np.arange(left + 5 + right) == left + 4, (2, 1))
        return run(TokenBatch(tokens=padded, targets=padded, mask=mask, positions=positions, segment_ids=segments))

    expected = score(0, 0)
    assert jnp.abs(expected).min() > 0.1
    for left in (0, 1, 4):
        np.testing.assert_allclose(score(left, 4 - left), expected, **TIGHT)


def test_a_row_without_a_score_gets_zero():
    model, params = bigram_model(scalar=True)
    scores = sequence_scores(model, params, score_batch([3, 0, 1], 3))
    assert scores.dtype == jnp.float32 and scores[1] == 0.0 and scores[0] != 0.0 and scores[2] != 0.0


def test_values_take_the_whole_head_into_account():
    model, params = bigram_model(scalar=True)
    batch = token_batch([3, 1], 3)
    plain = token_values(model, params, batch)
    head = Head(weight=params["score"]["kernel"], bias=jnp.asarray([0.5]), scale=2.0)
    biased = token_values(dataclasses.replace(model, head=lambda params: head), params, batch)
    np.testing.assert_allclose(biased, np.where(batch.mask, 2.0 * plain + 0.5, 0.0), rtol=1e-6)


@pytest.mark.parametrize("score", [token_logprobs, token_values])
def test_nan_at_padding_reaches_neither_values_nor_gradients(score):
    model, params = bigram_model(scalar=score is token_values)
    batch = token_batch([3, 2], 4)

    def apply(params, tokens, *, segment_ids, **rest):
        output = model.apply(params, tokens, segment_ids=segment_ids, **rest)
        return output._replace(hidden=jnp.where((segment_ids != 0)[..., None], output.hidden, jnp.nan))

    def total(params, model):
        out = score(model, params, batch)
        return jnp.sum(out[0].logp if isinstance(out, tuple) else out)

    dirty = dataclasses.replace(model, apply=apply)
    run = jax.jit(jax.value_and_grad(total), static_argnums=1)
    (loss, gradient), expected = run(params, dirty), run(params, model)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    # The embedding's own gradient passes through the where above, so only the head's is told apart.
    name = "score" if score is token_values else "lm_head"
    chex.assert_trees_all_close(gradient[name], expected[1][name], rtol=1e-6)


def test_answers_are_flattened_counted_and_found_missing():
    answers = grouped(token_batch([3, 2, 0, 4], 4), 2)
    np.testing.assert_array_equal(present(answers), [[True, True], [False, True]])
    rows = flat_answers(answers)
    np.testing.assert_array_equal(rows.tokens, token_batch([3, 2, 0, 4], 4).tokens)
    assert rows.columns is None and num_tokens(rows).value == num_tokens(answers).value == 9


def test_the_key_reaches_the_model():
    model, params = bigram_model()

    def apply(params, tokens, *, key=None, **rest):
        output = model.apply(params, tokens, **rest)
        return output if key is None else output._replace(hidden=output.hidden + jax.random.normal(key))

    noisy, batch = dataclasses.replace(model, apply=apply), token_batch([3], 3)
    keys = (None, *jax.random.split(jax.random.key(0)))
    plain, *drawn = (token_logprobs(noisy, params, batch, key=key)[0].logp for key in keys)
    assert not jnp.allclose(plain, drawn[0]) and not jnp.allclose(drawn[0], drawn[1])
