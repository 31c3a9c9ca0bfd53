"""What looks wrong in sampled answers and in what they score."""

from __future__ import annotations

from collections.abc import Iterator

from jaxrlhf.report.finding import RECENT, Finding, Look, advised, held_out_or_own
from jaxrlhf.report.folder import RunRecord
from jaxrlhf.report.numbers import percent, short
from jaxrlhf.report.series import first_value, mean_of_last, total
from jaxrlhf.trainers.rollout_config import MOST_CUT_OFF

ALL_CUT_OFF = 0.99
"""Share of answers without an end, at which a first policy has none by design, or was never taught one."""

MOST_EQUAL = 0.9
"""Share of groups with equal rewards: what is left to learn from is a tenth of the answers that were paid for."""

LENGTH_FACTOR = 2.0
"""Longer or shorter by this factor, answers are no longer compared like with like: many rewards favour length."""

MOST_UNSCORED = 0.1
"""Share of answers on which no reward has an opinion."""

EQUAL_REWARDS = (
    "Use a reward that tells answers apart, prompts that are neither trivial nor hopeless, a higher "
    "rollout.temperature, or more rollout.answers."
)


def _cut_off(run: RunRecord) -> Iterator[Finding]:
    curve = held_out_or_own(run, "completions/clipped_ratio")
    first, share = first_value(curve), mean_of_last(curve, RECENT)
    if first is None or share is None or share <= MOST_CUT_OFF:
        return
    if min(first, share) >= ALL_CUT_OFF:
        yield Finding(
            "hint",
            "All answers are cut off at rollout.max_new_tokens, from the first on.",
            "If answers have no end by design, this is as it should be; else start from a model that ends them.",
        )
        return
    ends = ["make an end worth something (ppo.missing_eos_penalty)"] if run.method == "PPO" else []
    yield Finding(
        "problem",
        f"{percent(share)} of the answers are cut off, at first {percent(first)}: they reach rollout.max_new_tokens "
        "without an end, and rewards judge half answers.",
        advised("raise rollout.max_new_tokens", "start from a model that ends its answers", *ends),
    )


def _equal_in_groups(run: RunRecord) -> Iterator[Finding]:
    share = mean_of_last(run.curve("frac_reward_zero_std"), RECENT)
    if share is not None and share >= MOST_EQUAL:
        seen = f"In {percent(share)} of the groups all rewards are equal: nothing is learned from them."
        yield Finding("problem", seen, EQUAL_REWARDS)


def _equal_in_all(run: RunRecord) -> Iterator[Finding]:
    recent = run.histograms[-max(1, round(RECENT * len(run.histograms))) :]
    values = {_only_value(line["scores"]["edges"], line["scores"]["counts"]) for line in recent}
    (value,) = values if len(values) == 1 else (None,)
    if value is not None:
        yield Finding("problem", f"All recent answers have the same score, {short(value)}.", EQUAL_REWARDS)


def _score(run: RunRecord) -> Iterator[Finding]:
    curve = held_out_or_own(run, "objective/scores") or held_out_or_own(run, "reward")
    first, last = first_value(curve), mean_of_last(curve, RECENT)
    if "rollout" in run.config and len(curve) > 1 and first is not None and last is not None and last <= first:
        yield Finding(
            "hint",
            f"The score has not risen: {short(first)} at first, {short(last)} now.",
            "Look whether the reward tells the sampled answers apart; then raise optim.learning_rate, the batch, or "
            "the number of steps.",
        )


def _length(run: RunRecord) -> Iterator[Finding]:
    curve = held_out_or_own(run, "completions/mean_length")
    first, last = first_value(curve), mean_of_last(curve, RECENT)
    if first and last and not first / LENGTH_FACTOR < last < first * LENGTH_FACTOR:
        way = "longer" if last > first else "shorter"
        yield Finding(
            "hint",
            f"The answers have become much {way}: {short(first)} tokens at first, {short(last)} now.",
            "Rewards often favour a length. Compare scores at equal length, and make length cost or earn something "
            "if people would mind it.",
        )


def _unscored(run: RunRecord) -> Iterator[Finding]:
    prompts, answers = run.setting("batch_size"), run.setting("rollout.answers")
    if not isinstance(prompts, int) or not isinstance(answers, int) or not run.last_step:
        return
    share = total(run.curve("objective/unscored")) / (run.last_step * prompts * answers)
    if share > MOST_UNSCORED:
        yield Finding(
            "hint",
            f"No reward has an opinion on {percent(share)} of the answers; they teach nothing.",
            "See why the rewards return None for them.",
        )


def _only_value(edges: list[float], counts: list[int]) -> float | None:
    """The score of all answers where a single bin holds any, else None: scores that differ reach from first to last."""
    held = [number for number, count in enumerate(counts) if count]
    return edges[held[0]] if len(held) == 1 else None


LOOKS: tuple[Look, ...] = (_cut_off, _equal_in_groups, _equal_in_all, _score, _length, _unscored)
