"""A few steps of our trainers and of TRL's from the same weights, on the same rows.

The long runs are in benchmarks/parity. PPO is not here: the last TRL with a PPO trainer, 1.12, cannot be installed
beside the one that has the others.
"""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from benchmarks.parity import ours, ours_sampled, theirs, theirs_grpo, world  # noqa: E402  (after what they import)
from benchmarks.parity.results import difference  # noqa: E402
from benchmarks.parity.settings import Sampled, Settings  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # TRL and transformers warn of each other
]

SHORT = Settings(steps=5, data=24)  # more than an epoch: the order of the second one counts
SAMPLED = Sampled(steps=4, answers=4, length=6, data=24, learning_rate=1e-2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return world.make_folders(tmp_path_factory.mktemp("models"))


def assert_same_curves(mine, yours, *metrics):
    far = {name: difference(mine[name], yours[name]) for name in metrics}
    assert all(gap < 1e-5 for gap in far.values()), far


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "kto"])
def test_losses_and_gradients_are_those_of_trl_step_by_step(method, folders, tmp_path):
    model = folders["scorer" if method == "reward" else "policy"]
    rows = world.make_rows(method, SHORT.data)
    mine = ours.train(method, SHORT, model, rows, tmp_path)
    order = ours.visited(method, rows, world.make_tokenizer(), SHORT.rows, SHORT.steps, SHORT.seed)
    yours = theirs.train(method, SHORT, model, [rows[i] for i in order])
    assert len(mine["loss"]) == SHORT.steps
    assert_same_curves(mine, yours, "loss", "grad_norm")


def test_grpo_learns_the_same_as_trl_from_the_same_answers(folders, tmp_path):
    rows = world.make_rows("prompts", SAMPLED.data)
    mine, said = ours_sampled.play_grpo(SAMPLED, folders["policy"], rows, tmp_path)
    order = ours.visited("prompts", rows, world.make_tokenizer(), SAMPLED.prompts, SAMPLED.steps, SAMPLED.seed)
    yours = theirs_grpo.play(SAMPLED, folders["policy"], [rows[i] for i in order], said)
    assert mine["kl"][-1] > 0.01  # it has moved
    assert_same_curves(mine, yours, "reward", "grad_norm", "kl", "entropy")
