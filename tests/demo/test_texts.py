import dataclasses

import numpy as np
import pytest

from jaxrlhf.demo import language
from jaxrlhf.demo.gold import explain, gold_score, pair_accuracy, rank_with_noise
from jaxrlhf.demo.language import held_out_prompts, make_prompts, parse_prompt
from jaxrlhf.demo.texts import DEMONSTRATOR, Habits, make_demonstrations, make_pretraining_text, write_answer

EXPERT = Habits(topic=1.0, mood=1.0, detail=1.0, reason=1.0, takes_back=0.0, chatter=0.0, repeat=0.0, closing=1.0)
PROMPTS, ANSWERS = 200, 64


@pytest.fixture(scope="module")
def answers() -> list[list[str]]:
    rng = np.random.default_rng(0)
    tasks = [parse_prompt(prompt) for prompt in make_prompts(1, PROMPTS)]
    return [[write_answer(rng, task, DEMONSTRATOR) for _ in range(ANSWERS)] for task in tasks]


@pytest.fixture(scope="module")
def scores(answers: list[list[str]]) -> np.ndarray:
    prompts = make_prompts(1, PROMPTS)
    return np.array([[gold_score(p, answer) for answer in row] for p, row in zip(prompts, answers, strict=True)])


def _best_of(scores: np.ndarray, count: int) -> float:
    """Mean of the best of `count`, in standard deviations above the mean."""
    return (scores.reshape(-1, count).max(axis=1).mean() - scores.mean()) / scores.std()


@pytest.mark.parametrize("make", [make_demonstrations, make_pretraining_text])
def test_texts_are_a_function_of_the_seed(make) -> None:
    assert make(3, 40) == make(3, 40)
    assert make(3, 40) != make(4, 40)


def test_demonstrations_answer_the_prompts_of_their_seed() -> None:
    assert [row["prompt"] for row in make_demonstrations(7, 100)] == make_prompts(7, 100)


def test_no_pretraining_text_contains_a_held_out_prompt() -> None:
    texts = [row["text"] for row in make_pretraining_text(0, 2000)]
    assert sum(" describe " in text for text in texts) == 1500
    assert not {text.split(" :")[0] + " :" for text in texts} & set(held_out_prompts())


def test_demonstrations_are_grammatical_and_short(answers: list[list[str]]) -> None:
    lengths = [len(answer.split()) for row in answers for answer in row]
    assert (min(lengths), max(lengths)) == (10, 23)
    strays = [explain(p, row[0])["stray"] for p, row in zip(make_prompts(1, PROMPTS), answers, strict=True)]
    assert set(strays) == {0.0}


def test_pretraining_text_has_at_most_34_words() -> None:
    assert max(len(row["text"].split()) for row in make_pretraining_text(0, 2000)) <= 34


def test_demonstrations_leave_much_to_gain(scores: np.ndarray) -> None:
    assert scores.mean() == pytest.approx(4.2, abs=0.1)
    assert scores.std() == pytest.approx(1.48, abs=0.08)
    assert (8.6 - scores.mean()) / scores.std() > 2.8


def test_gains_come_from_many_small_choices(scores: np.ndarray) -> None:
    assert _best_of(scores, 4) == pytest.approx(1.0, abs=0.06)
    assert _best_of(scores, 16) == pytest.approx(1.72, abs=0.08)
    assert _best_of(scores, 64) > 2.0


def test_scores_have_one_hump(scores: np.ndarray) -> None:
    density, _ = np.histogram(scores, bins=np.arange(-3, 9.1, 1.5))
    peak = density.argmax()
    assert (np.diff(density[: peak + 1]) > 0).all()
    assert (np.diff(density[peak:]) < 0).all()


def test_the_prompt_explains_hardly_any_of_the_spread(scores: np.ndarray) -> None:
    assert scores.std(axis=1).mean() > 0.95 * scores.std()


def test_an_expert_earns_the_highest_score_every_time() -> None:
    rng = np.random.default_rng(0)
    assert {gold_score(p, write_answer(rng, parse_prompt(p), EXPERT)) for p in held_out_prompts()} == {8.6}


@pytest.mark.parametrize("habit", ["topic", "mood", "detail", "reason", "closing"])
def test_each_good_habit_raises_the_score(habit: str) -> None:
    rng = np.random.default_rng(0)
    lapse = dataclasses.replace(EXPERT, **{habit: 0.0})
    assert all(gold_score(p, write_answer(rng, parse_prompt(p), lapse)) <= 7.8 for p in make_prompts(0, 50))


def test_each_bad_habit_lowers_the_score() -> None:
    rng = np.random.default_rng(0)
    for lapse, score in (
        (dataclasses.replace(EXPERT, chatter=1.0), 7.7),
        (dataclasses.replace(EXPERT, repeat=1.0), 7.6),
        (dataclasses.replace(EXPERT, reason=0.0, takes_back=1.0), 4.4),
    ):
        assert {gold_score(p, write_answer(rng, parse_prompt(p), lapse)) for p in make_prompts(0, 50)} == {score}


def test_the_labeller_is_right_about_86_percent_of_the_time(scores: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    groups = scores[:, :60].reshape(-1, 6).tolist()
    ranks = [rank_with_noise(group, rng) for group in groups]
    assert 0.85 < pair_accuracy(groups, ranks) < 0.87


def test_length_tells_little_of_the_preference(answers: list[list[str]], scores: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    ranks = [rank_with_noise(group, rng) for group in scores[:, :6].tolist()]
    lengths = np.array([[len(answer.split()) for answer in row] for row in answers])
    mean_score = np.array([scores[lengths == n].mean() if (lengths == n).any() else 0.0 for n in range(24)])
    assert 0.49 < pair_accuracy(lengths[:, :6].tolist(), ranks) < 0.57  # the longer one
    assert pair_accuracy(mean_score[lengths[:, :6]].tolist(), ranks) < 0.65  # the best rule that there is


def test_the_docstring_shows_true_scores() -> None:
    assert language.__doc__ is not None
    lines = [line.strip() for line in language.__doc__.splitlines()]
    (prompt,) = (line for line in lines if line.startswith("mia "))
    shown = [line.split(maxsplit=1) for line in lines if line[:1] in "-0123456789" and "  the " in f"  {line}"]
    assert len(shown) == 3
    assert [float(score) for score, _ in shown] == [gold_score(prompt, answer) for _, answer in shown]
