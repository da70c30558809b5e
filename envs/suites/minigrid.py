"""MiniGrid (Chevalier-Boisvert et al. 2023), of which the ids are its own. Needs the extra `minigrid`.

What it shows is made of categories: an object, a colour and a state in each of 7 x 7 cells. As numbers they would say
that a door lies between a floor and a key.
"""

import sys
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

PARTS = ("object", "colour", "state")  # of a cell, in the order of its last dimension
MISSION = "mission"
MOST = 10_000  # missions that are told apart by the words that differ


class Symbols(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """{"image": (7, 7, 3), "direction", "mission"} -> discrete variables, under "object", "colour", "state" (7, 7).

    A mission that is always the same is left out. One with words that differ, "go to the red door", becomes one
    variable for each of them.

    Raises:
        ValueError: if the missions are sentences of any kind, as BabyAI's are.
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
    """{mission: which of the words stands in each place where several can}; empty where there is but one mission.

    Raises:
        ValueError: if they cannot be listed.
    """
    space: Any = env.observation_space[MISSION]  # type: ignore[index]
    from minigrid.core.mission import MissionSpace

    words = space.ordered_placeholders or []
    if type(space) is not MissionSpace or np.prod([len(each) for each in words]) > MOST:
        raise ValueError(
            f"the missions of {env.unwrapped} are sentences that cannot be listed: take a MiniGrid- environment, wrap "
            "it in a gymnasium.ObservationWrapper of your own that encodes them, or set env.pixels, where the mission "
            "is not seen"
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
    """An environment of MiniGrid's, or of one's own made of its parts, in symbols; any other as it is.

    So is one of which a wrapper has changed what is observed.
    """
    home = sys.modules.get("minigrid.minigrid_env")
    mine = home is not None and isinstance(env.unwrapped, home.MiniGridEnv)
    return Symbols(env) if mine and env.observation_space is env.unwrapped.observation_space else env
