"""The commands of the command line: what each is told, and what it runs.

Configs need no jax. A command imports the rest when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxrlhf.commands.chat_config import ChatConfig
from jaxrlhf.commands.config import BestOfNConfig, EvaluateConfig, ExportConfig, GenerateConfig, ReportConfig
from jaxrlhf.demo.config import DemoConfig
from jaxrlhf.trainers.config import DPOConfig, KTOConfig, RewardConfig, SFTConfig
from jaxrlhf.trainers.grpo_config import GRPOConfig
from jaxrlhf.trainers.ppo_config import PPOConfig
from jaxrlhf.trainers.rejection_config import RejectionConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One row of the command line.

    Attributes:
        help: one line for `jaxrlhf --help`.
        example: arguments that say what the command cannot do without.
        config: the config dataclass.
        run: runs the command on a config.
        positional: the key that takes arguments which are not of the form key=value, a list; None if they are mistakes.
        compiles: whether it runs programs of jax, which are kept for the next time.
    """

    help: str
    example: str
    config: type
    run: Callable[[Any], object]
    positional: str | None = None
    compiles: bool = True


def _sft(config: SFTConfig) -> object:
    from jaxrlhf.trainers.sft import run

    return run(config)


def _reward(config: RewardConfig) -> object:
    from jaxrlhf.trainers.reward import run

    return run(config)


def _dpo(config: DPOConfig) -> object:
    from jaxrlhf.trainers.dpo import run

    return run(config)


def _kto(config: KTOConfig) -> object:
    from jaxrlhf.trainers.kto import run

    return run(config)


def _ppo(config: PPOConfig) -> object:
    from jaxrlhf.trainers.ppo import run

    return run(config)


def _grpo(config: GRPOConfig) -> object:
    from jaxrlhf.trainers.grpo import run

    return run(config)


def _rejection(config: RejectionConfig) -> object:
    from jaxrlhf.trainers.rejection import run

    return run(config)


def _generate(config: GenerateConfig) -> object:
    from jaxrlhf.commands.generate import run

    return run(config)


def _chat(config: ChatConfig) -> object:
    from jaxrlhf.commands.chat import run

    return run(config)


def _bestofn(config: BestOfNConfig) -> object:
    from jaxrlhf.commands.bestofn import run

    return run(config)


def _evaluate(config: EvaluateConfig) -> object:
    from jaxrlhf.commands.evaluate import run

    return run(config)


def _export(config: ExportConfig) -> object:
    from jaxrlhf.commands.export import run

    return run(config)


def _report(config: ReportConfig) -> object:
    from jaxrlhf.commands.report import run

    return run(config)


def _demo(config: DemoConfig) -> object:
    from jaxrlhf.demo.command import run

    return run(config)


COMMANDS = {
    "sft": Command(
        help="train a model on demonstrations",
        example="out=runs/sft model=MODEL dataset=demonstrations.jsonl",
        config=SFTConfig,
        run=_sft,
    ),
    "reward": Command(
        help="train a reward model on preferences",
        example="out=runs/reward model=runs/sft dataset=comparisons.jsonl",
        config=RewardConfig,
        run=_reward,
    ),
    "dpo": Command(
        help="train a policy on preferences directly",
        example="out=runs/dpo model=runs/sft dataset=comparisons.jsonl",
        config=DPOConfig,
        run=_dpo,
    ),
    "kto": Command(
        help="train a policy on answers that are good or bad",
        example="out=runs/kto model=runs/sft dataset=labelled.jsonl",
        config=KTOConfig,
        run=_kto,
    ),
    "ppo": Command(
        help="train a policy against a reward with PPO",
        example="out=runs/ppo model=runs/sft dataset=prompts.jsonl reward_model=runs/reward",
        config=PPOConfig,
        run=_ppo,
    ),
    "grpo": Command(
        help="train a policy against a reward with GRPO",
        example="out=runs/grpo model=runs/sft dataset=prompts.jsonl rewards=my_rewards.py:helpful",
        config=GRPOConfig,
        run=_grpo,
    ),
    "rejection": Command(
        help="train a policy on the best of its own answers",
        example="out=runs/rejection model=runs/sft dataset=prompts.jsonl reward_model=runs/reward",
        config=RejectionConfig,
        run=_rejection,
    ),
    "generate": Command(
        help="sample answers to prompts",
        example="model=runs/sft dataset=prompts.jsonl out=answers.jsonl answers=4",
        config=GenerateConfig,
        run=_generate,
    ),
    "chat": Command(
        help="talk with a model in the terminal",
        example="model=runs/ppo",
        config=ChatConfig,
        run=_chat,
    ),
    "bestofn": Command(
        help="sample answers to prompts and keep the best",
        example="model=runs/sft dataset=prompts.jsonl reward_model=runs/reward out=best.jsonl answers=16",
        config=BestOfNConfig,
        run=_bestofn,
    ),
    "evaluate": Command(
        help="measure a model",
        example="measure=accuracy model=runs/reward dataset=held_out.jsonl",
        config=EvaluateConfig,
        run=_evaluate,
    ),
    "export": Command(
        help="write a model in Hugging Face format",
        example="run=runs/ppo out=exported",
        config=ExportConfig,
        run=_export,
    ),
    "report": Command(
        help="show a run, or compare several, on an HTML page",
        example="runs/ppo",
        config=ReportConfig,
        run=_report,
        positional="runs",
        compiles=False,
    ),
    "demo": Command(
        help="the whole way on a laptop, with a report",
        example="out=runs/demo",
        config=DemoConfig,
        run=_demo,
    ),
}
