"""One workload of a comparison of libraries, in one process: prints one JSON line.

    PYTHONPATH=BENCH python benchmarks/peer_workloads.py WORKLOAD

BENCH is a folder with `common.py` and `workloads.json`, which say what is measured and how, and make the model. Each
step builds a fresh batch, runs the program that the trainer of its method runs, and reads every metric.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "BENCH_THREADS" in os.environ:
    os.environ["NPROC"] = os.environ["OMP_NUM_THREADS"] = os.environ["BENCH_THREADS"]

import common  # noqa: E402  (the threads are set before jax is imported)
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import jaxrlhf  # noqa: E402
from jaxrlhf.generation.sampler import Sampler  # noqa: E402
from jaxrlhf.generation.settings import SamplingSettings  # noqa: E402
from jaxrlhf.kernels import fused_token_loss  # noqa: E402
from jaxrlhf.models.config import ComputeConfig  # noqa: E402
from jaxrlhf.models.decoder import make_model  # noqa: E402
from jaxrlhf.models.load import load_policy, load_scalar  # noqa: E402
from jaxrlhf.ops.stats import values_of  # noqa: E402
from jaxrlhf.optim import adamw_direction  # noqa: E402
from jaxrlhf.steps.dpo import dpo_totals, preference_loss  # noqa: E402
from jaxrlhf.steps.experience import States, make_judge  # noqa: E402
from jaxrlhf.steps.grpo import make_learn as make_grpo_learn  # noqa: E402
from jaxrlhf.steps.ppo import make_learn  # noqa: E402
from jaxrlhf.steps.reward import pairwise_loss, pairwise_totals  # noqa: E402
from jaxrlhf.steps.sft import sft_loss, sft_totals  # noqa: E402
from jaxrlhf.steps.shaping import FIXED  # noqa: E402
from jaxrlhf.steps.update import init_state, make_update  # noqa: E402
from jaxrlhf.types import PairBatch, PromptBatch, TokenBatch  # noqa: E402

Step = Callable[[], None]
Workload = dict[str, Any]

OPTIMIZER = adamw_direction(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
HYPER = {"learning_rate": jnp.float32(1e-5), "max_grad_norm": jnp.float32(1.0)}
VOCAB = common.SPEC["models"]["small"]["vocab"]
COMPUTE = ComputeConfig()


def sft(work: Workload) -> Step:
    """One AdamW step on B sequences of T random tokens."""
    policy = load_policy(common.model_dir("small"), compute=COMPUTE)
    step = make_update(sft_loss(policy.model), sft_totals, OPTIMIZER)
    return _training(step, policy.params, None, lambda rng: _predicted(rng.integers(3, VOCAB, (work["B"], work["T"]))))


def reward(work: Workload) -> Step:
    """One AdamW step of the pairwise loss, scores read at the last token."""
    scorer = load_scalar(common.model_dir("small"), compute=COMPUTE, key=jax.random.key(0))
    step = make_update(pairwise_loss(scorer.model), pairwise_totals, OPTIMIZER)

    def batch(rng: np.random.Generator) -> PairBatch:
        ids = rng.integers(3, VOCAB, (work["pairs"], 2, work["T"])).astype(np.int32)
        mask = np.zeros(ids.shape, bool)
        mask[..., -1] = True
        columns = np.full((*ids.shape[:2], 1), work["T"] - 1, np.int32)
        answers = TokenBatch(tokens=ids, targets=ids, mask=mask, **_whole(ids), columns=columns)  # pyright: ignore[reportArgumentType]
        return _pairs(answers, work)

    return _training(step, scorer.params, None, batch, {"center_coef": jnp.float32(0.0)})


def dpo(work: Workload) -> Step:
    """One AdamW step of DPO, the reference's forward inside; prompt P, completions T - P."""
    policy = load_policy(common.model_dir("small"), compute=COMPUTE)
    step = make_update(preference_loss(policy.model), dpo_totals, OPTIMIZER)
    reference = jax.tree.map(jnp.copy, policy.params)

    def batch(rng: np.random.Generator) -> PairBatch:
        ids = rng.integers(3, VOCAB, (work["pairs"], 2, work["T"]))
        ids[:, 1, : work["P"]] = ids[:, 0, : work["P"]]
        return _pairs(_predicted(ids, prompt=work["P"]), work)

    return _training(step, policy.params, {"reference": reference}, batch, {"beta": jnp.float32(0.1)})


