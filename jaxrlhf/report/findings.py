"""What looks wrong in a run, and what to do about it. A finding is a hint: the thresholds are rules of thumb."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.numbers import percent, plural, short
from jaxrlhf.report.panels import EVALUATION
from jaxrlhf.report.series import Curve, first_value, last_value, mean_of_last, total

RECENT = 0.2
"""The part of a run that is its present: single lines are too noisy to judge, and the beginning is another model."""

MOST_CUT_OFF = 0.9
"""Share of answers without an end, at which rewards judge little but halves; the trainers warn at the same."""

MOST_EQUAL = 0.9
"""Share of groups with equal rewards: what is left to learn from is a tenth of the answers that were paid for."""

KL_PER_TOKEN = 1.0
"""Nats: a token is then e times as likely as under the reference, about as much as language leaves open at a token."""

LEAST_KL = -0.5
"""Nats an answer: a KL is not negative; an estimate of it may be a little, for lack of answers."""

RUNAWAY_RISE, RUNAWAY_KL = 2.0, 10.0
"""Rises of the KL in the last third and in the third before, as a ratio: a KL that settles rises ever more slowly.
Below so many nats an answer nothing has run far."""

LENGTH_FACTOR = 2.0
"""Longer or shorter by this factor, answers are no longer compared like with like: many rewards favour length."""

ENTROPY_LEFT = 0.1
"""Part of the first entropy: below it, the answers to a prompt are nearly the same, and sampling explores nothing."""

MOST_SKIPPED = 0.01
"""Share of updates that may be skipped as an accident: more is a habit."""

MOST_CLIPPED = 0.3
"""Share of tokens without gradient because their ratio left its interval: the updates are too large for it."""

MOST_UNSCORED = 0.1
"""Share of answers on which no reward has an opinion."""

MOST_MISMATCH = 0.05
"""Mean difference of log-probabilities, nats: a quarter of the usual clip range, spent before anything was learned."""

WORSE_BY = 0.05
"""Relative rise of an evaluation's loss above its best that is more than noise."""

CHANCE = 0.55
"""Accuracy on pairs, of which guessing gets 0.5."""

FEW_STEPS = 10
"""Runs of fewer steps teach next to nothing; the trainers warn at the same."""


class Finding(NamedTuple):
    """Something to look at: how grave it is, what was seen, and what to do."""

    level: Literal["problem", "hint"]
    seen: str
    advice: str


def findings_of(run: RunRecord) -> list[Finding]:
    """Looks for what often goes wrong; the grave before the rest."""
    found = [finding for look in LOOKS for finding in look(run)]
    return sorted(found, key=lambda finding: finding.level != "problem")


def skipped_at(run: RunRecord) -> list[int]:
    """The steps of the lines that count skipped updates."""
    points = [*run.curve("skipped"), *run.curve("critic/skipped")]
    return sorted({point.step for point in points if point.value})


def _skipped(run: RunRecord) -> Iterator[Finding]:
    skipped = round(total(run.curve("skipped")) + total(run.curve("critic/skipped")))
    if skipped:
        often = skipped > MOST_SKIPPED * run.last_step
        yield Finding(
            "problem" if often else "hint",
            f"{plural(skipped, 'update')} {'was' if skipped == 1 else 'were'} skipped: loss or gradient was not "
            f"finite, first by step {skipped_at(run)[0]:,}.",
            "Lower optim.learning_rate or warm it up; look for rows that are far longer than the rest; compute in "
            "float32 to see whether the dtype is to blame.",
        )


def _not_finite(run: RunRecord) -> Iterator[Finding]:
    names = [name for name, curve in run.curves.items() if any(point.value is None for point in curve)]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield Finding(
            "hint",
            f"Not always finite: {', '.join(names[:5])}{more}.",
            "Where nothing was counted this is harmless; a loss or a gradient norm must be a number.",
        )


def _cut_off(run: RunRecord) -> Iterator[Finding]:
    share = mean_of_last(_either(run, "completions/clipped_ratio"), RECENT)
    if share is not None and share >= MOST_CUT_OFF:
        yield Finding(
            "problem",
            f"{percent(share)} of the answers are cut off: they reach rollout.max_new_tokens without an end, and "
            "rewards judge half answers.",
            "Raise rollout.max_new_tokens, start from a model that ends its answers, or make an end worth something "
            "(ppo.missing_eos_penalty). If answers have no end by design, this is as it should be.",
        )


def _equal_rewards(run: RunRecord) -> Iterator[Finding]:
    share = mean_of_last(run.curve("frac_reward_zero_std"), RECENT)
    advice = (
        "Use a reward that tells answers apart, prompts that are neither trivial nor hopeless, a higher "
        "rollout.temperature, or more rollout.answers."
    )
    if share is not None and share >= MOST_EQUAL:
        seen = f"In {percent(share)} of the groups all rewards are equal: nothing is learned from them."
        yield Finding("problem", seen, advice)
    recent = run.histograms[-max(1, round(RECENT * len(run.histograms))) :]
    values = {_only_value(line["scores"]["edges"], line["scores"]["counts"]) for line in recent}
    (value,) = values if len(values) == 1 else (None,)
    if value is not None:
        yield Finding("problem", f"All recent answers have the same score, {short(value)}.", advice)


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
            "Read the samples: the policy may have found answers that the reward likes and people do not. Raise "
            "the kl_coef, lower optim.learning_rate, or stop earlier.",
        )


