"""The methods on real files with a small real model: SFT, reward models, PPO, rejection sampling, best-of-n, DPO.

    python benchmarks/real_input.py --data DATA --model MODEL --work FOLDER [STAGE ...]

DATA holds text/tinystories.jsonl.gz, sft/alpaca_gpt4_en_demo.jsonl.gz, preference/hh_rlhf_harmless_base.jsonl.gz and
preference/alpaca_eval_kwise7.jsonl.gz; MODEL is a story model in Hugging Face format. Every step is a command of the
command line; commands and results are printed as Markdown, and a stage that was finished is not run again.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Bench:
    """Where things are, and the commands that were run."""

    def __init__(self, data: Path, model: Path, work: Path) -> None:
        """Makes the working folder."""
        self.data, self.model, self.work = data.resolve(), model.resolve(), work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)

    def command(self, *words: str) -> None:
        """Runs `jaxrlhf ...` and prints it with the folders shortened."""
        shown = " ".join(words).replace(str(self.data), "DATA").replace(str(self.model), "MODEL")
        print(f"    jaxrlhf {shown.replace(str(self.work), 'WORK')}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "jaxrlhf", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}")

    def split(self, name: str) -> tuple[str, str]:
        """Divides a file by the hash of each row's first field: four fifths to train on, one fifth held out."""
        train, held_out = (self.work / f"{Path(name).name.split('.')[0]}.{part}.jsonl" for part in ("train", "test"))
        with gzip.open(self.data / name, "rt", encoding="utf-8") as source:
            rows = [json.loads(line) for line in source]
        for path, keep in ((train, lambda bucket: bucket != 0), (held_out, lambda bucket: bucket == 0)):
            write(path, [row for row in rows if keep(_bucket(row))])
        return str(train), str(held_out)

    def metrics(self, run: str) -> list[dict[str, Any]]:
        """The lines of a run's metrics.jsonl."""
        return [json.loads(line) for line in (self.work / run / "metrics.jsonl").read_text().splitlines()]

    def json(self, name: str) -> dict[str, Any]:
        """A result that `jaxrlhf evaluate` wrote."""
        return json.loads((self.work / name).read_text())


def _bucket(row: dict[str, Any]) -> int:
    key = next(str(row[name]) for name in ("prompt", "instruction", "chosen", "text") if name in row)
    return int(hashlib.sha256(key[:200].encode()).hexdigest(), 16) % 5


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def sft(bench: Bench) -> None:
    """Held-out loss before and after, on stories and on instructions."""
    for config, name, run in (
        ("tinystories", "text/tinystories.jsonl.gz", "sft-stories"),
        ("alpaca_gpt4", "sft/alpaca_gpt4_en_demo.jsonl.gz", "sft-alpaca"),
    ):
        train, held_out = bench.split(name)
        bench.command(
            "sft", "--config", f"configs/sft/{config}.yaml", f"model={bench.model}", f"dataset={train}",
            f"eval_dataset={held_out}", f"out={bench.work / run}", "mesh.cpu_devices=2",
        )  # fmt: skip
        losses = [line["eval/loss"] for line in bench.metrics(run) if "eval/loss" in line]
        print(f"\n{run}: held-out loss {losses[0]:.4f} -> {losses[-1]:.4f} nats a token\n")


