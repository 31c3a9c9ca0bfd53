"""What the demo measures of a policy: gold score, reward, KL to SFT and length of its answers."""

from __future__ import annotations

import numpy as np

from jaxrlhf.commands.sampled import Answered, answer_logprobs, score_answers
from jaxrlhf.demo import road
from jaxrlhf.demo.gold import gold_score
from jaxrlhf.demo.table import Result
from jaxrlhf.evaluation.best_of_n import kl_bound
from jaxrlhf.trainers.start import Start


def judge(name: str, policy: Start, answered: Answered, *, scorer: Start, sft: Start) -> Result:
    """The result of a policy's answers.

    Args:
        name: of the policy.
        policy: who answered.
        answered: its answers, one to each prompt.
        scorer: the reward model.
        sft: the policy that KL is measured to.
    """
    logprobs, ref_logprobs = (answer_logprobs(model, answered, compute=road.compute(model)) for model in (policy, sft))
    return Result(
        name=name,
        gold=gold_scores(answered)[:, 0],
        reward=rewards(scorer, answered)[:, 0],
        kl=float(np.mean(logprobs - ref_logprobs)),
        length=float(answered.lengths.mean()),
        answers=[texts[0] for texts in answered.completions],
    )


def best_of(count: int, answered: Answered, scores: np.ndarray) -> Result:
    """The result of taking the answer that the reward model likes best.

    Args:
        count: n, the first so many of the answers to each prompt are looked at.
        answered: K answers to each of N prompts, K at least n.
        scores: [N, K] their scores by the reward model.
    """
    rows, best = np.arange(len(scores)), scores[:, :count].argmax(axis=1)
    return Result(
        name=f"best of {count}",
        gold=gold_scores(answered)[rows, best],
        reward=scores[rows, best],
        kl=float(kl_bound(count)),
        kl_is_bound=True,
        length=float(answered.lengths[rows, best].mean()),
        answers=[texts[index] for texts, index in zip(answered.completions, best, strict=True)],
    )


def rewards(scorer: Start, answered: Answered) -> np.ndarray:
    """[N, K] scores of answers by the reward model."""
    return score_answers(scorer, answered, compute=road.compute(scorer))


def gold_scores(answered: Answered) -> np.ndarray:
    """[N, K] gold scores of answers."""
    pairs = zip(answered.prompts.texts, answered.completions, strict=True)
    return np.array([[gold_score(prompt, text) for text in texts] for prompt, texts in pairs])
