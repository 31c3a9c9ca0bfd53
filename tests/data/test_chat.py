import pytest

from jaxrlhf.data import chat
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import encode, make_encoder, with_template
from jaxrlhf.data.rowlog import RowError
from jaxrlhf.data.templates import BUILT_IN
from tests.data.tokenizers import CHATML, FORGETFUL, HEADERS, byte_level, prefixing

DIALOGUE = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the end"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "no"},
]


def _encode(tokenizer, prompt, completion, **fields):
    encoder = make_encoder(tokenizer, DataConfig(**fields))
    (encoded,) = encode(encoder, [chat.split_answer(encoder, prompt, completion)])
    return encoded


def _tokens(tokenizer, encoded, *, trained=False):
    return tokenizer.convert_ids_to_tokens(encoded.ids[encoded.mask] if trained else encoded.ids)


def _trained_text(tokenizer, encoded):
    return tokenizer.decode(encoded.ids[encoded.mask])


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_the_answer_and_one_end_token_are_trained_even_if_padding_shares_its_id(pad):
    tokenizer = byte_level(pad=pad)
    encoded = _encode(tokenizer, "he", "ll t")
    assert _tokens(tokenizer, encoded) == ["he", "ll", "Ġt", "</s>"]
    assert encoded.mask.tolist() == [False, True, True, True]
    assert encoded.prompt == 1


@pytest.mark.parametrize("tokenizer", [byte_level(bos=True), prefixing()])
def test_text_begins_with_one_bos_where_the_tokenizer_adds_it(tokenizer):
    for prompt in ("", "ab"):
        tokens = _tokens(tokenizer, _encode(tokenizer, prompt, "ab"))
        assert tokens[0] == "<s>" and tokens.count("<s>") == 1


def test_no_bos_where_the_tokenizer_adds_none():
    assert "<s>" not in _tokens(byte_level(), _encode(byte_level(), "ab", "ab"))


def test_the_first_token_of_a_text_is_no_target():
    assert _encode(byte_level(), "", "hello t").mask.tolist() == [False, True, True]


def test_no_end_token_is_added_when_it_is_not_wanted():
    assert _tokens(byte_level(), _encode(byte_level(), "he", "ll", add_eos=False)) == ["he", "ll"]


@pytest.mark.parametrize("tokenizer", [byte_level(bos=True), byte_level(), prefixing()])
def test_the_ids_of_a_sampled_prompt_begin_those_of_its_answer(tokenizer):
    encoder = make_encoder(tokenizer, DataConfig())
    (prompt,) = encode(encoder, [chat.split_prompt(encoder, "he")])
    answer = _encode(tokenizer, "he", "llo")  # joined, "hello" would be one token
    assert answer.ids[: len(prompt.ids)].tolist() == prompt.ids.tolist()
    assert answer.prompt == prompt.prompt == len(prompt.ids)
    assert not prompt.mask.any()


@pytest.mark.parametrize("answer", ["ab", " ab", "\n ab"])
def test_a_space_prefixing_tokenizer_puts_no_space_at_the_seam(answer):
    tokenizer = prefixing()
    encoded = _encode(tokenizer, "once", answer, add_eos=False)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == "once" + answer


def test_names_of_special_tokens_in_the_data_stay_plain_text():
    tokenizer = byte_level(bos=True)
    encoded = _encode(tokenizer, "a<s>", "b</s>")
    assert _tokens(tokenizer, encoded).count("<s>") == 1
    assert _tokens(tokenizer, encoded).count("</s>") == 1
    assert tokenizer.decode(encoded.ids) == "<s>a<s>b</s></s>"


def test_every_assistant_turn_is_trained_with_its_end():
    tokenizer = byte_level(template=CHATML)
    encoded = _encode(tokenizer, [], DIALOGUE)
    assert _trained_text(tokenizer, encoded) == "the end<|im_end|>no<|im_end|>"
    assert tokenizer.decode(encoded.ids) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nthe end<|im_end|>\n"
        "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\nno<|im_end|>"
    )


def test_turns_of_the_prompt_are_not_trained():
    tokenizer = byte_level(template=CHATML)
    encoded = _encode(tokenizer, DIALOGUE[:3], DIALOGUE[3:])
    assert _trained_text(tokenizer, encoded) == "no<|im_end|>"
    assert encoded.prompt == encoded.mask.argmax()


def test_the_prompt_of_a_conversation_is_what_the_sampler_continues():
    tokenizer = byte_level(template=CHATML)
    encoder = make_encoder(tokenizer, DataConfig())
    (prompt,) = encode(encoder, [chat.split_prompt(encoder, DIALOGUE[:3])])
    answer = _encode(tokenizer, DIALOGUE[:3], DIALOGUE[3:])
    assert answer.ids[: answer.prompt].tolist() == prompt.ids.tolist()
    assert tokenizer.decode(prompt.ids).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("bos", [True, False])
def test_a_template_that_writes_bos_gives_exactly_one(bos):
    tokenizer = byte_level(bos=bos, template=HEADERS)
    tokens = _tokens(tokenizer, _encode(tokenizer, [], DIALOGUE))
    assert tokens[0] == "<s>" and tokens.count("<s>") == 1


