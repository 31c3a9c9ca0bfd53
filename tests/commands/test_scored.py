import math
from typing import Any

import numpy as np
import pytest

from jaxrlhf.commands import scored
from jaxrlhf.commands.sampling import AnsweredBatch
from jaxrlhf.commands.scored import make_scorer, weighted_total
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.steps.experience import total_scores
from jaxrlhf.trainers.judges import Judges
from tests.steps.experiences import experience

NAN = math.nan
UNUSED: Any = None
BATCH = AnsweredBatch(
    rows=[{"prompt": "p", "id": 1}, {"prompt": "q"}],
    completions=[["a", "bb", "ccc"], ["d", "ee", "f"]],
    lengths=np.ones((2, 3), np.int64),
    terminated=np.ones((2, 3), bool),
    prompts=UNUSED,
    samples=UNUSED,
)


def long(prompts, completions, **columns):
    return [float(len(text)) if len(text) > 1 else None for text in completions]


def early(prompts, completions, **columns):
    return [-float(ord(text[0]) - ord("a")) for text in completions]


def score(batch=BATCH, scorer: Any = None, **weights: float) -> np.ndarray:
    judges = Judges(scorer=scorer, functions={"long": long, "early": early}, weights=weights)
    return make_scorer(judges, ["id"], compute=ComputeConfig())(batch)


@pytest.mark.parametrize(
    ("long", "early", "expected"),
    [
        (1.0, 1.0, [[0.0, 1.0, 1.0], [-3.0, -2.0, -5.0]]),
        (2.0, 0.5, [[0.0, 3.5, 5.0], [-1.5, 2.0, -2.5]]),
        (1.0, 0.0, [[NAN, 2.0, 3.0], [NAN, 2.0, NAN]]),  # what weighs nothing has no opinion
    ],
)
def test_a_score_is_the_sum_of_the_rewards_that_have_an_opinion(long, early, expected):
    np.testing.assert_allclose(score(long=long, early=early), expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_total_is_that_of_training(seed):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(4, 3)).astype(np.float32)  # of four rewards on three answers
    scores[random.random(scores.shape) < 0.5] = NAN
    by_name = {f"reward{number}": own for number, own in enumerate(scores)}
    weights = dict(zip(by_name, [1.0, 0.0, -2.5, 0.3], strict=True))
    trained, known = total_scores(experience(**{name: [*own, 1.0] for name, own in by_name.items()}), weights)
    expected = np.where(known, trained, NAN)[:3]  # the fourth is padding
    np.testing.assert_allclose(weighted_total(by_name, weights), expected, rtol=1e-6)


def test_a_reward_sees_the_whole_batch_with_the_columns_of_each_answer():
    seen = []

    def watching(prompts, completions, id):
        seen.append((prompts, completions, id))
        return [0.0] * len(completions)

    judges = Judges(scorer=None, functions={"w": watching}, weights={"w": 1.0})
    make_scorer(judges, ["id"], compute=ComputeConfig())(BATCH)
    assert seen == [(["p"] * 3 + ["q"] * 3, ["a", "bb", "ccc", "d", "ee", "f"], [1] * 3 + [None] * 3)]


def test_a_reward_model_adds_its_own_and_must_have_an_opinion(monkeypatch):
    values = np.arange(6.0).reshape(2, 3)
    monkeypatch.setattr(scored, "batch_scorer", lambda scorer, compute: lambda batch: values)
    np.testing.assert_allclose(score(scorer="some", long=0.0, early=0.0, reward_model=3.0), 3 * values)
    values[1, 1] = np.inf
    with pytest.raises(ValueError, match="reward_model gave NaN or infinity for 1 of 6 answers"):
        score(scorer="some", long=0.0, early=0.0, reward_model=3.0)
