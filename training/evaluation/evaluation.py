"""Evaluate an agent: the returns of whole episodes, and what the model imagines for the same episodes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from worldmodel.agents import Agent, AgentState
from worldmodel.envs import EnvConfig, EnvironmentFault, make_vector, time_limit
from worldmodel.envs.contract.faults import one_number, reported
from worldmodel.envs.contract.infos import final, said
from worldmodel.envs.wrappers.episodes import evaluation_seeds
from worldmodel.envs.wrappers.process import begin
from worldmodel.envs.wrappers.sharing import disturbed
from worldmodel.envs.wrappers.vector import SameStepVectorEnv
from worldmodel.training.logging.progress import whisper

DEFAULT_NUM_ENVS = 32  # episodes that run in parallel
# Steps after which the user is told that an episode without a time limit is still running. The next messages follow
# after twice as many steps each.
LONG_EPISODE = 10_000
SUCCESS_KEY = "is_success"  # entry of the info at an episode's last step, as Stable-Baselines3 reads it
ZERO_RETURN = 1e-6  # smaller returns count as 0


class Evaluation(NamedTuple):
    """The result of an evaluation."""

    returns: list[float]  # sum of the rewards of each episode
    lengths: list[int]  # environment steps of each episode
    unsound: int | None = None  # the first step at which a decision used predictions that are not finite
    imagined: list[float] | None = None  # of the same episodes in the model, see `imagined_returns`; None: not computed
    faults: Sequence[str] = ()  # failures of environments, in episodes that do not count
    successes: Sequence[bool] = ()  # for each episode whose environment reports success or failure
    weighed: list[float] | None = None  # like `imagined`, but each reward times the probability of reaching its step
    spread: float | None = None  # distance of the returns from random actions to the best; None: unknown
    disturbed: bool = False  # whether the environments were seen to disturb each other

    @property
    def mean(self) -> float:
        """Return the mean of the returns."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Return the population standard deviation of the returns over episodes."""
        return float(np.std(self.returns))

    @property
    def success_rate(self) -> float | None:
        """Return the share of successful episodes, or None if the environments do not report success."""
        return float(np.mean(self.successes)) if self.successes else None

    @property
    def differences(self) -> np.ndarray | None:
        """Return the imagined minus the real return of each episode, (episodes,), or None if nothing was imagined.

        Of `imagined` and `weighed`, the one with the closer mean is used. If the real mean lies between the two, the
        differences are 0.

        A predicted continuation probability of 0.998 instead of 1 is a small error for one step, but a large one for a
        thousand steps in a row. `weighed` is right if episodes end by chance. `imagined` is right if they end in states
        that the model has not seen.
        """
        if self.imagined is None or self.weighed is None:
            return None
        one, other = (np.subtract(each, self.returns) for each in (self.imagined, self.weighed))
        if one.mean() * other.mean() < 0:
            return np.zeros(len(one))
        return one if abs(one.mean()) <= abs(other.mean()) else other

    @property
    def promise(self) -> float | None:
        """Return the mean of the imagined returns, or None if nothing was imagined."""
        return None if self.imagined is None else float(np.mean(self.imagined))

    @property
    def scale(self) -> float | None:
        """Return the scale for differences of returns, or None if all returns are 0 and the spread is unknown."""
        known = abs(self.mean) if self.spread is None else self.spread
        size = max(known, self.std)
        return None if size < ZERO_RETURN else size

    @property
    def gap(self) -> float | None:
        """Return the distance between the imagined and the real mean as a share of `scale`, or None if unknown."""
        if self.differences is None or self.scale is None:
            return None
        return abs(float(self.differences.mean())) / self.scale

    @property
    def z(self) -> float:
        """Return the mean difference in standard errors. It is infinite for a single episode that differs."""
        if self.differences is None or not self.differences.any():
            return 0.0
        count = len(self.differences)
        error = float(self.differences.std(ddof=1)) / count**0.5 if count > 1 else 0.0
        return float(self.differences.mean()) / error if error > 0 else np.inf


def evaluate(
    agent: Agent,
    env: EnvConfig,
    episodes: int,
    stream: int,
    deterministic: bool = True,
    imagine: bool = False,
    say: Callable[[str], None] = whisper,
    num_envs: int = DEFAULT_NUM_ENVS,
    lent: Sequence[gym.Env[Any, Any]] = (),
    look: bool = False,
) -> Evaluation:
    """Run `episodes` whole episodes, each from a reset with its own seed.

    The random state of torch is restored, so evaluations do not change what is learned. An episode whose environment
    fails does not count, and the next seed of the stream is played instead.

    Args:
        stream: the stream of evaluation seeds.
        imagine: also imagine each episode from its first observation, up to the time limit of the environment. Without
            a time limit, imagine as many steps as the longest real episode has.
        say: receives a line for the user if an episode is very long and its environment has no time limit.
        num_envs: the maximum number of episodes that run in parallel.
        lent: environments to play in, which stay open; by default new ones.
        look: also test whether new environments disturb each other, see
            :func:`worldmodel.envs.wrappers.sharing.disturbed`.
    Raises:
        ValueError: if `episodes` or `num_envs` is below 1.
        EnvironmentFault: if environments fail more often than `env.restarts` allows.
    """
    if min(episodes, num_envs) < 1:
        raise ValueError(f"episodes is {episodes} and num_envs is {num_envs}. Both must be at least 1.")
    most = len(lent) or num_envs
    results: list[Evaluation] = []
    faults: list[str] = []
    drawn, left = 0, episodes
    with torch.random.fork_rng(devices=[agent.device] if agent.device.type == "cuda" else []):
        torch.manual_seed(stream)
        while left:
            seeds = evaluation_seeds(drawn + min(left, most), stream, env.evaluation_seeds)[drawn:]
            with stage(env, len(seeds), lent) as envs:
                results.append(_side_by_side(agent, env, envs, seeds, deterministic, imagine, say))
                if look and not drawn and len(seeds) > 1 and not lent and env.timeout is None:
                    found = disturbed(envs.envs[0], envs.envs[1], (seeds[0], seeds[1]))
                    results[-1] = results[-1]._replace(disturbed=found)
            drawn, left = drawn + len(seeds), left - len(results[-1].returns)
            faults += results[-1].faults
            if len(faults) > env.restarts:
                raise EnvironmentFault(
                    f"The evaluation stops after {len(faults)} failures of environments. The last one: {faults[-1]}"
                )
    return Evaluation(
        [r for each in results for r in each.returns],
        [n for each in results for n in each.lengths],
        min((each.unsound for each in results if each.unsound is not None), default=None),
        [r for each in results for r in each.imagined or []] if imagine else None,
        faults,
        [success for each in results for success in each.successes],
        [r for each in results for r in each.weighed or []] if imagine else None,
        disturbed=results[0].disturbed,
    )