def reward(bench: Bench) -> None:
    """Held-out accuracy of reward models on pairs and on rankings, beside the rule that the longer answer wins."""
    for config, name, run, data in (
        (
            "hh_harmless",
            "preference/hh_rlhf_harmless_base.jsonl.gz",
            "reward-hh",
            ["data.max_length=256", "data.truncation=keep_end", "data.chat_template=hh", "data.bad_rows=skip"],
        ),
        (
            "alpaca_eval_kwise",
            "preference/alpaca_eval_kwise7.jsonl.gz",
            "reward-kwise",
            ["data.max_length=256", "data.chat_template=alpaca"],
        ),
    ):
        train, held_out = bench.split(name)
        bench.command(
            "reward", "--config", f"configs/reward/{config}.yaml", f"model={bench.model}", f"dataset={train}",
            f"eval_dataset={held_out}", f"out={bench.work / run}", "mesh.cpu_devices=2",
        )  # fmt: skip
        result = bench.work / f"{run}.json"
        bench.command(
            "evaluate", "measure=accuracy", f"model={bench.work / run}", f"dataset={held_out}", f"out={result}", *data
        )
        found = bench.json(result.name)
        print(f"\n{run}: held-out pair accuracy {_share(found['accuracy'])}")
        print(f"the longer answer wins: {_share(found['longer_is_better'])}; {found['prompts']} prompts\n")


def ppo(bench: Bench) -> None:
    """PPO from story openings against a Python reward, and against a reward model of its rankings."""
    train, held_out = openings(bench)
    common = [f"model={bench.model}", f"dataset={train}", f"eval_dataset={held_out}", "mesh.cpu_devices=2"]
    bench.command("ppo", "--config", "configs/ppo/cheerful_stories.yaml", *common, f"out={bench.work / 'ppo-cheerful'}")
    _curve(bench, "ppo-cheerful")

    ranked = rankings(bench, train)
    bench.command(
        "reward", f"model={bench.model}", f"dataset={ranked}", f"out={bench.work / 'reward-stories'}",
        "batch_size=16", "epochs=3", "optim.learning_rate=3e-4", "data.max_length=128",
    )  # fmt: skip
    bench.command(
        "ppo", "--config", "configs/ppo/reward_model_stories.yaml", *common,
        f"reward_model={bench.work / 'reward-stories'}", f"out={bench.work / 'ppo-reward-model'}",
    )  # fmt: skip
    _curve(bench, "ppo-reward-model")
    for run in ("ppo-cheerful", "ppo-reward-model"):
        _against_start(bench, run, held_out)


def rejection(bench: Bench) -> None:
    """Rejection sampling from story openings against the Python reward."""
    train, held_out = openings(bench)
    bench.command(
        "rejection", "--config", "configs/rejection/cheerful_stories.yaml", f"model={bench.model}", f"dataset={train}",
        f"eval_dataset={held_out}", "mesh.cpu_devices=2", f"out={bench.work / 'rejection-cheerful'}",
    )  # fmt: skip
    for line in bench.metrics("rejection-cheerful"):
        if "eval/reward" in line:
            print(f"\nstep {line['step']}: held-out reward {line['eval/reward']:.2f}", end="")
            print(f", of the best of 8 {line['eval/reward/best']:.2f}")


def bestofn(bench: Bench) -> None:
    """Best of 16 by the reward model that `ppo` trains, valued by the Python reward that it learned from."""
    _, held_out = openings(bench)
    summary = bench.work / "best.json"
    bench.command(
        "bestofn", f"model={bench.model}", f"dataset={held_out}", f"reward_model={bench.work / 'reward-stories'}",
        "judge.rewards=[configs/ppo/rewards.py:cheerful]", "answers=16", "batch_size=64", "sampling.max_new_tokens=64",
        f"out={bench.work / 'best.jsonl'}", f"summary={summary}", "mesh.cpu_devices=2",
    )  # fmt: skip
    print("\n| n | reward model | `cheerful` | KL, nats, at most |\n|---|---|---|---|")
    for row in json.loads(summary.read_text()):
        if row["n"].bit_count() == 1:
            values = (f"{row[name]:.3f} +- {row[f'{name}_error']:.3f}" for name in ("score", "judge"))
            print(f"| {row['n']} | {' | '.join(values)} | {row['kl_bound']:.2f} |")


