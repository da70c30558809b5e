"""Replace an environment that fails, so that a failure ends an episode and not the run."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import gymnasium as gym

from worldmodel.envs.contract.faults import FAULT, EnvironmentFault, described
from worldmodel.envs.wrappers.episodes import EVALUATION_SEEDS, SEED, another_seed, unforeseen_seed


class Restart(gym.Wrapper[Any, Any, Any, Any]):
    """Replaces an environment that failed by a new one, which begins with another seed.

    Every exception of the environment is a failure. A failure in a step truncates the episode. The step then returns
    the previous observation, the reward 0, and a description of the failure in `info[FAULT]`. Such a step must not be
    used for training. After a failure in a reset, or while a new environment is made, the next seed is tried. The
    reset then returns the failures in `info[FAULT]`, and its seed in `info[SEED]`. The new seeds depend only on the
    last given seed and on the number of failures since then, so a run is repeatable.

    Args:
        factory: makes the environment each time.
        index: the index of the environment in its vector environment, for messages.
        limit: the number of failures after which the next one raises an error.
        proven: whether the environment has worked before. If not, an error in the first reset is raised at once,
            since its cause is probably a wrong setting.
        evaluation: the range of the seeds of evaluations, which training does not use.
    Raises:
        EnvironmentFault: at failure number `limit` + 1, or if the first reset fails.
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
        self.failed = False  # if True, the environment is closed, and the next reset makes a new one
        self.seed = unforeseen_seed(evaluation[0])  # the last given seed
        self.tries = 0  # failures since that seed was given
        self.observation: Any = None  # the last valid observation
        self.said: dict[str, Any] = {}  # the info of the last step, also after a reset

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
        """Close the failed environment, and return the message about it."""
        self.close()
        self.failed = True
        self.faults, self.tries = self.faults + 1, self.tries + 1
        name, problem = f"environment {self.index}", f"{described(error)}; last seed: {self.seed}"
        if not self.proven:
            raise EnvironmentFault(f"{name} failed in its first reset: {described(error)}") from error
        if self.faults > self.limit:
            raise EnvironmentFault(
                f"{name} has failed {self.faults} time(s), but env.restarts allows {self.limit}: {problem}. Repair the "
                "environment and resume the run, which resets the count, or begin a run with a higher env.restarts"
            ) from error
        return f"{name} failed ({problem}). Restarted with another seed (failure {self.faults} of at most {self.limit})"

    def close(self) -> None:
        """Close the environment, and ignore errors, since a failed environment may also fail to close."""
        if self.failed:
            return
        with suppress(Exception):
            self.env.close()
