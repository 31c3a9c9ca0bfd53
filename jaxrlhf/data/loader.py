"""The order of the data: batch n is a function of the seed and n, and of nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import grain
import numpy as np

from jaxrlhf.data.batches import LAYOUTS, Batch, BatchKind
from jaxrlhf.data.index import Index
from jaxrlhf.data.widths import choose_width, plan_widths
from jaxrlhf.types import PromptBatch

_PREFETCHED = 4  # batches made ahead, by as many threads


class Loader:
    """Batches of an index in a fixed order, of which a process takes its rows.

    The order goes on for ever: a fresh shuffle every epoch, without dropping rows between them. If data sets have
    different weights, their shuffled rows are mixed in proportion to size times weight.

    Attributes:
        index: the index.
        kind: the kind of batch.
        batch_size: rows of a global batch, over all processes.
        widths: the shapes that batches may have.
    """

    def __init__(
        self,
        index: Index,
        kind: BatchKind,
        batch_size: int,
        seed: int,
        *,
        rows: slice = slice(None),
        buckets: int = 1,
    ):
        """Plans shapes and order.

        Args:
            index: the index.
            kind: the kind of batch; see `batches.BatchKind`.
            batch_size: rows of a global batch, positive.
            seed: seed of the order, from 0 to 2**32 - 1.
            rows: the rows of each global batch that this process loads: a slice without a step.
            buckets: number of shapes at most.

        Raises:
            ValueError: if the batch size is not positive, or the index does not suit the kind of batch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.index = index
        self.kind: BatchKind = kind
        self.batch_size = batch_size
        self.widths = plan_widths(index, kind, buckets)
        self._rows = rows
        self._order = _data_order(index, seed)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that visit every row once; of the last, a part belongs to the next epoch."""
        return math.ceil(self.index.units / self.batch_size)

    def batch(self, n: int) -> Batch:
        """Returns this process's rows of global batch `n`, numbered from 0."""
        return self._build(self._units(n), n)

    def batch_examples(self, n: int) -> np.ndarray:
        """Returns the units in this process's rows of global batch `n`, [rows] int64.

        Without packing a unit is an example, and `index.extras` has its columns.
        """
        return self._units(n)[self._rows]

    def prefetched(self, start: int, stop: int) -> Iterator[Batch]:
        """Yields batches `start` to `stop - 1`, made ahead of time in other threads."""
        options = grain.ReadOptions(num_threads=_PREFETCHED, prefetch_buffer_size=_PREFETCHED)
        yield from grain.MapDataset.range(start, stop).map(self.batch).to_iter_dataset(options)

    def eval_batches(self) -> Iterator[Batch]:
        """Yields every row once, in the order of the index; the last batch is filled up with empty rows.

        Row i of the whole visit is unit i of the index.
        """
        for n in range(self.batches_per_epoch):
            yield self._build(self._eval_units(n), n)

    def eval_examples(self, n: int) -> np.ndarray:
        """Returns the units in this process's rows of evaluation batch `n`, [rows] int64; -1 is an empty row."""
        return self._eval_units(n)[self._rows]

    def _units(self, n: int) -> np.ndarray:
        places = range(n * self.batch_size, (n + 1) * self.batch_size)
        return np.array([self._order[place] for place in places], np.int64)

    def _eval_units(self, n: int) -> np.ndarray:
        units = np.arange(n * self.batch_size, (n + 1) * self.batch_size)
        return np.where(units < self.index.units, units, -1)

    def _build(self, units: np.ndarray, n: int) -> Batch:
        width = choose_width(self.index, self.kind, self.widths, units)
        layout = LAYOUTS[self.kind]
        batch = layout.build(self.index, layout.arrange(units)[self._rows], width)
        if not isinstance(batch, PromptBatch):
            return batch
        # The place in the data order, not the unit: one prompt that comes twice in a batch gets different answers.
        places = np.arange(n * self.batch_size, (n + 1) * self.batch_size) % 2**31
        return dataclasses.replace(batch, row_ids=places[self._rows].astype(np.int32))


def _data_order(index: Index, seed: int) -> grain.MapDataset:
    """Place in the data order -> unit, without end."""
    present = np.unique(index.source)
    weights = index.weights[present]
    if np.all(weights == weights[0]):
        return grain.MapDataset.source(range(index.units)).shuffle(seed=seed).repeat()
    parts = [np.flatnonzero(index.source == number) for number in present]
    shuffled = [grain.MapDataset.source(part.tolist()).shuffle(seed=seed).repeat() for part in parts]
    shares = [float(weight) * len(part) for weight, part in zip(weights, parts, strict=True)]
    return grain.MapDataset.mix(shuffled, shares)
