import pytest

from jaxrlhf.command_table import COMMANDS
from jaxrlhf.report.folder import METHODS, find_runs, read_runs
from jaxrlhf.trainers.config import DPOConfig, KTOConfig, RewardConfig, SFTConfig, TrainConfig
from jaxrlhf.trainers.grpo_config import GRPOConfig
from jaxrlhf.trainers.ppo_config import PPOConfig
from tests.report.runs import histogram, record, sample, started, write_ppo, write_run

LINE = {"step": 1, "loss": 0.5}


def test_folder_of_runs_stands_for_its_runs(tmp_path):
    for name in ("ppo", "dpo"):
        write_run(tmp_path / "demo" / name, [LINE])
    (tmp_path / "demo" / "notes").mkdir()
    assert find_runs([tmp_path / "demo"]) == [(tmp_path / "demo/dpo", False), (tmp_path / "demo/ppo", False)]


def test_run_within_the_folder_of_a_run_is_not_meant(tmp_path):
    run = write_run(tmp_path / "run", [LINE])
    write_run(run / "inner", [LINE])
    assert find_runs([run]) == [(run, True)]


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    expected = (
        r"expected a folder that a trainer wrote \(its `out`\), with config.yaml and metrics.jsonl, or a folder of"
    )
    with pytest.raises(ValueError, match=rf"empty is not the folder of a run: it has no config.yaml; {expected}"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(ValueError, match=rf"none: there is no such folder; {expected}"):
        find_runs([tmp_path / "none"])
    with pytest.raises(ValueError, match=rf"metrics.jsonl is a file; {expected}"):
        find_runs([write_run(tmp_path / "run", [LINE]) / "metrics.jsonl"])


def test_run_that_is_named_twice_is_refused(tmp_path):
    write_run(tmp_path / "demo/sft", [LINE])
    with pytest.raises(ValueError, match="sft is named twice"):
        find_runs([tmp_path / "demo", tmp_path / "demo/sft"])


def test_run_without_metrics_is_refused(tmp_path):
    run = write_run(tmp_path / "run", [])
    yet = r"metrics.jsonl: found no line of metrics yet; the first follows log_every=10 steps"
    with pytest.raises(ValueError, match=yet):
        record(run)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=yet):
        record(run)
    (run / "metrics.jsonl").write_text("rubbish")
    with pytest.raises(ValueError, match=r"found no line of metrics; .*metrics.jsonl:1: not a line of JSON"):
        record(run)


def test_run_that_stopped_before_its_first_line_is_read_if_it_is_named(tmp_path):
    stopped = {"event": "stopped", "step": 0, "why": "ValueError: no rows"}
    run = write_run(tmp_path / "demo/run", [], events=[started("start", 0), stopped])
    (run / "metrics.jsonl").unlink()
    read = record(run)
    assert (read.curves, read.last_step, read.written, len(read.events)) == ({}, 0, None, 2)
    with pytest.raises(ValueError, match="no run can be shown; .* the run stopped: ValueError: no rows"):
        read_runs(find_runs([tmp_path / "demo"]))


def test_folder_of_runs_leaves_out_those_that_cannot_be_shown(tmp_path):
    for name in ("bad", "foreign", "good", "young"):
        write_run(tmp_path / "demo" / name, [LINE])
    (tmp_path / "demo/young/metrics.jsonl").unlink()
    (tmp_path / "demo/bad/config.yaml").write_text("a: [1,")
    (tmp_path / "demo/foreign/config.yaml").write_text("hello: world")
    runs, left_out = read_runs(find_runs([tmp_path / "demo"]))
    assert [run.name for run in runs] == ["good"]
    places = ["bad/config.yaml:1: not YAML", "foreign/config.yaml is the config of no", "young/metrics.jsonl: found no"]
    assert all(place in text for place, text in zip(places, left_out, strict=True))
    with pytest.raises(ValueError, match="bad/config.yaml:1: not YAML"):
        read_runs(find_runs([tmp_path / "demo/good", tmp_path / "demo/bad"]))


@pytest.mark.parametrize(
    ("text", "what"), [("hello: world", "its keys are hello"), ("", "it is empty"), ("a: 1\nseed: 1", "are a, seed")]
)
def test_config_of_no_method_is_refused(tmp_path, text, what):
    run = write_run(tmp_path / "run", [LINE])
    (run / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"config.yaml is the config of no method: .*{what}; expected the one that"):
        record(run)


def test_last_checkpoint_is_the_largest_whole_one(tmp_path):
    run = write_run(tmp_path / "run", [LINE])
    assert record(run).checkpoint is None
    for name in ("9", "10", "20.partial"):
        (run / "checkpoints" / name).mkdir(parents=True)
    assert record(run).checkpoint == 10


