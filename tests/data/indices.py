"""Indices from ids, without text and tokenizer."""

import numpy as np

from jaxrlhf.data.index import Index
from jaxrlhf.data.report import Report


def make_index(kind, sequences, groups=None, ranks=None, bins=None, margins=None, desirable=None) -> Index:
    """An index of (ids, number of prompt ids), one example a sequence unless `groups` says otherwise."""
    starts = np.cumsum([0, *(len(ids) for ids, _ in sequences)]).astype(np.int64)
    groups = np.arange(len(sequences) + 1) if groups is None else np.array(groups)
    examples = len(groups) - 1
    return Index(
        kind=kind,
        ids=np.concatenate([ids for ids, _ in sequences]).astype(np.int32),
        mask=np.concatenate([np.arange(len(ids)) >= prompt for ids, prompt in sequences]),
        offsets=starts,
        groups=groups,
        ranks=np.array(ranks or [1] * len(sequences), np.int32),
        margins=np.array(margins or [0.0] * examples, np.float32),
        desirable=np.array(desirable or [True] * examples),
        extras=(),
        bins=None if bins is None else tuple(np.array(items) for items in bins),
        weights=np.ones(1, np.float32),
        source=np.zeros(examples if bins is None else len(bins), np.int32),
        report=Report(),
        digest="",
    )
