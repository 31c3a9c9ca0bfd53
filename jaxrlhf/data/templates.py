"""Chat templates: the tokenizer's, a file's, or one of three built in."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Each assistant turn ends with the end-of-sequence token, so that a model learns to stop and a sampler to notice. A
# header never ends with a space: byte-level tokenizers put the space at the start of the next word. Line breaks are
# written inside {{ }}, because transformers trims those that follow a block.
_CHATML = r"""
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}
{%- if message['role'] != 'assistant' or IM_END_IS_A_TOKEN %}{{ '<|im_end|>' }}{% endif -%}
{%- if message['role'] == 'assistant' and eos_token != '<|im_end|>' %}{{ eos_token }}{% endif -%}
{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
_ALPACA = r"""
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}
{%- elif message['role'] == 'user' -%}
{{ '### Instruction:\n' + message['content'] + '\n\n' }}
{%- else -%}
{{ message['content'] + '\n\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif -%}
"""
_HH = r"""
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ '\n\nAssistant: ' + message['content'] + eos_token }}
{%- elif message['role'] == 'user' -%}
{{ '\n\nHuman: ' + message['content'] }}
{%- else -%}
{{ message['content'] }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif -%}
"""

BUILT_IN = {"chatml": _CHATML, "alpaca": _ALPACA, "hh": _HH}
"""Jinja text of the built-in templates, which leave out the beginning-of-sequence token."""


def chat_template(tokenizer: PreTrainedTokenizerBase, choice: str | None, *, adds_bos: bool) -> str | None:
    """Returns the jinja text of a chat template, fit to be exported with the tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        choice: name of a built-in template, path of a jinja file, or None for the tokenizer's own.
        adds_bos: whether the tokenizer puts a beginning-of-sequence token in front of text; a built-in template then
            does the same. A template from a file or tokenizer is taken as it is.

    Returns:
        The template, or None if none is chosen and the tokenizer has none.

    Raises:
        ValueError: if `choice` is neither a name nor a file.
    """
    if choice is None:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    if choice in BUILT_IN:
        # Where '<|im_end|>' is not one token, it would be text of the answer: learned, drawn, and read as such.
        is_token = "true" if "<|im_end|>" in tokenizer.get_vocab() else "false"
        return ("{{ bos_token }}" if adds_bos else "") + BUILT_IN[choice].replace("IM_END_IS_A_TOKEN", is_token)
    if Path(choice).is_file():
        return Path(choice).read_text(encoding="utf-8")
    near = difflib.get_close_matches(choice, BUILT_IN, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"data.chat_template={choice!r} is no file and none of {', '.join(BUILT_IN)}{hint}")
