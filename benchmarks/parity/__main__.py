"""The same training by this library and by TRL, step by step.

    python -m benchmarks.parity --work FOLDER [--ppo-python PYTHON] [STAGE ...]

Stages: offline (SFT, reward model, DPO, KTO), grpo, ppo, report; all of them unless some are named. The environment has
the `parity` extra; `--ppo-python` is one with trl 1.12, the last with a PPO trainer, for the stage ppo. Results go into
benchmarks/results/parity.json; `report` draws docs/images/parity-*.svg, for which matplotlib is needed, and prints the
tables of docs/parity.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.parity import ours, ours_sampled, theirs, theirs_grpo, world
from benchmarks.parity.report import write_report
from benchmarks.parity.results import RESULTS, add, versions
from benchmarks.parity.settings import Sampled, Settings

SEEDS = range(5)
GRPO = Sampled()
UNCLIPPED = 1e9  # TRL's PPO does not clip gradients
PPO = Sampled(prompts=32, answers=1, epochs=4, learning_rate=1e-4, max_grad_norm=UNCLIPPED)
OFFLINE: dict[str, tuple[str, Settings]] = {
    "sft": ("sft", Settings()),
    "reward": ("reward", Settings()),
    "dpo": ("dpo", Settings()),
    "kto": ("kto", Settings()),
    "sft in 2 parts": ("sft", Settings(parts=2)),
    "reward in 2 parts": ("reward", Settings(parts=2)),
    "dpo in 2 parts": ("dpo", Settings(parts=2)),
    "kto in 2 parts": ("kto", Settings(parts=2)),
}


def main() -> None:
    """Runs the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and runs")
    parser.add_argument("--ppo-python", default="", help="a Python with trl 1.12")
    parser.add_argument("stages", nargs="*", default=[])
    told = parser.parse_args()
    stages: dict[str, Callable[[], None]] = {
        "offline": lambda: offline(told.work),
        "grpo": lambda: grpo(told.work),
        "ppo": lambda: ppo(told.work, told.ppo_python),
        "report": write_report,
    }
    for name in told.stages or stages:
        stages[name]()


def offline(work: Path) -> None:
    """SFT, reward models, DPO and KTO: the same rows in the same order."""
    folders = world.make_folders(work / "random")
    tokenizer = world.make_tokenizer()
    for name, (method, settings) in OFFLINE.items():
        model = folders["scorer" if method == "reward" else "policy"]
        rows = world.make_rows(method, settings.data)
        mine = ours.train(method, settings, model, rows, work / "runs" / name)
        order = ours.visited(method, rows, tokenizer, settings.rows, settings.steps, settings.seed)
        yours = theirs.train(method, settings, model, [rows[i] for i in order])
        add("offline", name, {"settings": dataclasses.asdict(settings), "ours": mine, "theirs": yours})


def grpo(work: Path) -> None:
    """GRPO: once with the same answers, and by both on their own for each seed."""
    policy = ours_sampled.make_bases(work)["ending"]
    rows = world.make_rows("prompts", GRPO.data)
    for name, settings in {"unbiased": GRPO, "k3": dataclasses.replace(GRPO, kl="k3")}.items():
        mine, said = ours_sampled.play_grpo(settings, policy, rows, work / "runs" / "grpo")
        yours = theirs_grpo.play(settings, policy, _in_order(settings, rows), said)
        add("same answers", f"grpo, {name}", {"settings": dataclasses.asdict(settings), "ours": mine, "theirs": yours})
    for seed in SEEDS:
        settings = dataclasses.replace(GRPO, seed=seed)
        mine, _ = ours_sampled.play_grpo(settings, policy, rows, work / "runs" / "grpo")
        yours = theirs_grpo.play(settings, policy, _in_order(settings, rows))
        add("own answers", f"grpo {seed}", {"settings": dataclasses.asdict(settings), "ours": mine, "theirs": yours})


def ppo(work: Path, python: str) -> None:
    """PPO: with the same answers, ended or not, the score moved or not; and by both on their own for each seed."""
    bases = ours_sampled.make_bases(work)
    rows = world.make_rows("prompts", PPO.data)

    def play(kind: str, settings: Sampled, policy: str, *, same: bool, moved: bool, name: str) -> None:
        mine, said = ours_sampled.play_ppo(settings, bases[policy], bases["scorer"], rows, work / "runs" / "ppo")
        request = {
            "settings": dataclasses.asdict(settings),
            "policy": str(bases[policy]),
            "scorer": str(bases["scorer"]),
            "rows": _in_order(settings, rows),
            "answers": said if same else None,
            "moved": moved,
        }
        yours = _elsewhere(python, work, request)
        add(kind, name, {"settings": request["settings"], "ours": mine, "theirs": yours})

    ended = dataclasses.replace(PPO, steps=30)  # at step 31 a padding token is drawn, which TRL takes for an end
    play("same answers", PPO, "endless", same=True, moved=False, name="ppo, all of full length")
    play("same answers", ended, "ending", same=True, moved=True, name="ppo, score on the last token")
    play("same answers", ended, "ending", same=True, moved=False, name="ppo, score where TRL puts it")
    for seed in SEEDS:
        settings = dataclasses.replace(PPO, seed=seed)
        play("own answers", settings, "ending", same=False, moved=False, name=f"ppo {seed}")


def _in_order(settings: Sampled, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    order = ours.visited("prompts", rows, world.make_tokenizer(), settings.prompts, settings.steps, settings.seed)
    return [rows[i] for i in order]


def _elsewhere(python: str, work: Path, request: dict[str, Any]) -> dict[str, list[float]]:
    """What `theirs_ppo` answers under another Python."""
    asked, answered = work / "request.json", work / "result.json"
    asked.write_text(json.dumps(request), encoding="utf-8")
    command = [python, "-m", "benchmarks.parity.theirs_ppo", str(asked), str(answered)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    answer = json.loads(answered.read_text(encoding="utf-8"))
    versions({"trl (PPO)": answer["trl"]})
    return answer["curve"]


if __name__ == "__main__":
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    main()
