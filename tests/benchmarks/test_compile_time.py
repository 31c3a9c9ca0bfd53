import pytest

from benchmarks.compile_time import CASES, lower_step


@pytest.mark.parametrize("name", ["one kind", "six kinds"])
def test_the_step_is_the_same_program_for_few_layers_and_for_many(name):
    pattern, (few, many, *_) = CASES[name]
    lines = [lower_step(pattern, layers).as_text().count("\n") for layers in (few, many)]
    assert lines[0] == lines[1]
