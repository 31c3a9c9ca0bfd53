import pytest

from jaxrlhf.trainers import rejection
from jaxrlhf.trainers.config import OptimConfig
from jaxrlhf.trainers.rejection_config import RejectionOptions
from jaxrlhf.trainers.rollout_config import RolloutConfig
from jaxrlhf.trainers.start import scalar_start
from tests.trainers.small import config, mentions, metrics, prompts, start


def brief(prompts, completions, **columns):
    return [-float(len(text.split())) for text in completions]


def test_the_reward_rises(tmp_path):
    settings = config(
        "rejection",
        tmp_path / "run",
        steps=12,
        optim=OptimConfig(learning_rate=3e-2, schedule="constant"),
        rollout=RolloutConfig(max_new_tokens=6, answers=8),
        rejection=RejectionOptions(epochs=2),
        reward_weights=(2.0, 0.0),
    )
    rejection.run(settings, model=start(), dataset=prompts(), rewards=[brief, mentions])
    first, *_, last = metrics(tmp_path / "run")
    assert last["reward"] > first["reward"] + 1.0
    assert first["reward"] == pytest.approx(2 * first["rewards/brief/mean"], rel=1e-5)
    assert first["reward/best"] > first["reward"] and first["rejection/kept"] == 1.0
    assert {"loss", "mean_token_accuracy", "entropy", "frac_reward_zero_std", "grad_norm", "skipped"} <= set(first)


def test_a_reward_model_chooses_too(tmp_path):
    trained = rejection.run(
        config("rejection", tmp_path / "run", steps=1),
        model=start(), reward_model=scalar_start(start()), dataset=prompts(), eval_dataset=prompts(5),
    )  # fmt: skip
    assert trained.metrics["frac_reward_zero_std"] == 1.0  # its head is new
    assert trained.metrics["eval/reward/best"] == trained.metrics["eval/reward"] == 0.0


def test_steps_without_an_answer_that_is_good_enough_leave_the_policy_as_it_was(tmp_path, caplog):
    settings = config("rejection", tmp_path / "run", steps=2, rejection=RejectionOptions(min_score=1.0))
    model = start()
    trained = rejection.run(settings, model=model, dataset=prompts(), rewards=[brief])
    lines = metrics(tmp_path / "run")
    assert [line["loss"] for line in lines] == [None, None] and trained.metrics["rejection/kept"] == 0.0
    assert "no answer of this batch reaches rejection.min_score" in caplog.text
    assert (trained.model.params["norm"]["scale"] == model.params["norm"]["scale"]).all()


def test_kept_answers_that_do_not_divide_over_the_devices_are_refused(tmp_path):
    settings = config("rejection", tmp_path / "run", rejection=RejectionOptions(mini_batches=2))
    with pytest.raises(ValueError, match="kept answers of a micro-batch=4 does not divide over 8 devices"):
        rejection.run(settings, model=start(), dataset=prompts(), rewards=[mentions])