def gen(work: Workload) -> Step:
    """B answers of exactly N tokens at temperature 1."""
    policy = load_policy(common.model_dir("small"))
    sample = Sampler(policy.model, max_new_tokens=work["N"])
    prompts = _prompts(work["B"], work["P"])
    count = iter(range(10**9))

    def step() -> None:
        jax.block_until_ready(sample(policy.params, prompts, jax.random.key(next(count))))

    return step


def ppo(work: Workload) -> Step:
    """Sample, score, advantages, one epoch of policy and critic; the reward model has one layer, as the peer's has."""
    policy = load_policy(common.model_dir("small"), compute=COMPUTE)
    critic = load_scalar(common.model_dir("small"), compute=COMPUTE, key=jax.random.key(0))
    scorer_config, scorer_params = _one_layer(critic.config, critic.params)
    scorer = make_model(scorer_config)
    sample, ending = Sampler(policy.model, max_new_tokens=work["N"]), SamplingSettings(eos_ids=(2,))
    judge = jax.jit(make_judge(policy.model, critic.model, scorer, rows_at_once=work["B"], answers=1))
    learn = jax.jit(
        make_learn(
            policy.model,
            critic.model,
            OPTIMIZER,
            whiten_rewards=False,
            epochs=work["epochs"],
            mini_batches=1,
            micro_batches=1,
            seed=0,
        ),
        donate_argnums=0,
    )
    frozen = {"reference": jax.tree.map(jnp.copy, policy.params), "scorer": scorer_params}
    models = {"policy": init_state(policy.params, OPTIMIZER), "critic": init_state(critic.params, OPTIMIZER)}
    states = States(models, FIXED)
    numbers = {"temperature": 1.0, "clip_eps": 0.2, "value_clip_eps": 0.2, "gamma": 1.0, "lam": 0.95, "kl_coef": 0.05}
    numbers |= {"score_clip": math.inf, "entropy_coef": 0.0}
    hyper = HYPER | {name: jnp.float32(value) for name, value in numbers.items()}
    hyper |= {"missing_eos_penalty": jnp.float32(0.0), "critic_learning_rate": hyper["learning_rate"]}
    prompts = _prompts(work["B"], work["P"])
    count = iter(range(10**9))

    def step() -> None:
        nonlocal states
        trained = {name: state.params for name, state in states.models.items()}
        samples = sample(trained["policy"], prompts, jax.random.key(next(count)), ending)
        experience = judge(trained, frozen, prompts, samples, hyper)
        states, metrics = learn(states, frozen, experience, hyper)
        jax.device_get(values_of(metrics))

    return step


