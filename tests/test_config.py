import dataclasses
from typing import Literal

import pytest

from jaxrlhf.config import ABSENT, diff, dump, load, section_of, to_dict
from jaxrlhf.config_text import ONE_ARGUMENT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    path: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO:
    clip_eps: float = 0.2
    epochs: int = 4
    kl: Literal["fixed", "adaptive"] = "fixed"

    def __post_init__(self):
        if self.clip_eps <= 0:
            raise ValueError(f"clip_eps={self.clip_eps} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    out: str
    ppo: PPO = dataclasses.field(default_factory=lambda: PPO(epochs=9))
    reference: Source | None = None
    datasets: tuple[Source, ...] = ()
    stop: tuple[str, ...] = ("\n",)
    shown: tuple[Literal["curve", "table"], ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    limit: int | None = None
    packing: bool = False
    rate: float | None = None

    def __post_init__(self):
        if self.limit == 0:
            raise ValueError("limit=0 reads nothing")


def _load(*overrides):
    return load(Run, None, ["out=x", *overrides])


def _file(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def _problems(path, *overrides):
    with pytest.raises(ValueError) as error:
        load(Run, path, overrides)
    return str(error.value).splitlines()


def test_defaults():
    assert _load() == Run(out="x")


def test_file_and_overrides_in_order(tmp_path):
    path = _file(tmp_path, "out: a\nppo: {clip_eps: 1e-5}\ndatasets:\n- path: p\n- path: q\n  weight: 2\n")
    config = load(Run, path, ["out=b", "datasets.0.path=r", "datasets.2.path=s", "out=c"])
    assert config == Run(
        out="c",
        ppo=PPO(clip_eps=1e-5, epochs=9),  # what a section does not say keeps the default of the whole
        datasets=(Source(path="r"), Source(path="q", weight=2.0), Source(path="s")),
    )
    assert isinstance(config.datasets[1].weight, float)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("ppo.clip_eps=1e-5", "ppo", PPO(clip_eps=1e-5, epochs=9)),
        ("ppo.clip_eps=1", "ppo", PPO(clip_eps=1.0, epochs=9)),
        ("ppo={clip_eps: 1}", "ppo", PPO(clip_eps=1.0, epochs=9)),
        ("limit=1_000", "limit", 1000),
        ("limit=-3", "limit", -3),
        ("limit=null", "limit", None),
        ("packing=True", "packing", True),
        ("out=no", "out", "no"),
        ("out=", "out", ""),
        ("out=a=b", "out", "a=b"),
        ("out=[INST]", "out", "[INST]"),
        ("out=007", "out", "007"),
        ("stop=[a, 'null']", "stop", ("a", "null")),
        ("stop.1=b", "stop", ("\n", "b")),
        ("stop=a.py:f", "stop", ("a.py:f",)),
        ("shown=table", "shown", ("table",)),
        ("shown=[table,curve]", "shown", ("table", "curve")),
        ("stop=3", "stop", ("3",)),
        ("betas.1=0.5", "betas", (0.9, 0.5)),
        ("columns.prompt=question", "columns", {"prompt": "question"}),
        ("columns={a: b}", "columns", {"a": "b"}),
        ("reference.path=m", "reference", Source(path="m")),
        ("datasets=[{path: p}]", "datasets", (Source(path="p"),)),
    ],
)
def test_override(override, field, value):
    assert getattr(_load(override), field) == value


def test_override_of_a_value_given_on_the_command_line():
    assert _load("datasets=[{path: p, weight: 3}]", "datasets.0.path=q").datasets == (Source(path="q", weight=3.0),)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.clip_esp=1", "config.ppo.clip_esp is unknown; did you mean 'clip_eps'?"),
        ("ppo.zzz=1", "config.ppo.zzz is unknown; the keys here are clip_eps, epochs, kl"),
        ("ppo.epochs=0.5", "config.ppo.epochs: found the float 0.5, expected int"),
        ("ppo.epochs=1e3", "config.ppo.epochs: found the float 1e3, expected int"),
        ("ppo.epochs=true", "config.ppo.epochs: found the bool true, expected int"),
        ("ppo.clip_eps=big", "config.ppo.clip_eps: found the string 'big', expected float"),
        ("ppo.clip_eps=nan", "config.ppo.clip_eps: found the string 'nan', expected a finite number"),
        ("ppo.clip_eps=-.inf", "config.ppo.clip_eps: found the string '-.inf', expected a finite number"),
        ("ppo.clip_eps=1e999", "config.ppo.clip_eps: found the float 1e999, expected a finite number"),
        ("rate=inf", "config.rate: found the string 'inf', expected a finite number"),
        ("rate=high", "config.rate: found the string 'high', expected float or null"),
        ("ppo.clip_eps=null", "config.ppo.clip_eps: found null, expected float"),
        ("ppo.kl=adaptiv", "expected one of 'fixed', 'adaptive'; did you mean 'adaptive'?"),
        ("ppo=3", "config.ppo: found the int 3, expected a mapping with the keys clip_eps, epochs, kl"),
        ("ppo=null", "config.ppo: found null, expected a mapping with the keys clip_eps, epochs, kl"),
        ("reference=a.b", "expected a mapping with the keys path, weight; did you mean reference.path=a.b?"),
        ("datasets=[p]", "expected a mapping with the keys path, weight; did you mean datasets.0.path=p?"),
        ("packing=1", "config.packing: found the int 1, expected true or false"),
        ("limit=x", "config.limit: found the string 'x', expected int or null"),
        ("betas=[1]", "config.betas: found a list, expected 2 entries, not 1"),
        ("kl_=1", "config.kl_ is unknown; did you mean 'ppo.kl'?"),
        ("epoch=1", "config.epoch is unknown; did you mean 'ppo.epochs'?"),
        ("path=p", "config.path is unknown; did you mean 'reference.path' or 'datasets.0.path'?"),
        ("stop=", "config.stop: found the string '', expected list of string"),
        ("stop=null", "config.stop: found null, expected list of string"),
        ("shown=tabel", "config.shown.0: found the string 'tabel', expected one of 'curve', 'table'; did you mean"),
        ("stop={a: b}", "config.stop: found a mapping, expected list of string"),
        ("betas=1", "config.betas: found the int 1, expected list of float"),
        ("columns=a", "config.columns: found the string 'a', expected mapping to string"),
        ("datasets.3.path=p", "config.datasets.3 is unknown; config.datasets has 0 entries, counted from 0"),
        ("datasets.0.weight=2", "config.datasets.0.path is missing; expected string"),
        ("ppo.clip_eps=-1", "config.ppo: clip_eps=-1.0 must be positive"),
        ("ppo.clip_eps", "'ppo.clip_eps' is not of the form key=value, such as ppo.clip_eps=0.2"),
    ],
)
def test_mistake_on_the_command_line(override, message):
    (problem,) = _problems(None, "out=x", override)
    assert problem.startswith("command line: ")
    assert message in problem


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["columns={a:b}"], ["config.columns: found the string '{a:b}', which is no list or mapping"]),
        (["datasets=[{path:p,weight:2}]"], ["config.datasets: found the string '[{path:p,weight:2}]', which is no"]),
        (["stop=[a"], ["config.stop: found the string '[a', which is no list or mapping"]),
        (
            ["columns={a:", "b,", "c:", "d}"],  # what a shell makes of columns={a: b, c: d}
            [
                "'b,' looks like a piece",
                "'c:' looks like a piece",
                "'d}' looks like a piece",
                "config.columns: found the string '{a:', which is no list or mapping",
            ],
        ),
        (["columns=a:b", "columns=c:d"], ["config.columns: found the string 'c:d', expected mapping to string"]),
        (["datasets=[{path: p,weight: 2", "datasets.0.path=q"], ["config.datasets: found the string '[{path: p,"]),
    ],
)
def test_list_or_mapping_that_lost_its_spaces_or_quotes(overrides, messages):
    problems = _problems(None, "out=x", *overrides)
    for problem, message in zip(problems[: len(messages)], messages, strict=True):
        assert problem.startswith(f"command line: {message}") and problem.endswith(ONE_ARGUMENT)


