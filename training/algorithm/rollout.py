"""What a callback of Stable-Baselines3 sees of the environments of a run."""

import time
from collections import deque
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from worldmodel.training.evaluation.evaluation import SUCCESS_KEY
from worldmodel.training.loop.collector import Collector
from worldmodel.training.loop.record import RECENT


class Lent(DummyVecEnv):
    """Environments that belong to someone else. `used` says whether they were stepped or reset here."""

    used = False

    def reset(self) -> VecEnvObs:
        self.used = True
        return super().reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.used = True
        super().step_async(actions)


class Rollout:
    """The last step of the environments in the form of Stable-Baselines3, and a memory of the last episodes."""

    def __init__(self) -> None:
        self.born = time.monotonic()
        self.episodes: deque[dict[str, float]] = deque(maxlen=RECENT)  # return, length and time of the last episodes
        self.successes: deque[Any] = deque(maxlen=RECENT)  # what they reported as their success
        self.env: VecEnv | None = None

    def lend(self, collector: Collector) -> VecEnv:
        """Return the environments of a collector as a `VecEnv`."""
        if self.env is None:
            vector = collector.vector
            self.env = Lent([lambda env=env: env for env in vector.envs])  # type: ignore[misc]
        return self.env

    def begin_what_was_used(self, collector: Collector) -> None:
        """Begin new episodes if someone else has stepped the environments, as in an evaluation."""
        if isinstance(self.env, Lent) and self.env.used:
            collector.begin_episodes()
            self.env.used = False

    def clear(self) -> None:
        """Forget the last episodes."""
        self.episodes.clear()
        self.successes.clear()

    def step(self, collector: Collector) -> dict[str, Any]:
        """Remember the episodes that ended in the last step; return the step as the locals of an algorithm."""
        infos, dones = self._infos(collector), collector.start.copy()
        self.episodes.extend(info["episode"] for info in infos if "episode" in info)
        ended = (info for info, done in zip(infos, dones, strict=True) if done)
        self.successes.extend(info[SUCCESS_KEY] for info in ended if info.get(SUCCESS_KEY) is not None)
        now = {"infos": infos, "actions": collector.actions, "rewards": collector.reward, "dones": dones}
        return {**now, "new_obs": collector.observation}

    def _infos(self, collector: Collector) -> list[dict[str, Any]]:
        """Return the info of each environment, with the entries that Stable-Baselines3 adds."""
        limited = collector.limited.tolist()
        infos = [{**env.said, "TimeLimit.truncated": limited[i]} for i, env in enumerate(collector.lent)]
        for env in np.flatnonzero(collector.start):
            infos[env]["terminal_observation"] = collector.finals[env]
        for episode in collector.ended:
            seconds = round(time.monotonic() - self.born, 6)
            infos[episode.env]["episode"] = {"r": round(episode.total_reward, 6), "l": episode.length, "t": seconds}
        return infos


def one_callback(callback: MaybeCallback) -> BaseCallback:
    """Return None, a function, a callback or a list of callbacks as one callback."""
    several = CallbackList(callback) if isinstance(callback, list) else callback
    return several if isinstance(several, BaseCallback) else ConvertCallback(several)
