import dataclasses
import subprocess
import sys

import pytest

from jaxrlhf.models.config import ComputeConfig, LayerKind, pattern_of
from jaxrlhf.models.rope_config import LinearScaling
from tests.models.tiny import TINY


def test_configs_are_read_without_jax():
    code = "import sys, jaxrlhf.models.config, jaxrlhf.sharding.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_size_that_is_not_positive_is_named_at_once():
    with pytest.raises(ValueError, match="vocab_size=0 must be positive; num_layers=-1 must be positive"):
        dataclasses.replace(TINY, vocab_size=0, num_layers=-1)


def test_key_value_heads_divide_the_query_heads():
    with pytest.raises(ValueError, match="num_kv_heads=3 does not divide num_heads=4"):
        dataclasses.replace(TINY, num_kv_heads=3)


def test_odd_heads_cannot_be_rotated():
    with pytest.raises(ValueError, match="7 entries of a head cannot turn in pairs"):
        dataclasses.replace(TINY, head_dim=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_dim": 16}, "rotary_dim=16 is more than head_dim=8"),
        ({"rotary_dim": 3}, "3 entries of a head cannot turn in pairs"),
        ({"pattern": ()}, "pattern is empty"),
        ({"norm_offset": 0.5}, "norm_offset=0.5 must be 0 or 1"),
        ({"final_softcap": 0.0}, "final_softcap=0.0 must be positive"),
        ({"activation": "relu"}, "activation='relu' is unknown; expected one of 'silu', 'gelu', 'gelu_tanh'"),
    ],
)
def test_options_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


def test_kinds_of_layers_are_checked():
    with pytest.raises(ValueError, match="window=0 must be positive"):
        LayerKind(window=0)
    with pytest.raises(ValueError, match="rope_scaling=.* has no effect without rope_theta"):
        LayerKind(rope_theta=None, rope_scaling=LinearScaling(factor=2.0))


def test_layers_take_the_kinds_of_the_pattern_in_turn():
    local, whole = LayerKind(window=4), LayerKind()
    config = dataclasses.replace(TINY, num_layers=5, pattern=(local, local, whole))
    assert [config.kind(layer) for layer in range(5)] == [local, local, whole, local, local]


@pytest.mark.parametrize(("layers", "pattern"), [("aaaa", "a"), ("ababa", "ab"), ("aabaa", "aab"), ("abb", "abb")])
def test_the_pattern_is_the_shortest_that_gives_the_layers(layers, pattern):
    kinds = {"a": LayerKind(window=4), "b": LayerKind()}
    assert pattern_of([kinds[letter] for letter in layers]) == tuple(kinds[letter] for letter in pattern)


def test_heads_without_rotary_positions_may_be_odd():
    config = dataclasses.replace(TINY, head_dim=7, pattern=(LayerKind(rope_theta=None),), learned_positions=True)
    assert config.turned_dim == 0 and TINY.turned_dim == 8
    assert config.attention_scale == 7**-0.5
    assert dataclasses.replace(config, query_scale=0.25).attention_scale == 0.25


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "dtype",
            "float16",
            "dtype='float16' is unknown; expected one of 'float32', 'bfloat16'; did you mean 'bfloat16'",
        ),
        ("remat", "some", "remat='some' is unknown; expected one of 'none', 'dots', 'full'"),
        ("scan_unroll", 0, "scan_unroll=0 must be positive"),
    ],
)
def test_compute_options_are_checked(field, value, message):
    with pytest.raises(ValueError, match=message):
        ComputeConfig(**{field: value})
