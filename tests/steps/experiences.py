"""Answers by hand, and what everyone says of them."""

import math

import jax.numpy as jnp
import numpy as np

from jaxrlhf.steps.experience import Experience
from jaxrlhf.steps.responses import response_batch
from jaxrlhf.types import Samples
from tests.fakes import hyper, prompt_batch

EOS = 2
PROMPTS = prompt_batch([[5, 6], [7], [8, 9, 10], []], 3)  # the last row is padding
MASK = np.asarray([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
SAMPLES = Samples(
    tokens=np.asarray([[11, 12, EOS], [13, EOS, 0], [14, 15, 16], [EOS, 0, 0]], np.int32),
    mask=MASK,
    terminated=np.asarray([True, True, False, True]),
    logprobs=np.where(MASK, -1.0, 0.0).astype(np.float32),
    sampling_logprobs=np.where(MASK, -1.0, 0.0).astype(np.float32),
)
KL = np.asarray([[0.5, 0.0, -0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 0.0, 0.0]], np.float32)
HYPER = hyper(kl_coef=0.1, gamma=1.0, lam=0.5, missing_eos_penalty=1.0, temperature=1.0, score_clip=math.inf)


def experience(**scores: list[float]) -> Experience:
    """Every token has log-probability -2 under the policy; the critic says 0."""
    logprobs = np.where(MASK, -2.0, 0.0).astype(np.float32)
    return Experience(
        batch=response_batch(PROMPTS, SAMPLES),
        samples=SAMPLES,
        logprobs=logprobs,
        ref_logprobs=logprobs - KL,
        values=np.zeros((4, 3), np.float32),
        scores={name: jnp.asarray(values) for name, values in scores.items()},
    )
