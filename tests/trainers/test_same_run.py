import dataclasses
import logging

import pytest
import yaml

from jaxrlhf.config import dump, to_dict
from jaxrlhf.trainers.same_run import check_same_run
from tests.trainers.small import config


def written(folder, settings):
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(settings))
    return folder


@pytest.mark.parametrize("there, here", [("sft", "ppo"), ("ppo", "sft"), ("dpo", "kto"), ("reward", "sft")])
def test_the_folder_of_another_method_is_refused_in_one_sentence(there, here, tmp_path):
    folder = written(tmp_path / "run", config(there, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"run holds a run of another method.*; choose another `out`"):
        check_same_run(folder, config(here, tmp_path / "run"))


def test_a_key_that_every_method_has_may_be_new(tmp_path):
    settings = config("dpo", tmp_path / "run")
    folder = written(tmp_path / "run", settings)
    older = {name: value for name, value in to_dict(settings).items() if name != "trackers"}
    (folder / "config.yaml").write_text(yaml.safe_dump(older))
    check_same_run(folder, settings)


def test_a_key_of_the_method_that_is_new_is_named(tmp_path):
    settings = config("ppo", tmp_path / "run")
    folder = written(tmp_path / "run", settings)
    older = {name: value for name, value in to_dict(settings).items() if name != "ptx"}
    (folder / "config.yaml").write_text(yaml.safe_dump(older))
    with pytest.raises(ValueError, match=r"another version of this one \(only one of them has ptx\)"):
        check_same_run(folder, settings)


def test_what_changes_the_result_may_not_change(tmp_path):
    settings = config("dpo", tmp_path / "run")
    folder = written(tmp_path / "run", settings)
    with pytest.raises(ValueError, match=r"another configuration \(seed: 0 -> 1; beta: 0.1 -> 0.2\)"):
        check_same_run(folder, dataclasses.replace(settings, seed=1, beta=0.2, log_every=3, keep=5))


def test_a_longer_schedule_is_announced(tmp_path, caplog):
    settings = config("dpo", tmp_path / "run")
    folder = written(tmp_path / "run", settings)
    with caplog.at_level(logging.INFO):
        check_same_run(folder, dataclasses.replace(settings, steps=9))
    assert "steps of" in caplog.text and "changes from 4 to 9" in caplog.text
    assert "the cosine schedule was planned to end earlier" in caplog.text
