"""Pictures of any size and order become what a model takes, and what an environment draws is one of them."""

from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation

from worldmodel.envs import EnvConfig, EnvironmentFault, Images, make, make_vector, observation_specs
from worldmodel.envs.wrappers.basic import RecordState

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 60, 3), np.uint8)


class Shown(gym.Env[Any, Any]):
    """Always the same observation."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any], value: Any) -> None:
        self.observation_space, self.value = space, value

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.value, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.value, 0.0, False, False, {}


EXPECTED = cv2.resize(PICTURE, (32, 32), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("value", "space"),
    [
        (PICTURE, spaces.Box(0, 255, (40, 60, 3), np.uint8)),
        (PICTURE.transpose(2, 0, 1), spaces.Box(0, 255, (3, 40, 60), np.uint8)),
        ((PICTURE / 255).astype(np.float32), spaces.Box(0, 1, (40, 60, 3), np.float32)),
        (PICTURE.astype(np.int64), spaces.Box(0, 255, (40, 60, 3), np.uint8)),
        (PICTURE.astype(np.float32), spaces.Box(0, 255, (40, 60, 3), np.float32)),
        (PICTURE, spaces.Box(0, 1, (40, 60, 3), np.float32)),
        (PICTURE / 255, spaces.Box(0, 255, (40, 60, 3), np.uint8)),
        (PICTURE / 127.5 - 1, spaces.Box(-1, 1, (40, 60, 3), np.float64)),
        (PICTURE.astype(np.uint16) * 257, spaces.Box(0, 65535, (40, 60, 3), np.uint16)),
    ],
    ids=[
        "channels last",
        "channels first",
        "fractions",
        "as other integers",
        "bytes in floats",
        "bytes where fractions were said",
        "fractions where bytes were said",
        "from -1 to 1",
        "16 bits",
    ],
)
def test_colours_keep_their_place_whatever_the_order(value: np.ndarray, space: spaces.Box) -> None:
    env = Images(Shown(space, value), 32)
    seen, _ = env.reset()
    assert env.observation_space == spaces.Box(0, 255, (32, 32, 3), np.uint8) and env.observation_space.contains(seen)
    np.testing.assert_array_equal(seen, EXPECTED)
    np.testing.assert_array_equal(env.step(0)[0], EXPECTED)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (PICTURE.astype(np.int16) + 200, "pixels of an image of int16 lie between"),
        (PICTURE.astype(np.float32), r"image of float32 lie between 0 and 25\d, but they must lie between 0 and 1"),
        (np.full((40, 60, 3), np.nan), "image of float64 lie between nan and nan"),
        (np.full((40, 60, 3), -0.5), "image of float64 lie between -0.5 and -0.5"),
    ],
)
def test_a_picture_on_another_scale_is_a_fault(value: np.ndarray, says: str) -> None:
    """It would have been white."""
    with pytest.raises(EnvironmentFault, match=says):
        Images(Shown(spaces.Box(0, 255, (40, 60, 3), np.uint8), value), 32).reset()


def test_grey_is_the_luminance_and_a_grey_image_has_one_channel() -> None:
    env = Images(Shown(spaces.Box(0, 255, (40, 60, 3), np.uint8), PICTURE), 40, grey=True)
    luminance = (PICTURE.astype(float) @ [0.299, 0.587, 0.114]).round().astype(np.uint8)
    expected = cv2.resize(luminance, (40, 40), interpolation=cv2.INTER_AREA)[..., None]
    np.testing.assert_allclose(env.reset()[0].astype(int), expected.astype(int), atol=1)
    flat = Images(Shown(spaces.Box(0, 255, (40, 60), np.uint8), PICTURE[..., 0]), 20)
    assert flat.observation_space.shape == (20, 20, 1) and flat.reset()[0].shape == (20, 20, 1)


def test_an_area_is_averaged() -> None:
    checks = np.indices((32, 32)).sum(0) % 2 * 200
    env = Images(Shown(spaces.Box(0, 255, (32, 32), np.uint8), checks.astype(np.uint8)), 16)
    np.testing.assert_array_equal(env.reset()[0], np.full((16, 16, 1), 100))


def test_what_is_no_image_stays_as_it_is() -> None:
    space = spaces.Dict(
        {
            "eye": spaces.Box(0, 255, (40, 60, 3), np.uint8),
            "x": spaces.Box(-1, 1, (3,)),
            "symbols": spaces.Box(0, 10, (7, 7, 3), np.uint8),
        }
    )
    value = {"eye": PICTURE, "x": np.ones(3, np.float32), "symbols": np.ones((7, 7, 3), np.uint8)}
    env = Images(Shown(space, value), 32)
    seen, _ = env.reset()
    assert env.observation_space.contains(seen)
    assert seen["x"] is value["x"] and seen["symbols"] is value["symbols"]
    np.testing.assert_array_equal(seen["eye"], EXPECTED)


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1", "MountainCarContinuous-v0"])
def test_any_environment_that_draws_can_be_seen_instead(name: str) -> None:
    config = EnvConfig(name, num_envs=2, pixels=True, record_state=True, image_size=32)
    envs = make_vector(config)
    specs = observation_specs(envs.single_observation_space)
    assert specs["observation"].image and specs["observation"].shape == (32, 32, 3)
    first, _ = envs.reset(seed=0)
    again, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(first["observation"], again["observation"])
    assert first["observation"].std() > 1 and RecordState.key in first
    for _ in range(10):
        later, *_ = envs.step(envs.action_space.sample())
    assert (later["observation"] != first["observation"]).any()
    envs.close()


class Blind(Shown):
    """Takes a render mode, and draws nothing."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(spaces.Box(-1, 1, (2,)), np.zeros(2, np.float32))
        self.render_mode = render_mode


