import collections

import jax
import numpy as np
import pytest

from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.data.loader import Loader
from jaxrlhf.types import PromptBatch, TokenBatch
from tests.data.tokenizers import byte_level

TEXTS = [{"text": "uvwxyz"[i % 6] * (i + 1)} for i in range(20)]


@pytest.fixture(scope="module")
def index():
    return build_index("sft", [TEXTS], byte_level(), DataConfig())


@pytest.fixture(scope="module")
def prompts():
    return build_index("prompt", [[{"prompt": row["text"]} for row in TEXTS[:6]]], byte_level(), DataConfig())


def _leaves(batch):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]


def _assert_equal(first, second):
    for one, other in zip(_leaves(first), _leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_depends_on_seed_and_number_alone(index):
    loader = Loader(index, "tokens", 6, seed=3)
    later = loader.batch(7)
    loader.batch(0)
    _assert_equal(later, loader.batch(7))
    _assert_equal(later, Loader(index, "tokens", 6, seed=3).batch(7))
    assert Loader(index, "tokens", 6, seed=4).batch_examples(7).tolist() != loader.batch_examples(7).tolist()


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("buckets", [1, 3])
def test_the_rows_of_all_processes_are_the_whole_batch(index, processes, buckets):
    whole = Loader(index, "tokens", 6, seed=0, buckets=buckets)
    share = 6 // processes
    parts = [
        Loader(index, "tokens", 6, seed=0, rows=slice(i * share, (i + 1) * share), buckets=buckets)
        for i in range(processes)
    ]
    for n in range(4):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part.batch(n) for part in parts])
        _assert_equal(joined, whole.batch(n))
        examples = np.concatenate([part.batch_examples(n) for part in parts])
        np.testing.assert_array_equal(examples, whole.batch_examples(n))


def test_neighbours_are_of_the_global_batch_and_not_of_the_processes():
    rows = [{"prompt": "uv"[: 1 + i % 2], "completion": "w" * (i + 1), "label": i % 3 > 0} for i in range(7)]
    index = build_index("unpaired", [rows], byte_level(), DataConfig())
    whole = Loader(index, "unpaired", 6, seed=0)
    parts = [Loader(index, "unpaired", 6, seed=0, rows=slice(start, start + 2)) for start in (0, 2, 4)]
    for n in range(3):
        expected = whole.batch(n)
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part.batch(n) for part in parts])
        _assert_equal(joined, expected)
        answers, mismatched = (rows.mask.sum(axis=1) for rows in (expected.answers, expected.mismatched))
        np.testing.assert_array_equal(mismatched, np.roll(answers, 1))
    last = list(whole.eval_batches())[-1]
    assert last.answers.mask.any(axis=1).tolist() == [True] + [False] * 5 and not last.mismatched.mask.any()


def test_every_epoch_visits_each_row_once_in_a_new_order(index):
    loader = Loader(index, "tokens", 5, seed=0)
    assert loader.batches_per_epoch == 4
    epochs = [np.concatenate([loader.batch_examples(4 * e + n) for n in range(4)]) for e in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_no_row_is_lost_between_epochs(index):
    loader = Loader(index, "tokens", 6, seed=0)
    places = np.concatenate([loader.batch_examples(n) for n in range(10)])  # three epochs of 20 rows
    assert set(collections.Counter(places.tolist()).values()) == {3}


def test_batches_hold_the_rows_that_they_name(index):
    loader = Loader(index, "tokens", 6, seed=0)
    batch = loader.batch(2)
    assert isinstance(batch, TokenBatch)
    for row, example in enumerate(loader.batch_examples(2)):
        ids, _ = index.sequence(example)
        assert batch.tokens[row, : len(ids) - 1].tolist() == ids[:-1].tolist()


def test_prefetched_batches_are_the_same_in_order(index):
    loader = Loader(index, "tokens", 6, seed=0)
    for n, batch in zip(range(3, 8), loader.prefetched(3, 8), strict=True):
        _assert_equal(batch, loader.batch(n))


def test_evaluation_visits_each_row_once_and_empty_rows_change_no_mean(index):
    loader = Loader(index, "tokens", 6, seed=0)
    batches = list(loader.eval_batches())
    assert len(batches) == 4 and all(batch.tokens.shape[0] == 6 for batch in batches)
    targets = np.concatenate([batch.targets[batch.mask] for batch in batches])
    plain = np.concatenate([index.sequence(i)[0][1:] for i in range(20)])
    np.testing.assert_array_equal(targets, plain)
    assert not batches[-1].segment_ids[2:].any() and not batches[-1].mask[2:].any()


def test_at_most_as_many_shapes_as_buckets(index):
    loader = Loader(index, "tokens", 2, seed=0, buckets=3)
    shapes = {loader.batch(n).tokens.shape for n in range(40)}
    assert shapes == {(2, width.tokens) for width in loader.widths} and len(shapes) <= 3


def test_the_draws_of_every_row_have_their_own_key(prompts):
    loader = Loader(prompts, "prompts", 8, seed=0)  # more rows than prompts, so some come twice
    batches = [loader.batch(n) for n in range(3)]
    assert all(isinstance(batch, PromptBatch) for batch in batches)
    assert np.concatenate([batch.row_ids for batch in batches]).tolist() == list(range(24))
    half = Loader(prompts, "prompts", 8, seed=0, rows=slice(4, 8))
    assert half.batch(1).row_ids.tolist() == [12, 13, 14, 15]


def test_the_columns_of_prompts_can_be_looked_up(prompts):
    loader = Loader(prompts, "prompts", 4, seed=0)
    texts = [prompts.extras[example]["prompt"] for example in loader.batch_examples(1)]
    lengths = loader.batch(1).segment_ids.sum(axis=1).tolist()
    assert lengths == [len(text) for text in texts]


def test_equal_weights_visit_all_data_sets_once_and_others_in_proportion(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join("uvwxyzuvwx"))
    (tmp_path / "b.txt").write_text("\n\n".join("uvwxyzuvwx"))

    def counts(weight, places):
        sources = [
            DatasetConfig(path=str(tmp_path / "a.txt"), weight=weight),
            DatasetConfig(path=str(tmp_path / "b.txt")),
        ]
        index = build_index("sft", sources, byte_level(), DataConfig())
        loader = Loader(index, "tokens", places, seed=0)
        return np.bincount(index.source[loader.batch_examples(0)]).tolist()

    assert counts(1.0, 20) == [10, 10]
    assert counts(3.0, 40) == [30, 10]


def test_a_batch_without_rows_is_refused(index):
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        Loader(index, "tokens", 0, seed=0)
