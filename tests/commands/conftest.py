import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.small import train


@pytest.fixture(scope="session")
def policy(tmp_path_factory) -> Path:
    """The folder of a finished SFT run."""
    return train("sft", tmp_path_factory.mktemp("policy") / "run").folder


@pytest.fixture(scope="session")
def scorer(tmp_path_factory) -> Path:
    """The folder of a finished reward run."""
    return train("kwise", tmp_path_factory.mktemp("scorer") / "run").folder


@pytest.fixture
def write(tmp_path):
    def write_rows(name: str, rows: list[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows
