import dataclasses
import math

import pytest

from jaxrlhf.config import load
from jaxrlhf.trainers.rejection_config import RejectionConfig, RejectionOptions
from jaxrlhf.trainers.rollout_config import RolloutConfig


def config(*, answers: int = 8, batch_size: int = 32, micro_batches: int = 1, **options) -> RejectionConfig:
    return RejectionConfig(
        out="runs/x",
        batch_size=batch_size,
        micro_batches=micro_batches,
        rollout=RolloutConfig(answers=answers),
        rejection=RejectionOptions(**options),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0, "mini_batches": 0}, "keep=0 must be positive; mini_batches=0 must be positive"),
        ({"keep": 9}, "rejection.keep=9 of rollout.answers=8: there are not so many; keep fewer"),
        ({"keep": 8}, "rejection.keep=8 of rollout.answers=8 rejects nothing; keep fewer, or set rejection.min_score"),
        ({"min_score": math.inf}, "min_score=inf must be a finite number; leave it out to learn from the best"),
        ({"min_score": math.nan}, "min_score=nan must be a finite number"),
        ({"answers": 1}, "rejection.keep=1 of rollout.answers=1 rejects nothing"),
        (
            {"batch_size": 4, "keep": 2, "mini_batches": 4, "micro_batches": 4},
            r"mini_batches=4 x micro_batches=4 does not divide the 8 answers of a step that are kept \(batch_size=4 x "
            r"rejection.keep=2\)",
        ),
        ({"batch_size": 3, "answers": 5, "keep": 2, "mini_batches": 6}, "does not divide the 15 answers of a step"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_least_score_rejects_by_itself():
    assert config(answers=1, min_score=0.0).learned == 1.0


def test_rows_of_a_micro_batch():
    found = config(batch_size=16, keep=2, mini_batches=2, micro_batches=4)
    assert (found.micro_rows, found.kept_rows, found.learned) == (16, 4, 0.25)
    assert dataclasses.replace(found, micro_batches=1).kept_rows == 16


def test_there_is_no_reference():
    with pytest.raises(ValueError, match="reference"):
        load(RejectionConfig, None, ["out=runs/x", "reference=other"])
