import numpy as np
import pytest

from jaxrlhf.demo.gold import POINTS, explain, gold_score, pair_accuracy, rank_with_noise
from jaxrlhf.demo.language import held_out_prompts
from jaxrlhf.demo.tokenizer import build_tokenizer

PROMPT = "mia liked the hotel . describe the room and staff :"
BEST = "the room was spotless because maids scrubbed . the staff was helpful because everyone smiled . thanks !"


def _parts(completion: str) -> dict[str, float]:
    """The parts that are not zero."""
    return {part: points for part, points in explain(PROMPT, completion).items() if points}


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        (BEST, {"topic": 2.0, "mood": 1.2, "detail": 2.4, "reason": 2.2, "closing": 0.8}),
        ("", {}),
        ("the room was nice .", {"topic": 1.0, "mood": 0.6}),
        ("the room was bad .", {"topic": 1.0, "mood": -0.6}),
        ("the room was spotless .", {"topic": 1.0, "mood": 0.6, "detail": 1.2}),
        ("the room was nice because maids scrubbed .", {"topic": 1.0, "mood": 0.6, "reason": 1.1}),
        # A reason of another aspect, or of the other mood, is none.
        ("the room was nice because butter melted .", {"topic": 1.0, "mood": 0.6}),
        ("the room was nice because pipes leaked .", {"topic": 1.0, "mood": 0.6}),
        ("the room was nice but dirty .", {"topic": 1.0, "mood": 0.6, "contradiction": -1.0}),
        ("the room was nice but spotless .", {"topic": 1.0, "mood": 0.6}),
        ("the coffee was fresh .", {"aside": -0.9}),
        ("it rained outside .", {"aside": -0.9}),
        ("it rained outside . it rained outside .", {"aside": -1.8, "repeat": -1.0}),
        ("thanks !", {"closing": 0.8}),
        ("thanks ! cheers !", {"closing": 0.8, "repeat": -1.0}),
        ("thanks ! the room was nice .", {"topic": 1.0, "mood": 0.6}),
        # The first word on an aspect counts; saying more does not mend it.
        ("the room was nice . the room was spotless .", {"topic": 1.0, "mood": 0.6, "repeat": -1.0}),
        (
            "the room was nice . the room was bad .",
            {"topic": 1.0, "mood": 0.6, "repeat": -1.0, "contradiction": -1.0},
        ),
        # A word that cannot be said of the aspect makes the whole sentence stray; so does a sentence cut short.
        ("the room was tasty .", {"stray": -1.5}),
        ("the room was nice but tasty .", {"stray": -2.1}),
        ("the hotel was nice .", {"stray": -1.5}),
        ("the room was nice . the staff was", {"topic": 1.0, "mood": 0.6, "stray": -0.9}),
    ],
)
def test_parts_of_worked_examples(completion: str, parts: dict[str, float]) -> None:
    assert _parts(completion) == parts
    assert gold_score(PROMPT, completion) == pytest.approx(sum(parts.values()), abs=1e-9)


def test_every_part_is_listed() -> None:
    assert list(explain(PROMPT, BEST)) == list(POINTS)


def test_score_depends_on_the_prompt() -> None:
    assert gold_score(PROMPT, BEST) == 8.6
    assert gold_score(PROMPT.replace("liked", "hated"), BEST) == 6.2
    assert gold_score(PROMPT.replace("room", "coffee"), BEST) == 3.8


def test_white_space_does_not_matter() -> None:
    assert gold_score(f" {PROMPT}\n", BEST.replace(" ", "  ")) == 8.6


def test_repeating_what_is_rewarded_loses() -> None:
    first = BEST.split(" . ")[0] + " ."
    assert gold_score(PROMPT, f"{first} {first} {first}") == pytest.approx(gold_score(PROMPT, first) - 2.0)


def test_an_unknown_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="is not of the toy language"):
        gold_score("tell me a joke", BEST)


def test_word_salad_scores_low_and_never_raises() -> None:
    rng = np.random.default_rng(0)
    vocabulary = sorted(build_tokenizer().get_vocab())
    salads = [" ".join(rng.choice(vocabulary, size=int(rng.integers(1, 24)))) for _ in range(2000)]
    scores = [gold_score(prompt, salad) for prompt, salad in zip(held_out_prompts() * 8, salads, strict=False)]
    assert max(scores) <= 0.8  # a lone closing
    assert np.mean(scores) < -3.0


@pytest.mark.parametrize(
    "completion", ["", " ", ".", "! ! .", "the", "the room was", "\x00\n\t", "é 日本 🙂", "was " * 999]
)
def test_odd_text_is_no_error(completion: str) -> None:
    assert gold_score(PROMPT, completion) <= 0


def test_ranks_without_noise_follow_the_scores_and_tie_within_a_grade() -> None:
    assert rank_with_noise([1.0, 5.0, 3.0, 3.2], np.random.default_rng(0), noise=0.0) == [3, 1, 2, 2]


def test_a_ranking_never_says_nothing() -> None:
    rng = np.random.default_rng(0)
    assert rank_with_noise([3.1, 3.2, 2.9], rng, noise=0.0) == [2, 1, 3]
    assert all(max(rank_with_noise([3.0] * 4, rng)) > 1 for _ in range(200))


def test_ranks_have_no_gaps() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        ranks = rank_with_noise(rng.normal(4.0, 2.0, size=7).tolist(), rng)
        assert set(ranks) == set(range(1, max(ranks) + 1))


def test_ranks_are_a_function_of_the_generator() -> None:
    scores = [1.0, 2.0, 3.0, 4.0]
    assert [rank_with_noise(scores, np.random.default_rng(seed)) for seed in range(9)] == [
        rank_with_noise(scores, np.random.default_rng(seed)) for seed in range(9)
    ]
    assert len({tuple(rank_with_noise(scores, np.random.default_rng(seed))) for seed in range(9)}) > 1


def test_labels_of_pairs_are_bradley_terry() -> None:
    # Grades a million points apart never tie, so with this noise rounding does not show.
    rng = np.random.default_rng(0)
    wins = [rank_with_noise([1e6, 0.0], rng, noise=1e6)[0] == 1 for _ in range(4000)]
    assert np.mean(wins) == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.02)


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_scores_that_cannot_be_ranked_are_an_error(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be ranked"):
        rank_with_noise(scores, np.random.default_rng(0))


@pytest.mark.parametrize("noise", [-1.0, float("nan"), float("inf")])
def test_noise_that_is_no_scale_is_an_error(noise: float) -> None:
    with pytest.raises(ValueError, match="is not a scale"):
        rank_with_noise([1.0, 2.0], np.random.default_rng(0), noise)


def test_pair_accuracy_of_a_worked_example() -> None:
    # Group 1: (3, 2) right, (3, 2') right, (2, 2') tied rank, left out. Group 2: wrong. Group 3: tied score, one half.
    scores = [[3.0, 2.0, 2.0], [1.0, 5.0], [4.0, 4.0]]
    ranks = [[1, 2, 2], [1, 2], [2, 1]]
    assert pair_accuracy(scores, ranks) == 2.5 / 4


def test_pair_accuracy_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pair"):
        pair_accuracy([[1.0, 2.0]], [[1, 1]])


def test_pair_accuracy_of_groups_of_other_sizes_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        pair_accuracy([[1.0, 2.0]], [[1, 2, 3]])
