"""The wrappers that Gymnasium lacks."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from worldmodel.envs.contract.faults import (
    REWARD,
    EnvironmentFault,
    blamed,
    end_fault,
    info_fault,
    lost,
    named,
    one_number,
    reward_fault,
    structure_fault,
    value_faults,
)
from worldmodel.envs.contract.spaces import as_dict, observation_specs
from worldmodel.specs import OBSERVATION, STATE, encode_observation, keyed

FRAMES = "worldmodel/frames"
"""The key of `info` under which a wrapper reports the frames of a step; a name that no environment has for another."""


class Keyed(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Observations that are tuples as dictionaries with the keys "0", "1", ..."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = as_dict(env.observation_space)

    def observation(self, observation: Any) -> Any:
        return keyed({}, observation)


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
            problem = info_fault(info) or end_fault(terminated, truncated)
            if problem is None and (problem := reward_fault(reward)) is not None:
                problem = f"{REWARD} {problem}"
            if problem is not None:
                raise EnvironmentFault(problem)
            terminated, truncated = as_flag(terminated), as_flag(truncated)
            total += as_number(reward)
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


def as_number(value: Any) -> Any:
    """A value that is one number, or an array that holds one, as a float; any other as it is."""
    number = one_number(value)
    return value if number is None else number


def as_flag(value: Any) -> Any:
    """A value that is one truth value, or an array that holds one, as a bool; any other as it is."""
    number = one_number(value)
    return value if number is None else bool(number)


def kept_info(info: Any) -> Any:
    """An info that stays as it is when its environment fills the same dictionary, or the same small array, again."""
    if not info or not isinstance(info, dict):
        return {} if isinstance(info, dict) else info
    return {
        key: value.copy() if isinstance(value, np.ndarray) and value.size == 1 else value for key, value in info.items()
    }


class Owned(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """What an environment returns, to keep: it may fill the same array or dictionary again in its next call.

    Observations are copied. A reward, or the end of an episode, that comes as an array of one number is that number.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return deepcopy(observation), kept_info(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        ends = as_flag(terminated), as_flag(truncated)
        return deepcopy(observation), as_number(reward), *ends, kept_info(info)


class CheckContract(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Checks what comes back before a vector environment stacks it, where the culprit can still be named.

    What it gives on is to keep, as with :class:`Owned`, and of the dtypes of the observation space; tuples are
    dictionaries with the keys "0", "1", ...

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
        self.observation_space = as_dict(env.observation_space)
        self.specs = observation_specs(self.observation_space)
        self.dtypes = {key: np.dtype(space.dtype) for key, space in named(self.observation_space).items()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        observation, info = self.env.reset(seed=seed, options=options)
        return self._checked(observation, info_fault(info)), kept_info(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        seen = self._checked(observation, info_fault(info) or end_fault(terminated, truncated))
        problem = reward_fault(reward)
        if problem:
            raise blamed(REWARD, problem, self.index, self.steps)
        return seen, as_number(reward), as_flag(terminated), as_flag(truncated), kept_info(info)

    def _checked(self, observation: Any, other: str | None) -> Any:
        """The observation as arrays of its own."""
        fault = structure_fault(self.specs, observation)
        if fault:
            raise blamed(*fault, self.index, self.steps)
        seen, values = dict[str, Any](), keyed(self.specs, observation)
        for key, dtype in self.dtypes.items():
            value = np.array(values[key])
            if value.dtype != dtype:
                if (problem := lost(value, dtype)) is not None:
                    raise blamed(key, problem, self.index, self.steps)
                with np.errstate(over="ignore"):
                    value = value.astype(dtype)
            seen[key] = value
        encoded = encode_observation(self.specs, {key: value[None] for key, value in seen.items()})
        if faults := value_faults(self.specs, encoded):
            raise blamed(*faults[0], self.index, self.steps)
        if other:
            raise EnvironmentFault(f"{other}, in environment {self.index} at step {self.steps}")
        whole = isinstance(self.observation_space, spaces.Dict)
        return seen if whole else seen[OBSERVATION][()]  # of no dimension a number, as its space samples it