class Drawn(Blind):
    """Draws what it is given."""

    def __init__(self, drawn: Any, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.drawn = drawn

    def render(self) -> Any:
        return self.drawn


def pictured(drawn: Any) -> Any:
    """What a model would be shown of an environment that draws this."""
    gym.register("worldmodel/Drawn-v0", Drawn, disable_env_checker=True, kwargs={"drawn": drawn})
    env = make(EnvConfig("worldmodel/Drawn-v0", pixels=True, image_size=16))
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    return seen


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
def test_what_is_drawn_small_or_grey_is_a_picture_too() -> None:
    grey, colour = PICTURE[:16, :16, 0], PICTURE[:8, :8]
    np.testing.assert_array_equal(pictured(grey)[..., 0], grey)
    np.testing.assert_array_equal(pictured(grey / 255)[..., 0], grey)
    np.testing.assert_array_equal(pictured(colour), np.kron(colour, np.ones((2, 2, 1), np.uint8)))


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize(
    ("drawn", "says"),
    [
        (None, "must render an array .*, but .* returned NoneType"),
        ([PICTURE], "returned list"),
        (PICTURE[:0], r"returned ndarray \(0, 60, 3\)"),
        (PICTURE[..., :2], r"renders an array \(40, 60, 2\), but an image .* has 1, 3 or 4 channels"),
    ],
)
def test_what_is_drawn_and_is_no_picture_is_refused(drawn: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refusal:
        pictured(drawn)
    assert "libegl1" not in str(refusal.value)


def test_moments_are_no_channels() -> None:
    """Whatever their number: three grey ones would look like a colour picture."""
    for count in (1, 3, 4, 5):
        env = FrameStackObservation(Shown(spaces.Box(0, 255, (40, 60), np.uint8), PICTURE[..., 0]), count)
        with pytest.raises(ValueError, match="FrameStackObservation"):
            observation_specs(Images(env, 32).observation_space)


@pytest.mark.parametrize(("name", "value"), [("grey", True), ("image_size", 32)])
def test_what_is_set_of_images_where_there_are_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"env.{name} is {value}, but no observation of CartPole-v1 is an image"):
        make(EnvConfig("CartPole-v1", **{name: value}))
    make(EnvConfig("CartPole-v1", pixels=True, **{name: value}))


def test_what_draws_nothing_is_refused_with_the_reason() -> None:
    gym.register("worldmodel/Blind-v0", Blind, disable_env_checker=True)
    with pytest.raises(
        ValueError, match=r"env\.pixels: .*Blind.* cannot be rendered here .*NotImplementedError.*can be rendered$"
    ):
        make(EnvConfig("worldmodel/Blind-v0", pixels=True))
    with pytest.raises(ValueError, match=r"does not accept kwargs \{'render_mode': 'rgb_array'\}"):
        make(EnvConfig("worldmodel/Counter-v0", pixels=True))
    with pytest.raises(ValueError, match=r"render_mode: set env\.pixels instead"):
        EnvConfig(kwargs={"render_mode": "rgb_array"})
    with pytest.raises(ValueError, match="image_size must be at least 16, got 8"):
        EnvConfig(image_size=8)
    with pytest.raises(ValueError, match=r"100 x 100 pixels cannot be halved .* resize it to 32, 64, 96"):
        EnvConfig(image_size=100)
    with pytest.raises(ValueError, match="image_size must be at most 256, but it is 1,024"):
        EnvConfig(image_size=1024)
    with pytest.raises(ValueError, match="size must be at least 16 pixels, got 3"):
        Images(Shown(spaces.Box(0, 255, (40, 60), np.uint8), PICTURE[..., 0]), 3)
