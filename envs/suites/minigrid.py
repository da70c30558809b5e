"""MiniGrid (Chevalier-Boisvert et al. 2023), under its own ids. Needs the extra `minigrid`.

The observation consists of categories: an object, a colour and a state in each of 7 x 7 cells. They must not be used
as real numbers, since their order has no meaning.
"""

import sys
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

PARTS = ("object", "colour", "state")  # the last dimension of the image, in this order
MISSION = "mission"
MOST = 10_000  # the largest number of missions that are listed


class Symbols(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Convert {"image": (7, 7, 3), "direction", "mission"} to discrete variables "object", "colour", "state" (7, 7).

    The direction stays as it is. A mission that is always the same is dropped. In a mission such as "go to the red
    door", each word that can differ becomes one discrete variable.

    Raises:
        ValueError: if the missions are free sentences, as in BabyAI.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

        given: Any = env.observation_space
        cells = given["image"].shape[:2]
        counts = (len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX))
        made: dict[str, spaces.Space[Any]] = {
            part: spaces.MultiDiscrete(np.full(cells, count)) for part, count in zip(PARTS, counts, strict=True)
        }
        made["direction"] = given["direction"]
        self.missions = missions(env)
        if self.missions:
            words = 1 + np.max(list(self.missions.values()), 0)
            made[MISSION] = spaces.MultiDiscrete(words)
        self.observation_space = spaces.Dict(made)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        image = observation["image"].astype(np.int64)
        seen = {part: image[..., i] for i, part in enumerate(PARTS)}
        seen["direction"] = np.int64(observation["direction"])
        if self.missions:
            seen[MISSION] = np.array(self.missions[observation[MISSION]])
        return seen


def missions(env: gym.Env[Any, Any]) -> dict[str, tuple[int, ...]]:
    """Return {mission: indices of the words that can differ}; an empty dictionary if there is only one mission.

    Raises:
        ValueError: if the missions cannot be listed.
    """
    space: Any = env.observation_space[MISSION]  # type: ignore[index]
    from minigrid.core.mission import MissionSpace

    words = space.ordered_placeholders or []
    if type(space) is not MissionSpace or np.prod([len(each) for each in words]) > MOST:
        raise ValueError(
            f"the missions of {env.unwrapped} are sentences that cannot be listed. Use a MiniGrid- environment, encode "
            "the missions in your own gymnasium.ObservationWrapper, or set env.pixels, which does not show the mission"
        )
    places = [place for place, each in enumerate(words) if len(each) > 1]
    if not places:
        return {}
    chosen = product(*(range(len(each)) for each in words))
    return {
        space.mission_func(*(each[i] for each, i in zip(words, which, strict=True))): tuple(which[p] for p in places)
        for which in chosen
    }


def symbolic(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Wrap an environment that is a `MiniGridEnv` in :class:`Symbols`; return any other environment unchanged.

    An environment is also returned unchanged if a wrapper has changed its observation space.
    """
    home = sys.modules.get("minigrid.minigrid_env")
    mine = home is not None and isinstance(env.unwrapped, home.MiniGridEnv)
    return Symbols(env) if mine and env.observation_space is env.unwrapped.observation_space else env
