import subprocess
import sys
from typing import get_args

import pytest

from jaxrlhf.data.config import DataConfig, DatasetConfig, Format
from jaxrlhf.data.shapes import SHAPES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 1}, "max_length=1 must be at least 2"),
        ({"buckets": 0}, "buckets=0 must be positive"),
        ({"max_prompt_length": 0}, "max_prompt_length=0 must be positive"),
        ({"max_prompt_length": 8, "max_length": 8}, "must be below max_length=8"),
        ({"truncation": "left"}, "expected one of 'keep_start', 'keep_end', 'drop'"),
        ({"bad_rows": "ignore"}, "expected one of 'error', 'skip'"),
        ({"format": "alpacca"}, "did you mean 'alpaca'"),
        ({"columns": {"prompt": "q", "completion": "q"}}, "one column twice"),
    ],
)
def test_data_config_refuses_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ""}, "path is empty"),
        ({"path": "a.jsonl", "weight": 0.0}, "weight=0.0 of a.jsonl"),
        ({"path": "a.jsonl", "weight": float("inf")}, "finite"),
        ({"path": "a.jsonl", "format": "shargpt"}, "did you mean 'sharegpt'"),
        ({"path": "a.jsonl", "columns": {"prompt": "q", "completion": "q"}}, "one column twice"),
    ],
)
def test_dataset_config_refuses_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        DatasetConfig(**fields)


def test_every_format_has_a_shape():
    assert set(get_args(Format)) == set(SHAPES)


def test_importing_the_config_imports_neither_jax_nor_numpy():
    code = "import jaxrlhf.data.config, sys; sys.exit(bool({'jax', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
