import dataclasses

import numpy as np
import pytest

from jaxrlhf.demo import judging, road
from jaxrlhf.demo.config import DemoConfig
from jaxrlhf.demo.gold import gold_score
from jaxrlhf.demo.language import make_prompts
from jaxrlhf.trainers.start import scalar_start
from tests.demo.small import SMALL

CONFIG = DemoConfig(sizes=SMALL)


@pytest.fixture(scope="module")
def sft():
    return road.fresh_model(CONFIG)


@pytest.fixture(scope="module")
def answered(sft):
    return road.sample(sft, make_prompts(0, 3), answers=4, seed=0)


def test_the_first_so_many_answers_are_chosen_among_by_score(answered):
    scores = np.array([[0.0, 1.0, 9.0, 9.0], [3.0, 2.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0]])
    found = judging.best_of(2, answered, scores)
    texts = answered.completions
    assert found.answers == [texts[0][1], texts[1][0], texts[2][0]]
    assert found.reward.tolist() == [1.0, 3.0, 0.0]
    assert found.gold.tolist() == [
        gold_score(prompt, text) for prompt, text in zip(answered.prompts.texts, found.answers, strict=True)
    ]
    assert found.length == np.mean([answered.lengths[0, 1], answered.lengths[1, 0], answered.lengths[2, 0]])
    assert found.kl == pytest.approx(np.log(2) - 1 / 2)
    assert found.kl_is_bound


def test_a_policy_is_at_kl_0_from_itself_and_elsewhere_from_another(sft):
    answered = road.sample(sft, make_prompts(0, 3), answers=1, seed=0)
    scorer = scalar_start(sft)
    other = dataclasses.replace(sft, params=road.fresh_model(DemoConfig(sizes=SMALL, seed=1)).params)
    assert judging.judge("SFT", sft, answered, scorer=scorer, sft=sft).kl == 0.0
    found = judging.judge("SFT", sft, answered, scorer=scorer, sft=other)
    assert found.kl > 1.0
    assert found.reward.tolist() == [0.0, 0.0, 0.0]  # by a head of zeros
    assert found.gold.shape == (3,)
