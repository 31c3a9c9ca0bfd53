import json
import re
from html.parser import HTMLParser

import pytest

from jaxrlhf.report import find_runs, page, read_runs, report_page
from tests.report.runs import ppo_lines, record, sample, started, write_ppo, write_run

EVIL = '</p><script>alert(1)</script><img src=x onerror="alert(2)">'
VOID = {"meta", "path", "rect", "circle"}


class Reader(HTMLParser):
    """Collects elements, and notices those that are not closed."""

    def __init__(self):
        super().__init__()
        self.elements, self.open, self.unclosed = [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unclosed.append(tag)


def _read(text):
    reader = Reader()
    reader.feed(text)
    assert (reader.open, reader.unclosed) == ([], [])
    return reader.elements


def _page(*folders):
    written = report_page(*read_runs(find_runs(folders)))
    assert len(written) <= page.MOST_BYTES
    return written.decode("utf-8")


def test_page_of_a_run_tells_its_numbers(tmp_path):
    text = _page(write_ppo(tmp_path / "run"))
    for part in (
        "<title>run · PPO</title>",
        '<span class="state finished">finished</span>',
        "Finished after 20 steps.",
        "8 x cpu · python 3.11.1",
        "Nothing conspicuous was found.",
        '<dt>Score</dt><dd class="value">3</dd><dd class="note">held out, at first 1</dd>',
        '<dt>Steps</dt><dd class="value">20</dd><dd class="note">of 20</dd>',
        '<dt>Tokens</dt><dd class="value">20,000</dd>',
        "resumed after step 10",
        "Distribution of the scores",
        "Score against KL",
        "Answers to held-out prompts",
        "The worst answer.",
        "<b>r.py:helpful</b>",
        "<pre>jaxrlhf ppo 'out=runs/my ppo' seed=1</pre>",
    ):
        assert part in text, part


def test_page_needs_nothing_else(tmp_path):
    text = _page(write_ppo(tmp_path / "run"))
    for tag, attributes in _read(text):
        assert tag not in ("script", "link", "iframe", "img", "object", "embed", "base", "form")
        assert not {"src", "href", "srcset", "onload"} & set(attributes)
    assert "url(" not in text and "@import" not in text


def test_hostile_texts_stay_texts(tmp_path):
    lines = ppo_lines(20)
    lines[-1][EVIL] = 1.0
    run = write_ppo(
        tmp_path / "run",
        metrics=lines,
        samples=[sample(1, EVIL, EVIL, scores={EVIL: 1.0, "b": 2.0}, pick=EVIL), sample(1, EVIL, EVIL, split="eval")],
        events=[started("start", 0, EVIL) | {"devices": EVIL}, {"event": "stopped", "step": 9, "why": EVIL}],
    )
    text = _page(run)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    found = _read(text)
    assert not [tag for tag, _ in found if tag in ("script", "img")]
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]


def test_half_a_surrogate_pair_is_shown(tmp_path):
    run = write_ppo(tmp_path / "run", samples=[sample(1, "a", "b")])
    (run / "samples.jsonl").write_text(json.dumps(sample(1, "a", "é\udc80")) + "\n")
    assert "é\\udc80" in _page(run)


def test_long_run_is_thinned_and_says_so(tmp_path):
    samples = [
        sample(step, f"{number}: " + "<&" * 3000, "<\N{GRINNING FACE}" * 3000, split="eval")
        for step in range(0, 50_001, 5000)
        for number in range(8)
    ]
    shown = ("objective/scores", "objective/kl", "loss", "grad_norm")
    lines = [{"step": step} | {name: step % 97 / 10 for name in shown} for step in range(1, 50_001)]
    run = write_ppo(tmp_path / "run", 50_000, 50, metrics=lines, samples=samples)
    text = _page(run)
    assert "Curves have up to 50,000 points. Where there are more than 150" in text
    assert len(text) > 100_000
    _read(text)