def grpo(work: Workload) -> Step:
    """Sample G answers to each prompt, score them on the host, one update without a KL."""
    policy = load_policy(common.model_dir("small"), compute=COMPUTE)
    rows = work["prompts"] * work["G"]
    sample, ending = Sampler(policy.model, max_new_tokens=work["N"], answers=work["G"]), SamplingSettings(eos_ids=(2,))
    share = work.get("share_prompts", True)  # what the trainer decides for prompts as long as the answers
    judge = jax.jit(make_judge(policy.model, None, None, rows_at_once=rows, answers=work["G"], share_prompts=share))
    learn = jax.jit(
        make_grpo_learn(
            policy.model,
            OPTIMIZER,
            answers=work["G"],
            baseline="mean",
            scale="group",
            reduction="dapo",
            kl=None,
            epochs=1,
            mini_batches=1,
            micro_batches=1,
            seed=0,
        ),
        donate_argnums=0,
    )
    states = States({"policy": init_state(policy.params, OPTIMIZER)})
    numbers = {"temperature": 1.0, "clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0}
    hyper = HYPER | {name: jnp.float32(value) for name, value in numbers.items()}
    prompts = _prompts(work["prompts"], work["P"])
    count = iter(range(10**9))

    def step() -> None:
        nonlocal states
        trained = {name: state.params for name, state in states.models.items()}
        samples = sample(trained["policy"], prompts, jax.random.key(next(count)), ending)
        tokens = np.asarray(samples.tokens)
        scores = np.mean(tokens % 7 == 0, axis=1, dtype=np.float32)
        experience = judge(trained, {}, prompts, samples, hyper)
        experience = dataclasses.replace(experience, scores={"sevens": jnp.asarray(scores)})
        states, metrics = learn(states, {}, experience, hyper)
        jax.device_get(values_of(metrics))

    return step


def logprob(work: Workload) -> Step:
    """The mean negative log-likelihood of X @ W with gradients to both."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (work["N"], work["D"]))
    weight = jax.random.normal(keys[1], (work["V"], work["D"])) / work["D"] ** 0.5
    targets = jax.random.randint(keys[2], (work["N"],), 0, work["V"])

    def of_tokens(out: Any, mask: jax.Array, aux: None, count: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        del mask, aux
        return -jnp.sum(out.logp) / count, {}

    def loss(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return fused_token_loss(of_tokens, hidden, weight, targets, given=jnp.float32(work["N"]))[0]

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(run(hidden, weight)) and None


def _training(
    step: Any, params: Any, frozen: Any, batch: Callable[[np.random.Generator], Any], more: Any = None
) -> Step:
    run = jax.jit(step, donate_argnums=0)
    state = init_state(params, OPTIMIZER)
    rng = np.random.default_rng(0)

    def one() -> None:
        nonlocal state
        state, metrics = run(state, frozen, batch(rng), {**HYPER, **(more or {})})
        jax.device_get(values_of(metrics))

    return one


def _predicted(ids: np.ndarray, prompt: int = 0) -> TokenBatch:
    """Full sequences for a model that predicts; the loss reads the targets after the prompt."""
    ids = ids.astype(np.int32)
    tokens, targets = ids[..., :-1], ids[..., 1:]
    mask = np.zeros(tokens.shape, bool)
    mask[..., max(0, prompt - 1) :] = True
    columns = None
    if prompt:
        read = np.arange(prompt - 1, tokens.shape[-1], dtype=np.int32)
        columns = np.broadcast_to(read, (*tokens.shape[:-1], len(read)))
    return TokenBatch(tokens=tokens, targets=targets, mask=mask, **_whole(tokens), columns=columns)  # pyright: ignore[reportArgumentType]


def _whole(tokens: np.ndarray) -> dict[str, Any]:
    positions = np.broadcast_to(np.arange(tokens.shape[-1], dtype=np.int32), tokens.shape)
    return {"positions": positions, "segment_ids": np.ones(tokens.shape, np.int32)}


def _pairs(answers: TokenBatch, work: Workload) -> PairBatch:
    return PairBatch(answers=answers, margin=jnp.zeros(work["pairs"]))


def _prompts(rows: int, length: int) -> PromptBatch:
    tokens = np.random.default_rng(0).integers(3, VOCAB, (rows, length))
    ones, ids = jnp.ones((rows, length), jnp.int32), jnp.arange(rows)
    return PromptBatch(tokens=jnp.asarray(tokens, jnp.int32), segment_ids=ones, row_ids=ids)


def _one_layer(config: Any, params: Any) -> tuple[Any, Any]:
    layers = jax.tree.map(lambda leaf: leaf[:1], params["layers"])
    return dataclasses.replace(config, num_layers=1), {**jax.tree.map(jnp.copy, params), "layers": layers}


KINDS = {"sft": sft, "reward": reward, "dpo": dpo, "gen": gen, "grpo": grpo, "ppo": ppo, "logprob": logprob}


def main(name: str) -> None:
    """Measures one workload."""
    common.quiet_stdout()
    work = common.SPEC["workloads"][name]
    if work["kind"] not in KINDS:
        common.skip("jaxrlhf", name, f"{work['kind']} is not in the library yet")
        return
    marks = common.timed(KINDS[work["kind"]](work), work["steps"], work["warmup"])
    config = {"dtype": "float32", "threads": common.threads()}
    common.emit("jaxrlhf", name, marks, config, versions={"jaxrlhf": jaxrlhf.__version__, "jax": jax.__version__})


if __name__ == "__main__":
    main(sys.argv[1])
