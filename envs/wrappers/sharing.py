"""Check whether two environments in one process affect each other, because their simulator has global state."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.envs.contract.faults import FAULT, EnvironmentFault, named

STEPS = 5  # steps of each test episode


def disturbed(env: gym.Env[Any, Any], other: gym.Env[Any, Any], seeds: tuple[int, int]) -> bool:
    """Return True if the results of `env` depend on what `other` does in the meantime.

    The same few steps are taken three times: twice alone, and once with an episode of `other` begun in between. If the
    first two results already differ, or if an environment fails, the question cannot be decided: return False.

    Args:
        seeds: the reset seeds of the two environments.
    """
    space = copy.deepcopy(env.action_space)
    space.seed(seeds[0])
    actions = [space.sample() for _ in range(STEPS)]
    try:
        alone, again = (_played(env, seeds[0], actions) for _ in range(2))
        if not _equal(alone, again):
            return False
        return not _equal(alone, _played(env, seeds[0], actions, lambda: _played(other, seeds[1], actions[:1])))
    except EnvironmentFault:
        return False


def _played(
    env: gym.Env[Any, Any], seed: int, actions: list[Any], meanwhile: Callable[[], Any] = lambda: None
) -> list[Mapping[str, Any]]:
    """Play the beginning of an episode, and return the observations, rewards and flags.

    Args:
        meanwhile: a function that is called after the reset.
    Raises:
        EnvironmentFault: if the environment failed and was replaced.
    """
    observation, info = env.reset(seed=seed)
    shown: list[Mapping[str, Any]] = [copy.deepcopy(named(observation))]
    meanwhile()
    for action in actions:
        if FAULT in info:
            break
        observation, reward, terminated, truncated, info = env.step(action)
        shown += [copy.deepcopy(named(observation)), {"": (reward, terminated, truncated)}]
        if terminated or truncated:
            break
    if FAULT in info:
        raise EnvironmentFault(str(info[FAULT]))
    return shown


def _equal(some: list[Mapping[str, Any]], others: list[Mapping[str, Any]]) -> bool:
    if len(some) != len(others):
        return False
    pairs = zip(some, others, strict=True)
    return all(np.array_equal(value, other[key]) for one, other in pairs for key, value in one.items())
