"""The model card of an export: README.md, as the Hugging Face hub shows it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_METHODS = {
    "sft": "supervised fine-tuning: it imitates the answers in the data",
    "reward": "reward modelling: it scores an answer to a prompt, learned from comparisons of answers",
    "dpo": "direct preference optimisation (Rafailov et al. 2023) on pairs of a better and a worse answer",
    "kto": "Kahneman-Tversky optimisation (Ethayarajh et al. 2024) on answers that are good or bad by themselves",
    "ppo": "proximal policy optimisation (Schulman et al. 2017) against a reward, kept close to a reference",
    "grpo": "group relative policy optimisation (Shao et al. 2024) against a reward",
    "rejection": "rejection sampling: it imitates those of its own answers that a reward ranks highest",
}
"""Method -> what it is."""

_LIMITS = (
    "The numbers above are all that was measured of it, on the data named above.",
    "Like its base it can be wrong with confidence, and can repeat what is harmful, biased or private in the data that "
    "either of them has seen.",
    "What it learned to prefer are the preferences of those who made the data, which others may not share.",
    "It was not tested for uses where a wrong answer does harm.",
)

_SCORER_LIMITS = (
    "The numbers above are all that was measured of it, on the data named above.",
    "Scores compare answers to one prompt. Their size alone means nothing, nor does comparing them across prompts.",
    "It knows answers like those in its data. A policy that is trained against it finds answers that it overrates.",
    "The preferences that it learned are of those who made the data, which others may not share.",
)

_USE = """\
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto}.from_pretrained("FOLDER")"""
"""How a whole model is loaded; the config of a reward model says how many labels and which padding it has."""

_USE_ADAPTERS = """\
from peft import PeftConfig, PeftModel
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
base = PeftConfig.from_pretrained("FOLDER").base_model_name_or_path
model = PeftModel.from_pretrained({auto}.from_pretrained(base{options}), "FOLDER")"""
"""How adapters are loaded; that a reward model has one label, and its padding, the config of the base does not say."""

_PADDING = (
    "Where `tokenizer.pad_token_id` also ends answers, leave it out and score one row at a time: transformers scores "
    "the last token that is not padding."
)

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a trained model, ready for JSON.

    Attributes:
        method: such as "dpo".
        base: the model at the root of the runs and adapters that led to it: a hub id or a path; "" if that was in
            memory.
        scorer: whether it scores answers rather than writes them.
        data: files, folders and hub ids that it was trained on; those in memory have no name.
        rows: examples in them that were used; those of an epoch.
        steps: number of steps taken.
        metrics: name -> last value, in training and, under `eval/`, in evaluation.
        settings: dotted key -> value, those that matter.
        version: of jaxrlhf.
    """

    method: str
    base: str
    scorer: bool
    data: Sequence[str]
    rows: int
    steps: int
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]
    version: str


def render_card(card: Card, *, adapters: bool = False) -> str:
    """Writes a card in Markdown, with the metadata in front that the hub reads.

    Args:
        card: what is known.
        adapters: whether the folder holds adapters, which PEFT loads, rather than the whole model.

    Returns:
        The text of README.md.
    """
    base = f"`{card.base}`" if card.base else "a model in memory"
    kind = ("Adapters for a " if adapters else "A ") + ("reward model" if card.scorer else "language model")
    limits = _SCORER_LIMITS if card.scorer else _LIMITS
    sections = [
        f"# {_title(card)}",
        f"{kind}, made from {base} with jaxrlhf {card.version} in {_count(card.steps, 'step')}.",
        f"Method: {_METHODS.get(card.method, card.method)}.",
        "## Use",
        _use(card, adapters),
        "## Data",
        _bullets([f"`{name}`" for name in card.data] or ["rows in memory"]),
        f"Of these, {_count(card.rows, 'example')} {'was' if card.rows == 1 else 'were'} used.",
        "## Results",
        _results(card.metrics),
        "## Settings",
        _table(("setting", "value"), [(key, f"`{value}`") for key, value in card.settings.items()]),
        "## Limits",
        _bullets(limits),
        "## Licence",
        "That of the base model. The data may have terms of their own.",
    ]
    return f"---\n{_front_matter(card, adapters)}---\n\n" + "\n\n".join(sections) + "\n"


def _use(card: Card, adapters: bool) -> str:
    auto = "AutoModelForSequenceClassification" if card.scorer else "AutoModelForCausalLM"
    options = ", num_labels=1, pad_token_id=tokenizer.pad_token_id" if card.scorer else ""
    code = (_USE_ADAPTERS if adapters else _USE).format(auto=auto, options=options)
    note = f"\n\n{_PADDING}" if adapters and card.scorer else ""
    return f"`FOLDER` is where this file is.\n\n```python\n{code}\n```{note}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _title(card: Card) -> str:
    name = Path(card.base).name or "model"
    return f"{name}-{card.method}"


def _front_matter(card: Card, adapters: bool) -> str:
    facts: dict[str, Any] = {}
    if _is_hub_id(card.base):
        facts["base_model"] = card.base
    datasets = [name.partition(":")[0] for name in card.data if _is_hub_id(name.partition(":")[0])]
    if datasets:
        facts["datasets"] = datasets
    facts |= {
        "library_name": "peft" if adapters else "transformers",
        "pipeline_tag": "text-classification" if card.scorer else "text-generation",
        "tags": ["jaxrlhf", card.method],
    }
    return str(yaml.safe_dump(facts, sort_keys=False))


def _is_hub_id(name: str) -> bool:
    """Names of the hub look like paths; what is there on the disk, or looks like a file, is none."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists() and not name.endswith((".jsonl", ".json", ".txt"))


def _results(metrics: Mapping[str, float]) -> str:
    # An evaluation says more than the last steps of training.
    names = sorted(metrics, key=lambda name: (not name.startswith("eval/"), name))
    if not names:
        return "No metrics were recorded."
    note = "Last values; those under `eval/` are of data that were held out, the others of training."
    return note + "\n\n" + _table(("metric", "value"), [(name, f"{metrics[name]:.4g}") for name in names])


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)


def _bullets(lines: tuple[str, ...] | list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
