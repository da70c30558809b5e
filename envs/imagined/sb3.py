"""The learned model as a Stable-Baselines3 `VecEnv`: any of its algorithms learns inside the dream."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from worldmodel.envs.imagined.vector import ImaginedVectorEnv


def first_action(space: spaces.Space[Any]) -> Any:
    """What discrete actions begin with; None where that is 0 anyway."""
    first = getattr(space, "start", None)
    return first if first is not None and np.any(first) else None


def counted_from_0(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The same choices, of which the first is 0."""
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    return spaces.MultiDiscrete(space.nvec) if isinstance(space, spaces.MultiDiscrete) else space


class ImaginedVecEnv(VecEnv):
    """Steps all imagined episodes in one batch, with the contract of Stable-Baselines3.

    Episodes that end are reset in the same step; `infos` then holds `terminal_observation`, and `TimeLimit.truncated`
    says that it was the horizon, so that an algorithm bootstraps from there. All episodes share one environment:
    attributes are those of it, the same for every index. Discrete actions are counted from 0, as Stable-Baselines3
    takes them to be, whatever the environment's own begin with.

    Args:
        envs: in Gymnasium's SAME_STEP mode.
    Raises:
        ValueError: if it has another mode.

    Example:
        model = SAC("MlpPolicy", ImaginedVecEnv(ImaginedVectorEnv(world_model, action_space, begin, 64)))
    """

    def __init__(self, envs: ImaginedVectorEnv) -> None:
        if envs.mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"autoreset_mode must be SAME_STEP, as Stable-Baselines3 resets: {envs.mode}")
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
        """Of all episodes: an attribute of one alone there is not.

        Raises:
            ValueError: if `indices` leaves some out.
        """
        if len(list(self._get_indices(indices))) < self.num_envs:
            raise ValueError(f"imagined episodes share their attributes: set '{attr_name}' for all of them")
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Called once; every index is answered with the result."""
        result = getattr(self.envs, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.envs.render() or [None] * self.num_envs
