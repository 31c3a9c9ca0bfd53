"""Rewards that a reader can judge by eye, for `rewards: [configs/grpo/rewards.py:NAME]`."""

ENOUGH = 100  # words


def brief(prompts: list[object], completions: list[str], **columns: object) -> list[float]:
    """1 for an answer of at most 100 words, less the longer it is; 0 for one without words."""
    del prompts, columns
    counts = [len(text.split()) for text in completions]
    return [min(1.0, ENOUGH / count) if count else 0.0 for count in counts]
