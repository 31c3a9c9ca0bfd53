import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.commands.config import GenerateConfig, SamplingConfig
from jaxrlhf.commands.sampled import draw_answers, encode_prompts, sample_answers, sample_batches, score_answers
from jaxrlhf.data.config import DataConfig
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.trainers.start import Start, scalar_start
from tests.commands.chains import chain

GREEDY = SamplingConfig(max_new_tokens=4, temperature=0.0)
ROOM = {"room": "was", "was": "fine"}  # and then the end
RAIN = {"rained": "outside", "outside": "outside"}  # without one
ROWS = [{"prompt": prompt} for prompt in ("room", "it rained", "the hotel room", "it rained and rained") * 3]


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()):
        yield


def encode(start: Start, **data):
    return encode_prompts([ROWS], start.tokenizer, DataConfig(**data), make_mesh(), batch_size=8)


def test_answers_and_scores_are_those_of_the_prompts_in_their_order_and_of_no_padding():
    policy = chain(ROOM | RAIN)
    answered = sample_answers(policy, encode(policy), GREEDY, compute=ComputeConfig(), answers=2)
    first, last = answered.batches
    assert first.completions == [["was fine"] * 2, ["outside " * 3 + "outside"] * 2] * 4
    assert last.completions == first.completions[:4]
    assert first.lengths[:2].tolist() == [[3, 3], [4, 4]]
    assert last.terminated.tolist() == [[True, True], [False, False]] * 2
    assert first.samples.tokens.shape == last.samples.tokens.shape == (16, 4)
    assert answered.completions == first.completions + last.completions
    assert answered.lengths.tolist() == [[3, 3], [4, 4]] * 6

    # A score is read at the last token: at the end of an answer, or where it was cut off.
    scorer = scalar_start(policy)
    vocabulary = policy.tokenizer.get_vocab()
    kernel = jnp.zeros((1, len(vocabulary))).at[0, vocabulary["</s>"]].set(1.0)
    scorer.params["score"]["kernel"] = kernel / jnp.sqrt(len(vocabulary))
    scores = score_answers(scorer, answered, compute=ComputeConfig())
    np.testing.assert_allclose(scores, [[1.0, 1.0], [0.0, 0.0]] * 6, rtol=1e-3)


def test_a_command_shows_how_far_its_answers_are(capsys, monkeypatch):
    monkeypatch.setattr("jaxrlhf.commands.progress.BETWEEN_LINES_S", 0.0)
    policy, sampling = chain(ROOM | RAIN), dataclasses.replace(GREEDY, temperature=1.0)
    config = GenerateConfig(model="any", dataset="any", out="any", answers=2, sampling=sampling)
    batches = list(draw_answers(config, policy, encode(policy)))
    assert [batch.lengths.shape for batch in batches] == [(8, 2), (4, 2)]
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("answers 1/24 ") and last.startswith("answers 24/24 ") and "cut off 12" in last


def test_a_word_that_ends_answers_is_no_part_of_them():
    policy = chain(ROOM | RAIN)
    policy = dataclasses.replace(policy, stops=(policy.tokenizer.get_vocab()["fine"],))
    (batch, _) = sample_batches(policy, encode(policy), GREEDY, compute=ComputeConfig())
    assert (batch.completions[0], batch.lengths[0], batch.terminated[0]) == (["was"], [2], [True])


def test_prompts_come_in_as_many_widths_as_are_wanted():
    rows = [{"prompt": "room"}] * 8 + [{"prompt": "it rained and " * 4 + "rained"}] * 8
    policy = chain(ROOM | RAIN)
    encoded = [
        encode_prompts([rows], policy.tokenizer, DataConfig(buckets=buckets), make_mesh(), batch_size=8)
        for buckets in (1, 2)
    ]
    assert [[width.tokens for width in prompts.loader.widths] for prompts in encoded] == [[16], [8, 16]]
    one, two = (sample_answers(policy, prompts, GREEDY, compute=ComputeConfig()) for prompts in encoded)
    assert one.completions == two.completions


def test_answers_beyond_the_last_position_are_refused():
    policy = chain(ROOM)
    prompts = encode(policy)
    assert prompts.longest == 5
    with pytest.raises(ValueError, match="65 tokens.*64 positions; lower sampling.max_new_tokens or data.max_prompt_l"):
        next(sample_batches(policy, prompts, SamplingConfig(max_new_tokens=60), compute=ComputeConfig()))
