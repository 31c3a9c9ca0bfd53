import pytest

from jaxrlhf.models.config import LayerKind, LinearScaling, Llama3Scaling
from jaxrlhf.models.families.positions import (
    FULL,
    SLIDING,
    read_pattern,
    read_rope,
    read_rotary_dim,
    read_window,
    write_rope,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
STRETCHED = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16)
WINDOW = LayerKind(window=8)


@pytest.mark.parametrize("raw", [
    {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    {"rope_parameters": {"rope_theta": 5e5} | LLAMA3},
    {"rope_theta": 5e5, "rope_scaling": {"type" if key == "rope_type" else key: x for key, x in LLAMA3.items()}},
])  # fmt: skip
def test_old_and_new_spellings_of_rotary_options_mean_the_same(raw):
    problems = []
    assert read_rope(raw, problems) == {"rope_theta": 5e5, "rope_scaling": STRETCHED}
    assert not problems


def test_rotary_options_that_are_left_out_are_those_of_transformers():
    assert read_rope({}, []) == {"rope_theta": 10000.0, "rope_scaling": None}


@pytest.mark.parametrize("scaling", [None, STRETCHED, LinearScaling(factor=2.0)])
def test_rotary_options_that_are_written_read_back_the_same(scaling):
    kind = LayerKind(rope_theta=5e5, rope_scaling=scaling)
    raw = write_rope(kind, theta_key="base")
    assert LayerKind(**read_rope(raw, [], theta_key="base")) == kind


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type='yarn' is not supported; only 'default', 'line"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "rope_type='llama3' needs numbers for low_freq_factor, "),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_type=['linear'] is not supported"),
        ({"rope_scaling": 3}, "rope_scaling=3 must be an object"),
        ({"rope_parameters": {FULL: {"rope_theta": 1e6}}}, "must be an object of plain values, the same for all"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported; only 1.0"),
        ({"rope_parameters": {"rope_theta": 1.0}, "rope_scaling": LLAMA3}, "are both given"),
        ({"rope_parameters": {"rope_theta": 1.0}, "rope_scaling": {"type": "longrope"}}, "leave one out rope_type='l"),
        ({"rope_theta": "1e4"}, "rope_theta='1e4' must be a positive number"),
        ({"rope_theta": True}, "rope_theta=True must be a positive number"),
        ({"rope_theta": float("inf")}, "rope_theta=inf must be a positive number"),
    ],
)
def test_rotary_options_that_are_not_supported_are_named(raw, message):
    problems = []
    read_rope(raw, problems)
    assert message in " ".join(problems)


@pytest.mark.parametrize(("raw", "width"), [
    ({}, None),
    ({"share": 1.0}, None),
    ({"share": 0.25}, 4),
    ({"share": 1.0, "rope_parameters": {"partial_rotary_factor": 0.5}}, 8),
])  # fmt: skip
def test_a_share_of_the_head_may_turn(raw, width):
    assert read_rotary_dim(raw, 16, [], share_key="share") == width


def test_a_share_that_is_left_out_is_that_of_the_family():
    assert read_rotary_dim({}, 16, [], share=0.25) == 4


@pytest.mark.parametrize(("raw", "window"), [({}, 9), ({"sliding_window": 4}, 4), ({"sliding_window": None}, None)])
def test_a_window_that_is_null_is_none_and_one_that_is_left_out_is_that_of_the_family(raw, window):
    assert read_window(raw, 9, []) == window


@pytest.mark.parametrize("window", [0, -1, 4.0, True, "4"])
def test_a_window_is_a_positive_whole_number(window):
    problems = []
    read_window({"sliding_window": window}, None, problems)
    assert problems == [f"sliding_window={window!r} must be a positive whole number or null"]


def test_layer_types_become_the_shortest_pattern():
    default = [SLIDING, FULL] * 2
    assert read_pattern({}, default, LayerKind(), WINDOW, []) == (WINDOW, LayerKind())
    layer_types = [SLIDING, SLIDING, FULL, SLIDING]
    assert read_pattern({"layer_types": layer_types}, default, LayerKind(), WINDOW, []) == (WINDOW, WINDOW, LayerKind())
    assert read_pattern({"layer_types": [FULL] * 4}, default, LayerKind(), WINDOW, []) == (LayerKind(),)


@pytest.mark.parametrize(("layer_types", "sliding", "message"), [
    ([FULL, "chunked_attention"], WINDOW, "layer_types=['full_attention', 'chunked_attention'] must be a list of"),
    ([[FULL], FULL], WINDOW, "layer_types=[['full_attention'], 'full_attention'] must be a list of"),
    ("full_attention", WINDOW, "layer_types='full_attention' must be a list of"),
    ([FULL], WINDOW, "layer_types has 1 entries, expected one for each of 2 layers"),
    ([FULL, SLIDING], LayerKind(), "layer_types names 'sliding_attention', and there is no sliding_window"),
])  # fmt: skip
def test_layer_types_that_make_no_sense_are_named(layer_types, sliding, message):
    problems = []
    read_pattern({"layer_types": layer_types}, [FULL, FULL], LayerKind(), sliding, problems)
    assert message in " ".join(problems)
