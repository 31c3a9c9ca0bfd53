"""Lists of token ids as a batch of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrlhf.types import PromptBatch


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, width: int | None = None, row_ids: Sequence[int] | None = None
) -> PromptBatch:
    """Prompts of any lengths, padded on the left.

    Args:
        prompts: token ids of B prompts; one without tokens is a padding row, which gets no answer.
        width: columns P; None means those of the longest prompt. A sampler compiles a program for each width.
        row_ids: what the draws of each prompt are keyed by; None means 0, 1, ...

    Returns:
        `PromptBatch` of numpy arrays.

    Raises:
        ValueError: if there are no prompts, one is longer than the width, or there are too few or many row ids.
    """
    longest = max(map(len, prompts), default=0)
    width = max(longest, 1) if width is None else width
    if not len(prompts):
        raise ValueError("there are no prompts; give one or more")
    if longest > width:
        raise ValueError(f"the longest prompt has {longest} tokens and width={width}; raise it, or shorten the prompt")
    if row_ids is not None and len(row_ids) != len(prompts):
        raise ValueError(f"there are {len(row_ids)} row_ids for {len(prompts)} prompts; give one for each")
    tokens, segment_ids = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), np.int32)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :], segment_ids[row, width - len(ids) :] = ids, 1
    numbers = np.asarray(range(len(prompts)) if row_ids is None else row_ids, np.int32)
    parts: Any = {"tokens": tokens, "segment_ids": segment_ids, "row_ids": numbers}
    return PromptBatch(**parts)
