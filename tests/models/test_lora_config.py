import pytest

from jaxrlhf.models.lora_config import LoraConfig


def test_the_scale_is_alpha_over_the_rank_or_its_root():
    assert LoraConfig(rank=16).scale == 2.0
    assert LoraConfig(rank=16, alpha=8.0).scale == 0.5
    assert LoraConfig(rank=16, alpha=8.0, rslora=True).scale == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 must be positive"),
        ({"rank": 4, "dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"alpha": 8.0, "base": "int8"}, "alpha has no effect without rank.*; base has no effect without rank"),
        ({"rank": 4, "targets": ("(q_proj",)}, r"targets: '\(q_proj' is no regular expression"),
        ({"rank": 4, "targets": ()}, "targets is empty"),
        ({"rank": 4, "base": "float16"}, "base='float16' is unknown"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**options)
