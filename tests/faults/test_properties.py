"""What holds of every config, size, state, table, archive and space, not only of those that someone thought of."""

import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.envs import action_spec, observation_specs
from worldmodel.specs import OBSERVATION, encode_observation
from worldmodel.training.config.config import Config, byte_count, load_config
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.config.fit_config import load_fit_config
from worldmodel.training.config.schema import ConfigError, dump_yaml, load_yaml, parse_overrides, to_mapping
from worldmodel.training.data.csv_data import read_csv
from worldmodel.training.data.npz_data import read_npz
from worldmodel.training.logging.logger import REPOSITORY
from worldmodel.training.run.tree import load_tree, save_tree

QUICK = settings(deadline=None, max_examples=50)  # a busy machine is no failure

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property."""
    return tmp_path_factory.mktemp("properties")


# ------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_survives_its_own_yaml(file: Path, folder: Path) -> None:
    load: Any = load_fit_config if "data" in load_yaml(file) else load_config
    config = load(file)
    (folder / "resolved.yaml").write_text(dump_yaml(to_mapping(config)), encoding="utf-8")
    again = load(folder / "resolved.yaml")
    assert again == config and asdict(again) == asdict(config)


WORDS = st.text(min_size=1).filter(lambda text: "." not in text and "=" not in text)


@QUICK
@given(
    seed=st.integers(0, 2**30),
    lr=st.floats(1e-300, 1e300),
    project=st.text(),
    tags=st.lists(st.text(), max_size=3),
    kwargs=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()),
    size=st.none() | st.integers(1, 10**15),
)
def test_any_good_values_survive_yaml(
    folder: Path, seed: int, lr: float, project: str, tags: list[str], kwargs: dict[str, Any], size: int | None
) -> None:
    kwargs = {key: value for key, value in kwargs.items() if key not in ("render_mode", "max_episode_steps")}
    given_values = {"seed": seed, "learner": {"lr": lr}, "logger": {"project": project, "tags": tags}}
    config = load_config({**given_values, "env": {"kwargs": kwargs}, "replay": {"capacity_bytes": size}})
    (folder / "any.yaml").write_text(dump_yaml(to_mapping(config)), encoding="utf-8")
    again: Config = load_config(folder / "any.yaml")
    assert again == config and again.learner.lr == lr and again.env.kwargs == kwargs and again.logger.tags == tags


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text() | st.builds("--{}={}".format, st.text(), st.text()) | st.builds("--{}".format, WORDS)))
def test_overrides_are_read_or_refused(arguments: list[str]) -> None:
    with suppress(ConfigError):
        assert isinstance(parse_overrides(arguments), dict)


@QUICK
@given(st.binary(max_size=200) | st.text(alphabet="{}[]:,&*!|>-?'\"%#@ \n\ta1<", max_size=60).map(str.encode))
def test_any_bytes_are_a_config_or_refused(folder: Path, content: bytes) -> None:
    (folder / "bytes.yaml").write_bytes(content)
    with suppress(ConfigError):
        assert isinstance(load_yaml(folder / "bytes.yaml"), dict)


@QUICK
@given(st.integers(0, 10**6), st.sampled_from(["", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]), st.booleans())
def test_a_size_is_a_number_times_its_unit(number: int, unit: str, spaced: bool) -> None:
    power = " kMGT".index(unit[:1].replace("K", "k")) if unit else 0
    factor = (1024 if "i" in unit else 1000) ** power
    assert byte_count(f"{number}{' ' * spaced}{unit}") == number * factor
    if not unit:
        assert byte_count(number) == number


@QUICK
@given(st.text() | st.floats().map(str) | st.integers().map(str))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert byte_count(text) >= 0


# -------------------------------------------------------------------------------------------------- states

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ARRAYS = st.builds(
    lambda shape, dtype, seed: np.asarray(9 * np.random.default_rng(seed).normal(size=shape)).astype(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    st.integers(0, 99),
)
TREES = st.recursive(
    LEAVES | ARRAYS | ARRAYS.map(lambda array: torch.as_tensor(array)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=10,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return (a.dtype == b.dtype and np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@QUICK
@given(TREES)
def test_a_state_is_read_back_as_it_was(folder: Path, tree: Any) -> None:
    save_tree(folder / "state.safetensors", tree)
    assert same(load_tree(folder / "state.safetensors"), tree)


# ---------------------------------------------------------------------------------------------------- data

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@QUICK
@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 2)), min_size=1, max_size=12), NAMES, NAMES)
def test_a_table_is_read_as_it_was_written(
    folder: Path, rows: list[tuple[float, float, int]], observed: str, control: str
) -> None:
    if observed == control or "mark" in (observed, control) or observed.startswith("\ufeff"):
        return
    rows = sorted(rows, key=lambda row: row[2])
    if len({mark for _, _, mark in rows}) == len(rows) > 1:  # a time, by which one is asked about
        return
    header = ",".join(map(quoted, (observed, control, "mark")))
    text = "\r\n".join([header, *(f"{y!r},{u!r},{mark}" for y, u, mark in rows)])
    (folder / "data.csv").write_text(text, encoding="utf-8", newline="")
    data = read_csv(folder / "data.csv", DataConfig("data.csv", [observed], [control], "mark"))
    found = data.everything()
    assert found.obs[OBSERVATION][0, :, 0].tolist() == [y for y, _, _ in rows]
    first = [t == 0 or rows[t][2] != rows[t - 1][2] for t in range(len(rows))]
    assert found.is_first[0].tolist() == first
    led = [0.0 if first[t] else rows[t - 1][1] for t in range(len(rows))]
    assert found.prev_action[0, :, 0].tolist() == led


@QUICK
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_an_archive_is_read_as_it_was_written(
    folder: Path, lengths: list[int], width: int, binary: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(lengths), width)).astype(np.float32)
    x = x > 0 if binary else x
    u = rng.normal(size=(sum(lengths), 2))
    np.savez(folder / "data.npz", x=x, u=u, lengths=np.array(lengths))
    data = read_npz(folder / "data.npz", DataConfig("data.npz", ["x"], ["u"]))
    found = data.everything()
    assert data.lengths.tolist() == lengths and bool(data.obs_specs["x"].classes) == binary
    assert np.array_equal(found.obs["x"][0].numpy(), x)
    begins = set(np.cumsum([0, *lengths[:-1]]).tolist())
    for t in range(sum(lengths)):
        led = np.zeros(2) if t in begins else u[t - 1]
        np.testing.assert_array_equal(found.prev_action[0, t], led.astype(np.float32))


# -------------------------------------------------------------------------------------------------- spaces

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
BOXES = st.builds(
    lambda shape, low, width, dtype: spaces.Box(low, low + width, shape, dtype),
    SHAPES,
    st.floats(-100, 100),
    st.floats(0.5, 100),
    st.sampled_from([np.float32, np.float64]),
)
DISCRETE = st.one_of(
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-3, 3)),
    st.lists(st.integers(1, 5), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.lists(st.integers(1, 3), min_size=1, max_size=2).map(spaces.MultiBinary),
)
UNSUPPORTED: Any = st.one_of(
    st.just(spaces.Text(4)),
    st.builds(spaces.Sequence, BOXES),
    st.builds(lambda one, other: spaces.Tuple((one, spaces.Tuple((other,)))), BOXES, DISCRETE),
    st.builds(lambda inner: spaces.OneOf((inner, inner)), BOXES),
    st.builds(lambda inner: spaces.Dict({"a": spaces.Dict({"b": inner})}), BOXES),
    st.just(spaces.Graph(spaces.Box(-1, 1, (2,)), None)),
    st.just(spaces.Box(-1, 1, (2, 0))),
)


def samples(space: gym.Space[Any], count: int) -> np.ndarray:
    space.seed(0)
    return np.stack([np.asarray(space.sample()) for _ in range(count)])


@QUICK
@given(BOXES | DISCRETE)
def test_an_action_is_encoded_and_decoded(space: gym.Space[Any]) -> None:
    spec, actions = action_spec(space), samples(space, 4)
    controls = spec.encode(actions)
    assert controls.shape == (4, spec.width) and (np.abs(controls) <= 1).all()
    decoded = spec.decode(controls)
    assert decoded.shape == actions.shape
    if spec.classes:
        assert np.array_equal(decoded, actions) and (controls.sum(-1) == len(spec.classes)).all()
    else:
        np.testing.assert_allclose(decoded, actions, atol=1e-3)
        assert all(space.contains(action.astype(space.dtype)) for action in decoded)


@QUICK
@given(st.dictionaries(st.text(min_size=1, max_size=5), BOXES | DISCRETE, min_size=1, max_size=3))
def test_an_observation_is_encoded(inner: dict[str, gym.Space[Any]]) -> None:
    space = spaces.Dict(inner)
    specs = observation_specs(space)
    raw = {key: samples(each, 3) for key, each in space.spaces.items()}
    for key, values in encode_observation(specs, raw).items():
        spec = specs[key]
        assert values.shape == (3, spec.width) and values.dtype == spec.dtype
        if spec.classes:
            assert (values >= 0).all() and (values < np.array(spec.classes)).all()
            values = values + np.array(spec.start)
        np.testing.assert_array_equal(values.reshape(3, *spec.shape), raw[key].astype(values.dtype))


@QUICK
@given(UNSUPPORTED)
def test_other_spaces_are_refused_with_what_to_do(space: gym.Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"wrap|give it"):
        observation_specs(space)
    with pytest.raises(ValueError, match=r"wrap|give it"):
        action_spec(space)


def test_a_range_of_floats_is_not_what_a_space_needs() -> None:
    for low, high in ((-math.inf, 1.0), (-3e38, 3e38)):
        with pytest.raises(ValueError, match="finite bounds"):
            action_spec(spaces.Box(low, high, (2,), np.float32))
