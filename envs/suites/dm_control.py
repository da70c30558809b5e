"""Tasks of the DeepMind Control Suite (Tassa et al. 2018) as Gymnasium environments. Needs the extra `dmc`."""

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.envs.rendering.headless import REMEDY
from worldmodel.envs.suites.names import unknown

PREFIX = "dmc:"


class DMControl(gym.Env[Any, Any]):
    """A task of the suite, such as "cartpole_swingup", with a dictionary of vectors as observation.

    Actions lie within the bounds of the task. An episode is truncated after the time limit of the task (mostly 1,000
    frames), unless `endless` is set. It terminates only where the task returns the discount 0.

    Raises:
        ValueError: if dm_control is not installed, or if it has no such task.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - declared as in Gymnasium

    def __init__(
        self, task: str, render_mode: str | None = None, size: int = 64, camera: int = 0, endless: bool = False
    ) -> None:
        suite = _suite()
        known = {f"{domain}_{name}": (domain, name) for domain, name in suite.ALL_TASKS}
        if task not in known:
            raise ValueError(unknown("dm_control", "task", task, known))
        self.suite_env = suite.load(*known[task], task_kwargs={"time_limit": np.inf} if endless else None)
        self.render_mode, self.size, self.camera = render_mode, size, camera
        self.observation_space = spaces.Dict(
            {
                key: spaces.Box(-np.inf, np.inf, (int(np.prod(value.shape)),), np.float32)
                for key, value in self.suite_env.observation_spec().items()
            }
        )
        action = self.suite_env.action_spec()
        self.action_space = spaces.Box(action.minimum.astype(np.float32), action.maximum.astype(np.float32))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.suite_env.task.random.seed(seed % 2**32)
        return self._observation(self.suite_env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        step = self.suite_env.step(np.asarray(action, np.float64))
        terminated = bool(step.last() and step.discount == 0)
        return self._observation(step.observation), float(step.reward), terminated, step.last() and not terminated, {}

    def _observation(self, named: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {key: np.asarray(value, np.float32).ravel() for key, value in named.items()}

    def state_vector(self) -> np.ndarray:
        """Return the positions, velocities and activations of the simulator."""
        return self.suite_env.physics.get_state()

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Return an image (size, size, 3) of uint8."""
        return self.suite_env.physics.render(self.size, self.size, camera_id=self.camera)

    def close(self) -> None:
        self.suite_env.close()


def _suite() -> Any:
    """Import `dm_control.suite`; see :func:`worldmodel.envs.rendering.headless.draw_without_display`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about a missing display, which is not needed
            from dm_control import suite
    except ImportError as error:
        raise ValueError(f"{PREFIX} tasks need dm_control: pip install 'worldmodel[dmc]' ({error})") from error
    except AttributeError as error:  # EGL or OSMesa is missing
        raise ValueError(f"dm_control finds no library to draw with ({error}): {REMEDY}") from error
    return suite