@pytest.mark.parametrize("name", ["chatml", "alpaca", "hh"])
@pytest.mark.parametrize("tokenizer", [byte_level(bos=True), prefixing()])
def test_built_in_templates_train_one_end_token_a_turn(tokenizer, name):
    encoded = _encode(tokenizer, [], DIALOGUE, chat_template=name)
    assert _tokens(tokenizer, encoded, trained=True).count("</s>") == 2
    assert _tokens(tokenizer, encoded)[-1] == "</s>"
    assert _tokens(tokenizer, encoded).count("<s>") == 1


def test_a_template_without_end_tokens_gets_one_at_the_end():
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    tokenizer = byte_level(template=template)
    encoded = _encode(tokenizer, [], DIALOGUE)
    assert _trained_text(tokenizer, encoded) == " the end\n no\n</s>"


def test_names_of_special_tokens_in_messages_stay_plain_text():
    tokenizer = byte_level(template=CHATML)
    messages = [{"role": "user", "content": "a<|im_end|>b"}, {"role": "assistant", "content": "<|im_end|>"}]
    encoded = _encode(tokenizer, [], messages)
    assert _tokens(tokenizer, encoded).count("<|im_end|>") == 2  # one a turn, both the template's
    assert _trained_text(tokenizer, encoded) == "<|im_end|><|im_end|>"
    assert encoded.mask[-1] and _tokens(tokenizer, encoded)[-1] == "<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = byte_level(template=FORGETFUL)
    thinking = [DIALOGUE[0], {"role": "assistant", "content": "<think>x</think>y"}, *DIALOGUE[2:]]
    with pytest.raises(RowError, match="rewrites what stands before message 3") as error:
        _encode(tokenizer, [], thinking)
    assert error.value.code == "TEMPLATE_PREFIX"
    _encode(tokenizer, [], DIALOGUE)  # without thoughts nothing is lost


def test_a_template_that_leaves_out_the_answer_is_refused():
    tokenizer = byte_level(template="{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(RowError, match="leaves nothing of message 1"):
        _encode(tokenizer, [], DIALOGUE[:2])


def test_a_template_that_refuses_is_quoted():
    tokenizer = byte_level(template="{{ raise_exception('no system here') }}")
    with pytest.raises(RowError, match="refuses the conversation: no system here"):
        _encode(tokenizer, [], DIALOGUE)


def test_prompts_are_trained_too_if_wanted():
    tokenizer = byte_level(bos=True)
    encoded = _encode(tokenizer, "he", "ll", completion_only=False)
    assert encoded.mask.tolist() == [False, True, True, True]


def test_a_missing_template_names_the_built_in_ones():
    encoder = make_encoder(byte_level(), DataConfig())
    with pytest.raises(ValueError, match="row 1: .*no chat template; set data.chat_template to chatml, alpaca, hh"):
        chat.check_template(encoder, "row 1")


def _cut(tokenizer, prompt, completion):
    encoder = make_encoder(tokenizer, DataConfig())
    (encoded,) = encode(encoder, [chat.split_answer(encoder, prompt, completion, terminated=False)])
    return encoded


def test_a_cut_off_answer_gets_no_end_token():
    tokenizer = byte_level()
    encoded = _cut(tokenizer, "he", "ll t")
    assert _tokens(tokenizer, encoded) == ["he", "ll", "Ġt"]
    assert encoded.mask.tolist() == [False, True, True]


@pytest.mark.parametrize("template", [CHATML, HEADERS, *BUILT_IN.values()])
@pytest.mark.parametrize("last", ["the", "the<|im_end|> "])
def test_the_turn_of_a_cut_off_answer_stays_open(template, last):
    tokenizer = byte_level(template=template)
    dialogue = [*DIALOGUE[:3], {"role": "assistant", "content": last}]
    whole, cut = _encode(tokenizer, [], dialogue), _cut(tokenizer, [], dialogue)
    assert cut.ids.tolist() == whole.ids[: len(cut.ids)].tolist()
    text = _trained_text(tokenizer, cut)
    assert text.endswith(last.strip()) and _trained_text(tokenizer, whole).startswith(text)
    assert len(whole.ids) > len(cut.ids)
    end = tokenizer.eos_token_id
    assert cut.ids[cut.mask].tolist().count(end) == 1  # that of the first turn


def test_a_template_that_writes_before_the_answer_cannot_leave_its_turn_open():
    tokenizer = byte_level(template="{% for m in messages %}({{ m['role'] }}){{ m['content'] }}{% endfor %}")
    message = r"does not begin its turn with it: '\(assistant\)the end'; remove the row, or set data.chat_template"
    with pytest.raises(RowError, match=message) as error:
        _cut(tokenizer, [], DIALOGUE[:2])
    assert error.value.code == "TEMPLATE_CONTENT"


@pytest.mark.parametrize("choice", ["chatml", "alpaca", "hh", "mine.jinja"])
@pytest.mark.parametrize("bos", [True, False])
def test_a_tokenizer_with_its_template_encodes_as_the_choice_did(tmp_path, monkeypatch, bos, choice):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jinja").write_text(HEADERS if bos else CHATML)
    tokenizer, config = byte_level(bos=bos, template=FORGETFUL), DataConfig(chat_template=choice)
    exported = with_template(tokenizer, config)
    assert tokenizer.chat_template == FORGETFUL
    assert make_encoder(exported, DataConfig()).template == make_encoder(tokenizer, config).template
    chosen, travelled = _encode(tokenizer, [], DIALOGUE, chat_template=choice), _encode(exported, [], DIALOGUE)
    assert chosen.ids.tolist() == travelled.ids.tolist()
    assert _tokens(tokenizer, travelled).count("<s>") == bos
