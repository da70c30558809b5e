"""The wrappers that Gymnasium lacks."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from envs.faults import REWARD, EnvironmentFault, blamed, end_fault, info_fault, named, observation_fault, reward_fault
from envs.spaces import observation_specs
from worldmodel.spaces import STATE

FRAMES = "worldmodel/frames"
"""The key of `info` under which a wrapper reports the frames of a step; a name that no environment has for another."""


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Takes each action `repeat` times and sums the rewards; stops where the episode ends.

    `info[FRAMES]` holds the number of times it was really taken, or the sum of the frames that the environment reports.
    """

    def __init__(self, env: gym.Env[Any, Any], repeat: int) -> None:
        if repeat < 1:
            raise ValueError(f"action repeat must be at least 1, got {repeat}")
        RecordConstructorArgs.__init__(self, repeat=repeat)
        gym.Wrapper.__init__(self, env)
        self.repeat = repeat

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total, frames = 0.0, 0
        for _ in range(self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            frames += info.get(FRAMES, 1)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, {**info, FRAMES: frames}


class RecordState(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Shows the simulator's own state beside the observation, under :attr:`key`, for diagnosis: no model sees it.

    It is `env.unwrapped.state`, as classic control has it, or `env.unwrapped.state_vector()`, as MuJoCo does. An
    environment of one's own can give more by itself, under any keys of its Dict space that begin with
    `worldmodel.spaces.STATE`.

    Raises:
        ValueError: if it has neither.
    """

    key = STATE + "simulator"

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        env.reset()  # before the first one most have no state
        box = spaces.Box(-np.inf, np.inf, self._state().shape, np.float64)
        space = env.observation_space
        self.observation_space = spaces.Dict({**named(space), self.key: box})

    def _state(self) -> np.ndarray:
        simulator: Any = self.unwrapped
        state = simulator.state_vector() if hasattr(simulator, "state_vector") else getattr(simulator, "state", "none")
        try:
            return np.asarray(state, np.float64).ravel()
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"env.record_state: {simulator} has no numbers in `state` and no `state_vector()`: leave it out, or "
                f"give the state as an observation key that begins with '{STATE}'"
            ) from error

    def _with_state(self, observation: Any) -> dict[str, Any]:
        return {**named(observation), self.key: self._state()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_state(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_state(observation), reward, terminated, truncated, info


class CheckContract(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Checks what comes back before a vector environment stacks it, where the culprit can still be named.

    Args:
        env: whose observation space is the truth.
        index: of the environment in its vector environment.
    Raises:
        EnvironmentFault: at an observation that is not of the space, a reward that is no finite number, an end that is
            neither true nor false, an info that is no dictionary; it says at which step of the episode.
    """

    def __init__(self, env: gym.Env[Any, Any], index: int = 0) -> None:
        RecordConstructorArgs.__init__(self, index=index)
        gym.Wrapper.__init__(self, env)
        self.index = index
        self.steps = 0
        self.specs = observation_specs(env.observation_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        observation, info = self.env.reset(seed=seed, options=options)
        self._check(observation, info_fault(info))
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._check(observation, info_fault(info) or end_fault(terminated, truncated))
        problem = reward_fault(reward)
        if problem:
            raise blamed(REWARD, problem, self.index, self.steps)
        return observation, reward, bool(terminated), bool(truncated), info

    def _check(self, observation: Any, other: str | None) -> None:
        fault = observation_fault(self.specs, observation)
        if fault:
            raise blamed(*fault, self.index, self.steps)
        if other:
            raise EnvironmentFault(f"{other}, in environment {self.index} at step {self.steps}")
