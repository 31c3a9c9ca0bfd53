from jaxrlhf.report.answers import answers_compared, answers_of, chosen_steps
from tests.report.runs import record, sample, write_ppo


def _answers(folder, samples, characters=100):
    return answers_of(record(write_ppo(folder, samples=samples)), characters)


def test_prompts_are_followed_over_the_steps(tmp_path):
    samples = [
        sample(step, prompt, f"{prompt} at {step}", step / 10, split="eval")
        for step in (0, 10, 20)
        for prompt in ("First?", "Second?")
    ]
    page = _answers(tmp_path / "run", samples)
    assert page.count("<h3") == 2
    order = [
        page.index(text) for text in ("First?</h3>", "First? at 0", "First? at 10", "First? at 20", "Second?</h3>")
    ]
    assert order == sorted(order)
    assert "<span>step 10</span><b>1</b>" in page
    assert "Answers in training" not in page


def test_prompt_that_stands_twice_has_two_rows(tmp_path):
    page = _answers(tmp_path / "run", [sample(0, "Same?", text, split="eval") for text in ("one", "other")])
    assert page.count("Same?</h3>") == 2


def test_some_prompts_are_open_and_no_more_than_eight_are_there(tmp_path):
    page = _answers(tmp_path / "run", [sample(0, f"Prompt {n}", "a", split="eval") for n in range(20)])
    assert page.count("<h3") == 8
    assert page.index("Prompt 3") < page.index("<details><summary>4 more prompts</summary>") < page.index("Prompt 4")


def test_best_and_worst_of_the_batch_are_shown(tmp_path):
    samples = [sample(5, "a", f"the {pick}", 1.0, pick=pick) for pick in ("first", "best", "worst")]
    page = _answers(tmp_path / "run", samples)
    assert page.index("the best") < page.index("the worst") < page.index("the first")
    evaluated = [sample(5, "a", "held out", split="eval")]
    assert "the first" not in _answers(tmp_path / "evaluated", samples + evaluated)


def test_samples_of_older_runs_are_read(tmp_path):
    page = _answers(tmp_path / "run", [{"step": 1, "prompt": "a", "completion": "b", "scores": {"r": 2.5}}])
    assert "Answers in training" in page
    assert "<b>2.5</b>" in page


def test_what_is_known_besides_is_told(tmp_path):
    given = sample(1, "a", "b", None, terminated=False, scores={"helpful": 1.5, "brevity": None})
    assert "cut off · helpful 1.5 · brevity –" in _answers(tmp_path / "run", [given])


def test_long_texts_are_cut_and_it_is_said(tmp_path):
    page = _answers(tmp_path / "run", [sample(1, "p" * 1500 + " end", "start " + "c" * 3000)], characters=10)
    assert "start cccc … (2,996 more characters)" in page
    assert "(1,494 more characters) … pppppp end" in page


def test_conversation_and_empty_answer(tmp_path):
    page = _answers(tmp_path / "run", [sample(1, [{"role": "user", "content": "é"}], "")])
    assert '[{"role": "user", "content": "é"}]' in page
    assert "no text" in page


def test_run_without_samples_has_no_section(tmp_path):
    assert _answers(tmp_path / "run", None) == ""


def test_runs_are_compared_on_the_prompts_that_all_have(tmp_path):
    runs = [
        record(
            write_ppo(
                tmp_path / name,
                samples=[
                    sample(step, prompt, f"{name}: {prompt} {step}", split="eval")
                    for step in (0, last)
                    for prompt in ("Shared?", f"Only {name}?")
                ],
            )
        )
        for name, last in (("one", 10), ("two", 20))
    ]
    page = answers_compared(runs, 100)
    assert "Shared?</h3>" in page and "Only" not in page
    assert "one, step 10" in page and "two, step 20" in page
    assert "one: Shared? 10" in page and "one: Shared? 0" not in page


def test_steps_are_chosen_evenly():
    assert chosen_steps(range(0, 101, 10), 4) == [0, 30, 60, 100]
    assert chosen_steps([5, 5, 1], 4) == [1, 5]
    assert chosen_steps([], 4) == []
