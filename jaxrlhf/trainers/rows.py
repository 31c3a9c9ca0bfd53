"""From the data that a config names, or rows in memory, to the loaders of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrlhf.data.batches import BatchKind
from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.data.index import Index, build_index
from jaxrlhf.data.loader import Loader
from jaxrlhf.data.shapes import Kind
from jaxrlhf.data.sources import Source, comparison_kind
from jaxrlhf.sharding.place import process_rows
from jaxrlhf.trainers.config import TrainConfig
from jaxrlhf.trainers.run import Run

log = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]
"""Rows in memory, in any layout that a file may have."""


def make_loaders(
    run: Run, kind: BatchKind, tokenizer: Any, dataset: Rows | None, eval_dataset: Rows | None
) -> tuple[Loader, Loader | None]:
    """Reads and indexes the data, and plans the run's steps by them.

    Args:
        run: the open run.
        kind: the batches that the method reads.
        tokenizer: of the model.
        dataset: training rows in memory; None reads what the config names.
        eval_dataset: evaluation rows in memory; None reads what the config names, if anything.

    Returns:
        The loader of training batches, and that of evaluation batches if there are any.

    Raises:
        ValueError: if no data are named, or they are bad; see `data.index`.
    """
    config = run.config
    train = _loader(run, kind, training_sources(config, dataset), tokenizer, config.batch_size, "training data")
    run.plan(train.index.digest, train.index.units)
    sources = _held_out_sources(config, eval_dataset)
    if sources is None:
        return train, None
    size = config.batch_size if config.eval_batch_size is None else config.eval_batch_size
    return train, _loader(run, kind, sources, tokenizer, size, "evaluation data")


def reward_batches(config: TrainConfig, dataset: Rows | None) -> BatchKind:
    """Whether the training data of a reward model are pairs or rankings, by their first row."""
    kind = comparison_kind(training_sources(config, dataset)[0], config.data)
    return "scored_ranked" if kind == "ranked" else "scored_pairs"


def training_sources(config: TrainConfig, dataset: Rows | None) -> list[Source]:
    """The data sets to train on.

    Raises:
        ValueError: if there are none.
    """
    if dataset is not None:
        return [dataset]
    if config.dataset is not None:
        return [DatasetConfig(path=config.dataset)]
    if not config.datasets:
        raise ValueError("no data to train on; set dataset=PATH, or datasets: [{path: PATH, weight: 1}, ...]")
    return list(config.datasets)


def _held_out_sources(config: TrainConfig, dataset: Rows | None) -> list[Source] | None:
    if dataset is not None:
        return [dataset]
    if config.eval_dataset is not None:
        return [DatasetConfig(path=config.eval_dataset)]
    if config.eval_every or config.best_metric:
        raise ValueError("eval_every and best_metric have no effect without eval_dataset; name one, or leave them out")
    return None


def _loader(run: Run, kind: BatchKind, sources: list[Source], tokenizer: Any, size: int, what: str) -> Loader:
    config = run.config
    index = build_index(_INDEX_KINDS[kind], sources, tokenizer, config.data)
    _report(what, index)
    return Loader(index, kind, size, config.seed, rows=process_rows(run.mesh, size), buckets=config.data.buckets)


_INDEX_KINDS: dict[BatchKind, Kind] = {
    "tokens": "sft",
    "pairs": "preference",
    "scored_pairs": "preference",
    "scored_ranked": "ranked",
    "prompts": "prompt",
}


def _report(what: str, index: Index) -> None:
    for line in index.report.lines():
        log.info("%s: %s", what, line)
