import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf.generation.decode import generate
from jaxrlhf.generation.sampler import make_sampler
from jaxrlhf.generation.sampling import SamplingSettings
from tests.fakes import bigram_model, counting_model, prompt_batch

MODEL, PARAMS = bigram_model()
PROMPTS = prompt_batch([[5, 6], [7]], 3)


def test_plain_numbers_become_settings_of_every_row():
    sample = make_sampler(MODEL, eos_ids=[3], max_new_tokens=8, answers=3)
    found = sample(PARAMS, PROMPTS, jax.random.key(1), temperature=0.7, top_k=5, top_p=0.9)
    settings = SamplingSettings(
        temperature=jnp.full(6, 0.7), top_k=jnp.full(6, 5), top_p=jnp.full(6, 0.9), eos_ids=jnp.asarray([3])
    )
    run = jax.jit(lambda key: generate(MODEL, PARAMS, PROMPTS, key, settings, max_new_tokens=8, answers=3))
    expected = run(jax.random.key(1))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.sampling_logprobs, expected.sampling_logprobs, atol=1e-5)
    assert found.tokens.shape == (6, 8)


def test_settings_key_and_prompts_recompile_nothing_and_a_new_width_does():
    traces = []

    def apply(params, tokens, **rest):
        traces.append(tokens.shape)
        return MODEL.apply(params, tokens, **rest)

    sample = make_sampler(dataclasses.replace(MODEL, apply=apply), eos_ids=[3], max_new_tokens=4)
    first = sample(PARAMS, PROMPTS, jax.random.key(0))
    once = len(traces)
    other = prompt_batch([[9], [8, 7, 6]], 3, row_ids=[4, 2])
    for key, options in [(1, {"temperature": 0.5}), (2, {"top_k": 2, "top_p": 0.5}), (3, {"temperature": 0.0})]:
        again = sample(PARAMS, other, jax.random.key(key), **options)
    assert len(traces) == once and not jnp.array_equal(first.tokens, again.tokens)
    sample(PARAMS, prompt_batch([[5], [7]], 4), jax.random.key(0))
    assert len(traces) == 2 * once


def test_parameters_are_prepared_once_before_the_loop():
    model, params = counting_model()
    calls = []

    def prepare(params):
        calls.append(1)
        return {"peak": params["half"] * 2.0}

    sample = make_sampler(model, eos_ids=[9], max_new_tokens=4, prepare=prepare)
    samples = sample({"half": params["peak"] / 2.0}, PROMPTS, jax.random.key(0))
    np.testing.assert_array_equal(samples.tokens, [[7, 8, 9, 0], [8, 9, 0, 0]])
    assert len(calls) == 1


def test_another_key_gives_other_answers_and_the_same_key_the_same():
    sample = make_sampler(MODEL, eos_ids=[], max_new_tokens=8)
    first, again, other = (sample(PARAMS, PROMPTS, jax.random.key(seed)).tokens for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).sum() > 4
