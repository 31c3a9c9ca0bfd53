"""The pictures and tables of docs/parity.md, from benchmarks/results/parity.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.parity.results import COMPARED, compare_seeds, difference, load

IMAGES = Path(__file__).parents[2] / "docs" / "images"
OURS, THEIRS = "#1f77b4", "#d62728"
METRICS = {"grpo": ("reward", "kl"), "ppo": ("objective/scores", "objective/kl")}
"""What the runs of several seeds are judged by: the mean reward and the KL to the reference."""


def write_report() -> None:
    """Draws the pictures and prints the tables as Markdown."""
    results = load()
    for kind in ("offline", "same answers"):
        if kind in results:
            _print_differences(kind, results[kind])
    if "own answers" in results:
        _print_seeds(results["own answers"])
    _draw(results)
    print(", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items())))


def _print_differences(kind: str, runs: dict[str, Any]) -> None:
    print(f"\n{kind}\n\n| run | largest difference, relative to the largest value |\n| --- | --- |")
    for name, run in runs.items():
        method = name.replace(",", " ").split()[0]
        gaps = {metric: difference(run["ours"][metric], run["theirs"][metric]) for metric in COMPARED[method]}
        found = ", ".join(f"{metric} {gap:.0e}" for metric, gap in gaps.items())
        print(f"| {name} | {found} |")


def _print_seeds(runs: dict[str, Any]) -> None:
    print("\n| method | metric | seeds | ours | TRL | difference | standard error | in errors |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for method, metrics in METRICS.items():
        of_method = [run for name, run in runs.items() if name.startswith(method)]
        for metric in metrics if of_method else ():
            found = compare_seeds(*([run[side][metric] for run in of_method] for side in ("ours", "theirs")))
            numbers = " | ".join(f"{found[name]:.3f}" for name in ("ours", "theirs", "difference", "error"))
            print(f"| {method} | {metric} | {len(of_method)} | {numbers} | {found['errors']:.1f} |")


def _draw(results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "parity", "font.size": 8, "lines.linewidth": 1})
    IMAGES.mkdir(parents=True, exist_ok=True)
    if "offline" in results:
        panels = [("SFT", "sft"), ("reward model", "reward"), ("DPO", "dpo"), ("KTO", "kto")]
        _draw_offline(results["offline"], panels)
    if "own answers" in results:
        _draw_seeds(results["own answers"])


def _draw_offline(runs: dict[str, Any], panels: list[tuple[str, str]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(9, 2.2), layout="constrained")
    for axis, (title, name) in zip(axes, panels, strict=True):
        axis.plot(runs[name]["theirs"]["loss"], color=THEIRS, linewidth=3, alpha=0.4, label="TRL")
        axis.plot(runs[name]["ours"]["loss"], color=OURS, label="jaxrlhf")
        axis.set(title=title, xlabel="step")
    axes[0].set_ylabel("loss")
    axes[0].legend(frameon=False)
    _save(figure, "parity-offline.svg")


def _draw_seeds(runs: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(9, 2.2), layout="constrained")
    panels = [(method, metric) for method, metrics in METRICS.items() for metric in metrics]
    for axis, (method, metric) in zip(axes, panels, strict=True):
        for side, color, label in (("theirs", THEIRS, "TRL"), ("ours", OURS, "jaxrlhf")):
            curves = [run[side][metric] for name, run in runs.items() if name.startswith(method)]
            for curve in curves:
                axis.plot(curve, color=color, linewidth=0.5, alpha=0.35)
            axis.plot([sum(step) / len(step) for step in zip(*curves, strict=True)], color=color, label=label)
        axis.set(title=f"{method.upper()}: {'KL' if metric.endswith('kl') else 'reward'}", xlabel="step")
    axes[0].legend(frameon=False)
    _save(figure, "parity-sampled.svg")


def _save(figure: Any, name: str) -> None:
    figure.savefig(IMAGES / name, metadata={"Date": None})
    # matplotlib ends lines with spaces, which no file of the repository does
    path = IMAGES / name
    path.write_text("\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()) + "\n")
