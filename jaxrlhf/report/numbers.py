"""Numbers as people read them, and the round ones beside an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"

LARGEST = 1e100
"""Beyond it a value counts as not finite: differences of such numbers overflow, and no chart could show them."""

NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""


def usable(value: Any) -> float | None:
    """A finite number as a float; None for anything else, texts and true and false too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        return None
    return float(value)


def short(value: float | None) -> str:
    """A number in at most four digits: 2.362, 1,234, 3e-6; a dash for None."""
    if value is None:
        return NOTHING
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e7):
        digits, _, exponent = f"{value:.2e}".partition("e")
        text = f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    elif size >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return "0" if text in ("0", "-0") else text.replace("-", MINUS)


def count(value: float) -> str:
    """A whole number with commas."""
    return f"{round(value):,}"


def plural(number: int, noun: str) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share of 1 in per cent."""
    return f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """`12.3 s`, `4:05 min` or `2:00:10 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def ticks(low: float, high: float, at_most: int = 5, least: float = 0.0) -> list[float]:
    """The multiples of 1, 2 or 5 times a power of ten that lie between two numbers.

    Args:
        low: the smallest, finite.
        high: the largest, above `low`.
        at_most: how many there may be, 2 or more.
        least: the smallest distance between two of them, a power of ten or 0.
    """
    power = max(10.0 ** math.floor(math.log10((high - low) / at_most)), least)
    for step in (power, 2 * power, 5 * power, 10 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < at_most:
            break
    return [number * step for number in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Texts for ticks, all with the same number of decimals, or all with an exponent."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest >= 1e4:
        return [_thousands(value) for value in values]
    exponent = math.floor(math.log10(largest)) if 0 < largest < 1e-3 else 0
    shown = [value / 10.0**exponent for value in values]
    gap = min((b - a for a, b in zip(shown, shown[1:], strict=False)), default=1.0)
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    written = [f"{value + 0.0:,.{decimals}f}".replace("-", MINUS) for value in shown]
    return [
        f"{text}e{exponent}".replace("-", MINUS) if exponent and value else text
        for text, value in zip(written, values, strict=True)
    ]


def _thousands(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and abs(value) < 1e12:
            return f"{value / size:.4g}{letter}".replace("-", MINUS)
    return short(value)
