"""Small wrappers that Gymnasium does not have."""

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
"""The key of `info` with the number of frames of a step. The prefix avoids a clash with keys of environments."""


class Keyed(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Convert observations that are tuples to dictionaries with the keys "0", "1", ..."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = as_dict(env.observation_space)

    def observation(self, observation: Any) -> Any:
        return keyed({}, observation)


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Repeat each action `repeat` times, or until the episode ends, and sum the rewards.

    `info[FRAMES]` is the number of repetitions, or the sum of the frames that the environment reports.
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
    """Add the state of the simulator to the observation, under :attr:`key`. It is for diagnosis; no model sees it.

    The state is `env.unwrapped.state` (classic control) or `env.unwrapped.state_vector()` (MuJoCo). Your own
    environment can return more states, under keys of its Dict space that begin with `worldmodel.specs.STATE`.

    Raises:
        ValueError: if the environment has neither of the two.
    """

    key = STATE + "simulator"

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        env.reset()  # most environments have no state before the first reset
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
                f"env.record_state: {simulator} has no numeric `state` and no `state_vector()`. Remove the setting, or "
                f"return the state under an observation key that begins with '{STATE}'"
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
    """Return a number, or the only entry of an array, as a float; return any other value unchanged."""
    number = one_number(value)
    return value if number is None else number


def as_flag(value: Any) -> Any:
    """Return a flag, or the only entry of an array, as a bool; return any other value unchanged."""
    number = one_number(value)
    return value if number is None else bool(number)


def kept_info(info: Any) -> Any:
    """Copy an info, since an environment may reuse the same dictionary or the same array of one entry."""
    if not info or not isinstance(info, dict):
        return {} if isinstance(info, dict) else info
    return {
        key: value.copy() if isinstance(value, np.ndarray) and value.size == 1 else value for key, value in info.items()
    }


class Owned(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Copy what an environment returns, since it may reuse the same arrays and dictionaries in the next call.

    A reward or a flag that is an array of one entry is converted to a number or a bool.
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
    """Check the results of an environment before a vector environment stacks them, so that an error can name it.

    The results are copies, as with :class:`Owned`, with the dtypes of the observation space. Tuples are converted to
    dictionaries with the keys "0", "1", ...

    Args:
        env: the environment, whose observation space counts as correct.
        index: the index of the environment in its vector environment.
    Raises:
        EnvironmentFault: if an observation does not fit the space, a reward is not a finite number, a flag is not True
            or False, or an info is not a dictionary. The message names the step of the episode.
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
        """Check an observation, and return it as new arrays."""
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
        return seen if whole else seen[OBSERVATION][()]  # [()] turns an array without dimensions into a scalar
