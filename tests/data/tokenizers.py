"""Tiny tokenizers made in code: byte-level BPE, and a space-prefixing one in the manner of sentencepiece."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 3: the template writes the beginning-of-sequence token, and trims.
HEADERS = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n\n{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
# As templates of thinking models: the history loses its thoughts once another turn follows.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "t"), ("Ċ", "Ċ"), ("a", "b")]


def byte_level(*, bos: bool = False, template: str | None = None, pad: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes and a few merges; `bos`: adds `<s>` in front of text; `pad`: its padding token, which may be `</s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(alphabet + ["".join(pair) for pair in MERGES])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, bos, template, pad)


def prefixing(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Characters, with a `▁` put in front of every text, as Llama 2 does."""
    characters = ["<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz.\n"]
    vocabulary = {token: i for i, token in enumerate([*characters, "▁a", "▁b"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _wrap(tokenizer, bos, None, None)


def _wrap(tokenizer: Tokenizer, bos: bool, template: str | None, pad: str | None) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    if bos:
        number = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>" if template in (CHATML, FORGETFUL) else "</s>",
        pad_token=pad,
    )
    fast.chat_template = template
    return fast
