"""Rewards that a reader can judge by eye, for `rewards: [configs/ppo/rewards.py:NAME]`."""

import re

CHEERFUL = frozenset("happy smile smiled laugh laughed love loved fun joy hug hugged friend friends".split())


def cheerful(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """How many different cheerful words an answer has, at most five: the same word again earns nothing."""
    del prompts, columns
    return [float(min(5, len(CHEERFUL & set(re.findall(r"[a-z]+", text.lower()))))) for text in completions]
