"""A config is built from differences, or refused with the key, the value and what would be right."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.training.config.schema import (
    ConfigError,
    build,
    dump_yaml,
    load_yaml,
    merge,
    parse_overrides,
    to_mapping,
)


@dataclass
class Optimizer:
    lr: float = 1e-3
    clip: float | None = 100.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive: {self.lr}")


@dataclass
class Behaviour:
    kind: Literal["actor_critic", "random"] = "actor_critic"
    horizon: int = 15
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass
class Environment:
    id: str
    count: int = 1
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Experiment:
    env: Environment = field(default_factory=lambda: Environment("Pendulum-v1"))
    behaviour: Behaviour = field(default_factory=Behaviour)
    extra: Optimizer | None = None
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    range: tuple[float, float] = (-1.0, 1.0)
    compile: bool = False
    name: str | None = None
    folder: Path = Path("runs")
    version: int = field(default=1, init=False)


@dataclass
class Renamed:
    RENAMED: ClassVar[dict[str, str]] = {"colour": "color"}

    color: str = "red"
    size: int = 1


@dataclass
class Drawing:
    line: Renamed = field(default_factory=Renamed)


def error_of(mapping: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build(Experiment, mapping)
    return str(caught.value)


@pytest.mark.parametrize("old", [{"colour": "blue"}, {"color": "red", "colour": "blue"}])
def test_an_old_key_still_loads_with_a_warning_that_names_the_new_key(old: dict[str, Any]) -> None:
    with pytest.warns(FutureWarning, match=r"the key 'line.colour' was renamed: write 'line.color'"):
        assert build(Drawing, {"line": old}) == Drawing(Renamed("blue"))


def test_a_new_key_overrides_an_old_one_of_a_saved_config() -> None:
    with pytest.warns(FutureWarning):
        assert build(Renamed, merge({"colour": "blue", "size": 2}, {"color": "green"})) == Renamed("green", 2)


def test_only_the_new_key_is_saved_and_suggested() -> None:
    assert to_mapping(Renamed()) == {"color": "red", "size": 1}
    with pytest.raises(ConfigError, match="did you mean color"):
        build(Renamed, {"colours": "blue"})


def test_differences_are_filled_in_with_defaults() -> None:
    config = build(Experiment, {"behaviour": {"optimizer": {"lr": 0.1}}, "hidden": [8], "range": [0, 2]})
    assert config.behaviour == Behaviour(optimizer=Optimizer(0.1))
    assert config.hidden == [8] and config.range == (0.0, 2.0)
    assert config.env == Environment("Pendulum-v1")
    assert build(Experiment, {}) == Experiment()


def test_an_empty_section_means_its_defaults_and_null_means_none_where_allowed() -> None:
    config = build(Experiment, {"behaviour": None, "extra": None, "name": None})
    assert config == Experiment()
    assert build(Experiment, {"extra": {}}).extra == Optimizer()


@pytest.mark.parametrize("lr", ["3e-4", 3e-4, "3E-4", ".3e-3", "+3e-4"])
def test_exponents_are_numbers(lr: object) -> None:
    assert build(Optimizer, {"lr": lr}).lr == pytest.approx(3e-4)


def test_whole_floats_are_integers() -> None:
    assert build(Behaviour, {"horizon": 1e2}).horizon == 100
    assert build(Behaviour, {"horizon": "1e2"}).horizon == 100
    assert isinstance(build(Optimizer, {"lr": 1}).lr, float)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"behavior": {}}, "unknown key 'behavior': did you mean behaviour?"),
        ({"horizon": 3}, "unknown key 'horizon': did you mean behaviour.horizon?"),
        ({"behaviour": {"horizn": 3}}, "unknown key 'behaviour.horizn': did you mean behaviour.horizon?"),
        ({"env": {"lr": 3}}, "unknown key 'env.lr': did you mean behaviour.optimizer.lr or extra.lr?"),
        ({"env": {"horizons": 3}}, "unknown key 'env.horizons': did you mean behaviour.horizon?"),
        ({"env": {"zzz": 3}}, "unknown key 'env.zzz': env has id, count, kwargs"),
        ({"version": 3}, "unknown key 'version'"),
        ({3: 3}, "unknown key '3'"),
        ({"env": {"count": 2}}, "env.id: this key is missing and has no default"),
        ({"env": [1]}, "env: [1] is not a section of keys and values"),
        ({"extra": 1}, "extra: 1 is not a section of keys and values"),
        ({"behaviour": {"horizon": "far"}}, "behaviour.horizon: 'far' is not of type int"),
        ({"behaviour": {"horizon": True}}, "behaviour.horizon: True is not of type int"),
        ({"behaviour": {"horizon": 1.5}}, "behaviour.horizon: 1.5 is not of type int"),
        ({"behaviour": {"horizon": "15"}}, "behaviour.horizon: '15' is not of type int"),
        ({"behaviour": {"optimizer": {"lr": "yes"}}}, "behaviour.optimizer.lr: 'yes' is not of type float"),
        ({"behaviour": {"optimizer": {"lr": True}}}, "behaviour.optimizer.lr: True is not of type float"),
        ({"behaviour": {"optimizer": {"clip": "x"}}}, "clip: 'x' is not of type float or null"),
        ({"behaviour": {"kind": "mpc"}}, "behaviour.kind: 'mpc' is not one of 'actor_critic', 'random'"),
        ({"behaviour": {"optimizer": {"lr": -1}}}, "behaviour.optimizer: lr must be positive: -1.0"),
        ({"hidden": 3}, "hidden: 3 is not of type list[int]"),
        ({"hidden": [1, "x"]}, "hidden: [1, 'x'] is not of type list[int]"),
        ({"range": [1]}, "range: [1] is not of type tuple[float, float]"),
        ({"compile": 1}, "compile: 1 is not true or false"),
        ({"compile": "yes"}, "compile: 'yes' is not true or false"),
        ({"name": 5}, "name: 5 is not of type str or null"),
    ],
)
def test_what_does_not_fit_is_named(mapping: dict[str, Any], message: str) -> None:
    assert message in error_of(mapping)


def test_where_is_part_of_every_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'a.b.horizo': did you mean a.b.horizon\?"):
        build(Behaviour, {"horizo": 1}, where="a.b")


def test_merge_goes_by_section_and_leaves_its_arguments_alone() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert merge(base, {"a": {"c": [3]}, "d": {"e": 2}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": None}


def test_overrides_are_nested_yaml() -> None:
    arguments = ["--a.b", "3e-4", "--a.c=[1, 2]", "--d", "-1", "--e=x=y", "--f=", "--a.b", "2"]
    assert parse_overrides(arguments) == {"a": {"b": 2, "c": [1, 2]}, "d": -1, "e": "x=y", "f": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "1"], "'a' is not an override"),
        (["--", "1"], "'--' is not an override"),
        (["--a..b", "1"], "'--a..b' is not an override"),
        (["--a"], "--a has no value"),
        (["--a", "--b", "1"], "--a has no value"),
        (["--a", "1", "--a.b", "2"], "'a' was given a value before"),
        (["--a", "[1"], "--a, line 1: not valid YAML"),
    ],
)
def test_bad_overrides_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(arguments)
    assert message in str(caught.value)


def test_a_yaml_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("a:\n  lr: 3e-4\n  steps: 1e6\nmode: off\nflags: [true, False, yes]\n")
    expected = {"a": {"lr": 3e-4, "steps": 1e6}, "mode": "off", "flags": [True, False, "yes"]}
    assert load_yaml(tmp_path / "one.yaml") == expected
    (tmp_path / "empty.yaml").touch()
    assert load_yaml(str(tmp_path / "empty.yaml")) == {}


def test_a_missing_file_lists_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").touch()
    (tmp_path / "a.yaml").touch()
    with pytest.raises(ConfigError, match=r"no config at .*/c.yaml: .* holds a.yaml, b.yaml"):
        load_yaml(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"holds no .yaml file"):
        load_yaml(tmp_path / "nowhere" / "c.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: [1\n", "bad.yaml, line 3: not valid YAML"),
        ("- a\n", "holds a list. It must hold keys and values"),
        ("text\n", "holds a str. It must hold keys and values"),
        ("a: 2026-99-99\n", "not valid YAML: month must be in 1..12"),
        ("a: \x07\n", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: not valid YAML"),
    ],
)
def test_a_bad_file_is_named_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_yaml(tmp_path / "bad.yaml")
    assert message in str(caught.value) and str(tmp_path / "bad.yaml") in str(caught.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
KEYS = (
    st.sampled_from(["env", "behaviour", "optimizer", "horizon", "lr", "extra", "hidden", "id"]) | st.text() | SCALARS
)
YAML = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12)


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(KEYS, YAML, max_size=5))
def test_any_mapping_builds_or_is_a_config_error(mapping: dict[Any, Any]) -> None:
    with suppress(ConfigError):
        assert isinstance(build(Experiment, mapping), Experiment)


@settings(deadline=None)  # a busy machine is no failure
@given(st.text())
def test_any_text_parses_or_is_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        assert list(parse_overrides([f"--a.b={text}"])) == ["a"]


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(2**63), 2**63 - 1)  # larger ones are refused
EXPERIMENTS = st.builds(
    Experiment,
    env=st.builds(Environment, id=st.text(), count=WHOLE, kwargs=st.dictionaries(st.text(), FLOATS | st.text())),
    behaviour=st.builds(Behaviour, horizon=WHOLE),
    extra=st.none() | st.builds(Optimizer, lr=st.floats(min_value=1e-9, allow_infinity=False), clip=st.none() | FLOATS),
    range=st.tuples(FLOATS, FLOATS),
    name=st.none() | st.text() | st.sampled_from(["1e5", "3e-4", "yes", "off", "True", "null", "1", "~", "2026-01-01"]),
)


@settings(deadline=None)  # a busy machine is no failure
@given(EXPERIMENTS)
def test_a_config_survives_yaml(tmp_path_factory: pytest.TempPathFactory, config: Experiment) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(dump_yaml(to_mapping(config)), encoding="utf-8")
    assert build(Experiment, load_yaml(path)) == config


SCALARS = st.none() | st.booleans() | WHOLE | FLOATS | st.text(max_size=5)
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(SCALARS | st.tuples(WHOLE, WHOLE), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(kwargs=st.dictionaries(st.text(max_size=5), NESTED, max_size=3))
def test_arguments_are_what_they_were_given_as(
    tmp_path_factory: pytest.TempPathFactory, kwargs: dict[str, Any]
) -> None:
    """Keys stay numbers and tuples stay tuples, also by way of a file."""
    config = build(Environment, {"id": "x", "kwargs": kwargs})
    assert repr(config.kwargs) == repr(kwargs)
    path = tmp_path_factory.getbasetemp() / "arguments.yaml"
    path.write_text(dump_yaml(to_mapping(config)), encoding="utf-8")
    assert repr(build(Environment, load_yaml(path)).kwargs) == repr(kwargs)


def test_numbers_of_numpy_are_the_numbers_that_they_are() -> None:
    given_values = {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": [np.array(2)], "e": np.str_("x")}
    kwargs = build(Environment, {"id": "x", "kwargs": given_values}).kwargs
    assert repr(kwargs) == "{'a': 3, 'b': 0.5, 'c': True, 'd': [2], 'e': 'x'}"


def test_the_command_line_reaches_below_a_key_that_is_a_number() -> None:
    base = {"id": "x", "kwargs": {"rewards": {1: 10.0, 4: 20.0}}}
    changed = merge(base, parse_overrides(["--kwargs.rewards.4", "30.0", "--kwargs.rewards.x", "1"]))
    assert build(Environment, changed).kwargs == {"rewards": {1: 10.0, 4: 30.0, "x": 1}}


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"a": Path("x")}, r"kwargs.a: PosixPath\('x'\) is a PosixPath, .* str\(path\)"),
        ({"a": {"b": [1, np.zeros(2)]}}, r"kwargs.a.b\[1\]: array.* is a ndarray, .* array.tolist"),
        ({"a": {1: {2}}}, r"kwargs.a.1: \{2\} is a set"),
        ({"a": {Path("x"): 1}}, r"kwargs.a: the key PosixPath"),
        ({"a": [2**70]}, r"kwargs.a\[0\]: 11805.* does not fit into an integer of 64 bits"),
        ({"a": (float("inf"),)}, r"kwargs.a\[0\]: inf is not a finite number"),
        ({1: 2}, "kwargs: the key 1 is not text"),
        ([1], r"kwargs: \[1\] is not a section"),
    ],
    ids=str,
)
def test_what_no_config_can_hold_is_named(kwargs: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(Environment, {"id": "x", "kwargs": kwargs})


def test_arguments_that_hold_themselves_are_refused() -> None:
    circle: dict[str, Any] = {}
    circle["a"] = circle
    with pytest.raises(ConfigError, match="nested deeper than 50 levels"):
        build(Environment, {"id": "x", "kwargs": circle})


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_number_that_is_not_finite_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="lr"):
        build(Optimizer, parse_overrides(["--lr", value]))
