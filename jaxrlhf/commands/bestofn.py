"""`jaxrlhf bestofn`: the best of several answers to each prompt, in a file to train on, and what the best is worth."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxrlhf.commands.config import BestOfNConfig, JudgeConfig
from jaxrlhf.commands.files import check_new, write_result
from jaxrlhf.commands.generate import answer_row
from jaxrlhf.commands.sampled import Prompts, draw_answers, open_prompts, write_sampled
from jaxrlhf.commands.sampling import AnsweredBatch
from jaxrlhf.commands.scored import BatchScores, make_scorer
from jaxrlhf.data.rowlog import Row
from jaxrlhf.evaluation.best_of_n import best_of_n, kl_bound, over_prompts
from jaxrlhf.sharding.distributed import is_main
from jaxrlhf.trainers.judges import Judges, check_judges, name_judges
from jaxrlhf.trainers.start import Start, check_same_tokens, load_start

log = logging.getLogger(__name__)

_OF_OTHER_ANSWERS = ("score", "scores")
"""What prompts may carry from an earlier choice, beside `generate.ANSWER_COLUMNS`; the new one replaces it."""


def run(config: BestOfNConfig) -> list[Row]:
    """Writes one JSON line a prompt, see `best_row` and `ranked_row`, and prints what the best is worth, see `table`.

    Answers are drawn, scored and written batch by batch, and a file appears when it is whole; what stays in memory of
    all prompts is their scores.

    Returns:
        The table.

    Raises:
        ValueError: if a file exists, nothing gives a score, what is read is bad, or no row comes of it; there is no
            file then.
    """
    check_new(config.out, "answers")
    check_new(config.summary, "the summary")
    asked = {"": config} | ({"judge.": config.judge} if config.judge.given else {})
    # What is wrong there is said before anything is loaded.
    named = [name_judges(one, (), None, prefix=prefix) for prefix, one in asked.items()]
    with open_prompts(config) as (policy, prompts):
        judges = [
            Judges(scorer=_reward_model(one, prefix, policy, prompts), functions=functions, weights=weights)
            for (prefix, one), (functions, weights) in zip(asked.items(), named, strict=True)
        ]
        scorers = [_scorer(config, judge, prompts) for judge in judges]
        said: list[list[np.ndarray]] = [[] for _ in scorers]
        rows = _rows(draw_answers(config, policy, prompts), scorers, said, keep_all=config.keep_all)
        write_sampled(config.out, rows)
    scores, *values = (np.concatenate(parts) for parts in said)
    _warn_of_unscored(scores, least=2 if config.keep_all else 1)
    result = table(scores, *values)
    if is_main():
        _show(result)
        if config.summary is not None:
            write_result(Path(config.summary), result)
    return result


def best_row(prompt: Row, texts: Sequence[str], terminated: Sequence[bool], scores: np.ndarray) -> Row | None:
    """The row of a prompt and its best answer, the first of those that share the highest score.

    Args:
        prompt: the prompt as `Index.extras` has it.
        texts: its K answers.
        terminated: whether each of them ended by itself.
        scores: [K], NaN where an answer has none.

    Returns:
        What `generate.answer_row` makes of the best answer, and its `score`; None where no answer has one.
    """
    if np.isnan(scores).all():
        return None
    best = int(np.nanargmax(scores))
    return answer_row(_bare(prompt), [texts[best]], [terminated[best]]) | {"score": float(scores[best])}


def ranked_row(prompt: Row, texts: Sequence[str], terminated: Sequence[bool], scores: np.ndarray) -> Row | None:
    """The row of a prompt and all its answers that have a score, which `jaxrlhf reward` reads; arguments as `best_row`.

    Returns:
        What `generate.answer_row` makes of them, and their `scores` and `ranks`: 1 is best, equal scores share a rank.
        None where fewer than two answers have a score.
    """
    kept = np.flatnonzero(~np.isnan(scores)).tolist()
    if len(kept) < 2:
        return None
    own = scores[kept]
    ranks = 1 + np.sum(own[None, :] > own[:, None], axis=1)
    row = answer_row(_bare(prompt), [texts[number] for number in kept], [terminated[number] for number in kept])
    return row | {"scores": own.tolist(), "ranks": ranks.tolist()}


def table(scores: np.ndarray, values: np.ndarray | None = None) -> list[Row]:
    """What the best of n answers is worth, a row for each n from 1 to N.

    Args:
        scores: [P, N], by which the best is chosen; NaN where an answer has none.
        values: [P, N], by a judge, or None without one; NaN where it has no opinion.

    Returns:
        Rows of `n`; the expected `score` with its `score_error`, the standard error over the `score_prompts` that have
        n scored answers; with a judge the same under `judge`, of the answers that it values; and `kl_bound`, see
        `evaluation.best_of_n.kl_bound`. None stands for a number that there is not.
    """
    curves = {"score": over_prompts(best_of_n(scores))}
    if values is not None:
        curves["judge"] = over_prompts(best_of_n(scores, values))
    rows = []
    for n in range(1, scores.shape[1] + 1):
        row: Row = {"n": n}
        for name, curve in curves.items():
            row[name] = _number(curve.values[n - 1])
            row[f"{name}_error"] = _number(curve.errors[n - 1])
            row[f"{name}_prompts"] = int(curve.prompts[n - 1])
        rows.append(row | {"kl_bound": float(kl_bound(n))})
    return rows


def _reward_model(asked: BestOfNConfig | JudgeConfig, prefix: str, policy: Start, prompts: Prompts) -> Start | None:
    if asked.reward_model is None:
        return None
    what = f"{prefix}reward_model"
    scorer = load_start(asked.reward_model, prompts.mesh, what=what, scalar=True)
    check_same_tokens(policy, scorer, f"{what}={asked.reward_model}")
    return scorer


def _scorer(config: BestOfNConfig, judge: Judges, prompts: Prompts) -> BatchScores:
    check_judges(judge, None, [prompts.loader], config.sampling.max_new_tokens)
    return make_scorer(judge, prompts.loader.index.columns, compute=config.compute)


def _rows(
    batches: Iterable[AnsweredBatch],
    scorers: Sequence[BatchScores],
    said: Sequence[list[np.ndarray]],
    *,
    keep_all: bool,
) -> Iterator[Row]:
    """The rows to write, by what the first scorer says; what each of them says is added to its list on the way.

    Raises:
        ValueError: at the end, if there was none.
    """
    make_row, written = ranked_row if keep_all else best_row, 0
    for batch in batches:
        for score, own in zip(scorers, said, strict=True):
            own.append(score(batch))
        answered = zip(batch.rows, batch.completions, batch.terminated.tolist(), said[0][-1], strict=True)
        rows = [row for row in itertools.starmap(make_row, answered) if row is not None]
        written += len(rows)
        yield from rows
    if not written:
        raise ValueError(_why_nothing(np.concatenate(said[0])))


def _why_nothing(scores: np.ndarray) -> str:
    if np.isnan(scores).all():
        return f"no reward has an opinion on any of the {scores.size} answers; mend the rewards or reward_weights"
    return "no prompt has 2 answers with a score, which a rank needs; draw more answers, or leave keep_all out"


def _bare(prompt: Row) -> Row:
    return {name: value for name, value in prompt.items() if name not in _OF_OTHER_ANSWERS}


def _warn_of_unscored(scores: np.ndarray, *, least: int) -> None:
    scored = np.sum(~np.isnan(scores), axis=1)
    if missing := scores.size - int(scored.sum()):
        left = "no answer" if least == 1 else f"fewer than {least} answers"
        log.warning(
            "%d of %d answers have no score and are left out; %d of %d prompts not written for having %s left",
            missing, scores.size, int(np.sum(scored < least)), len(scores), left,
        )  # fmt: skip


def _show(result: Sequence[Row]) -> None:
    """Prints the table at powers of two, and at its end."""
    names = [name for name in result[0] if not name.endswith("_prompts")]
    print("  ".join(f"{name:>11}" for name in names))
    for row in result:
        if row["n"].bit_count() == 1 or row is result[-1]:
            print("  ".join(f"{_text(row[name]):>11}" for name in names))


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
