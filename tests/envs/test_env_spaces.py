"""Every value of a supported space survives the way to the model and back; every other space is refused."""

import warnings

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate

from worldmodel.envs import action_spec, observation_specs
from worldmodel.specs import OBSERVATION, encode_observation

DISCRETE = [
    spaces.Discrete(4),
    spaces.Discrete(3, start=-5),
    spaces.MultiDiscrete([2, 5, 3]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [-2, 7]]),
    spaces.MultiBinary(3),
    spaces.MultiBinary((2, 2)),
]
CONTINUOUS = [
    spaces.Box(-2, 2, (1,)),
    spaces.Box(np.array([-1, 0, 3]), np.array([1, 10, 4]), dtype=np.float32),
    spaces.Box(-0.1, 0.1, (2, 3), dtype=np.float64),
    spaces.Box(0, 1, ()),
]


@pytest.mark.parametrize("space", DISCRETE, ids=str)
def test_discrete_actions_round_trip(space: spaces.Space) -> None:
    spec = action_spec(space)
    batch = batch_space(space, 50)
    batch.seed(0)
    actions = np.asarray(batch.sample())
    controls = spec.encode(actions)
    assert controls.shape == (50, spec.width) and controls.dtype == np.float32
    assert (controls.sum(-1) == len(spec.classes)).all() and np.isin(controls, (0, 1)).all()
    np.testing.assert_array_equal(spec.decode(controls), actions)


@pytest.mark.parametrize("space", CONTINUOUS, ids=str)
def test_continuous_actions_round_trip(space: spaces.Box) -> None:
    spec = action_spec(space)
    batch = batch_space(space, 50)
    batch.seed(0)
    actions = np.asarray(batch.sample())
    controls = spec.encode(actions)
    assert controls.shape == (50, spec.width) and np.abs(controls).max() <= 1
    np.testing.assert_allclose(spec.decode(controls), actions, rtol=1e-5, atol=1e-6)
    for extreme in (-1.0, 1.0, -7.0, 7.0):  # decoded actions are in the space, in its precision
        decoded = spec.decode(np.full((1, spec.width), extreme, np.float32))
        assert space.contains(np.asarray(decoded[0], space.dtype))
        np.testing.assert_allclose(spec.encode(decoded), np.clip(extreme, -1, 1), atol=1e-5)


@pytest.mark.parametrize("space", DISCRETE, ids=str)
def test_discrete_observations(space: spaces.Space) -> None:
    spec = observation_specs(space)[OBSERVATION]
    batch = batch_space(space, 50)
    batch.seed(0)
    values = batch.sample()
    index = encode_observation({OBSERVATION: spec}, values)[OBSERVATION]
    assert index.shape == (50, spec.width) and index.dtype == np.int64
    assert (index >= 0).all() and (index < np.asarray(spec.classes)).all()
    start = np.asarray(getattr(space, "start", 0)).reshape(-1)
    for row, value in zip(index, iterate(batch, values), strict=True):
        np.testing.assert_array_equal(row + start, np.asarray(value).reshape(-1))


def test_dictionary_observations() -> None:
    space = spaces.Dict(
        {"x": spaces.Box(-9, 9, (2, 2)), "n": spaces.Box(0, 9, (3,), np.int32), "k": spaces.Discrete(2)}
    )
    specs = observation_specs(space)
    assert {key: (spec.shape, spec.width, spec.dtype) for key, spec in specs.items()} == {
        "x": ((2, 2), 4, np.float32),
        "n": ((3,), 3, np.float32),
        "k": ((), 1, np.int64),
    }


def test_images_are_carried_as_bytes_and_symbols_as_vectors() -> None:
    space = spaces.Dict(
        {"eye": spaces.Box(0, 255, (32, 48, 3), np.uint8), "symbols": spaces.Box(0, 255, (7, 7, 3), np.uint8)}
    )
    specs = observation_specs(space)
    assert specs["eye"].image and (specs["eye"].width, specs["eye"].dtype) == (32 * 48 * 3, np.uint8)
    assert not specs["symbols"].image and specs["symbols"].dtype == np.float32
    values = batch_space(space, 5).sample()
    rows = encode_observation(specs, values)
    np.testing.assert_array_equal(rows["eye"].reshape(5, 32, 48, 3), values["eye"])


@pytest.mark.parametrize(
    ("space", "hint"),
    [
        (spaces.Box(0, 255, (3, 32, 32), np.uint8), r"an image \(3, 32, 32\) of uint8 from 0 to 255: .*envs.Images"),
        (spaces.Box(0, 1, (32, 32, 3), np.uint8), r"an image \(32, 32, 3\) of uint8 from 0 to 1: .*envs.Images"),
        (spaces.Box(0, 1, (32, 32), np.float32), "an image .* of float32 from 0 to 1: .*envs.Images"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Tuple((spaces.Discrete(2),)))), "'1' .*FlattenObservation"),
        (spaces.Tuple(()), "at least one entry"),
        (spaces.Text(5), "FlattenObservation"),
        (spaces.Sequence(spaces.Discrete(2)), "ObservationWrapper"),
        (spaces.Graph(spaces.Discrete(2), None), "ObservationWrapper"),
        (spaces.Dict({"inner": spaces.Dict({"x": spaces.Discrete(2)})}), "'inner' .*FlattenObservation"),
        (spaces.Dict({"camera": spaces.Box(0, 255, (64, 64), np.uint8)}), "'camera' is an image"),
        (spaces.Dict({}), "at least one entry"),
        (spaces.Box(0, 1, (0,)), "empty"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused_observation_spaces(space: spaces.Space, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        observation_specs(space)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    WITHOUT_WIDTH = spaces.Box(np.array([0.0, 1.0]), np.array([1.0, 1.0]), dtype=np.float32)


@pytest.mark.parametrize(
    ("space", "hint"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), "no finite bounds.*TransformAction"),
        (spaces.Box(0, np.inf, (2,)), "no finite bounds"),
        (spaces.Box(-3e38, 3e38, (2,)), "no finite bounds"),
        (WITHOUT_WIDTH, "low >= high at entry 1"),
        (spaces.Box(0, 9, (2,), np.int32), "MultiDiscrete"),
        (spaces.Box(0, 1, (0,)), "empty"),
        (spaces.Tuple((spaces.Discrete(2),)), "ActionWrapper"),
        (spaces.Dict({"a": spaces.Discrete(2)}), "ActionWrapper"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused_action_spaces(space: spaces.Space, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        action_spec(space)


def test_an_action_whose_bounds_hold_few_steps_of_single_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"steps of 1 between its bounds at entry 0: .*RescaleAction\(env, -1, 1\)"):
        action_spec(spaces.Box(1e7, 1e7 + 100, (1,), np.float64))
    assert action_spec(spaces.Box(1e7, 1.1e7, (1,), np.float64)).width == 1
