"""Small environments to record: one with a dictionary observation, one that breaks its contract on request."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.types import TimeStep


class DictCounter(gym.Env[Any, Any]):
    """Counts steps as a vector "x" and, modulo 3 and from 5 on, as a category "phase"; terminates after `length`."""

    def __init__(self, length: int = 3, offset: float = 0.0) -> None:
        self.length, self.offset, self.time = length, offset, 0
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict({"x": box, "phase": spaces.Discrete(3, start=5)})
        self.action_space = spaces.Discrete(2)

    def observe(self) -> Any:
        x = np.array([self.offset + self.time, -self.time], np.float32)
        return {"x": x, "phase": np.int64(5 + self.time % 3)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.observe(), 1.0, self.time == self.length, False, {}


class Faulty(DictCounter):
    """Breaks its contract in the way `what` at time `at` of each episode."""

    def __init__(self, what: str, at: int, length: int = 3) -> None:
        super().__init__(length)
        self.what, self.at = what, at

    def observe(self) -> Any:
        observation = super().observe()
        if self.time == self.at:
            broken = {
                "nan": {"x": np.array([0, np.nan], np.float32)},
                "overflow": {"x": np.array([0, 1e300])},
                "shape": {"x": np.zeros(3, np.float32)},
                "category": {"phase": np.int64(8)},
                "extra": {"y": np.zeros(1)},
                "text": {"x": np.array(["a", "b"])},
            }
            observation |= broken.get(self.what, {})
            if self.what == "missing":
                del observation["x"]
        return observation

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        if self.time == self.at:
            reward = {"reward": np.nan, "reward overflow": 1e300, "reward shape": np.ones(2)}.get(self.what, reward)
        return observation, reward, *rest


class Rows:
    """A sink that keeps the rows of each environment, and checks that a call never repeats one."""

    def __init__(self) -> None:
        self.of: dict[int, list[TimeStep]] = {}

    def add(self, rows: TimeStep, envs: np.ndarray) -> None:
        assert len(set(envs.tolist())) == len(envs) > 0
        for i, env in enumerate(envs.tolist()):
            obs = {key: values[i] for key, values in rows.obs.items()}
            self.of.setdefault(env, []).append(TimeStep(obs, *(field[i] for field in rows[1:])))


@pytest.fixture
def dict_counter() -> type[DictCounter]:
    return DictCounter


@pytest.fixture
def faulty() -> Callable[..., Faulty]:
    return Faulty


@pytest.fixture
def rows() -> Rows:
    return Rows()
