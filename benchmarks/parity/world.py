"""What both libraries are given: one tokenizer, tiny random Llamas as folders, and rows of a toy language.

Words are `w00` to `w44`, and a text walks on by one to five words at a time. Nothing is downloaded. torch is imported
only where a folder is made.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = [f"w{number:02d}" for number in range(45)]
LIKED = frozenset(WORDS[::3])
"""The words that the Python reward likes."""

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
VOCABULARY = [PAD, EOS, UNKNOWN, *WORDS]
LONGEST_PROMPT, LONGEST_ANSWER = 8, 11  # words

SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


def make_tokenizer() -> Any:
    """A word is a token; no token is put in front; padding and end-of-sequence are different tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def make_folders(work: Path, seed: int = 0) -> dict[str, Path]:
    """Random models in Hugging Face format with the tokenizer.

    Args:
        work: where the folders go; what is there already is kept.
        seed: of the weights.

    Returns:
        The folders by name: "policy", a language model; "endless", one that cannot draw the end of an answer; "scorer",
        a model with a scalar head.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    for name in ("policy", "endless", "scorer"):
        if (work / name / "config.json").exists():
            continue
        torch.manual_seed(seed)
        if name == "scorer":
            model: Any = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1))
        else:
            model = LlamaForCausalLM(LlamaConfig(**SIZES))
            _never_draw(model, [PAD, UNKNOWN] if name == "policy" else [PAD, UNKNOWN, EOS])
        model.save_pretrained(work / name)
        make_tokenizer().save_pretrained(work / name)
    return {name: work / name for name in ("policy", "endless", "scorer")}


def _never_draw(model: Any, tokens: list[str]) -> None:
    """Gives the tokens a logit far below the others: what one coordinate, that is the same everywhere, takes away.

    A drawn padding token could not be compared: TRL's PPO takes it for the end of the answer, and PyTorch does not
    train the embedding of the padding token.
    """
    import torch

    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 3.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        for token in tokens:
            model.lm_head.weight[VOCABULARY.index(token)] = 0.0
            model.lm_head.weight[VOCABULARY.index(token), 0] = -100.0


def make_rows(method: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a method: sft, reward, dpo, kto or prompts.

    The first row has the longest prompt and the longest answer, so that nothing is cut in either library.
    """
    draw = random.Random(f"{method} {seed}")
    rows = []
    for number in range(count):
        prompt = _walk(draw, draw.randrange(45), LONGEST_PROMPT if number == 0 else draw.randint(2, LONGEST_PROMPT))
        texts = sorted(_two_answers(draw, prompt, longest=number == 0), key=_liking, reverse=True)
        rows.append(_row(method, " ".join(prompt), texts, label=number % 2 == 0))
    return rows


def liked_share(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The reward of both GRPO trainers: the share of an answer's words that are liked; 0 for an empty answer."""
    del prompts
    return [_liking(completion) for completion in completions]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _walk(draw: random.Random, start: int, length: int) -> list[str]:
    places = [start]
    while len(places) < length:
        places.append((places[-1] + draw.randint(1, 5)) % len(WORDS))
    return [WORDS[place] for place in places]


def _two_answers(draw: random.Random, prompt: list[str], *, longest: bool) -> list[str]:
    """Two different continuations of a prompt; ours refuses a pair of equal answers, TRL trains on it."""
    texts: list[str] = []
    while len(texts) < 2:
        start = (WORDS.index(prompt[-1]) + draw.randint(1, 5)) % len(WORDS)
        text = " " + " ".join(_walk(draw, start, LONGEST_ANSWER if longest else draw.randint(2, LONGEST_ANSWER)))
        if text not in texts:
            texts.append(text)
    return texts


def _liking(text: str) -> float:
    words = text.split()
    return sum(word in LIKED for word in words) / max(1, len(words))


def _row(method: str, prompt: str, texts: list[str], *, label: bool) -> dict[str, Any]:
    if method == "prompts":
        return {"prompt": prompt}
    if method == "sft":
        return {"prompt": prompt, "completion": texts[0]}
    if method == "kto":
        return {"prompt": prompt, "completion": texts[0 if label else 1], "label": label}
    return {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}
