"""Returns of an agent in environments of its own."""

from typing import NamedTuple

import numpy as np
import torch

from agents import Agent
from envs import EnvConfig, make_vector

VECTOR = 32  # episodes run side by side


class Evaluation(NamedTuple):
    returns: list[float]  # sum of rewards of each episode
    lengths: list[int]  # environment steps of each episode
    unsound: int | None = None  # the first step of an episode whose decision rested on predictions that are not finite

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Population standard deviation over episodes."""
        return float(np.std(self.returns))


def evaluation_seeds(episodes: int, stream: int) -> list[int]:
    """Reset seeds from 2^31 up, where no training seed lies; another `stream` shares none but by chance."""
    seeds = np.random.SeedSequence(stream).generate_state(episodes)
    return [int(seed) | 2**31 for seed in seeds]


def evaluate(agent: Agent, env: EnvConfig, episodes: int, stream: int, deterministic: bool = True) -> Evaluation:
    """Run `episodes` whole episodes, each from a reset with its own seed.

    The random state of torch is left as it was, so that evaluating more often does not change what is learned.

    Raises:
        ValueError: if `episodes` is below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1: {episodes}")
    seeds = evaluation_seeds(episodes, stream)
    batches = [seeds[i : i + VECTOR] for i in range(0, episodes, VECTOR)]
    with torch.random.fork_rng(devices=[agent.device] if agent.device.type == "cuda" else []):
        torch.manual_seed(stream)
        results = [_side_by_side(agent, env, batch, deterministic) for batch in batches]
    return Evaluation(
        [r for each in results for r in each.returns],
        [n for each in results for n in each.lengths],
        min((each.unsound for each in results if each.unsound is not None), default=None),
    )


def _side_by_side(agent: Agent, config: EnvConfig, seeds: list[int], deterministic: bool) -> Evaluation:
    """One episode per environment. Those that end early go on into episodes that do not count."""
    count = len(seeds)
    total, length, running = np.zeros(count), np.zeros(count, np.int64), np.ones(count, bool)
    unsound = None
    envs = make_vector(config, count)
    try:
        observation, _ = envs.reset(seed=list(seeds))
        state, start = None, np.ones(count, bool)
        while running.any():
            actions, state = agent.predict(observation, state, start, deterministic)
            if unsound is None and (running & ~state.sound.cpu().numpy()).any():
                unsound = int(length.max()) + 1
            observation, reward, terminated, truncated, _ = envs.step(actions)
            total += np.where(running, reward, 0)
            length += running
            start = terminated | truncated
            running &= ~start
    finally:
        envs.close()
    return Evaluation(total.tolist(), length.tolist(), unsound)
