"""The index: every sequence as token ids, encoded, checked and filtered once, before the first step."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxrlhf.data.report import Report
from jaxrlhf.data.rowlog import Row
from jaxrlhf.data.shapes import Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Tokenised examples; a batch is a function of the index, a seed and a number.

    An example is one sequence ("sft", "unpaired", "prompt"), two ("preference": chosen, rejected) or K ("ranked"). A
    unit is what fills one row of a batch: an example, or with packing a bin of examples.

    Attributes:
        kind: what the examples are for.
        ids: [n_tokens] int32, the token ids of all sequences, one after the other.
        mask: [n_tokens] bool, True at tokens to imitate; never at the first of a sequence.
        offsets: [n_sequences + 1] int64, sequence s is `ids[offsets[s]:offsets[s + 1]]`.
        groups: [n_examples + 1] int64, example e owns the sequences `groups[e]` to `groups[e + 1] - 1`.
        ranks: [n_sequences] int32, 1 is best; 1 and 2 for pairs, else 1.
        margins: [n_examples] float32, by how much chosen should win.
        desirable: [n_examples] bool, for single answers whether they are good; else True.
        extras: for prompts: `prompt` as text, `messages` if it is a conversation, and the other columns of each
            example; else empty.
        bins: sequences of each packed row, or None.
        weights: [n_sources] float32, how often a row of each data set is seen, relative to the others.
        source: [n_units] int32, the data set of each unit.
        report: counts of what was read and left out.
        digest: SHA-256 of the content, the tokenizer and the settings, in hexadecimal.
    """

    kind: Kind
    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    groups: np.ndarray
    ranks: np.ndarray
    margins: np.ndarray
    desirable: np.ndarray
    extras: tuple[Row, ...]
    bins: tuple[np.ndarray, ...] | None
    weights: np.ndarray
    source: np.ndarray
    report: Report
    digest: str

    @property
    def units(self) -> int:
        """Number of units: of examples, or with packing of bins."""
        return len(self.source)

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns in `extras` beside the prompt, in the order in which they first appear."""
        return tuple({name: None for extra in self.extras for name in extra if name != "prompt"})

    def sequence(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids, [n] int32, and the mask, [n] bool, of a sequence."""
        span = slice(self.offsets[number], self.offsets[number + 1])
        return self.ids[span], self.mask[span]

    def sequences_of(self, unit: int) -> np.ndarray:
        """Returns the numbers of the sequences of a unit, [k] int64; none for the unit -1, an empty row."""
        if unit < 0:
            return np.zeros(0, np.int64)
        return self.bins[unit] if self.bins is not None else np.arange(self.groups[unit], self.groups[unit + 1])
