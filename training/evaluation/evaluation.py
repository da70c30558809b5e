"""Returns of an agent in environments of its own."""

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

VECTOR = 32  # episodes run side by side, by default
LONG = 10_000  # steps of an episode whose end is told to be waited for, where no limit is known; then 20,000, ...
SUCCESS = "is_success"  # in the info of an episode's last step, where an environment says so, as for Stable-Baselines3
TINY = 1e-6  # what counts as a return of 0


class Evaluation(NamedTuple):
    returns: list[float]  # sum of rewards of each episode
    lengths: list[int]  # environment steps of each episode
    unsound: int | None = None  # the first step of an episode whose decision rested on predictions that are not finite
    imagined: list[float] | None = None  # of the same episodes in the model, if it was asked; see `imagined_returns`
    faults: Sequence[str] = ()  # what went wrong in environments, in episodes that do not count
    successes: Sequence[bool] = ()  # of the episodes of which their environment says whether they were one
    weighed: list[float] | None = (
        None  # as `imagined`, each reward times the probability that the episode lasts so long
    )
    spread: float | None = None  # of returns in this environment, from random actions to the best; None: not known
    disturbed: bool = False  # whether its environments were seen to disturb each other

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Population standard deviation over episodes."""
        return float(np.std(self.returns))

    @property
    def success_rate(self) -> float | None:
        """Share of the episodes that reached what they were for; None where environments do not say."""
        return float(np.mean(self.successes)) if self.successes else None

    @property
    def differences(self) -> np.ndarray | None:
        """(episodes,): imagined less real returns, of `imagined` or `weighed`, whichever is closer; 0 between the two.

        A predicted continuation of 0.998 where the truth is 1 says little of a step, and much of a thousand in a row.
        Where chance ends episodes `weighed` is right, and where a state does that the model has not seen, `imagined`.
        """
        if self.imagined is None or self.weighed is None:
            return None
        one, other = (np.subtract(each, self.returns) for each in (self.imagined, self.weighed))
        if one.mean() * other.mean() < 0:
            return np.zeros(len(one))
        return one if abs(one.mean()) <= abs(other.mean()) else other

    @property
    def promise(self) -> float | None:
        """Mean of the imagined returns."""
        return None if self.imagined is None else float(np.mean(self.imagined))

    @property
    def scale(self) -> float | None:
        """What the size of a difference of returns is measured by; None where all are 0, and nothing else is known."""
        known = abs(self.mean) if self.spread is None else self.spread
        size = max(known, self.std)
        return None if size < TINY else size

    @property
    def gap(self) -> float | None:
        """How far the imagined mean is from the real one, as a share of `scale`."""
        if self.differences is None or self.scale is None:
            return None
        return abs(float(self.differences.mean())) / self.scale

    @property
    def z(self) -> float:
        """How far it is in standard errors; infinitely far where one episode was played, which tells of none."""
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
    num_envs: int = VECTOR,
    lent: Sequence[gym.Env[Any, Any]] = (),
    look: bool = False,
) -> Evaluation:
    """Run `episodes` whole episodes, each from a reset with its own seed.

    The random state of torch is left as it was, so that evaluating more often does not change what is learned. An
    episode in which its environment failed does not count, and the next seed of the stream is played instead.

    Args:
        imagine: also imagine each episode from its first observation on, up to the environment's time limit; as far as
            the longest real one where it has none.
        say: is given a line for the person where an episode goes on and on, and its environment has no time limit.
        num_envs: episodes run side by side at most.
        lent: environments to play in, which stay open; by default new ones.
        look: also whether new environments disturb each other, see :func:`worldmodel.envs.wrappers.sharing.disturbed`.
    Raises:
        ValueError: if `episodes` or `num_envs` is below 1.
        EnvironmentFault: if environments fail more often than `env.restarts` allows.
    """
    if min(episodes, num_envs) < 1:
        raise ValueError(f"episodes and num_envs must be at least 1: {episodes}, {num_envs}")
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
                raise EnvironmentFault(f"evaluating stops after {len(faults)} failures of environments: {faults[-1]}")
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
    """So many environments side by side: new ones for as long as they are played in, or some of those that are lent."""
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
    """One episode per environment, without those in which it failed. What comes after it does not count."""
    count = len(seeds)
    total, length, running = np.zeros(count), np.zeros(count, np.int64), np.ones(count, bool)
    whole, unsound, success = np.ones(count, bool), None, np.full(count, np.nan)
    limit, told = time_limit(config, envs.envs[0]), LONG
    observation, infos = envs.reset(seed=list(seeds))
    faults = reported(infos, count)
    state, start, first = None, np.ones(count, bool), None
    while running.any():
        actions, state = agent.predict(observation, state, start, deterministic)
        first = first or state
        if unsound is None and (running & ~state.sound.cpu().numpy()).any():
            unsound = int(length.max()) + 1
        begin(envs, actions)  # side by side, those that have processes of their own
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
                f"an evaluation waits for episodes of {config.id} to end, after {length.max()} steps: where they "
                "may not, set env.time_limit"
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
    """(count,): whether each environment calls its episode a success; NaN where it does not say, or no number."""
    return np.array(
        [np.nan if (number := one_number(each)) is None else number for each in said(infos, SUCCESS, count)]
    )


@torch.no_grad()
def imagined_returns(
    agent: Agent, state: AgentState, steps: int, deterministic: bool = True
) -> tuple[list[float], list[float]]:
    """Undiscounted returns of the agent's own behaviour in its own model.

        sum_{h=1..steps} (prod_{i<h} 1[c_i >= 1/2]) r_h  and  sum_{h=1..steps} (prod_{i<h} c_i) r_h

    c_i is the predicted probability that the episode goes on: the first is of episodes that end where that is likelier
    than not, the second the expectation over all ends, into which the error of every c_i is multiplied.

    Args:
        state: after the first decision of each episode.
    """
    model, (latent, control, memory, _) = agent.model, state
    likeliest, expected = torch.zeros(2, len(control), device=agent.device)
    runs, alive = torch.ones(2, len(control), device=agent.device)
    for _ in range(steps):
        latent = model.imagine(latent, control)
        feature = model.feature(latent)
        outcome = model.predict(feature, decode=False)
        likeliest, expected = likeliest + runs * outcome.reward, expected + alive * outcome.reward
        goes_on = (outcome.cont / model.discount).clamp(
            max=1
        )  # what it learns may lie above the discount, and compound
        runs, alive = runs * (goes_on >= 0.5), alive * goes_on
        control, memory, _ = agent.behaviour.act(model, latent, memory, deterministic)
    return likeliest.tolist(), expected.tolist()