def test_details_give_way_until_the_page_is_small_enough(tmp_path, monkeypatch):
    samples = [sample(0, f"Prompt {number}", "a" * 1200, split="eval") for number in range(8)]
    runs = [record(write_ppo(tmp_path / "run", samples=samples))]
    full = len(report_page(runs))
    monkeypatch.setattr(page, "MOST_BYTES", full - 1)
    text = report_page(runs)
    assert len(text) < full
    assert b"(700 more characters)" in text
    monkeypatch.setattr(page, "MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"a report on 1 runs has [\d,]+ bytes at least, .* name fewer runs"):
        report_page(runs)


def test_run_with_a_single_step(tmp_path):
    text = _page(write_run(tmp_path / "run", [{"step": 1, "loss": 2.5, "grad_norm": None}]))
    assert '<dt>Loss</dt><dd class="value">2.5</dd><dd class="note">training</dd>' in text
    assert "Gradient norm" not in text  # nothing to draw
    assert "Not always finite: grad_norm." in text
    assert "Answers" not in text and "Time</h2>" not in text


def test_run_whose_only_line_is_an_evaluation_before_the_first_step(tmp_path):
    assert "held out" in _page(write_run(tmp_path / "run", [{"step": 0, "eval/loss": 2.5}]))


def test_skipped_updates_are_marked(tmp_path):
    lines = [{"step": step, "loss": 1.0, "skipped": float(step == 4)} for step in range(1, 9)]
    text = _page(write_run(tmp_path / "run", lines))
    assert "updates skipped by step 4" in text
    assert 'class="skipped"' in re.sub(r"<style>.*</style>", "", text, flags=re.S)


def test_run_without_marks_says_nothing_of_them(tmp_path):
    text = _page(write_run(tmp_path / "run", [{"step": step, "loss": 1.0, "skipped": 0.0} for step in (1, 2)]))
    assert "resumed after" not in text and "updates skipped by" not in text


def test_runs_of_a_method_share_charts(tmp_path):
    first, second = write_ppo(tmp_path / "a/ppo"), write_ppo(tmp_path / "b/ppo", 40)
    text = _page(first, second)
    _read(text)
    assert "<title>Comparison of 2 runs</title>" in text
    assert "PPO: 2 runs" in text
    assert re.search(r'<i class="c0"></i>a/ppo<b>.*<i class="c1"></i>b/ppo<b>', text)
    assert '<th scope="row">num_tokens</th><td>20,000</td><td>40,000</td>' in text
    assert '<th scope="row">steps</th><td>20</td><td>40</td>' in text
    assert '<th scope="row">seed</th>' not in text  # the same in both
    assert "a/ppo, step 20" in text and "b/ppo, step 40" in text


def test_runs_of_other_methods_have_charts_of_their_own(tmp_path):
    write_ppo(tmp_path / "demo/ppo")
    write_run(tmp_path / "demo/sft", [{"step": 1, "loss": 1.0}])
    text = _page(tmp_path / "demo")
    _read(text)
    assert text.index("SFT: sft") < text.index("PPO: ppo")
    assert "Last values" not in text


def test_findings_that_runs_share_are_told_once(tmp_path):
    runs = [write_run(tmp_path / name, [{"step": 1, "loss": 1.0}]) for name in ("a", "b")]
    text = _page(*runs)
    assert text.count("Nothing was evaluated") == 1
    assert "<em>a, b</em>" in text


def test_runs_that_are_left_out_are_named(tmp_path):
    write_run(tmp_path / "demo/good", [{"step": 1, "loss": 1.0}])
    write_run(tmp_path / "demo/young", [])
    text = _page(tmp_path / "demo")
    _read(text)
    assert "Runs left out" in text
    assert "young/metrics.jsonl: found no line of metrics yet" in text


def test_run_that_stopped_before_its_first_line_has_a_page(tmp_path):
    stopped = {"event": "stopped", "step": 0, "why": "ValueError: no rows"}
    text = _page(write_run(tmp_path / "run", [], events=[started("start", 0), stopped]))
    _read(text)
    assert "Stopped by an error before the end of the first step: ValueError: no rows" in text
    assert "Run it again" in text and "All " in text
    assert "Curves" not in text and "Nothing conspicuous" not in text


def test_runs_without_metrics_can_be_compared(tmp_path):
    write_run(tmp_path / "a", [], events=[started("start", 0)])
    write_run(tmp_path / "b", [{"step": 1, "loss": 1.0}])
    _read(_page(tmp_path / "a", tmp_path / "b"))


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_share_ends_at_1(tmp_path, names):
    lines = [{"step": step, "completions/clipped_ratio": 1.0} for step in (1, 2)]
    for name in names:
        write_run(tmp_path / name, lines)
    text = _page(*(tmp_path / name for name in names))
    assert ">1.0</text>" in text and ">1.2</text>" not in text and ">1.5</text>" not in text