def test_a_list_of_texts_with_colons_has_its_spaces():
    assert _load("stop=[a.py:f,b.py:g]").stop == ("a.py:f", "b.py:g")


def test_a_section_stands_below_its_field():
    assert section_of(Source | None) == (".", Source)
    assert section_of(tuple[Source, ...]) == (".0.", Source)
    assert section_of(tuple[str, ...]) is section_of(int) is None


def test_all_problems_are_told_with_their_lines(tmp_path):
    path = _file(tmp_path, "ppo:\n  clip_esp: 1\n  epochs: '3'\nlimit: 2\nlimit: 3\ndatasets:\n- weight: 1\n")
    assert _problems(path, "packing=on") == [
        f"{path}:5: 'limit' is given twice, first at {path}:4",
        f"{path}:1: config.out is missing; expected string",
        f"{path}:2: config.ppo.clip_esp is unknown; did you mean 'clip_eps'?",
        f"{path}:3: config.ppo.epochs: found the string '3', expected int",
        f"{path}:7: config.datasets.0.path is missing; expected string",
        "command line: config.packing: found the string 'on', expected true or false",
    ]


def test_what_the_whole_config_says_has_one_prefix(tmp_path):
    assert _problems(None, "out=x", "limit=0") == ["command line: limit=0 reads nothing"]
    path = _file(tmp_path, "out: x\nlimit: 0\n")
    assert _problems(path) == [f"{path}:1: limit=0 reads nothing"]


def test_keys_of_a_required_section_are_told_as_missing():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Outer:
        source: Source
        seed: int

    Outer.__annotations__.update(source=Source, seed=int)
    with pytest.raises(ValueError) as error:
        load(Outer)
    assert str(error.value).splitlines() == [
        "command line: config.source.path is missing; expected string",
        "command line: config.seed is missing; expected int",
    ]


def test_dump_is_read_back_equal(tmp_path):
    config = Run(
        out="no",
        ppo=PPO(clip_eps=1e-5),
        reference=Source(path="null", weight=1e20),
        datasets=(Source(path="é: #"),),
        stop=("1e-5", "", "a\nb", " x "),
        columns={"true": "2026-01-01"},
    )
    assert load(Run, _file(tmp_path, dump(config))) == config


def test_diff_names_what_changed():
    a = Run(out="x", datasets=(Source(path="p"),))
    b = Run(out="x", ppo=PPO(epochs=9, clip_eps=0.3), datasets=(Source(path="p"), Source(path="q")))
    expected = {
        "ppo.clip_eps": (0.2, 0.3),
        "datasets.1.path": (ABSENT, "q"),
        "datasets.1.weight": (ABSENT, 1.0),
    }
    assert diff(a, b) == expected
    assert diff(to_dict(a), b) == expected
    assert diff(a, a) == {}


def test_field_of_a_type_that_cannot_be_written_is_refused():
    bad = dataclasses.make_dataclass("Bad", [("both", int | str)])
    with pytest.raises(TypeError, match=r"a config field cannot be of type int \| str"):
        load(bad, None, ["both=1"])