@contextmanager
def stage(config: EnvConfig, count: int, lent: Sequence[gym.Env[Any, Any]] = ()) -> Iterator[SameStepVectorEnv]:
    """Yield a vector of `count` environments: new ones, which are closed at the end, or some of `lent`."""
    if lent:
        given = [lambda env=env: env for env in lent[:count]]  # type: ignore[misc]
        yield SameStepVectorEnv(given)
        return
    envs = make_vector(config, count)
    try:
        yield envs
    finally:
        envs.close()


def _side_by_side(
    agent: Agent,
    config: EnvConfig,
    envs: SameStepVectorEnv,
    seeds: list[int],
    deterministic: bool,
    imagine: bool,
    say: Callable[[str], None],
) -> Evaluation:
    """Run one episode per environment, and leave out those whose environment failed.

    The environments go on after their episode until all have ended; these steps do not count.
    """
    count = len(seeds)
    total, length, running = np.zeros(count), np.zeros(count, np.int64), np.ones(count, bool)
    whole, unsound, success = np.ones(count, bool), None, np.full(count, np.nan)
    limit, told = time_limit(config, envs.envs[0]), LONG_EPISODE
    observation, infos = envs.reset(seed=list(seeds))
    faults = reported(infos, count)
    state, start, first = None, np.ones(count, bool), None
    while running.any():
        actions, state = agent.predict(observation, state, start, deterministic)
        first = first or state
        if unsound is None and (running & ~state.sound.cpu().numpy()).any():
            unsound = int(length.max()) + 1
        begin(envs, actions)  # environments in separate processes step in parallel
        observation, reward, terminated, truncated, infos = envs.step(actions)
        found = reported(final(infos), count)
        faults = [known + new if alive else known for known, new, alive in zip(faults, found, running, strict=True)]
        whole &= ~(running & np.array([bool(texts) for texts in found]))
        total += np.where(running, reward, 0)
        length += running
        start = terminated | truncated
        success = np.where(running & start, _successes(final(infos), count), success)
        running &= ~start
        if limit is None and running.any() and length.max() >= told:
            say(
                f"An evaluation is waiting for an episode of {config.id} to end, after {length.max()} steps. If its "
                "episodes may never end, set env.time_limit."
            )
            told *= 2
    imagined = weighed = None
    if imagine and first:
        imagined, weighed = imagined_returns(agent, first, limit or int(length.max()), deterministic)
    kept = np.flatnonzero(whole).tolist()
    return Evaluation(
        total[kept].tolist(),
        length[kept].tolist(),
        unsound,
        None if imagined is None else [imagined[env] for env in kept],
        [text for texts in faults for text in texts],
        [bool(each > 0) for each in success[kept] if not np.isnan(each)],
        None if weighed is None else [weighed[env] for env in kept],
    )


def _successes(infos: Any, count: int) -> np.ndarray:
    """Return whether each environment reports success, (count,). It is NaN if there is no report or not a number."""
    return np.array(
        [np.nan if (number := one_number(each)) is None else number for each in said(infos, SUCCESS_KEY, count)]
    )


@torch.no_grad()
def imagined_returns(
    agent: Agent, state: AgentState, steps: int, deterministic: bool = True
) -> tuple[list[float], list[float]]:
    """Return the undiscounted returns of the agent's behaviour in its own model, in two ways.

        sum_{h=1..steps} (prod_{i<h} 1[c_i >= 1/2]) r_h  and  sum_{h=1..steps} (prod_{i<h} c_i) r_h

    c_i is the predicted probability that the episode continues. In the first sum, an episode ends where its end is more
    likely than its continuation. The second sum is the expectation over all ends, in which the errors of all c_i
    multiply.

    Args:
        state: the state of the agent after the first decision of each episode.
        steps: the number of steps to imagine.
    """
    model, (latent, control, memory, _) = agent.model, state
    likeliest, expected = torch.zeros(2, len(control), device=agent.device)
    runs, alive = torch.ones(2, len(control), device=agent.device)
    for _ in range(steps):
        latent = model.imagine(latent, control)
        feature = model.feature(latent)
        outcome = model.predict(feature, decode=False)
        likeliest, expected = likeliest + runs * outcome.reward, expected + alive * outcome.reward
        # The predicted value may exceed the discount. The ratio must not exceed 1, since it is multiplied many times.
        goes_on = (outcome.cont / model.discount).clamp(max=1)
        runs, alive = runs * (goes_on >= 0.5), alive * goes_on
        control, memory, _ = agent.behaviour.act(model, latent, memory, deterministic)
    return likeliest.tolist(), expected.tolist()
