"""What the vocabulary may cost a compiled step; the full table is that of benchmarks/memory.py."""

import pytest

from benchmarks.memory import growth


@pytest.mark.parametrize("method", ["sft", "dpo", "ppo"])
def test_temporaries_grow_with_the_unembedding_and_not_with_the_batch(method):
    found = growth(method)
    assert found["growth"] <= found["allowed"]
    assert found["growth"] < found["logits_would_be"] / 4
