"""What looks wrong in how a run learns: skipped updates, drift, lost entropy, lines without a number."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator

from jaxrlhf.report.finding import RECENT, Finding, Look, advised, closer_to_the_reference, held_out_or_own
from jaxrlhf.report.folder import METHODS, RunRecord
from jaxrlhf.report.numbers import percent, short
from jaxrlhf.report.panels import EVALUATION
from jaxrlhf.report.series import Curve, first_value, last_value, mean_of_last, total

MOST_SKIPPED = 0.01
"""Share of updates that may be skipped as an accident: more is a habit."""

KL_PER_TOKEN = 1.0
"""Nats: a token is then e times as likely as under the reference, about as much as language leaves open at a token."""

LEAST_KL = -0.5
"""Nats an answer: a KL is not negative; an estimate of it may be a little, for lack of answers."""

RUNAWAY_RISE, RUNAWAY_KL = 2.0, 10.0
"""Rises of the KL in the last third and in the third before, as a ratio: a KL that settles rises ever more slowly.
Below so many nats an answer nothing has run far."""

ENTROPY_LEFT = 0.1
"""Part of the first entropy: below it, the answers to a prompt are nearly the same, and sampling explores nothing."""

MOST_CLIPPED = 0.3
"""Share of tokens without gradient because their ratio left its interval: the updates are too large for it."""

MOST_MISMATCH = 0.05
"""Mean difference of log-probabilities, nats: a quarter of the usual clip range, spent before anything was learned."""

WORSE_BY = 0.05
"""Relative rise of an evaluation's loss above its best that is more than noise."""

CHANCE = 0.55
"""Accuracy on pairs, of which guessing gets 0.5."""

POLICY_UPDATES = ("policy/*", "loss/policy_avg", "loss/ptx_avg", "val/ratio", "grad_norm")
"""What PPO measures in updates of the policy, of which there are none where it rests."""

KEPT_ANSWERS = ("loss", "mean_token_accuracy", "entropy", "grad_norm", "reward/best")
"""What rejection sampling measures on the answers that it keeps."""

OF_SOME_ANSWERS = {"KTO": ("rewards/*", "logps/*")}
"""Method -> metrics of good or of bad answers alone, of which a line may have none."""


def skipped_at(run: RunRecord) -> list[int]:
    """The steps of the lines that count skipped updates."""
    points = [*run.curve("skipped"), *run.curve("critic/skipped")]
    return sorted({point.step for point in points if point.value})


def _skipped(run: RunRecord) -> Iterator[Finding]:
    skipped, updates = total(run.curve("skipped")) + total(run.curve("critic/skipped")), _updates(run)
    if skipped:
        limit = "up to " if run.setting("rejection.min_score") is not None else ""  # none where no answer is kept
        yield Finding(
            "problem" if skipped > MOST_SKIPPED * updates else "hint",
            f"{skipped:,.0f} of {limit}{updates:,} updates {'was' if skipped == 1 else 'were'} skipped: loss or "
            f"gradient was not finite, first by step {skipped_at(run)[0]:,}.",
            "Lower optim.learning_rate or warm it up; look for rows that are far longer than the rest; compute in "
            "float32 to see whether the dtype is to blame.",
        )


def _updates(run: RunRecord) -> int:
    """Updates of all models so far; those that PPO's policy rested in are none."""
    section = METHODS[run.method].command
    epochs, parts = run.setting(f"{section}.epochs"), run.setting(f"{section}.mini_batches")
    each = epochs * parts if isinstance(epochs, int) and isinstance(parts, int) else 1
    if run.method != "PPO":
        return run.last_step * each
    return round(each * (2 * run.last_step - _steps_at_rest(run)))


def _steps_at_rest(run: RunRecord) -> float:
    """The share of each line's updates that left the policy out, times the steps since the line before."""
    curve = run.curve("policy/rest_ratio")
    before = [0, *(point.step for point in curve)]
    return sum((point.value or 0.0) * (point.step - last) for point, last in zip(curve, before, strict=False))


def _not_finite(run: RunRecord) -> Iterator[Finding]:
    gaps = {name: {point.step for point in curve if point.value is None} for name, curve in run.curves.items()}
    names = [name for name, steps in gaps.items() if steps and not steps <= _not_counted(run, name, steps)]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield Finding(
            "hint",
            f"Not always finite: {', '.join(names[:5])}{more}.",
            "A loss and a gradient norm must be numbers; the first line that lacks one says where it went wrong.",
        )


