"""`jaxrlhf demo`: the whole road on a toy language, and a table of where it led."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time

import jax
from rich.console import Console

from jaxrlhf.commands.config import ReportConfig
from jaxrlhf.commands.report import run as write_report
from jaxrlhf.demo import road
from jaxrlhf.demo.config import DemoConfig
from jaxrlhf.demo.gold import gold_score, pair_accuracy
from jaxrlhf.demo.judging import best_of, judge, rewards
from jaxrlhf.demo.language import held_out_prompts, make_prompts
from jaxrlhf.demo.table import Goal, Result, show
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.trainers.run import Trained
from jaxrlhf.trainers.start import Start

BEST_OF = 4
"""Answers that best-of-n chooses among."""

INTRODUCTION = """\
This is a toy: a language of guest reviews that the package makes up, and a gold score that stands for what people
want and that no model sees. It shows the way from pretraining to PPO; real models and preferences may behave otherwise.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """What the road leads to."""

    sft: Start
    reward: Start
    dpo: Start
    ppo: Start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the demo found.

    Attributes:
        results: of SFT, best-of-4, DPO and PPO, in this order.
        goals: what they should reach.
    """

    results: list[Result]
    goals: list[Goal]


def run(config: DemoConfig) -> Report:
    """Walks the road, or what is left of it in the folder `config.out`, and prints where it led.

    Args:
        config: folder, seed and sizes.

    Returns:
        What was printed. A missed goal is a marked row and no error.
    """
    started = time.monotonic()
    console = Console(highlight=False)
    console.print(INTRODUCTION)
    prompts = held_out_prompts()[: config.sizes.held_out_prompts]
    with jax.set_mesh(make_mesh()):
        models, judged = _train(config, prompts, console)
        results = _evaluate(config, models, prompts)
    report = Report(results=results, goals=[judged, *goals_of(results)])
    show(console, report.results, report.goals, prompts)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"took {minutes} min {seconds} s, and {_peak_memory():.1f} GB of memory at most")
    console.print(f"runs: {config.out}; curves and answers: {write_report(ReportConfig(runs=(config.out,)))}")
    return report


def _train(config: DemoConfig, prompts: list[str], console: Console) -> tuple[Models, Goal]:
    """All stages in their order; the goal is that of the reward model, which needs the rankings of held-out answers."""

    def announce(stage: int, what: str) -> None:
        console.rule(f"{stage} of 6: {what}", align="left", style="dim")

    announce(1, "pretraining on the language")
    base = road.pretrain(config).model
    announce(2, "fine-tuning on demonstrations")
    policy = road.fine_tune(config, base).model
    announce(3, "ranking answers by gold, with label noise")
    seed = road.seed_of(config, 3)
    rows = road.rank(config, policy, make_prompts(seed, config.sizes.ranked_prompts), seed=seed)
    held_out = road.rank(config, policy, prompts, seed=road.seed_of(config, 5))
    console.print(f"{sum(len(row['ranks']) for row in rows)} answers to {len(rows)} prompts")
    announce(4, "the reward model on the rankings")
    scorer = road.train_reward(config, policy, rows, held_out)
    announce(5, "PPO against the reward model")
    ppo = road.train_ppo(config, policy, scorer.model, prompts).model
    announce(6, "DPO on the same rankings")
    dpo = road.train_dpo(config, policy, rows).model
    return Models(sft=policy, reward=scorer.model, dpo=dpo, ppo=ppo), _reward_goal(scorer, held_out)


def _reward_goal(scorer: Trained, held_out: list[road.Row]) -> Goal:
    """The accuracy on held-out pairs; label noise turns some of them round, and not even gold orders those rightly."""
    gold = [[gold_score(row["prompt"], text) for text in row["completions"]] for row in held_out]
    reachable = pair_accuracy(gold, [row["ranks"] for row in held_out])
    lines = map(json.loads, (scorer.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    *_, found = (line["eval/accuracy"] for line in lines if "eval/accuracy" in line)
    return Goal(what=f"reward model: pair accuracy, gold's is {reachable:.3f}", found=found, bound=reachable - 0.05)


def _evaluate(config: DemoConfig, models: Models, prompts: list[str]) -> list[Result]:
    def judged(name: str, policy: Start) -> Result:
        answered = road.sample(policy, prompts, answers=1, seed=road.seed_of(config, 6))
        return judge(name, policy, answered, scorer=models.reward, sft=models.sft)

    several = road.sample(models.sft, prompts, answers=BEST_OF, seed=road.seed_of(config, 7))
    chosen = best_of(BEST_OF, several, rewards(models.reward, several))
    return [judged("SFT", models.sft), chosen, judged("DPO", models.dpo), judged("PPO", models.ppo)]


def goals_of(results: list[Result]) -> list[Goal]:
    """What the policies should reach, given the results of SFT, best-of-4, DPO and PPO in this order."""
    sft, _, dpo, ppo = results
    gain = (ppo.gold.mean() - sft.gold.mean()) / sft.gold.std()
    return [
        Goal(what="PPO: gold above SFT, in standard deviations", found=float(gain), bound=1.0),
        Goal(what="PPO: win rate", found=ppo.wins_against(sft).value, bound=0.75),
        Goal(what="PPO: KL to SFT, nats a sequence", found=ppo.kl, bound=15.0, at_most=True),
        Goal(what="DPO: win rate", found=dpo.wins_against(sft).value, bound=0.65),
    ]


def _peak_memory() -> float:
    """The most memory that this process has held, GB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e9 if sys.platform == "darwin" else most * 1024 / 1e9  # bytes there, KiB elsewhere
