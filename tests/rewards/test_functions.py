import functools
import textwrap
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.rewards.functions import call_rewards, load_reward, name_rewards

PROMPTS, ANSWERS = ["a", "b", "c"], ["x", "yy", "zzz"]


def length(prompts, completions, **columns):
    return [len(completion) for completion in completions]


def returning(values: Any):
    def fixed(prompts, completions, **columns):
        return values

    return fixed


def call(*rewards: Any, **columns: Any) -> dict[str, np.ndarray]:
    return call_rewards(name_rewards(rewards), PROMPTS, ANSWERS, columns)


def test_a_reward_sees_prompts_answers_and_columns():
    def gold(prompts, completions, target, weight):
        return [weight[n] * (prompts[n] + completions[n] == target[n]) for n in range(3)]

    scores = call(gold, target=["ax", "b", "czzz"], weight=[1.0, 2.0, 0.5])
    assert list(scores) == ["gold"] and scores["gold"].dtype == np.float32
    np.testing.assert_array_equal(scores["gold"], [1.0, 0.0, 0.5])


def test_no_opinion_is_nan():
    np.testing.assert_array_equal(call(returning([None, 1, None]))["fixed"], [np.nan, 1.0, np.nan])


@pytest.mark.parametrize("values", [
    [1, 0, -2], (1.0, 0.0, -2.0), np.asarray([1, 0, -2]), np.asarray([1.0, 0.0, -2.0]), [np.float64(1), np.int8(0), -2],
    [True, False, -2], [np.True_, np.False_, np.float16(-2)], [np.asarray(1.0), 0, -2], [jnp.float32(1), 0, -2],
    jnp.asarray([1.0, 0.0, -2.0], jnp.bfloat16),
], ids=repr)  # fmt: skip
def test_numbers_of_every_make_are_taken(values: Any):
    np.testing.assert_array_equal(call(returning(values))["fixed"], [1.0, 0.0, -2.0])


@pytest.mark.parametrize("bad", [
    float("nan"), float("inf"), -float("inf"), "1.0", np.str_("high"), b"1", [1.0], {}, np.asarray([1.0]), 1j,
], ids=repr)  # fmt: skip
def test_what_is_no_finite_number_is_an_error_that_names_reward_and_answer(bad: Any):
    with pytest.raises(ValueError, match="reward fixed returned .* for completion 1; return a finite number, or None"):
        call(returning([1.0, bad, 2.0]))


@pytest.mark.parametrize("values, found", [
    ([1.0, 2.0], "2 values"), ([1.0] * 4, "4 values"), ([], "0 values"), (np.ones(2), "2 values"), (None, "NoneType"),
    (1.0, "float"), (np.asarray(1.0), "ndarray"), ({0: 1.0, 1: 1.0, 2: 1.0}, "dict"), (iter([1.0]), "list_iterator"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_another_number_of_values_is_an_error_that_names_the_reward(values: Any, found: str):
    with pytest.raises(ValueError, match=f"reward fixed returned {found} for 3 completions; return one number each"):
        call(returning(values))


def test_a_table_of_scores_is_an_error():
    with pytest.raises(ValueError, match="for completion 0"):
        call(returning(np.ones((3, 1))))


def test_what_a_reward_raises_is_not_hidden():
    def broken(prompts, completions):
        raise KeyError("gold")

    with pytest.raises(KeyError, match="gold"):
        call(broken)


@pytest.mark.parametrize("name", ["prompts", "completions"])
def test_a_column_called_like_an_argument_is_an_error_that_says_to_rename_it(name: str):
    with pytest.raises(ValueError, match=f"a column '{name}', .* reward length .*data.columns={{NEW_NAME: {name}}}"):
        call_rewards({"length": length}, PROMPTS, ANSWERS, {name: [1, 2, 3]})


def test_without_rewards_any_column_is_fine():
    assert call_rewards({}, PROMPTS, ANSWERS, {"prompts": [1, 2, 3]}) == {}


def test_a_reward_cannot_change_what_the_next_one_sees():
    def greedy(prompts, completions):
        completions.clear()
        return [0, 0, 0]

    np.testing.assert_array_equal(call(greedy, length)["length"], [1, 2, 3])


def test_rewards_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two rewards are called 'fixed'; give each function a name of its own"):
        name_rewards([returning([1, 1, 1]), length, returning([2, 2, 2])])
    with pytest.raises(ValueError, match="two rewards are called 'length'"):
        name_rewards([length], taken=["length"])


def test_a_callable_without_a_name_goes_by_its_class():
    assert list(name_rewards([length, functools.partial(length)])) == ["length", "partial"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my rewards.py"
    path.write_text(
        textwrap.dedent("""
        from __future__ import annotations
        import dataclasses
        from typing import ClassVar

        LIMIT = 3

        @dataclasses.dataclass
        class Rule:
            name: str
            count: ClassVar[int] = 0

        def short(prompts, completions, **columns):
            return [float(len(text) < LIMIT) for text in completions]

        def _hidden():
            pass
    """)
    )
    return path


def test_a_function_of_a_file_is_loaded(file: Path):
    np.testing.assert_array_equal(call(load_reward(f"{file}:short"))["short"], [1.0, 1.0, 0.0])


def test_a_function_of_a_module_is_loaded():
    assert load_reward("os.path:basename")("a/b") == "b"


def test_a_missing_function_is_an_error_that_lists_those_there_are(file: Path):
    for name in ("shorter", "LIMIT"):
        with pytest.raises(ValueError, match=rf"has no function '{name}'; it has \['ClassVar', 'Rule', 'short'\]"):
            load_reward(f"{file}:{name}")


@pytest.mark.parametrize("spec", ["rewards.py", "rewards", ":short", "rewards.py:", ""])
def test_a_name_without_a_function_is_an_error(spec: str):
    with pytest.raises(ValueError, match="names no function; write path.py:function or package.module:function"):
        load_reward(spec)


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing.py does not exist"):
        load_reward(f"{tmp_path}/nothing.py:short")


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.rewards", "os.no_such_module"])
def test_a_missing_module_is_an_error(module: str):
    with pytest.raises(ValueError, match=f"reward module '{module}' is not installed; to name a file, end it with .py"):
        load_reward(f"{module}:short")


def test_a_module_that_misses_another_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "half_a_reward.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_reward("half_a_reward:short")
