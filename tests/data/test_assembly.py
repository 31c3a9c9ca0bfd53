import numpy as np

from jaxrlhf.data.assembly import Example, assemble
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import Encoded, make_encoder
from jaxrlhf.data.report import Report
from jaxrlhf.data.rows import PreferenceRow, PromptRow, RankedRow, SftRow, UnpairedRow
from tests.data.tokenizers import CHATML, byte_level


def encoded(*ids, prompt=1):
    return Encoded(np.array(ids, np.int32), np.arange(len(ids)) >= prompt, prompt)


def text(count, source=0):
    return Example(source, SftRow("row 1", "", "text", True, {}), [encoded(*range(count))])


def pair(margin=0.0, last=8):
    row = PreferenceRow("row 1", "a", "b", "c", margin, {})
    return Example(0, row, [encoded(5, 6, 7, prompt=2), encoded(5, 6, last)])


def answer(desirable):
    return Example(0, UnpairedRow("row 1", "a", "b", desirable, True, {}), [encoded(5, 6)])


def ranking(source, ranks):
    row = RankedRow("row 1", "a", ["b"] * len(ranks), ranks, [True] * len(ranks), {})
    return Example(source, row, [encoded(5, 6)] * len(ranks))


def build(kind, examples, weights=(1.0,), template=None, **fields):
    config = DataConfig(**fields)
    encoder = make_encoder(byte_level(template=template), config)
    return assemble(kind, examples, weights, Report(kept=len(examples)), encoder, config)


def test_sequences_stand_one_after_the_other():
    index = build("preference", [pair(margin=2.0), pair(last=9)])
    assert index.ids.tolist() == [5, 6, 7, 5, 6, 8, 5, 6, 7, 5, 6, 9]
    assert index.mask.tolist() == [False, False, True, False, True, True] * 2
    assert index.offsets.tolist() == [0, 3, 6, 9, 12]
    assert index.groups.tolist() == [0, 2, 4]
    assert index.margins.tolist() == [2.0, 0.0]
    assert index.ranks.tolist() == [1, 2, 1, 2]
    assert (index.ids.dtype, index.mask.dtype, index.offsets.dtype) == (np.int32, bool, np.int64)
    assert (index.units, index.source.tolist(), index.report.kept) == (2, [0, 0], 2)


def test_rankings_may_differ_in_size():
    examples = [ranking(0, [3, 1, 2]), ranking(1, [1, 2])]
    index = build("ranked", examples, weights=(1.0, 2.0))
    assert index.groups.tolist() == [0, 3, 5]
    assert index.ranks.tolist() == [3, 1, 2, 1, 2]
    assert (index.source.tolist(), index.weights.tolist()) == ([0, 1], [1.0, 2.0])


def test_labels_are_kept_and_all_else_counts_as_good():
    index = build("unpaired", [answer(True), answer(False)])
    assert (index.desirable.tolist(), index.desirable.dtype) == ([True, False], bool)
    assert build("preference", [pair()]).desirable.tolist() == [True]


def test_prompts_keep_their_text_and_columns():
    index = build("prompt", [Example(0, PromptRow("row 1", "xy", {"answer": 3}), [encoded(5, 6, prompt=2)])])
    assert index.extras == ({"answer": 3, "prompt": "xy"},)
    assert not index.mask.any()


def test_prompts_of_conversations_keep_their_messages_too():
    messages = [{"role": "user", "content": "hello"}]
    index = build("prompt", [Example(0, PromptRow("row 1", messages, {}), [encoded(5, 6)])], template=CHATML)
    assert index.extras[0]["messages"] == messages
    assert index.extras[0]["prompt"].endswith("<|im_start|>assistant\n")


def test_bins_hold_every_sequence_once_and_one_data_set_each():
    examples = [*(text(count) for count in (4, 6, 3)), *(text(count, source=1) for count in (2, 7))]
    index = build("sft", examples, weights=(1.0, 1.0), packing=True, max_length=8)
    assert index.bins is not None and index.units == len(index.bins) == index.report.bins
    assert sorted(np.concatenate(index.bins).tolist()) == [0, 1, 2, 3, 4]
    assert index.units == 3  # of 8 columns: 5 + 3, 2, and 1 + 6
    for items, source in zip(index.bins, index.source, strict=True):
        assert {0 if item < 3 else 1 for item in items} == {source}
        assert sum(index.offsets[items + 1] - index.offsets[items] - 1) <= 8


def test_the_digest_changes_with_content_tokenizer_and_settings():
    base = build("preference", [pair(), pair(last=9)])
    assert base.digest == build("preference", [pair(), pair(last=9)]).digest
    others = [
        build("preference", [pair(margin=1.0), pair(last=9)]),
        build("preference", [pair(), pair(last=9)], template=CHATML),
        build("preference", [pair(), pair(last=9)], max_length=77),
        build("preference", [pair(last=9), pair()]),
        build("preference", [pair(), pair(last=9)], weights=(2.0,)),
    ]
    assert len({index.digest for index in [base, *others]}) == 6
    labels = [answer(True), answer(False)]
    assert build("unpaired", labels).digest != build("unpaired", labels[::-1]).digest
    texts = [text(3), text(3)]
    assert build("sft", texts, packing=True).digest != build("sft", texts).digest
