"""Pixels as observations: any size and channel order, and what an environment draws."""

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

ROUNDING = 1e-3  # of what lies between black and white: by so much may fractions lie outside


class Images(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Makes every image of an observation (size, size, C) uint8, C being 1 if it is to be grey and 3 or 4 if not.

    An image is a Box with two dimensions of at least 16 pixels and, before or behind them, 1 or 3 channels, or behind
    them 4; one low and one high for all of it are its black and white, which become 0 and 255. Without channels it is
    grey, if it is of uint8 or goes from 0 to 255, to 65535 or, in floats, to 1. Those of another size are averaged over
    areas (OpenCV's INTER_AREA), channels moved last. What is no image stays as it is.

    Args:
        size: pixels a side.
        grey: whether colours are reduced to one channel, by their luminance.
    Raises:
        ValueError: if `size` is below 16, or several moments are shown as the channels of one image.
    """

    def __init__(self, env: gym.Env[Any, Any], size: int, grey: bool = False) -> None:
        if size < SMALLEST_IMAGE:
            raise ValueError(f"an image has at least {SMALLEST_IMAGE} pixels a side: {size}")
        RecordConstructorArgs.__init__(self, size=size, grey=grey)
        gym.ObservationWrapper.__init__(self, env)
        self.size, self.grey = size, grey
        space = env.observation_space
        self.layouts = {key: layout(each) for key, each in named(space).items()}
        if any(self.layouts.values()) and _stacked(env):
            raise ValueError(
                f"{env.unwrapped} shows several moments as one image: leave gymnasium.wrappers.FrameStackObservation "
                "out (the latent state remembers)"
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
        """One image as the model takes it; what is told to be none, as it is.

        Raises:
            EnvironmentFault: if it is darker than black or brighter than white.
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
    """Whether one of the wrappers around an environment stacks its observations."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, FrameStackObservation):
            return True
        env = env.env
    return False


def as_bytes(image: np.ndarray, told: Layout | None = None) -> np.ndarray:
    """Black becomes 0 and white 255, which floats and integers have where their space says.

    Where it speaks of the other kind, or nobody says, floats go from 0 to 1 and integers from 0 to 255.
    """
    fractional = image.dtype == bool or np.issubdtype(image.dtype, np.floating)
    black, white = 0.0, 1.0 if fractional else 255.0
    if told is not None and told.fractional == fractional:
        black, white = told.black, told.white
    if image.dtype == np.uint8 and (black, white) == (0, 255):
        return image
    low, high, slack = image.min(), image.max(), ROUNDING * (white - black) * fractional
    if not (low >= black - slack and high <= white + slack):  # nor is it not a number
        raise EnvironmentFault(
            f"a picture of {image.dtype} goes from {low:.4g} to {high:.4g}, and not from {black:g} to {white:g}"
        )
    scaled = (image.astype(np.float64) - black) * (255 / (white - black))
    return np.clip(scaled + 0.5, 0, 255).astype(np.uint8)


class NoPicture(EnvironmentFault):
    """What an environment draws is no picture."""


def drawn(env: gym.Env[Any, Any]) -> np.ndarray:
    """(H, W, C) of uint8: what an environment draws, whatever numbers that is told in.

    Raises:
        NoPicture: if it is none. And what the environment raises.
    """
    frame: Any = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim not in (2, 3) or not frame.size:
        found = f"{type(frame).__name__} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise NoPicture(f"{env.unwrapped} draws no picture, an array (H, W, 3): it drew {found}")
    frame = np.atleast_3d(frame)
    if frame.shape[-1] not in CHANNELS:
        raise NoPicture(f"{env.unwrapped} draws {frame.shape}: a picture (H, W, C) has 1, 3 or 4 channels")
    return as_bytes(frame)


def _simulated(env: gym.Env[Any, Any]) -> bool:
    """Whether it is MuJoCo that would have to draw an environment."""
    return any(name in base.__module__ for base in type(env).__mro__ for name in ("mujoco", "dm_control"))


class Rendered(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Shows what the environment draws, instead of what it says: (H, W, C) of uint8, at least 16 pixels a side.

    A smaller picture is enlarged by a whole factor.

    Args:
        env: made with `render_mode="rgb_array"`.
        keep: whether the vectors that it says are recorded beside, as state/KEY, for diagnosis: no model sees them.
    Raises:
        ValueError: if it draws nothing.
    """

    def __init__(self, env: gym.Env[Any, Any], keep: bool = False) -> None:
        RecordConstructorArgs.__init__(self, keep=keep)
        gym.ObservationWrapper.__init__(self, env)
        env.reset()
        try:
            frame = self._picture()
        except NoPicture as error:
            raise ValueError(f"env.pixels: {error}") from error
        except Exception as error:  # of a simulator, a driver or a window system: they have no error in common
            remedy = REMEDY if _simulated(env.unwrapped) else "choose an environment that draws"
            raise ValueError(f"env.pixels: {env.unwrapped} cannot draw here ({error!r}): {remedy}") from error
        said = named(env.observation_space) if keep else {}
        self.kept = {key: space for key, space in said.items() if isinstance(space, spaces.Box) and not layout(space)}
        picture = spaces.Box(0, 255, frame.shape, np.uint8)
        states = {STATE + key: space for key, space in self.kept.items()}
        self.observation_space = spaces.Dict({OBSERVATION: picture, **states}) if states else picture

    def _picture(self) -> np.ndarray:
        """Large enough to be an image."""
        frame = drawn(self.env)
        factor = -(-SMALLEST_IMAGE // min(frame.shape[:2]))
        return frame.repeat(factor, 0).repeat(factor, 1) if factor > 1 else frame

    def observation(self, observation: Any) -> Any:
        if not self.kept:
            return self._picture()
        said = named(observation)
        return {OBSERVATION: self._picture(), **{STATE + key: said[key] for key in self.kept}}
