"""`jaxrlhf evaluate`: perplexity, accuracy on comparisons, win rate; each with what it was counted on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrlhf.commands.config import EvaluateConfig
from jaxrlhf.commands.files import check_new, write_result
from jaxrlhf.commands.sampled import Prompts, encode_prompts, log_report, sample_batches
from jaxrlhf.commands.scored import make_scorer
from jaxrlhf.data.batches import LAYOUTS, BatchKind
from jaxrlhf.data.config import DatasetConfig
from jaxrlhf.data.index import Index
from jaxrlhf.data.indexing import build_index
from jaxrlhf.data.loader import Loader
from jaxrlhf.data.sharing import share_prompts
from jaxrlhf.data.sources import comparison_kind
from jaxrlhf.evaluation.intervals import Proportion, pair_accuracy, win_rate
from jaxrlhf.evaluation.metrics import average
from jaxrlhf.models.attention import check_attention, why_not_share
from jaxrlhf.models.decoder import make_model
from jaxrlhf.sharding.distributed import initialize, is_main
from jaxrlhf.sharding.mesh import check_batch, open_mesh
from jaxrlhf.sharding.place import place_batch, process_rows, to_host
from jaxrlhf.steps.reward import answer_scores
from jaxrlhf.steps.sft import sft_loss, sft_totals
from jaxrlhf.steps.update import make_evaluate
from jaxrlhf.trainers.judges import Judges, check_judges, name_judges
from jaxrlhf.trainers.start import Start, check_positions, check_same_tokens, load_start

Result = dict[str, Any]


def run(config: EvaluateConfig) -> Result:
    """Measures a model, prints the result and writes it to `config.out` if that is given.

    Raises:
        ValueError: if that file exists, batches do not divide over the devices, these cannot have the attention that is
            asked for, or what is read is bad.
    """
    check_new(config.out, "the result")
    initialize()
    mesh = open_mesh(config.mesh)
    check_batch(mesh, "batch_size", config.batch_size)
    check_attention(mesh, config.compute, prefixes=config.data.share_prompts is True)
    measures = {"perplexity": _perplexity, "accuracy": _accuracy, "win_rate": _win_rate}
    with jax.set_mesh(mesh):
        result = measures[config.measure](config, mesh)
    if is_main():
        for name, value in result.items():
            print(f"{name:24} {_rounded(value)}")
        if config.out is not None:
            write_result(Path(config.out), _plain(result))
    return result


def _perplexity(config: EvaluateConfig, mesh: Mesh) -> Result:
    start = load_start(config.model, mesh)
    loader = _loader(config, mesh, start, "tokens")
    evaluate = jax.jit(make_evaluate(sft_loss(make_model(start.config, config.compute)), sft_totals))
    batches = (place_batch(batch, mesh) for batch in loader.eval_batches())
    metrics = average(evaluate(start.params, None, batch, {}) for batch in batches)
    return {
        "perplexity": math.exp(metrics["loss"]),
        "loss": metrics["loss"],
        "mean_token_accuracy": metrics["mean_token_accuracy"],
        "tokens": loader.index.report.trained_tokens,
    }


def _accuracy(config: EvaluateConfig, mesh: Mesh) -> Result:
    start = load_start(config.model, mesh, scalar=True)
    kind = comparison_kind(DatasetConfig(path=config.dataset), config.data)
    loader = _loader(config, mesh, start, "scored_ranked" if kind == "ranked" else "scored_pairs")
    model = make_model(start.config, config.compute)
    score = jax.jit(lambda params, batch: answer_scores(model, params, batch.answers))
    parts = [to_host(score(start.params, place_batch(batch, mesh))) for batch in loader.eval_batches()]
    scores = np.concatenate(parts)[: loader.index.units]
    return {
        "accuracy": pair_accuracy(*_by_example(loader.index, scores)),
        "longer_is_better": pair_accuracy(*_by_example(loader.index, _lengths(loader.index, scores.shape[1]))),
        "prompts": loader.index.units,
    }


def _win_rate(config: EvaluateConfig, mesh: Mesh) -> Result:
    assert config.against is not None
    functions, weights = name_judges(config, (), None)  # what is wrong there is said before anything is loaded
    policy, other = load_start(config.model, mesh), load_start(config.against, mesh, what="against")
    named = config.reward_model
    scorer = None if named is None else load_start(named, mesh, what="reward_model", scalar=True)
    judges = Judges(scorer=scorer, functions=functions, weights=weights)
    prompts, others = (_prompts(config, mesh, start) for start in (policy, other))
    log_report(prompts.loader.index)
    if others.loader.index.report != prompts.loader.index.report:  # its tokenizer counts and leaves out otherwise
        log_report(others.loader.index)
    scores, scores_of_other = (_rewarded(config, *pair, judges) for pair in ((policy, prompts), (other, others)))
    return {
        "win_rate": win_rate(scores, scores_of_other),
        "ties": int(np.sum(scores == scores_of_other)),
        "score": float(np.mean(scores)),
        "score_of_other": float(np.mean(scores_of_other)),
        "prompts": len(scores),
    }


def _prompts(config: EvaluateConfig, mesh: Mesh, policy: Start) -> Prompts:
    source = DatasetConfig(path=config.dataset)
    return encode_prompts([source], policy.tokenizer, config.data, mesh, batch_size=config.batch_size)


def _rewarded(config: EvaluateConfig, policy: Start, prompts: Prompts, judges: Judges) -> np.ndarray:
    """Scores [N] of one answer to each prompt."""
    if judges.scorer is not None:
        check_same_tokens(policy, judges.scorer, "the reward model")
    check_judges(judges, None, [prompts.loader], config.sampling.max_new_tokens)
    score = make_scorer(judges, prompts.loader.index.columns, compute=config.compute)
    batches = sample_batches(policy, prompts, config.sampling, compute=config.compute)
    total = np.concatenate([score(batch)[:, 0] for batch in batches])
    if missing := int(np.isnan(total).sum()):
        raise ValueError(
            f"no reward has an opinion on {missing} of {len(total)} answers; a win rate needs a score for every answer"
        )
    return total


def _loader(config: EvaluateConfig, mesh: Mesh, start: Start, kind: BatchKind) -> Loader:
    source = DatasetConfig(path=config.dataset)
    index = build_index(LAYOUTS[kind].index_kinds[0], [source], start.tokenizer, config.data)
    log_report(index)
    check_positions(start, index.report.longest, "lower data.max_length")
    rows = process_rows(mesh, config.batch_size)
    why_not = why_not_share(start.config, config.compute, index.report.longest)
    kind = share_prompts(index, kind, config.data, why_not=why_not)
    return Loader(index, kind, config.batch_size, 0, rows=rows, buckets=config.data.buckets)


def _by_example(index: Index, values: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Values and ranks of the answers that each example has."""
    counts = np.diff(index.groups)
    ranks = [index.ranks[start:stop] for start, stop in zip(index.groups[:-1], index.groups[1:], strict=True)]
    return [row[:count] for row, count in zip(values, counts, strict=True)], ranks


def _lengths(index: Index, most: int) -> np.ndarray:
    """[N, K] tokens of each answer with its prompt, which is the same for all K."""
    lengths = np.zeros((index.units, most))
    for row, (start, stop) in enumerate(zip(index.groups[:-1], index.groups[1:], strict=True)):
        lengths[row, : stop - start] = np.diff(index.offsets)[start:stop]
    return lengths


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(result: Result) -> Result:
    return {name: vars(value) if isinstance(value, Proportion) else value for name, value in result.items()}
