"""The learned model as a `VecEnv` of Stable-Baselines3, so that all its algorithms can learn in imagination."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from worldmodel.envs.imagined.vector import ImaginedVectorEnv


def first_action(space: spaces.Space[Any]) -> Any:
    """Return the first of the discrete actions, or None if it is 0 or the actions are continuous."""
    first = getattr(space, "start", None)
    return first if first is not None and np.any(first) else None


def counted_from_0(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return an action space with the same number of discrete actions, counted from 0."""
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    return spaces.MultiDiscrete(space.nvec) if isinstance(space, spaces.MultiDiscrete) else space


class ImaginedVecEnv(VecEnv):
    """Steps all imagined episodes in one batch, behind the interface of Stable-Baselines3.

    An episode that ends is reset in the same step. `infos` then holds `terminal_observation`. `TimeLimit.truncated` is
    True if the episode reached the horizon, so that an algorithm bootstraps from its last state. All episodes share
    one environment, so an attribute has the same value for every index. Discrete actions are counted from 0, as
    Stable-Baselines3 expects, also if those of the real environment begin with another number.

    Args:
        envs: the imagined episodes, in Gymnasium's SAME_STEP mode.
    Raises:
        ValueError: if `envs` has another autoreset mode.

    Example:
        model = SAC("MlpPolicy", ImaginedVecEnv(ImaginedVectorEnv(world_model, action_space, begin, 64)))
    """

    def __init__(self, envs: ImaginedVectorEnv) -> None:
        if envs.mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"autoreset_mode must be SAME_STEP for Stable-Baselines3, got {envs.mode}")
        self.envs = envs
        self.actions: np.ndarray | None = None
        self.first = first_action(envs.single_action_space)
        super().__init__(envs.num_envs, envs.single_observation_space, counted_from_0(envs.single_action_space))

    def reset(self) -> VecEnvObs:
        seeds = [seed for seed in self._seeds if seed is not None]
        observation, _ = self.envs.reset(seed=seeds or None)  # type: ignore[arg-type]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        actions = self.actions if self.first is None else np.asarray(self.actions) + self.first
        observation, reward, terminated, truncated, ended = self.envs.step(actions)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        done = terminated | truncated
        for env in np.flatnonzero(done):
            infos[env]["terminal_observation"] = ended["final_obs"][env]
            infos[env]["TimeLimit.truncated"] = bool(truncated[env] and not terminated[env])
            self.reset_infos[env] = {}
        return observation, reward.astype(np.float32), done, infos

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all episodes.

        Raises:
            ValueError: if `indices` does not contain all episodes, which share their attributes.
        """
        if len(list(self._get_indices(indices))) < self.num_envs:
            raise ValueError(f"imagined episodes share their attributes: set '{attr_name}' for all of them")
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method once, and return its result for every index."""
        result = getattr(self.envs, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.envs.render() or [None] * self.num_envs
