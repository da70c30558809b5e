"""Images as observations: convert any size and channel order, or observe what an environment renders."""

from typing import Any

import cv2
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import FrameStackObservation

from worldmodel.envs.contract.faults import EnvironmentFault, named
from worldmodel.envs.contract.spaces import CHANNELS, SMALLEST_IMAGE, Layout, layout
from worldmodel.envs.rendering.headless import REMEDY
from worldmodel.specs import OBSERVATION, STATE

ROUNDING = 1e-3  # floats may lie outside black and white by this share of their distance


class Images(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Convert every image of an observation to (size, size, C) of uint8, with the channels last.

    An image is a Box with two dimensions of at least 16 pixels. It may have 1 or 3 channels before or behind them, or
    4 channels behind them. If the Box has one low and one high for all entries, these are black and white, and become
    0 and 255. A Box without channels is a grey image if it holds uint8, or if its bounds are 0 to 255, 0 to 65535 or,
    for floats, 0 to 1. The size is changed with OpenCV's INTER_AREA. All other entries of the observation stay
    unchanged.

    Args:
        size: pixels a side.
        grey: whether to convert colours to one channel, their luminance.
    Raises:
        ValueError: if `size` is below 16, or if several time steps are stacked in one image.
    """

    def __init__(self, env: gym.Env[Any, Any], size: int, grey: bool = False) -> None:
        if size < SMALLEST_IMAGE:
            raise ValueError(f"size must be at least {SMALLEST_IMAGE} pixels, got {size}")
        RecordConstructorArgs.__init__(self, size=size, grey=grey)
        gym.ObservationWrapper.__init__(self, env)
        self.size, self.grey = size, grey
        space = env.observation_space
        self.layouts = {key: layout(each) for key, each in named(space).items()}
        if any(self.layouts.values()) and _stacked(env):
            raise ValueError(
                f"{env.unwrapped} stacks several time steps in one image. Remove "
                "gymnasium.wrappers.FrameStackObservation: the latent state remembers earlier images"
            )
        made = {key: self._space(each, self.layouts[key]) for key, each in named(space).items()}
        self.observation_space = spaces.Dict(made) if isinstance(space, spaces.Dict) else made[OBSERVATION]

    def _space(self, space: spaces.Space[Any], told: Layout | None) -> spaces.Space[Any]:
        if told is None:
            return space
        assert space.shape is not None
        count = {"none": 1, "first": space.shape[0], "last": space.shape[-1]}[told.channels]
        return spaces.Box(0, 255, (self.size, self.size, 1 if self.grey else count), np.uint8)

    def observation(self, observation: Any) -> Any:
        made = {key: self.image(value, self.layouts.get(key)) for key, value in named(observation).items()}
        return made if isinstance(self.observation_space, spaces.Dict) else made[OBSERVATION]

    def image(self, value: Any, told: Layout | None) -> Any:
        """Return one image as the model expects it. Return the value unchanged if `told` is None.

        Raises:
            EnvironmentFault: if a pixel is darker than black or brighter than white.
        """
        if told is None:
            return value
        image = as_bytes(np.asarray(value), told)
        if told.channels == "first":
            image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        if self.grey and image.ndim == 3 and image.shape[-1] > 1:
            image = cv2.cvtColor(image[..., :3], cv2.COLOR_RGB2GRAY)
        if image.shape[:2] != (self.size, self.size):
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return image.reshape(self.size, self.size, -1)


def _stacked(env: gym.Env[Any, Any]) -> bool:
    """Return True if a wrapper around the environment stacks observations."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, FrameStackObservation):
            return True
        env = env.env
    return False


def as_bytes(image: np.ndarray, told: Layout | None = None) -> np.ndarray:
    """Scale an image so that black becomes 0 and white 255, and return it as uint8.

    Black and white are the bounds in `told`. If `told` is missing, or if it is for integers and the image holds floats
    (or vice versa), floats go from 0 to 1 and integers from 0 to 255.

    Raises:
        EnvironmentFault: if a pixel is darker than black, brighter than white, or not a number.
    """
    fractional = image.dtype == bool or np.issubdtype(image.dtype, np.floating)
    black, white = 0.0, 1.0 if fractional else 255.0
    if told is not None and told.fractional == fractional:
        black, white = told.black, told.white
    if image.dtype == np.uint8 and (black, white) == (0, 255):
        return image
    low, high, slack = image.min(), image.max(), ROUNDING * (white - black) * fractional
    if not (low >= black - slack and high <= white + slack):  # also true for NaN
        raise EnvironmentFault(
            f"the pixels of an image of {image.dtype} lie between {low:.4g} and {high:.4g}, but they must lie between "
            f"{black:g} and {white:g}"
        )
    scaled = (image.astype(np.float64) - black) * (255 / (white - black))
    return np.clip(scaled + 0.5, 0, 255).astype(np.uint8)


class NoPicture(EnvironmentFault):
    """An environment renders something that is not an image."""


def drawn(env: gym.Env[Any, Any]) -> np.ndarray:
    """Return the rendered image of an environment, (H, W, C) of uint8.

    Raises:
        NoPicture: if `render()` returns something else.
        Exception: any error that the environment raises.
    """
    frame: Any = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim not in (2, 3) or not frame.size:
        found = f"{type(frame).__name__} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise NoPicture(f"{env.unwrapped} must render an array (H, W, 3), but render() returned {found}")
    frame = np.atleast_3d(frame)
    if frame.shape[-1] not in CHANNELS:
        raise NoPicture(
            f"{env.unwrapped} renders an array {frame.shape}, but an image (H, W, C) has 1, 3 or 4 channels"
        )
    return as_bytes(frame)


def _simulated(env: gym.Env[Any, Any]) -> bool:
    """Return True if MuJoCo renders the environment."""
    return any(name in base.__module__ for base in type(env).__mro__ for name in ("mujoco", "dm_control"))


class Rendered(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Replace the observation by the rendered image, (H, W, C) of uint8, at least 16 pixels a side.

    A smaller image is enlarged by a whole factor.

    Args:
        env: an environment made with `render_mode="rgb_array"`.
        keep: whether to keep the vectors of the observation as state/KEY, for diagnosis. The model does not see them.
    Raises:
        ValueError: if the environment renders nothing.
    """

    def __init__(self, env: gym.Env[Any, Any], keep: bool = False) -> None:
        RecordConstructorArgs.__init__(self, keep=keep)
        gym.ObservationWrapper.__init__(self, env)
        env.reset()
        try:
            frame = self._picture()
        except NoPicture as error:
            raise ValueError(f"env.pixels: {error}") from error
        except Exception as error:  # simulators, drivers and window systems share no class of errors
            remedy = REMEDY if _simulated(env.unwrapped) else "choose an environment that can be rendered"
            raise ValueError(f"env.pixels: {env.unwrapped} cannot be rendered here ({error!r}): {remedy}") from error
        said = named(env.observation_space) if keep else {}
        self.kept = {key: space for key, space in said.items() if isinstance(space, spaces.Box) and not layout(space)}
        picture = spaces.Box(0, 255, frame.shape, np.uint8)
        states = {STATE + key: space for key, space in self.kept.items()}
        self.observation_space = spaces.Dict({OBSERVATION: picture, **states}) if states else picture

    def _picture(self) -> np.ndarray:
        """Return the rendered image, enlarged if it is too small."""
        frame = drawn(self.env)
        factor = -(-SMALLEST_IMAGE // min(frame.shape[:2]))
        return frame.repeat(factor, 0).repeat(factor, 1) if factor > 1 else frame

    def observation(self, observation: Any) -> Any:
        if not self.kept:
            return self._picture()
        said = named(observation)
        return {OBSERVATION: self._picture(), **{STATE + key: said[key] for key in self.kept}}
