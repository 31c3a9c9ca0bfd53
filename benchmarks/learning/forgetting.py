"""How well a policy still knows the texts of pretraining."""

from __future__ import annotations

import math

import jax

from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.indexing import build_index
from jaxrlhf.data.loader import Loader
from jaxrlhf.demo import road
from jaxrlhf.demo.config import DemoConfig
from jaxrlhf.demo.texts import make_pretraining_text
from jaxrlhf.evaluation.metrics import average
from jaxrlhf.models.decoder import make_model
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.place import place_batch
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import make_evaluate
from jaxrlhf.trainers.start import Start

TEXTS = 1024
"""Fresh texts that no run has read."""

BATCH = 128

DATA = DataConfig(max_length=48)
"""How texts become tokens, as in pretraining."""


def perplexity(config: DemoConfig, policy: Start) -> float:
    """Perplexity a token of fresh texts of the kind that pretraining reads."""
    texts = make_pretraining_text(road.seed_of(config, 9), TEXTS)
    loader = Loader(build_index("sft", [texts], policy.tokenizer, DATA), "tokens", BATCH, 0)
    evaluate = jax.jit(make_evaluate(sft_loss(make_model(policy.config, road.compute(policy))), sft_totals))
    batches = (place_batch(batch, make_mesh()) for batch in loader.eval_batches())
    return math.exp(average(evaluate(policy.params, None, batch, {}) for batch in batches)["loss"])
