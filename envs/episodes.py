"""Episodes that can be played again: each begins from a seed of its own."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs


class RepeatableEpisodes(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Seeds every episode by its number, and remembers its actions: what a run needs to go on in the middle of one.

    A reset without a seed begins the next episode of the last seed that was given. An environment that depends on its
    seed and its actions alone can then be brought back to any step of it.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.seed, self.episode = int(np.random.SeedSequence().generate_state(1)[0]), -1
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.seed, self.episode = int(seed), -1
        self.episode += 1
        return self._begin(options)

    def _begin(self, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.actions = []
        return self.env.reset(seed=episode_seed(self.seed, self.episode), options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        return self.env.step(action)

    def position(self) -> dict[str, Any]:
        """Where it stands, as numbers and an array (t, *shape) of the actions since the reset."""
        return {"seed": self.seed, "episode": self.episode, "actions": np.array(self.actions)}

    def go_to(self, position: Mapping[str, Any]) -> Any:
        """Play an episode again up to where :meth:`position` was asked; the observation there.

        Where the environment does not repeat itself it is another one, and that of the end if it ends before.
        """
        self.seed, self.episode = position["seed"], position["episode"]
        observation, _ = self._begin()
        for action in position["actions"]:
            observation, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                break
        return observation


def episode_seed(seed: int, episode: int) -> int:
    """For the first episode the given seed, then numbers below 2^31, where the seeds of evaluations begin."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0]) >> 1 if episode else seed