def dpo(bench: Bench) -> None:
    """DPO on pairs that the Python reward ranked; win rate against the model it started from."""
    train, held_out = openings(bench)
    pairs = []
    for row in read(Path(rankings(bench, train))):
        ordered = sorted(zip(row["ranks"], row["completions"], strict=True), key=lambda pair: pair[0])
        if ordered[0][0] < ordered[-1][0]:
            pairs.append({"prompt": row["prompt"], "chosen": ordered[0][1], "rejected": ordered[-1][1]})
    write(bench.work / "pairs.jsonl", pairs)
    bench.command(
        "dpo", "--config", "configs/dpo/stories.yaml", f"model={bench.model}", f"out={bench.work / 'dpo-stories'}",
        f"dataset={bench.work / 'pairs.jsonl'}",
    )  # fmt: skip
    _against_start(bench, "dpo-stories", held_out)


def openings(bench: Bench) -> tuple[str, str]:
    """The first eight words of each story, as prompts to train on and to hold out."""
    paths = []
    for path in bench.split("text/tinystories.jsonl.gz"):
        prompts = sorted({" ".join(row["text"].split()[:8]) for row in read(Path(path))})
        target = bench.work / f"openings.{Path(path).name.split('.')[1]}.jsonl"
        write(target, [{"prompt": prompt} for prompt in prompts][: 1500 if "train" in target.name else 256])
        paths.append(str(target))
    return paths[0], paths[1]


def rankings(bench: Bench, prompts: str) -> str:
    """Four answers to each prompt, ranked by the Python reward."""
    answers, ranked = bench.work / "answers.jsonl", bench.work / "rankings.jsonl"
    if ranked.exists():
        return str(ranked)
    bench.command(
        "generate", f"model={bench.model}", f"dataset={prompts}", f"out={answers}", "answers=4", "batch_size=64",
        "sampling.max_new_tokens=64",
    )  # fmt: skip
    cheerful = _cheerful()
    rows = []
    for row in read(answers):
        scores = cheerful([row["prompt"]] * 4, row["completions"])
        ranks = [1 + sum(other > score for other in scores) for score in scores]
        if len(set(ranks)) > 1:
            rows.append({**row, "ranks": ranks})
    write(ranked, rows)
    return str(ranked)


def read(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _against_start(bench: Bench, run: str, prompts: str) -> None:
    result = bench.work / f"{run}.json"
    bench.command(
        "evaluate", "measure=win_rate", f"model={bench.work / run}", f"against={bench.model}", f"dataset={prompts}",
        "rewards=[configs/ppo/rewards.py:cheerful]", "sampling.max_new_tokens=64", "batch_size=64", f"out={result}",
    )  # fmt: skip
    found = bench.json(result.name)
    print(f"\n{run} against its start, by cheerful: win rate {_share(found['win_rate'])}; ", end="")
    print(f"mean {found['score_of_other']:.2f} -> {found['score']:.2f} on {found['prompts']} held-out openings\n")


def _curve(bench: Bench, run: str) -> None:
    lines = [line for line in bench.metrics(run) if "eval/objective/scores" in line]
    print(f"\n| {run}: step | held-out score | KL, nats | length |\n|---|---|---|---|")
    for line in lines:
        values = (line["eval/objective/scores"], line["eval/objective/kl"], line["eval/completions/mean_length"])
        print(f"| {line['step']} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    samples = read(bench.work / run / "samples.jsonl")
    for title, row in (("before", samples[0]), ("after", samples[-8])):
        print(f"\n{title}: {row['prompt']} ... {' '.join(row['completion'].split())}  {row['scores']}")
    print()


def _cheerful() -> Callable[..., list[float]]:
    spec = importlib.util.spec_from_file_location("rewards", ROOT / "configs" / "ppo" / "rewards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.cheerful


def _share(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] of {found['count']}"


STAGES = {"sft": sft, "reward": reward, "ppo": ppo, "rejection": rejection, "bestofn": bestofn, "dpo": dpo}


def main() -> None:
    """Runs the stages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], default=list(STAGES))
    options = parser.parse_args()
    bench = Bench(options.data, options.model, options.work)
    for stage in options.stages:
        print(f"## {stage}\n")
        STAGES[stage](bench)


if __name__ == "__main__":
    main()
