import jax
import numpy as np
import pytest

from jaxrlhf.demo import road
from jaxrlhf.demo.config import DemoConfig
from jaxrlhf.demo.language import make_prompts, parse_prompt
from jaxrlhf.demo.texts import DEMONSTRATOR, write_answer
from tests.demo.small import SMALL

CONFIG = DemoConfig(sizes=SMALL)


def test_fresh_matrices_have_a_deviation_that_suits_their_width():
    params = road.fresh_model(DemoConfig()).params
    assert np.std(params["embed_tokens"]["embedding"]) == pytest.approx(0.1, rel=0.02)
    assert np.std(params["layers"]["self_attn"]["q_proj"]["kernel"]) == pytest.approx(0.1, rel=0.02)
    assert (params["norm"]["scale"] == 1).all()
    assert (params["layers"]["input_layernorm"]["scale"] == 1).all()


def test_models_of_two_seeds_differ():
    first, again, other = (road.fresh_model(DemoConfig(sizes=SMALL, seed=seed)).params for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["embed_tokens"]["embedding"] != other["embed_tokens"]["embedding"]).any()


def test_the_longest_demonstration_fits():
    rng = np.random.default_rng(0)
    tokenizer = road.fresh_model(CONFIG).tokenizer
    prompts = make_prompts(0, 400)
    answers = [write_answer(rng, parse_prompt(prompt), DEMONSTRATOR) for prompt in prompts]
    pairs = zip(prompts, answers, strict=True)
    lengths = [len(tokenizer(f"{prompt} {answer}")["input_ids"]) + 1 for prompt, answer in pairs]
    assert max(lengths) == road.MAX_LENGTH
    assert road.MAX_LENGTH - len(tokenizer(prompts[0])["input_ids"]) == road.MAX_NEW_TOKENS


def test_ranked_rows_hold_4_to_7_different_answers_and_are_a_function_of_the_seed():
    policy, prompts = road.fresh_model(CONFIG), make_prompts(0, 24)
    rows = road.rank(CONFIG, policy, prompts, seed=3)
    assert rows == road.rank(CONFIG, policy, prompts, seed=3)
    assert [row["prompt"] for row in rows] == prompts
    assert {len(row["completions"]) for row in rows} == {4, 5, 6, 7}
    for row in rows:
        assert len(set(row["completions"])) == len(row["completions"]) == len(row["ranks"])
        assert min(row["ranks"]) == 1 < max(row["ranks"])
