"""What is sampled, against transformers' generate and against the forward pass of training."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.generation.sampler import Sampler
from jaxrlhf.generation.settings import SamplingSettings
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.decoder import make_model
from jaxrlhf.models.load import load_policy
from jaxrlhf.steps.responses import response_batch
from jaxrlhf.steps.scoring import token_logprobs
from jaxrlhf.types import PromptBatch, Samples
from tests.fakes import prompt_batch

FOLDER = Path(__file__).parents[1] / "assets" / "stories260k-llama"
CASES = json.loads((FOLDER / "reference_outputs.json").read_text())["cases"]
ENDS = (1, 2)


@pytest.fixture(scope="module")
def policy() -> Any:
    return load_policy(FOLDER)


def as_prompts(side: str) -> PromptBatch:
    rows = [case["input_ids"] for case in CASES]
    batch = prompt_batch(rows, max(map(len, rows)) + 3)
    if side == "left":
        return batch
    tokens, segments = np.ones_like(batch.tokens), np.zeros_like(batch.segment_ids)
    for number, row in enumerate(rows):
        tokens[number, : len(row)], segments[number, : len(row)] = row, 1
    return PromptBatch(tokens=tokens, segment_ids=segments, row_ids=batch.row_ids)


def kept(samples: Samples) -> list[list[int]]:
    lengths = np.asarray(samples.mask).sum(axis=1)
    return [np.asarray(row)[:length].tolist() for row, length in zip(samples.tokens, lengths, strict=True)]


@pytest.mark.parametrize("side, slots", [("left", None), ("right", None), ("left", 2)])
def test_greedy_tokens_of_a_real_model_are_those_of_transformers(policy, side: str, slots: int | None):
    most = len(CASES[0]["greedy_new_ids"])
    sample = Sampler(policy.model, max_new_tokens=most, slots=slots)
    samples = sample(policy.params, as_prompts(side), jax.random.key(0), SamplingSettings(temperature=0.0))
    assert kept(samples) == [case["greedy_new_ids"] for case in CASES]


@pytest.mark.parity
@pytest.mark.parametrize("options", [
    {}, {"repetition_penalty": 1.3}, {"min_new_tokens": 20, "repetition_penalty": 1.1},
])  # fmt: skip
def test_greedy_processing_is_that_of_transformers(policy, options: dict[str, Any]):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    prompts, new = as_prompts("left"), 40
    ends = [*ENDS, CASES[0]["greedy_new_ids"][12], CASES[1]["greedy_new_ids"][5]]  # so that some answers are short
    output = peer.generate(
        torch.tensor(prompts.tokens).long(),
        attention_mask=torch.tensor(prompts.segment_ids),
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=ends,
        pad_token_id=0,
        **options,
    )
    settings = SamplingSettings(temperature=0.0, eos_ids=ends, **options)
    samples = Sampler(policy.model, max_new_tokens=new)(policy.params, prompts, jax.random.key(0), settings)
    found = output[:, prompts.tokens.shape[1] :].numpy()
    padded = np.zeros((len(CASES), new), int)
    padded[:, : found.shape[1]] = found
    np.testing.assert_array_equal(samples.tokens, padded)
    assert samples.terminated.any()


@pytest.mark.parametrize("dtype, mean, most", [("float32", 2e-6, 2e-5), ("bfloat16", 0.03, 0.5)])
def test_log_probabilities_are_those_of_the_forward_pass_of_training(policy, dtype: str, mean: float, most: float):
    model = make_model(policy.config, ComputeConfig(dtype=dtype))
    settings = SamplingSettings(temperature=0.8, eos_ids=ENDS)
    prompts = as_prompts("left")
    samples = Sampler(model, max_new_tokens=64, answers=4, slots=6)(policy.params, prompts, jax.random.key(1), settings)
    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, 4, axis=0), prompts)
    batch = response_batch(repeated, samples)
    for drawn, temperature in ((samples.logprobs, 1.0), (samples.sampling_logprobs, 0.8)):
        score = jax.jit(lambda params, batch, heat: token_logprobs(model, params, batch, temperature=heat)[0].logp)
        difference = jnp.abs(drawn - score(policy.params, batch, jnp.float32(temperature)))[samples.mask]
        assert len(difference) > 300
        assert float(difference.mean()) < mean and float(difference.max()) < most
