"""Returns of an agent in environments of its own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from agents import Agent, AgentState
from envs import EnvConfig, EnvironmentFault, make_vector, time_limit
from envs.faults import one_number, reported
from envs.infos import final, said
from envs.process import begin
from training.folder import whisper

VECTOR = 32  # episodes run side by side
LONG = 10_000  # steps of an episode whose end is told to be waited for, where no limit is known; then 20,000, ...
SUCCESS = "is_success"  # in the info of an episode's last step, where an environment says so, as for Stable-Baselines3
TINY = 1e-6  # what counts as a return of 0


class Evaluation(NamedTuple):
    returns: list[float]  # sum of rewards of each episode
    lengths: list[int]  # environment steps of each episode
    unsound: int | None = None  # the first step of an episode whose decision rested on predictions that are not finite
    imagined: list[float] | None = None  # what the model promises for the same episodes, if it was asked
    faults: Sequence[str] = ()  # what went wrong in environments, in episodes that do not count
    successes: Sequence[bool] = ()  # of the episodes of which their environment says whether they were one

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
    def promise(self) -> float | None:
        """Mean of the imagined returns."""
        return None if self.imagined is None else float(np.mean(self.imagined))

    @property
    def gap(self) -> float | None:
        """How far the imagined mean is from the real one, as a share of the latter's size, or its spread if larger.

        None where all real returns are 0.
        """
        size = max(abs(self.mean), self.std)
        return None if self.promise is None or size < TINY else abs(self.promise - self.mean) / size


def evaluation_seeds(episodes: int, stream: int) -> list[int]:
    """Reset seeds from 2^31 up, where no training seed lies; another `stream` shares none but by chance."""
    seeds = np.random.SeedSequence(stream).generate_state(episodes)
    return [int(seed) | 2**31 for seed in seeds]


def evaluate(
    agent: Agent,
    env: EnvConfig,
    episodes: int,
    stream: int,
    deterministic: bool = True,
    imagine: bool = False,
    say: Callable[[str], None] = whisper,
) -> Evaluation:
    """Run `episodes` whole episodes, each from a reset with its own seed.

    The random state of torch is left as it was, so that evaluating more often does not change what is learned. An
    episode in which its environment failed does not count, and the next seed of the stream is played instead.

    Args:
        imagine: also imagine each episode from its first observation on, up to the environment's time limit; as far as
            the longest real one where it has none.
        say: is given a line for the person where an episode goes on and on, and its environment has no time limit.
    Raises:
        ValueError: if `episodes` is below 1.
        EnvironmentFault: if environments fail more often than `env.restarts` allows.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1: {episodes}")
    results: list[Evaluation] = []
    faults: list[str] = []
    drawn, left = 0, episodes
    with torch.random.fork_rng(devices=[agent.device] if agent.device.type == "cuda" else []):
        torch.manual_seed(stream)
        while left:
            seeds = evaluation_seeds(drawn + min(left, VECTOR), stream)[drawn:]
            results.append(_side_by_side(agent, env, seeds, deterministic, imagine, say))
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
    )


def _side_by_side(
    agent: Agent, config: EnvConfig, seeds: list[int], deterministic: bool, imagine: bool, say: Callable[[str], None]
) -> Evaluation:
    """One episode per environment, without those in which it failed. What comes after it does not count."""
    count = len(seeds)
    total, length, running = np.zeros(count), np.zeros(count, np.int64), np.ones(count, bool)
    whole, unsound, success = np.ones(count, bool), None, np.full(count, np.nan)
    envs = make_vector(config, count)
    try:
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
    finally:
        envs.close()
    imagined = None
    if imagine and first:
        imagined = imagined_returns(agent, first, limit or int(length.max()), deterministic)
    kept = np.flatnonzero(whole).tolist()
    return Evaluation(
        total[kept].tolist(),
        length[kept].tolist(),
        unsound,
        None if imagined is None else [imagined[env] for env in kept],
        [text for texts in faults for text in texts],
        [bool(each > 0) for each in success[kept] if not np.isnan(each)],
    )


def _successes(infos: Any, count: int) -> np.ndarray:
    """(count,): whether each environment calls its episode a success; NaN where it does not say, or no number."""
    return np.array(
        [np.nan if (number := one_number(each)) is None else number for each in said(infos, SUCCESS, count)]
    )


@torch.no_grad()
def imagined_returns(agent: Agent, state: AgentState, steps: int, deterministic: bool = True) -> list[float]:
    """Undiscounted returns of the agent's own behaviour in its own model.

        sum_{h=1..steps} (prod_{i<h} c_i) r_h,   c_i being the predicted continuation

    Args:
        state: after the first decision of each episode.
    """
    model, (latent, control, memory, _) = agent.model, state
    total = torch.zeros(len(control), device=agent.device)
    alive = torch.ones_like(total)
    for _ in range(steps):
        latent = model.imagine(latent, control)
        feature = model.feature(latent)
        outcome = model.predict(feature, decode=False)
        total += alive * outcome.reward
        alive *= outcome.cont / model.discount
        control, memory, _ = agent.behaviour.act(model, latent, memory, deterministic)
    return total.tolist()
