import pytest

from jaxrlhf.demo.language import Task, held_out_prompts, make_prompts, parse_prompt, training_tasks


def _core(prompt: str) -> tuple[str, str, frozenset[str]]:
    task = parse_prompt(prompt)
    return task.verb, task.place, frozenset(task.aspects)


def test_prompts_are_a_function_of_the_seed() -> None:
    assert make_prompts(3, 50) == make_prompts(3, 50)
    assert make_prompts(3, 50) != make_prompts(4, 50)


def test_prompts_of_one_draw_differ() -> None:
    assert len(set(make_prompts(0, 5000))) == 5000


def test_more_prompts_than_there_are_is_an_error() -> None:
    assert len(make_prompts(0, 21760)) == 21760
    with pytest.raises(ValueError, match="count=21761 .* has 21760"):
        make_prompts(0, 21761)


def test_no_variant_of_a_held_out_prompt_is_for_training() -> None:
    held_out = held_out_prompts()
    assert len(set(held_out)) == 256
    assert not {_core(prompt) for prompt in held_out} & {_core(task.prompt) for task in training_tasks()}


def test_held_out_prompts_cover_the_language() -> None:
    tasks = [parse_prompt(prompt) for prompt in held_out_prompts()]
    assert len({task.name for task in tasks}) == 10
    assert len({task.place for task in tasks}) == 8
    assert len({task.verb for task in tasks}) == 6
    assert 0.4 < sum(task.mood == "good" for task in tasks) / len(tasks) < 0.6


def test_prompts_have_eleven_words() -> None:
    assert {len(prompt.split()) for prompt in [*make_prompts(0, 500), *held_out_prompts()]} == {11}


def test_parsing_undoes_writing() -> None:
    task = Task(name="ada", verb="hated", place="spa", aspects=("room", "cake"))
    assert task.prompt == "ada hated the spa . describe the room and cake :"
    assert parse_prompt(task.prompt) == task
    assert task.mood == "bad"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "ada hated the spa . describe the room and room :",  # the same aspect twice
        "ada hated the spa . describe the room and soup :",  # a spa has no soup
        "ada saw the spa . describe the room and cake :",
        "ada hated the moon . describe the room and cake :",
        "ada hated the spa . describe the room and cake : the",
    ],
)
def test_text_that_is_no_prompt_is_an_error(prompt: str) -> None:
    with pytest.raises(ValueError, match="is not of the toy language"):
        parse_prompt(prompt)