def _runs_away(curve: Curve) -> bool:
    """Whether the last third rose far more than the one before."""
    values = [point.value for point in curve if point.value is not None]
    third = len(values) // 3
    if third < 3 or values[-1] < RUNAWAY_KL:
        return False
    before, middle, last = (values[-1 - third * back] for back in (2, 1, 0))
    return last - middle > RUNAWAY_RISE * max(middle - before, 0.0) and last > RUNAWAY_RISE * middle


def _length(run: RunRecord) -> Iterator[Finding]:
    curve = _either(run, "completions/mean_length")
    first, last = first_value(curve), mean_of_last(curve, RECENT)
    if first and last and not first / LENGTH_FACTOR < last < first * LENGTH_FACTOR:
        way = "longer" if last > first else "shorter"
        yield Finding(
            "hint",
            f"The answers have become much {way}: {short(first)} tokens at first, {short(last)} now.",
            "Rewards often favour a length. Compare scores at equal length, and make length cost or earn something "
            "if people would mind it.",
        )


def _entropy(run: RunRecord) -> Iterator[Finding]:
    if "rollout" not in run.config:
        return
    curve = run.curve("policy/entropy_avg") or run.curve("entropy")
    first, last = first_value(curve), mean_of_last(curve, RECENT)
    if first and last is not None and last < ENTROPY_LEFT * first:
        yield Finding(
            "problem",
            f"The policy has lost its entropy: {short(first)} nats a token at first, {short(last)} now.",
            "Lower optim.learning_rate, raise the kl_coef, or stop earlier; a higher rollout.temperature explores "
            "more.",
        )


def _clipped(run: RunRecord) -> Iterator[Finding]:
    share = mean_of_last(run.curve("policy/clipfrac_avg") or run.curve("clip_ratio/region_mean"), RECENT)
    if share is not None and share > MOST_CLIPPED:
        yield Finding(
            "hint",
            f"{percent(share)} of the tokens are clipped and teach nothing.",
            "Lower optim.learning_rate, or learn fewer epochs from a rollout.",
        )


def _unscored(run: RunRecord) -> Iterator[Finding]:
    rollout = run.config.get("rollout")
    prompts = run.config.get("batch_size")
    if not isinstance(rollout, dict) or not isinstance(prompts, int) or not run.last_step:
        return
    answers = run.last_step * prompts * rollout.get("answers", 1)
    share = total(run.curve("objective/unscored")) / answers
    if share > MOST_UNSCORED:
        yield Finding(
            "hint",
            f"No reward has an opinion on {percent(share)} of the answers; they teach nothing.",
            "See why the rewards return None for them.",
        )


def _mismatch(run: RunRecord) -> Iterator[Finding]:
    difference = mean_of_last(run.curve("sampling/sampling_logp_difference/mean"), RECENT)
    if difference is not None and difference > MOST_MISMATCH:
        yield Finding(
            "problem",
            f"Sampler and training forward disagree by {short(difference)} nats a token.",
            "Compute in float32 (compute.dtype) to see whether rounding is to blame.",
        )


def _score(run: RunRecord) -> Iterator[Finding]:
    curve = _either(run, "objective/scores") or _either(run, "reward")
    first, last = first_value(curve), mean_of_last(curve, RECENT)
    if "rollout" in run.config and len(curve) > 1 and first is not None and last is not None and last <= first:
        yield Finding(
            "hint",
            f"The score has not risen: {short(first)} at first, {short(last)} now.",
            "Look whether the reward tells the sampled answers apart; then raise optim.learning_rate, the batch, or "
            "the number of steps.",
        )


def _accuracy(run: RunRecord) -> Iterator[Finding]:
    last = last_value(_either(run, "accuracy") or _either(run, "rewards/accuracies"))
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


def _no_evaluation(run: RunRecord) -> Iterator[Finding]:
    if not any(name.startswith(EVALUATION) for name in run.curves):
        yield Finding(
            "hint",
            "Nothing was evaluated: all curves are of the data that it learns from.",
            "Name held-out rows in eval_dataset; eval_every says how often.",
        )


def _few_steps(run: RunRecord) -> Iterator[Finding]:
    if run.exported and run.last_step < FEW_STEPS:
        yield Finding(
            "hint",
            f"The run had {plural(run.last_step, 'step')}, which teach next to nothing.",
            "Lower batch_size, or raise epochs or steps.",
        )


def _unreadable(run: RunRecord) -> Iterator[Finding]:
    if run.problems:
        shown = "; ".join(run.problems[:3])
        more = f"; and {len(run.problems) - 3} more" if len(run.problems) > 3 else ""
        yield Finding(
            "hint",
            f"Left out {plural(len(run.problems), 'line')} that could not be read: {shown}{more}.",
            "Mend the lines, or leave them: everything else is here.",
        )


LOOKS: tuple[Callable[[RunRecord], Iterator[Finding]], ...] = (
    _skipped,
    _cut_off,
    _equal_rewards,
    _kl,
    _entropy,
    _mismatch,
    _accuracy,
    _score,
    _length,
    _clipped,
    _unscored,
    _overfit,
    _not_finite,
    _few_steps,
    _no_evaluation,
    _unreadable,
)
"""What is looked for; each yields what it finds."""


def _either(run: RunRecord, name: str) -> Curve:
    """The metric of evaluations if there are two at least, else of training."""
    evaluated = run.curve(EVALUATION + name)
    return evaluated if len(evaluated) > 1 or not run.curve(name) else run.curve(name)


def _only_value(edges: list[float], counts: list[int]) -> float | None:
    """The score of all answers where a single bin holds any, else None: scores that differ reach from first to last."""
    held = [number for number, count in enumerate(counts) if count]
    return edges[held[0]] if len(held) == 1 else None
