"""Counts of what became of the rows of an index."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What became of every row: `read + added` is the sum of `kept` and of all that was left out.

    Attributes:
        read: rows read.
        added: examples gained from rows that hold several.
        kept: examples in the index.
        blank: blank lines in the files; they are no rows.
        rejected: bad rows left out.
        ties_dropped: comparisons in which no answer is better.
        blank_answers_dropped: labelled pairs with an empty answer.
        dropped_long_prompt: the prompt alone fills `max_length`, or exceeds `max_prompt_length`.
        dropped_long: longer than `max_length`, where the configuration says to drop.
        dropped_untrained: nothing to imitate was left after the cut.
        dropped_identical: the answers were the same after the cut.
        truncated: sequences that were cut; those that lost their end do not end with the end-of-sequence token.
        special_text: examples with the name of a special token in their text, which is encoded as plain text.
        sequences: sequences in the index.
        tokens: tokens in them.
        trained_tokens: tokens to imitate among them.
        bins: rows that they are packed into, or 0.
        longest: tokens of the longest sequence.
        extra_columns: columns beyond the standard ones.
        notes: how the files were read.
    """

    read: int = 0
    added: int = 0
    kept: int = 0
    blank: int = 0
    rejected: int = 0
    ties_dropped: int = 0
    blank_answers_dropped: int = 0
    dropped_long_prompt: int = 0
    dropped_long: int = 0
    dropped_untrained: int = 0
    dropped_identical: int = 0
    truncated: int = 0
    special_text: int = 0
    sequences: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    bins: int = 0
    longest: int = 0
    extra_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns the report for people, a fact a line; counts of 0 are left out."""
        lines = list(self.notes)
        added = f" and {self.added} more that these hold" if self.added else ""
        lines.append(f"{self.kept} examples of {self.read} rows{added}; left out: {self._left_out() or 'none'}")
        imitate = f", {self.trained_tokens} of them to learn from" if self.trained_tokens else ""
        packed = f", packed into {self.bins} rows" if self.bins else ""
        lines.append(
            f"{self.tokens} tokens{imitate}, in {self.sequences} sequences of {self.longest} tokens at most{packed}"
        )
        if self.truncated:
            lines.append(f"{self.truncated} sequences were cut at max_length")
        if self.special_text:
            lines.append(f"{self.special_text} examples name special tokens in their text; encoded as plain text")
        if self.extra_columns:
            lines.append(f"other columns: {', '.join(self.extra_columns)}")
        return lines

    def _left_out(self) -> str:
        counts = {
            "bad": self.rejected,
            "ties": self.ties_dropped,
            "with an empty answer": self.blank_answers_dropped,
            "with too long a prompt": self.dropped_long_prompt,
            "too long": self.dropped_long,
            "with nothing left to imitate": self.dropped_untrained,
            "with equal answers once cut": self.dropped_identical,
        }
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
