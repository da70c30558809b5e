"""Pixels as observations: any size and channel order, and what an environment draws."""

from typing import Any

import cv2
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from envs.faults import EnvironmentFault, named
from envs.spaces import SMALLEST_IMAGE, layout
from worldmodel.spaces import OBSERVATION, STATE

ROUNDING = 1e-3  # by which fractions may exceed 1

REMEDY = (
    "choose an environment that draws; where there is no display, MuJoCo draws with the system's package libegl1 "
    "(MUJOCO_GL=egl) or libosmesa6 (MUJOCO_GL=osmesa)"
)


class Images(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Makes every image of an observation (size, size, C) uint8, C being 1 if it is to be grey and 3 or 4 if not.

    An image is a Box of uint8, or of floats from 0 to 1, with two dimensions of at least 16 pixels and, before or
    behind them, the channels. Those of another size are averaged over areas (OpenCV's INTER_AREA), channels moved last,
    fractions multiplied by 255. What is no image stays as it is.

    Args:
        size: pixels a side.
        grey: whether colours are reduced to one channel, by their luminance.
    Raises:
        ValueError: if `size` is below 16.
    """

    def __init__(self, env: gym.Env[Any, Any], size: int, grey: bool = False) -> None:
        if size < SMALLEST_IMAGE:
            raise ValueError(f"an image has at least {SMALLEST_IMAGE} pixels a side: {size}")
        RecordConstructorArgs.__init__(self, size=size, grey=grey)
        gym.ObservationWrapper.__init__(self, env)
        self.size, self.grey = size, grey
        space = env.observation_space
        self.layouts = {key: layout(each) for key, each in named(space).items()}
        made = {key: self._space(each, self.layouts[key]) for key, each in named(space).items()}
        self.observation_space = spaces.Dict(made) if isinstance(space, spaces.Dict) else made[OBSERVATION]

    def _space(self, space: spaces.Space[Any], channels: str | None) -> spaces.Space[Any]:
        if channels is None:
            return space
        assert space.shape is not None
        count = {"none": 1, "first": space.shape[0], "last": space.shape[-1]}[channels]
        return spaces.Box(0, 255, (self.size, self.size, 1 if self.grey else count), np.uint8)

    def observation(self, observation: Any) -> Any:
        made = {
            key: value if self.layouts.get(key) is None else self.image(value, self.layouts[key])
            for key, value in named(observation).items()
        }
        return made if isinstance(self.observation_space, spaces.Dict) else made[OBSERVATION]

    def image(self, image: np.ndarray, channels: str | None) -> np.ndarray:
        """One image as the model takes it.

        Raises:
            EnvironmentFault: if it is of integers beyond 0 to 255, or of fractions above 1.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8:
            image = _as_bytes(image)
        if channels == "first":
            image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        if self.grey and image.ndim == 3 and image.shape[-1] > 1:
            image = cv2.cvtColor(image[..., :3], cv2.COLOR_RGB2GRAY)
        if image.shape[:2] != (self.size, self.size):
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return image.reshape(self.size, self.size, -1)


def _as_bytes(image: np.ndarray) -> np.ndarray:
    """Integers from 0 to 255 as they are, fractions from 0 to 1 multiplied by 255."""
    fractions = image.dtype == bool or np.issubdtype(image.dtype, np.floating)
    low, high = image.min(), image.max()
    if not fractions and (low < 0 or high > 255):
        raise EnvironmentFault(f"a picture of {image.dtype} goes from {low} to {high}, and not from 0 to 255")
    if fractions and high > 1 + ROUNDING:
        raise EnvironmentFault(
            f"a picture of {image.dtype} goes up to {high:.4g}: fractions go from 0 to 1, uint8 to 255"
        )
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8) if fractions else image.astype(np.uint8)


class Rendered(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Shows what the environment draws, instead of what it says.

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
            frame = self._frame()
        except Exception as error:  # of a simulator, a driver or a window system: they have no error in common
            raise ValueError(f"env.pixels: {env.unwrapped} cannot draw here ({error!r}): {REMEDY}") from error
        said = named(env.observation_space) if keep else {}
        self.kept = {key: space for key, space in said.items() if isinstance(space, spaces.Box) and not layout(space)}
        drawn = spaces.Box(0, 255, frame.shape, np.uint8)
        states = {STATE + key: space for key, space in self.kept.items()}
        self.observation_space = spaces.Dict({OBSERVATION: drawn, **states}) if states else drawn

    def _frame(self) -> np.ndarray:
        frame: Any = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise ValueError(
                f"env.pixels: {self.env.unwrapped} draws no picture (render() gave {type(frame).__name__})"
            )
        return frame

    def observation(self, observation: Any) -> Any:
        if not self.kept:
            return self._frame()
        said = named(observation)
        return {OBSERVATION: self._frame(), **{STATE + key: said[key] for key in self.kept}}
