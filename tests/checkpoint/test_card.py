import dataclasses
import json

import pytest
import yaml

from jaxrlhf.checkpoint.card import Card, render_card

CARD = Card(
    method="dpo",
    base="Qwen/Qwen2.5-0.5B-Instruct",
    scorer=False,
    data=("trl-lib/ultrafeedback_binarized", "data/pairs.jsonl"),
    rows=1234,
    steps=56,
    metrics={"loss": 0.51234567, "eval/loss": 0.6},
    settings={"optim.learning_rate": 1e-6, "beta": 0.2},
    version="0.1.0",
)


def front_matter(text):
    _, head, body = text.split("---\n", maxsplit=2)
    return yaml.safe_load(head), body


def test_the_front_matter_is_what_the_hub_reads():
    head, _ = front_matter(render_card(CARD))
    assert head == {
        "base_model": "Qwen/Qwen2.5-0.5B-Instruct",
        "datasets": ["trl-lib/ultrafeedback_binarized"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["jaxrlhf", "dpo"],
    }


@pytest.mark.parametrize("base", ["", "runs/sft/export", "/data/model", "tests/models"])
def test_what_is_not_on_the_hub_is_named_in_the_text_alone(base):
    head, body = front_matter(render_card(dataclasses.replace(CARD, base=base, data=())))
    assert not {"base_model", "datasets"} & head.keys()
    assert (f"made from `{base}`" if base else "made from a model in memory") in body
    assert "- rows in memory" in body


def test_the_text_says_how_it_was_made_what_it_measured_and_where_it_ends():
    _, body = front_matter(render_card(CARD))
    assert "# Qwen2.5-0.5B-Instruct-dpo" in body
    assert "A language model, made from `Qwen/Qwen2.5-0.5B-Instruct` with jaxrlhf 0.1.0 in 56 steps." in body
    assert "direct preference optimisation" in body and "Of these, 1234 examples were used." in body
    assert body.index("| eval/loss | 0.6 |") < body.index("| loss | 0.5123 |")
    assert "| beta | `0.2` |" in body
    assert "That of the base model." in body and "can be wrong with confidence" in body


def test_a_reward_model_and_adapters_say_so():
    scorer = dataclasses.replace(CARD, scorer=True, method="reward")
    head, body = front_matter(render_card(scorer))
    assert head["pipeline_tag"] == "text-classification" and "A reward model, made" in body
    assert "Scores compare answers to one prompt" in body and "confidence" not in body
    head, body = front_matter(render_card(CARD, adapters=True))
    assert head["library_name"] == "peft" and "Adapters for a language model, made" in body


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("scorer", [False, True])
def test_the_code_of_a_card_is_of_its_kind(scorer, adapters):
    _, body = front_matter(render_card(dataclasses.replace(CARD, scorer=scorer), adapters=adapters))
    code = body.partition("```python\n")[2].partition("```")[0]
    compile(code, "README.md", "exec")
    assert ("AutoModelForSequenceClassification" in code) == scorer and ("PeftModel" in code) == adapters
    # The config of a whole reward model says both.
    assert ("num_labels=1, pad_token_id=tokenizer.pad_token_id" in code) == (scorer and adapters)
    assert ("score one row at a time" in body) == (scorer and adapters)


def test_one_is_not_several():
    _, body = front_matter(render_card(dataclasses.replace(CARD, rows=1, steps=1)))
    assert " in 1 step.\n" in body and "Of these, 1 example was used." in body


def test_a_run_without_metrics_says_so():
    assert "No metrics were recorded." in render_card(dataclasses.replace(CARD, metrics={}))


def test_a_card_goes_through_json():
    again = Card(**json.loads(json.dumps(dataclasses.asdict(CARD))))
    assert render_card(again) == render_card(CARD)
