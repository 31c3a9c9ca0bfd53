import dataclasses

import jax
import numpy as np
import pytest

from jaxrlhf.commands.config import BestOfNConfig, EvaluateConfig, GenerateConfig, SamplingConfig
from jaxrlhf.commands.sampling import make_answer
from jaxrlhf.models.config import ComputeConfig
from tests.commands.chains import chain
from tests.fakes import prompt_batch

POLICY = chain({"room": "was", "was": "fine", "rained": "outside", "outside": "outside"})
WORDS = POLICY.tokenizer.get_vocab()
GREEDY = SamplingConfig(max_new_tokens=4, temperature=0.0)


def answered(prompts=("room", "rained"), answers=1, watch=None, longest=None, **options):
    sampling = dataclasses.replace(GREEDY, **options)
    batch = jax.tree.map(jax.numpy.asarray, prompt_batch([[WORDS[prompt]] for prompt in prompts], 2))
    answer = make_answer(POLICY, sampling, compute=ComputeConfig(), answers=answers)
    return answer(batch, [{}] * len(prompts), jax.random.key(0), watch=watch, longest=longest)


def test_an_answer_ends_with_the_token_that_completes_a_stop_string_and_its_text_before_it():
    found = answered(stop=("s fi", "outside outside"), answers=2)
    assert found.completions == [["wa"] * 2, [""] * 2]
    assert found.lengths.tolist() == [[2, 2], [2, 2]]
    assert found.terminated.all()
    tokens = np.asarray(found.samples.tokens)[::2]
    np.testing.assert_array_equal(tokens, [[WORDS["was"], WORDS["fine"], 0, 0], [WORDS["outside"]] * 2 + [0, 0]])


def test_an_answer_that_ends_by_itself_holds_no_stop_string():
    found = answered(stop=("never",))
    assert found.completions == [["was fine"], ["outside outside outside outside"]]
    assert found.terminated.tolist() == [[True], [False]]


def test_forbidden_tokens_are_not_drawn():
    (text,), _ = answered(forbidden=("was",)).completions
    assert "was" not in text.split()
    with pytest.raises(ValueError, match=r"sampling.forbidden: 'the room' is not one token of the vocabulary but \["):
        answered(forbidden=("the room",))


def test_the_options_reach_the_draws():
    assert answered(min_new_tokens=4).lengths.tolist() == [[4], [4]]
    assert answered(longest=2, min_new_tokens=3).lengths.tolist() == [[2], [2]]
    cold = {"temperature": 1e-3}
    assert answered(**cold).completions[1] == ["outside outside outside outside"]
    assert answered(**cold, repetition_penalty=1e6).completions[1] != ["outside outside outside outside"]
    hot = {"temperature": 100.0, "seed": 1}
    assert answered(**hot).completions[1] != ["outside outside outside outside"]
    for option in ({"min_p": 1.0}, {"top_k": 1}, {"top_p": 1e-6}):
        assert answered(**hot, **option).completions[1] == ["outside outside outside outside"]
    assert answered(**hot, draw="cumulative").completions != answered(**hot).completions


@pytest.mark.parametrize("stop", [(), ("s fi",)])
def test_answers_are_seen_while_they_are_drawn_without_their_end(stop):
    seen = []
    watch = lambda row, tokens, ended: seen.append((row, tokens.tolist(), ended))  # noqa: E731
    answered(watch=watch, chunk=1, stop=stop)
    was, fine, outside = (WORDS[word] for word in ("was", "fine", "outside"))
    assert [(tokens, ended) for row, tokens, ended in seen if row == 0] == [
        ([was], False),
        *([([was, fine], True)] if stop else [([was, fine], False), ([was, fine], True)]),
    ]
    assert [tokens for row, tokens, _ in seen if row == 1] == [[outside] * count for count in range(1, 5)]
    assert [ended for row, _, ended in seen if row == 1] == [False, False, False, True]


def test_what_was_drawn_behind_a_stop_string_is_not_seen():
    seen = []
    answered(("room",), watch=lambda row, tokens, ended: seen.append((len(tokens), ended)), chunk=4, stop=("wa",))
    assert seen == [(1, True)]


def test_fewer_slots_draw_the_same_answers():
    prompts = ("room", "rained", "was", "fine") * 2
    assert answered(prompts, slots=3, chunk=2).completions == answered(prompts).completions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_p": 1.5}, r"min_p=1.5 must lie in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be positive"),
        ({"min_new_tokens": 200}, "min_new_tokens=200 must be at most max_new_tokens=128"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1 must not be negative"),
        ({"slots": 0, "chunk": 0}, "slots=0 must be positive; chunk=0 must be positive"),
        ({"stop": ("a", "")}, "stop=.'a', ''. must hold texts that are not empty"),
        ({"stop": ("\ufffd",)}, "without U.FFFD"),
        ({"forbidden": ("",)}, "forbidden=.''. holds an empty text"),
        ({"draw": "gumbels"}, "draw='gumbels' is unknown.*did you mean 'gumbel'"),
        (
            {"temperature": 0.0, "top_k": 3, "draw": "cumulative", "seed": 1},
            "top_k, draw, seed: no effect at temperature=0, which draws nothing; leave out",
        ),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)


@pytest.mark.parametrize(
    ("config", "fields", "answers"),
    [
        (GenerateConfig, {"out": "o", "answers": 2}, 16),
        (BestOfNConfig, {"out": "o", "answers": 2}, 16),
        (EvaluateConfig, {"measure": "win_rate", "against": "a", "reward_model": "r"}, 8),
    ],
)
def test_slots_that_a_batch_leaves_empty_are_refused(config, fields, answers):
    fields = {"model": "m", "dataset": "d", "batch_size": 8, **fields}
    config(sampling=SamplingConfig(slots=answers), **fields)
    with pytest.raises(ValueError, match=f"sampling.slots={answers + 1} has no effect on {answers} answers"):
        config(sampling=SamplingConfig(slots=answers + 1), **fields)
