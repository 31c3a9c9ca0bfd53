from jaxrlhf.report.settings import differing, settings_of, written
from jaxrlhf.trainers.config import SFTConfig
from tests.report.runs import record, started, write_run

LINES = [{"step": 1, "loss": 1.0}]


def _changed(run):
    settings = settings_of(run)
    return {row.key: (row.usual, row.value) for row in settings.rows if row.usual is not None}, settings.compared_with


def test_what_differs_from_the_defaults_is_marked(tmp_path):
    config = SFTConfig(out="o", model="m", batch_size=8)
    run = record(write_run(tmp_path / "run", LINES, config=config))
    assert _changed(run) == ({"model": ("''", "m"), "batch_size": ("32", "8")}, "the defaults")
    assert {row.key for row in settings_of(run).rows} >= {"out", "optim.learning_rate", "data.max_length"}


def test_what_differs_from_the_recipe_is_marked(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\nbatch_size: 8\nseed: 3\noptim: {learning_rate: 1e-4}\n")
    config = SFTConfig(out="o", model="m", batch_size=8, seed=4)
    events = [started("start", 0, "--config", str(path), "seed=4", "out=o")]
    changed, compared_with = _changed(record(write_run(tmp_path / "run", LINES, config=config, events=events)))
    assert changed == {"seed": ("3", "4"), "optim.learning_rate": ("0.0001", "2.0e-05")}
    assert compared_with == f"the recipe {path}"


def test_recipe_that_cannot_be_read_gives_way_to_the_defaults(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("batch_sizes: 8\n")
    events = [started("start", 0, "--config", str(path))]
    changed, compared_with = _changed(record(write_run(tmp_path / "run", LINES, events=events)))
    assert changed["model"] == ("''", "m")
    assert "the recipe cannot be read" in compared_with and "batch_sizes is unknown" in compared_with


def test_key_that_has_no_default_has_a_dash(tmp_path):
    run = write_run(tmp_path / "run", LINES)
    with (run / "config.yaml").open("a") as file:
        file.write("retired: 1\n")
    assert _changed(record(run))[0]["retired"] == ("–", "1")


def test_runs_differ_in_some_keys(tmp_path):
    runs = [
        record(write_run(tmp_path / str(seed), LINES, config=SFTConfig(out="o", seed=seed, datasets=())))
        for seed in (0, 1)
    ]
    assert differing(runs) == {"seed": ["0", "1"]}


def test_values_are_written_as_in_yaml():
    assert [written(value) for value in (None, True, 1e-06, [], "", "a")] == [
        "null",
        "true",
        "1.0e-06",
        "[]",
        "''",
        "a",
    ]
