import pytest

from jaxrlhf.ops.trees import overlay


def test_parts_are_added_and_win_and_nothing_else_moves():
    base = {"layers": {"q_proj": {"kernel": 1}, "norm": {"scale": 2}}, "score": {"kernel": 3}}
    part = {"layers": {"q_proj": {"lora_a": 4}}, "score": {"kernel": 5}}
    together = {"layers": {"q_proj": {"kernel": 1, "lora_a": 4}, "norm": {"scale": 2}}, "score": {"kernel": 5}}
    assert overlay(base, part) == together
    assert base == {"layers": {"q_proj": {"kernel": 1}, "norm": {"scale": 2}}, "score": {"kernel": 3}}
    assert overlay(base, {}) == base


@pytest.mark.parametrize(("base", "part"), [({"a": {"b": 1}}, {"a": 2}), ({"a": 1}, {"a": {"b": 2}})])
def test_trees_that_do_not_fit_are_refused(base, part):
    with pytest.raises(ValueError, match="'a' is an array in one tree and a dict in the other"):
        overlay(base, part)
