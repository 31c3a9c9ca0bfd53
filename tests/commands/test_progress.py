import io

import numpy as np
import pytest

from jaxrlhf.commands import progress
from jaxrlhf.commands.progress import AnswerProgress
from jaxrlhf.commands.sampling import AnsweredBatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def batch(lengths, terminated, texts) -> AnsweredBatch:
    return AnsweredBatch(
        rows=[{}] * len(lengths),
        completions=texts,
        lengths=np.array(lengths),
        terminated=np.array(terminated),
        prompts=None,
        samples=None,
    )


TWO = batch([[5, 5], [10, 20]], [[True, True], [True, False]], [["a", " "], ["b", "c"]])


def test_a_line_after_each_batch_says_what_it_held(clock):
    stream = io.StringIO()
    shown = AnswerProgress(8, stream=stream)

    def batches():
        for _ in range(2):
            clock[0] += 4.0
            yield TWO

    for _ in shown.follow(batches()):
        clock[0] += 100.0  # what is made of the answers is not drawing
    assert stream.getvalue().splitlines() == [
        "answers 4/8  generate 10 tok/s  cut off 1  empty 1",
        "answers 8/8  eta 0:00  generate 10 tok/s  cut off 2  empty 2",
    ]


def test_lines_appear_now_and_then_while_a_batch_is_drawn(clock):
    stream = io.StringIO()
    shown = AnswerProgress(4, stream=stream)

    def batches():
        for count in (1, 2, 3):
            clock[0] += 0.6 * progress.BETWEEN_LINES_S
            for row in range(4):
                shown.watch(row, np.zeros(10 * count, int), row < count)
        yield TWO

    list(shown.follow(batches()))
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == ["answers 1/4", "answers 4/4"]
    assert "generate 4 tok/s" in stream.getvalue()  # 10 + 3 * 10 tokens and a little in 12 seconds


def test_a_terminal_shows_a_bar(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    stream.isatty = lambda: True
    list(AnswerProgress(4, stream=stream).follow([TWO]))
    assert "4/4" in stream.getvalue() and "cut off 1" in stream.getvalue()