def _not_counted(run: RunRecord, name: str, steps: set[int]) -> set[int]:
    """The steps, among some, at which a metric has no value because there was nothing to count."""
    prefix, plain = (EVALUATION if name.startswith(EVALUATION) else ""), name.removeprefix(EVALUATION)
    if _is_one_of(plain, ("rewards/*/mean", *OF_SOME_ANSWERS.get(run.method, ()))):
        return steps
    unscored = _steps_with(run, prefix + "objective/unscored", lambda value: bool(value))
    empty = unscored & {
        step
        for score in ("objective/scores", "reward")
        for step in _steps_with(run, prefix + score, lambda value: value is None)
    }
    if _is_one_of(plain, POLICY_UPDATES):
        empty |= _steps_with(run, "policy/rest_ratio", lambda value: value == 1)
    if _is_one_of(plain, KEPT_ANSWERS):
        empty |= _steps_with(run, prefix + "rejection/kept", lambda value: value == 0)
    return empty


def _steps_with(run: RunRecord, name: str, wanted: Callable[[float | None], bool]) -> set[int]:
    return {point.step for point in run.curve(name) if wanted(point.value)}


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _kl(run: RunRecord) -> Iterator[Finding]:
    curve = run.curve("objective/kl")
    kl = mean_of_last(curve, RECENT)
    if kl is None:
        return
    if kl < LEAST_KL:
        yield Finding(
            "problem",
            f"The KL to the reference is negative: {short(kl)} nats an answer, which no KL is.",
            "The log-probabilities are not of the distribution that was sampled from: check that the reference is the "
            "model meant, and that nothing edits answers between sampling and scoring.",
        )
    length = mean_of_last(run.curve("completions/mean_length"), RECENT)
    per_token = kl / length if length else 0.0
    if per_token > KL_PER_TOKEN or _runs_away(curve):
        how = f"{short(per_token)} nats a token" if per_token > KL_PER_TOKEN else "and rises ever faster"
        yield Finding(
            "problem",
            f"The KL to the reference runs away: {short(kl)} nats an answer, {how}.",
            "Read the samples: the policy may have found answers that the reward likes and people do not. "
            + advised(*closer_to_the_reference(run), "lower optim.learning_rate", "stop earlier"),
        )


def _runs_away(curve: Curve) -> bool:
    """Whether the last third rose far more than the one before."""
    values = [point.value for point in curve if point.value is not None]
    third = len(values) // 3
    if third < 3 or values[-1] < RUNAWAY_KL:
        return False
    before, middle, last = (values[-1 - third * back] for back in (2, 1, 0))
    return last - middle > RUNAWAY_RISE * max(middle - before, 0.0) and last > RUNAWAY_RISE * middle


def _entropy(run: RunRecord) -> Iterator[Finding]:
    if "rollout" not in run.config:
        return
    curve = run.curve("policy/entropy_avg") or run.curve("entropy")
    first, last = first_value(curve), mean_of_last(curve, RECENT)
    if first and last is not None and last < ENTROPY_LEFT * first:
        yield Finding(
            "problem",
            f"The policy has lost its entropy: {short(first)} nats a token at first, {short(last)} now.",
            advised("lower optim.learning_rate", *closer_to_the_reference(run), "stop earlier")
            + " A higher rollout.temperature explores more.",
        )


def _clipped(run: RunRecord) -> Iterator[Finding]:
    share = mean_of_last(run.curve("policy/clipfrac_avg") or run.curve("clip_ratio/region_mean"), RECENT)
    if share is not None and share > MOST_CLIPPED:
        yield Finding(
            "hint",
            f"{percent(share)} of the tokens are clipped and teach nothing.",
            "Lower optim.learning_rate, or learn fewer epochs from a rollout.",
        )


def _mismatch(run: RunRecord) -> Iterator[Finding]:
    difference = mean_of_last(run.curve("sampling/sampling_logp_difference/mean"), RECENT)
    if difference is not None and difference > MOST_MISMATCH:
        yield Finding(
            "problem",
            f"Sampler and training forward disagree by {short(difference)} nats a token.",
            "Compute in float32 (compute.dtype) to see whether rounding is to blame.",
        )


def _accuracy(run: RunRecord) -> Iterator[Finding]:
    last = last_value(held_out_or_own(run, "accuracy") or held_out_or_own(run, "rewards/accuracies"))
    if last is not None and last < CHANCE:
        yield Finding(
            "problem",
            f"{percent(last)} of the pairs are in the right order, and guessing gets 50 %.",
            "Check that chosen and rejected are not mixed up, that answers are not cut to the same beginning "
            "(data.max_length), and raise optim.learning_rate or the number of steps.",
        )


def _overfit(run: RunRecord) -> Iterator[Finding]:
    points = [(point.value, point.step) for point in run.curve(EVALUATION + "loss") if point.value is not None]
    if not points:
        return
    (best, step), last = min(points), points[-1][0]
    if best > 0 and last > (1 + WORSE_BY) * best:
        yield Finding(
            "hint",
            f"The evaluation's loss was lowest after step {step:,} ({short(best)}) and has risen to {short(last)}.",
            "Train fewer epochs, or let best_metric=eval/loss choose what is exported.",
        )


LOOKS: tuple[Look, ...] = (_skipped, _not_finite, _kl, _entropy, _mismatch, _accuracy, _clipped, _overfit)
