"""An environment that fails costs an episode, not the run: another one takes its place."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import gymnasium as gym

from worldmodel.envs.contract.faults import FAULT, EnvironmentFault, described
from worldmodel.envs.wrappers.episodes import EVALUATION_SEEDS, SEED, another_seed, unforeseen_seed


class Restart(gym.Wrapper[Any, Any, Any, Any]):
    """Replaces an environment that failed by a new one, which begins from another seed.

    Any exception of the environment is a failure. In a step it ends the episode, truncated, with the observation before
    and no reward: `info[FAULT]` says what went wrong, and that this step is none to learn from. In a reset, or while
    the new one is made, the next seed is tried; then `info[FAULT]` comes with the reset, and `info[SEED]` holds the
    seed that it began from. Which seeds depends on the one last given and on how often it failed since, so that a run
    stays repeatable.

    Args:
        factory: makes the environment, again and again.
        index: of the environment in its vector environment, for what is said about it.
        limit: failures that are made up for.
        proven: whether it has worked before. If not, an error of the first reset, a mistake in what was given, is
            raised at once.
        evaluation: the range of seeds of evaluations, which the others stay out of.
    Raises:
        EnvironmentFault: at one failure more than `limit`, or in the first reset.
    """

    def __init__(
        self,
        factory: Callable[[], gym.Env[Any, Any]],
        index: int = 0,
        limit: int = 10,
        proven: bool = False,
        evaluation: Sequence[int] = EVALUATION_SEEDS,
    ) -> None:
        super().__init__(factory())
        self.factory, self.index, self.limit, self.proven = factory, index, limit, proven
        self.evaluation = evaluation
        self.faults = 0
        self.failed = False  # the environment has been closed, and the next reset makes a new one
        self.seed = unforeseen_seed(evaluation[0])  # the last that was given
        self.tries = 0  # failures since then
        self.observation: Any = None  # the last sound one
        self.said: dict[str, Any] = {}  # the info of the last step, whatever reset has followed it

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.seed, self.tries = seed, 0
        elif self.failed:
            seed = another_seed(self.seed, self.tries, self.evaluation)
        found: list[str] = []
        while True:
            try:
                if self.failed:
                    self.env, self.failed = self.factory(), False
                self.observation, info = self.env.reset(seed=seed, options=options)
            except Exception as error:
                found.append(self._failure(error))
                seed = another_seed(self.seed, self.tries, self.evaluation)
            else:
                self.proven = True
                return self.observation, {**info, FAULT: tuple(found), SEED: seed} if found else info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            result = self.env.step(action)
        except Exception as error:
            self.said = {FAULT: (self._failure(error),)}
            return self.observation, 0.0, False, True, self.said
        self.observation, self.said = result[0], result[4]
        return result

    def _failure(self, error: Exception) -> str:
        """Close what failed, and say what happens now."""
        self.close()
        self.failed = True
        self.faults, self.tries = self.faults + 1, self.tries + 1
        name, problem = f"environment {self.index}", f"{described(error)}; last seed: {self.seed}"
        if not self.proven:
            raise EnvironmentFault(f"{name} failed in its first reset: {described(error)}") from error
        if self.faults > self.limit:
            raise EnvironmentFault(
                f"{name} has failed {self.faults} time(s), and env.restarts allows {self.limit}: {problem}. Repair the "
                "environment and resume the run, which counts anew; or begin one with a higher env.restarts"
            ) from error
        return f"{name} failed ({problem}): a new one with another seed, {self.faults} of at most {self.limit}"

    def close(self) -> None:
        """Close the environment; one that has failed may fail in this too."""
        if self.failed:
            return
        with suppress(Exception):
            self.env.close()
