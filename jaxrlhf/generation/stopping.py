"""Stop strings: an answer ends with the token that completes one, found on the host while the answer grows.

What a token says depends on its neighbours: a character may be spread over tokens, and decoders drop or add a space at
the start of a text. So a stretch of an answer is decoded together with the stretch before it, which both have in
common, and text counts once it ends with a whole character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Decode = Callable[[np.ndarray], str]
"""Ids [n] of an answer, or of a stretch of one, to their text."""

BROKEN = "\ufffd"
"""What decoders put where bytes are no character, or not one yet."""

_MOST_BYTES = 4  # of a character; each may be a token


class GrowingText:
    """The text of an answer that grows; a token is decoded a few times, however often and however far it grows.

    Attributes:
        text: what the settled tokens say; it ends with a whole character.
        settled: number of tokens whose text will not change any more.
    """

    def __init__(self, decode: Decode):
        """Starts with nothing."""
        self.text = ""
        self.settled = 0
        self._decode = decode
        self._start, self._before = 0, 0  # where the stretch before begins, and the characters of its text

    def new(self, tokens: np.ndarray) -> str:
        """What tokens [n] of the answer, at least the settled ones, say behind `text`, an unfinished end included."""
        return self._decode(tokens[self._start :])[self._before :]

    def whole(self, tokens: np.ndarray) -> int:
        """How many of tokens [n] end with the last whole character; the settled ones, if no further one is whole."""
        broken = 0
        for end in range(len(tokens), max(self.settled, len(tokens) - _MOST_BYTES), -1):
            new = self.new(tokens[:end])
            if new and not new.endswith(BROKEN):
                return end
            broken += new.endswith(BROKEN)
        # So many bytes in a row that end no character are no text, and will not become any.
        return len(tokens) if broken == _MOST_BYTES else self.settled

    def settle(self, tokens: np.ndarray) -> None:
        """Takes tokens [n] of the answer into `text`, up to the last whole character."""
        end = self.whole(tokens)
        if end > self.settled:
            self.text += self.new(tokens[:end])
            self._start, self.settled = self.settled, end
            self._before = len(self._decode(tokens[self._start : end]))


def stop_at(strings: Sequence[str], decode: Decode) -> Callable[[int, np.ndarray], int | None]:
    """Builds a listener of one call of the sampler, which ends an answer at the first stop string in its text.

    Args:
        strings: stop strings, at least one; none is empty or holds U+FFFD.
        decode: ids to text. It may drop or add a space at the start of every text.

    Returns:
        A `sampler.Listener`: the fewest tokens whose text holds a stop string, or None while none does. It takes the
        tokens of an answer with more behind them each time, and decodes a tail of them.

    Raises:
        ValueError: if there is no string, or one that cannot be found.
    """
    if not strings or not all(strings) or any(BROKEN in string for string in strings):
        raise ValueError(f"stop strings {list(strings)}: expected some, each with text, and without U+FFFD")
    growing: dict[int, GrowingText] = {}

    def listen(row: int, tokens: np.ndarray) -> int | None:
        return _find_end(growing.setdefault(row, GrowingText(decode)), tokens, strings)

    return listen


def before_stop(strings: Sequence[str], text: str) -> str:
    """The text up to where the first stop string in it begins; all of it if there is none."""
    starts = [start for string in strings if (start := text.find(string)) >= 0]
    return text[: min(starts, default=len(text))]


def before_beginning(strings: Sequence[str], text: str) -> str:
    """The text up to where a stop string may begin whose rest is yet to come: what may be shown of a growing text."""
    longest = max(map(len, strings), default=1)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(string.startswith(text[start:]) for string in strings):
            return text[:start]
    return text


def _find_end(growing: GrowingText, tokens: np.ndarray, strings: Sequence[str]) -> int | None:
    """The fewest of the tokens whose text holds a stop string; if there are none, their text is settled."""
    reach = max(map(len, strings)) - 1  # characters before the new ones that a stop string may begin with
    tail = growing.text[max(0, len(growing.text) - reach) :]

    def holds(text: str) -> bool:
        return any(string in tail + text for string in strings)

    def suspect(text: str) -> bool:
        return holds(text) or BROKEN in text  # bytes that are no character yet may hide what fewer tokens say

    if suspect(growing.new(tokens)):
        whole = growing.whole(tokens)
        first = growing.settled if suspect(growing.new(tokens[:whole])) else whole
        for end in range(first + 1, len(tokens) + 1):
            if holds(growing.new(tokens[:end])):
                return end
    growing.settle(tokens)
    return None
