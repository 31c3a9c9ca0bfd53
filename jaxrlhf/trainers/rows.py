"""From the data that a config names, or rows in memory, to the loaders of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrlhf.data.batches import LAYOUTS, BatchKind
from jaxrlhf.data.config import DataConfig, DatasetConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.data.loader import Loader
from jaxrlhf.data.sharing import share_prompts
from jaxrlhf.data.sources import Source, comparison_kind
from jaxrlhf.models.attention import why_not_share
from jaxrlhf.sharding.distributed import is_main
from jaxrlhf.sharding.place import process_rows
from jaxrlhf.trainers.config import TrainConfig
from jaxrlhf.trainers.run import Run
from jaxrlhf.trainers.start import Start, check_positions
from jaxrlhf.trainers.vocabulary import check_ids

log = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]
"""Rows in memory, in any layout that a file may have."""


def make_loaders(
    run: Run, kind: BatchKind, start: Start, dataset: Rows | None, eval_dataset: Rows | None, *, answer: int = 0
) -> tuple[Loader, Loader | None]:
    """Reads and indexes the data, and plans the run's steps by them.

    Args:
        run: the open run.
        kind: the batches that the method reads.
        start: the model that reads them.
        dataset: training rows in memory; None reads what the config names.
        eval_dataset: evaluation rows in memory; None reads what the config names, if anything.
        answer: tokens that the model will add to each row.

    Returns:
        The loader of training batches, and that of evaluation batches if there are any.

    Raises:
        ValueError: if no data are named, they are bad (see `data.index`), or too long for the model.
    """
    config = run.config
    train = _loader(run, kind, training_sources(config, dataset), start, config.batch_size, answer, "training")
    run.plan(train.index.digest, train.index.units)
    sources = _held_out_sources(config, eval_dataset)
    if sources is None:
        return train, None
    return train, _loader(run, kind, sources, start, config.eval_rows, answer, "evaluation")


def make_pretraining_loader(run: Run, start: Start, source: Source, data: DataConfig, rows: int) -> Loader:
    """Reads and indexes texts to learn from beside, with an order of their own.

    Args:
        run: the open run, whose steps are planned.
        start: the model that reads them.
        source: the texts.
        data: how they become tokens, `ptx.data` of the config.
        rows: of a step.

    Raises:
        ValueError: if the texts are bad, or too long for the model.
    """
    try:
        loader = _loader(run, "tokens", [source], start, rows, 0, "pretraining", data=data)
    except ValueError as error:
        raise ValueError(f"ptx.dataset, whose data.* keys are ptx.data.*: {error}") from error
    run.also_reads(loader.index.digest)
    return loader


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
        _refuse_both("dataset", config.dataset or config.datasets)
        return [dataset]
    if config.dataset is not None:
        return [DatasetConfig(path=config.dataset)]
    if not config.datasets:
        raise ValueError("no data to train on; set dataset=PATH, or datasets: [{path: PATH, weight: 1}, ...]")
    return list(config.datasets)


def _held_out_sources(config: TrainConfig, dataset: Rows | None) -> list[Source] | None:
    if dataset is not None:
        _refuse_both("eval_dataset", config.eval_dataset)
        return [dataset]
    if config.eval_dataset is not None:
        return [DatasetConfig(path=config.eval_dataset)]
    idle = [name for name in ("eval_every", "eval_batch_size", "best_metric") if getattr(config, name)]
    if idle:
        raise ValueError(f"{', '.join(idle)}: no effect without eval_dataset; name one, or leave them out")
    return None


def _refuse_both(key: str, named: Any) -> None:
    if named:
        raise ValueError(f"there are rows in memory and {key}={named} in the config; keep one of them")


def _loader(
    run: Run,
    kind: BatchKind,
    sources: list[Source],
    start: Start,
    size: int,
    answer: int,
    what: str,
    *,
    data: DataConfig | None = None,
) -> Loader:
    data = run.config.data if data is None else data
    rejects = run.folder / f"rejected_{what}_rows.jsonl" if is_main() and data.bad_rows == "skip" else None
    index = build_index(LAYOUTS[kind].index_kinds[0], sources, start.tokenizer, data, rejects=rejects)
    for line in index.report.lines():
        log.info("%s data: %s", what, line)
    if kind == "pairs" and index.margins.any():
        log.warning("%s data: the column 'margin' has no effect on DPO", what)
    shorter = "lower rollout.max_new_tokens or data.max_prompt_length" if answer else "lower data.max_length"
    check_positions(start, index.report.longest + answer, shorter)
    check_ids(start.config, start.tokenizer, index.ids)
    why_not = why_not_share(start.config, run.config.compute, index.report.longest)
    kind = share_prompts(index, kind, data, what, why_not)
    return Loader(index, kind, size, run.config.seed, rows=process_rows(run.mesh, size), buckets=data.buckets)