def test_setting_is_found_by_its_dotted_key(tmp_path):
    read = record(write_ppo(tmp_path / "run"))
    assert [read.setting(key) for key in ("ppo.epochs", "seed", "ppo.none", "seed.none")] == [4, 0, None, None]


def test_config_that_is_no_yaml_is_refused(tmp_path):
    run = write_run(tmp_path / "run", [LINE])
    (run / "config.yaml").write_text("a: [1,")
    with pytest.raises(ValueError, match=r"config.yaml:1: not YAML"):
        record(run)


def test_names_are_as_long_as_they_must_be(tmp_path):
    runs = [write_run(tmp_path / path, [LINE]) for path in ("s0/ppo", "s1/ppo")]
    assert [run.name for run in read_runs(find_runs(runs)).records] == ["s0/ppo", "s1/ppo"]
    assert record(runs[0]).name == "ppo"


def test_curves_have_gaps_where_values_are_not_finite(tmp_path):
    run = write_run(tmp_path / "run", [LINE, {"step": 2, "loss": None, "kl": 1, "nonfinite": ["loss"]}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": NaN, "kl": 1e200}\n{"step": 4, "loss": -Infinity}\n')
    read = record(run)
    assert read.curve("loss") == [(1, 0.5), (2, None), (3, None), (4, None)]
    assert read.curve("kl") == [(2, 1.0), (3, None)]
    assert read.curve("absent") == ()
    assert (read.last_step, read.problems) == (4, [])


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        ("metrics", "rubbish", "not a line of JSON"),
        ("metrics", "[1]", "expected a JSON object"),
        ("metrics", '{"loss": 1}', "step is None, expected a number of steps"),
        ("metrics", '{"step": -1}', "step is -1, expected"),
        ("metrics", '{"step": true}', "step is True, expected"),
        ("metrics", '{"step": 1, "loss": "low"}', "'loss' is 'low', expected a number or null"),
        ("metrics", "[" * 100_000, "not a line of JSON"),
        ("events", '{"step": 1}', "event is missing"),
        ("samples", '{"step": 1, "prompt": "a"}', "prompt or completion is missing"),
        ("histograms", '{"step": 1}', "scores are missing"),
        (
            "histograms",
            '{"step": 1, "scores": {"edges": [0, 1], "counts": [1], "unscored": "a"}}',
            "edges that do not rise",
        ),
        ("histograms", '{"step": 1, "scores": {"edges": [0], "counts": []}}', "scores are not counts between edges"),
        ("histograms", '{"step": 1, "scores": {"edges": [1, 0], "counts": [1]}}', "edges that do not rise"),
        ("histograms", '{"step": 1, "scores": {"edges": [0, NaN], "counts": [1]}}', "edges that do not rise"),
    ],
)
def test_bad_line_is_left_out_and_named(tmp_path, file, line, problem):
    run = write_ppo(tmp_path / "run")
    path = run / f"{file}.jsonl"
    good = path.read_text()
    number = len(good.splitlines()) + 1
    path.write_text(f"{good}{line}\n{good}")
    (found,) = record(run).problems
    assert found.startswith(f"{path}:{number}: ")
    assert problem in found


def test_last_line_that_a_kill_cut_short_is_told_as_such(tmp_path):
    run = write_run(tmp_path / "run", [LINE])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 2, "note": "é'.encode()[:-1])
    read = record(run)
    assert read.problems == [f"{run}/metrics.jsonl:2: not a line of JSON: cut short, as a killed run leaves its last"]


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (SFTConfig, "SFT"),
        (RewardConfig, "Reward model"),
        (DPOConfig, "DPO"),
        (KTOConfig, "KTO"),
        (PPOConfig, "PPO"),
        (GRPOConfig, "GRPO"),
    ],
)
def test_method_is_told_by_the_config(tmp_path, config, method):
    run = write_run(tmp_path / "run", [LINE], config=config(out="o", model="m"))
    assert record(run).method == method
    path = run / "config.yaml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "seed" not in line) + "\nnew_key: 1\n")
    assert record(run).method == method  # of another version


def test_lines_of_all_files_are_there(tmp_path):
    read = record(write_ppo(tmp_path / "run", samples=[sample(1, "a", "b")], histograms=[histogram(1, 0.0)], events=[]))
    assert [len(read.samples), len(read.histograms), len(read.events), read.exported] == [1, 1, 0, False]
    assert read.config["ppo"]["kl_coef"] == 0.05


def test_every_training_command_is_known():
    training = {name: row.config for name, row in COMMANDS.items() if issubclass(row.config, TrainConfig)}
    assert {method.command: method.config for method in METHODS.values()} == training
