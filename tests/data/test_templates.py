from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jaxrlhf.data.templates import BUILT_IN, chat_template
from tests.data.tokenizers import CHATML, byte_level

STORIES = Path(__file__).parents[1] / "assets" / "stories260k-llama"
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]


@pytest.mark.parametrize(
    ("name", "expected", "header"),
    [
        (
            "chatml",
            "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|></s>\n",
            "<|im_start|>assistant\n",
        ),
        ("alpaca", "<s>Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n", "### Response:\n"),
        ("hh", "<s>Be kind.\n\nHuman: Hi\n\nAssistant: Hello</s>", "\n\nAssistant:"),
    ],
)
def test_built_in_templates_end_each_answer_and_begin_once(name, expected, header):
    tokenizer = byte_level(bos=True)
    template = chat_template(tokenizer, name, adds_bos=True)
    render = tokenizer.apply_chat_template
    assert render(MESSAGES, chat_template=template, tokenize=False) == expected
    prompt = render(MESSAGES[:2], chat_template=template, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith(header) and expected.startswith(prompt)


def test_a_template_comes_from_the_tokenizer_a_file_or_a_name(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    assert chat_template(byte_level(template=CHATML), None, adds_bos=False) == CHATML
    assert chat_template(byte_level(), None, adds_bos=False) is None
    assert chat_template(byte_level(), str(tmp_path / "mine.jinja"), adds_bos=True) == "{{ messages }}"
    assert chat_template(byte_level(), "hh", adds_bos=False) == BUILT_IN["hh"]


def test_chatml_ends_answers_with_the_end_of_sequence_alone_where_its_own_end_is_no_token():
    """Else the marker would be text of the answer, in several tokens: learned, drawn, and doubled when read again."""
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    assert "<|im_end|>" not in tokenizer.get_vocab()
    template = chat_template(tokenizer, "chatml", adds_bos=False)
    text = tokenizer.apply_chat_template(MESSAGES[1:], chat_template=template, tokenize=False)
    assert text == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello{tokenizer.eos_token}\n"


def test_an_unknown_template_suggests_a_name():
    with pytest.raises(ValueError, match="'chatlm' is no file and none of chatml, alpaca, hh; did you mean 'chatml'"):
        chat_template(byte_level(), "chatlm", adds_bos=False)
