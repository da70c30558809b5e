"""A vector of environments in one process, which are stepped one after the other."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from worldmodel.envs.contract.infos import INFO


class SameStepVectorEnv(SyncVectorEnv[Any, Any]):
    """Gymnasium's `SyncVectorEnv` in the mode SAME_STEP, except that the infos are not merged.

    `infos[INFO]` is an array (n,) of dictionaries, one from each environment. `infos["final_obs"]` is an array (n,) of
    the last observations of episodes that ended in this step. `infos["final_info"][INFO]` is an array (n,) of their
    infos. Both are None for the other environments.

    Args:
        factories: functions that make the environments. The environments must not reuse the arrays that they return
            (see :class:`worldmodel.envs.wrappers.basic.Owned`), since these are kept while the environments are reset.
    """

    def __init__(self, factories: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        super().__init__(factories, autoreset_mode=AutoresetMode.SAME_STEP)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        infos, reached, outcomes = dict[str, Any](), [], []
        for env, action in enumerate(iterate(self.action_space, actions)):
            observation, reward, terminated, truncated, info = self.envs[env].step(action)
            outcomes.append((reward, terminated, truncated))
            if terminated or truncated:
                self._put(infos, "final_obs", observation, env)
                self._add_info(infos.setdefault("final_info", {}), info, env)
                observation, info = self.envs[env].reset()
            self._add_info(infos, info, env)
            reached.append(observation)
        space = self.single_observation_space
        observation = concatenate(space, reached, cast(Any, create_empty_array(space, self.num_envs)))
        rewards, ends, limits = (np.array(each) for each in zip(*outcomes, strict=True))
        return observation, rewards.astype(np.float64), ends, limits, infos

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        """Store an info without merging it. This overrides the method by which Gymnasium merges infos."""
        return self._put(vector_infos, INFO, env_info, env_num)

    def _put(self, infos: dict[str, Any], key: str, value: Any, env: int) -> dict[str, Any]:
        infos.setdefault(key, np.full(self.num_envs, None))[env] = value
        infos.setdefault(f"_{key}", np.zeros(self.num_envs, bool))[env] = True
        return infos
