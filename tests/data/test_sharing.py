import logging

import numpy as np
import pytest

from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.loader import Loader
from jaxrlhf.data.sharing import sampled_should_share, share_prompts
from jaxrlhf.data.token_rows import Width
from jaxrlhf.data.widths import plan_widths
from jaxrlhf.types import PairBatch
from tests.data.indices import make_index


def pairs(prompt, answer, count=3):
    """Pairs of one prompt each, whose answers have the same length and differ at once."""
    sequences = [
        (np.concatenate([np.full(prompt, 9), np.full(answer, first)]), prompt) for _ in range(count) for first in (1, 2)
    ]
    return make_index("preference", sequences, groups=2 * np.arange(count + 1), ranks=[1, 2] * count)


def test_long_prompts_are_shared_and_short_ones_are_not(caplog):
    with caplog.at_level(logging.INFO, logger="jaxrlhf"):
        assert share_prompts(pairs(96, 32), "pairs", DataConfig(), "training") == "shared_pairs"
        assert share_prompts(pairs(8, 32), "pairs", DataConfig()) == "pairs"
    assert caplog.messages == [
        "training data: answers share the row of their prompt: 160 columns, not 2 x 128",
        "evaluation data: answers have a row each: 2 x 40 columns, not 72 shared ones",
    ]


@pytest.mark.parametrize(
    ("prompt", "answers", "length", "expected"),
    [(512, 8, 64, True), (512, 8, 512, False), (16, 8, 64, False), (96, 2, 16, True), (1, 2, 16, False)],
)
def test_sampled_answers_share_long_prompts(prompt: int, answers: int, length: int, expected: bool):
    index = make_index("prompt", [(np.full(prompt, 9), prompt)] * 3)
    assert sampled_should_share(index, 1, answers=answers, length=length) is expected


@pytest.mark.parametrize("kind", ["scored_pairs", "scored_ranked"])
def test_reward_models_share_prompts_too(kind):
    assert share_prompts(pairs(96, 32), kind, DataConfig()) == f"shared_{kind}"
    assert share_prompts(pairs(8, 32), kind, DataConfig()) == kind


def test_many_answers_of_one_prompt_are_not_put_in_a_row_so_long_that_attention_costs_more():
    def ranked(answers):
        prompt = [9] * 600
        sequences = [(np.array([*prompt, first, *[8] * 400]), 600) for first in range(answers)]
        return make_index("ranked", sequences, groups=[0, answers], ranks=[*range(1, answers + 1)])

    assert share_prompts(ranked(3), "scored_ranked", DataConfig()) == "shared_scored_ranked"
    assert share_prompts(ranked(16), "scored_ranked", DataConfig()) == "scored_ranked"


def test_the_config_has_the_last_word(caplog):
    why_not = "attention on splash needs that"
    with caplog.at_level(logging.INFO, logger="jaxrlhf"):
        assert share_prompts(pairs(8, 32), "pairs", DataConfig(share_prompts=True), why_not=why_not) == "shared_pairs"
        assert share_prompts(pairs(96, 32), "pairs", DataConfig(share_prompts=False), "training") == "pairs"
    assert caplog.messages == [
        "evaluation data: answers share the row of their prompt (data.share_prompts=true): 72 columns, not 2 x 40",
        "training data: answers have a row each (data.share_prompts=false): 2 x 128 columns, not 160 shared ones",
    ]


def test_prompts_are_not_shared_where_something_speaks_against_it(caplog):
    why_not = "attention on splash needs that"
    with caplog.at_level(logging.INFO, logger="jaxrlhf"):
        assert share_prompts(pairs(96, 32), "pairs", DataConfig(), why_not=why_not) == "pairs"
    assert caplog.messages == [
        f"evaluation data: answers have a row each ({why_not}): 2 x 128 columns, not 160 shared ones"
    ]


@pytest.mark.parametrize("kind", ["tokens", "unpaired", "prompts"])
def test_other_batches_stay_as_they_are(kind):
    assert share_prompts(make_index("sft", [([5, 6], 1)]), kind, DataConfig()) == kind


def test_every_bucket_is_wide_enough_for_the_rows_that_are_shared():
    """Widths follow the rows: 12, 17 and 92 columns, the last of a prompt of 61 ids, the first 60 of them shared."""
    examples = [pairs(*sizes, count=1) for sizes in ((5, 4), (6, 6), (61, 16))]
    sequences = [(index.sequence(n)[0], int(index.sequence(n)[1].argmax())) for index in examples for n in (0, 1)]
    index = make_index("preference", sequences, groups=[0, 2, 4, 6], ranks=[1, 2] * 3)
    assert plan_widths(index, "shared_pairs", 3) == (Width(16, 8), Width(24, 8), Width(96, 16))
    loader = Loader(index, "shared_pairs", 1, seed=0, buckets=3)
    for batch, tokens, length in zip(loader.eval_batches(), (16, 24, 96), (12, 17, 92), strict=True):
        assert isinstance(batch, PairBatch)
        assert batch.answers.tokens.shape == (1, tokens) and (batch.answers.segment_ids != 0).sum() == length
