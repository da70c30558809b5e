"""The evaluations of a run while it trains: when they are due, and what they show and log."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from worldmodel.envs import Restart
from worldmodel.training.evaluation.evaluation import Evaluation, evaluate
from worldmodel.training.evaluation.imagined_vs_real import rounded
from worldmodel.training.logging.logger import Logger
from worldmodel.training.logging.progress import Progress
from worldmodel.training.loop.interrupt import Interrupt
from worldmodel.training.loop.record import Record
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.run import FINAL_STREAM, Run

PERIODIC = 3  # stream of evaluation seeds during training; stream 1 was used while the settings were chosen
UNSOUND = "the model predicts returns that are not finite; the chosen actions are still valid"
DISTURBED = "the environments disturb each other"
SHARED = (
    f"warning: {DISTURBED}, because the simulator has one state for the whole process. The returns of evaluations may "
    "be wrong, and so may the records if there are several training environments. To record no wrong step, each "
    "evaluation truncates the running episode of training, and no videos are made before the end. Set env.timeout, "
    "which gives each environment a process of its own, or evaluation.reuse_envs with env.num_envs 1."
)
AGAIN = "and these episodes were replaced by others"

Film = Callable[[Run, Logger, Progress, int], None]
"""Makes and logs the films of an evaluation, after so many environment steps."""


def unfilmed(run: Run, logger: Logger, progress: Progress, steps: int) -> None:
    """Make no films."""


class Evaluations:
    """Plays the evaluations and milestones of a run.

    Args:
        save: called after each evaluation with its mean return, None if it has none.
    """

    def __init__(
        self,
        trainer: Trainer,
        record: Record,
        interrupt: Interrupt,
        save: Callable[[float | None], None],
        film: Film = unfilmed,
    ) -> None:
        self.trainer, self.record, self.interrupt, self.save, self.film = trainer, record, interrupt, save, film
        self.config = trainer.config
        self.due = self.milestone_due = False  # both stay True if the evaluation is interrupted
        self.looked = False  # whether it is known if the environments of one process disturb each other
        self.shared = False  # whether they do
        self.seconds = 0.0  # that evaluations have taken so far

    @property
    def lent(self) -> list[Restart]:
        """The environments of training, if evaluations play in them."""
        return self.trainer.collector.lent if self.config.evaluation.reuse_envs else []

    def crossed(self, before: int) -> bool:
        """Return True if the last step crossed a multiple of `evaluation.every`.

        Args:
            before: environment steps before the last one.
        """
        every = self.config.evaluation.every
        return self.record.steps // every > before // every

    def schedule(self, before: int) -> None:
        """Mark what became due in the last step; see :meth:`crossed`."""
        self.due = self.crossed(before)
        milestones = self.config.evaluation.milestones
        self.milestone_due = any(before < milestone <= self.record.steps for milestone in milestones)

    def play_due(self) -> None:
        """Play what is due, the final episodes of a milestone first. If the run was asked to stop, play it later."""
        if self.interrupt.asked:
            return
        config = self.config.evaluation
        if self.milestone_due:
            result = self.play("milestone", lambda: self.episodes(config.final_episodes, FINAL_STREAM))
            self.milestone_due = False
            self.record.note_now(f"milestone on the seeds of the final evaluation: {describe(result)}")
        if self.due:
            mean = None
            if config.episodes:
                result = self.play("eval", lambda: self.episodes(config.episodes, PERIODIC))
                self.record.note_now(f"evaluation {describe(result)}")
                mean = result.mean if np.isfinite(result.mean) else None
            self.due = False
            self.save(mean)
            if config.videos and not self.shared:
                self.film(self.trainer.run, self.record.logger, self.record.progress, self.record.steps)

    def episodes(self, count: int, stream: int) -> Evaluation:
        """Play `count` episodes with the seeds of a stream, without imagining their returns."""
        run, look, beside = self.trainer.run, not self.looked, self.config.side_by_side
        say = self.record.note
        return evaluate(run.agent, self.config.env, count, stream, say=say, num_envs=beside, lent=self.lent, look=look)

    def play(self, kind: str, episodes: Callable[[], Evaluation]) -> Evaluation:
        """Play episodes and log the result under the name of their kind: "eval", "milestone" or "final".

        Episodes may take long and change nothing that is saved, so the first interrupt ends them at once. If they
        stepped the environments of training, new episodes begin there.

        Raises:
            KeyboardInterrupt: if the run was asked to stop meanwhile.
        """
        began, self.interrupt.at_once = time.monotonic(), True
        try:
            result = episodes()
        finally:
            self.seconds += time.monotonic() - began
        if self.interrupt.asked:  # in code that swallowed the error
            raise KeyboardInterrupt
        self.interrupt.at_once = False
        if result.disturbed and not self.shared:
            self.record.note(SHARED)
        self.looked, self.shared = True, self.shared or result.disturbed
        if self.shared or self.config.evaluation.reuse_envs:
            self.trainer.collector.begin_episodes()
        self.trainer.run.returns.evaluated(result.mean)
        metrics = {name.replace("eval/", f"{kind}/"): value for name, value in evaluation_metrics(result).items()}
        metrics |= {"time/frames": self.trainer.envs.frames, "time/evaluation_seconds": self.seconds}
        self.record.write_row(metrics)
        return result

    def state(self) -> dict[str, Any]:
        """Return what is due, and the seconds so far."""
        return {
            "evaluation_due": self.due,
            "milestone_due": self.milestone_due,
            "evaluation_seconds": self.seconds,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.due = state["evaluation_due"]
        self.milestone_due = state.get("milestone_due", False)  # absent in format 2, as are the seconds
        self.seconds = state.get("evaluation_seconds", 0.0)


def evaluation_metrics(result: Evaluation) -> dict[str, float]:
    """Return the metrics of an evaluation under the names of Stable-Baselines3."""
    metrics = {
        "eval/mean_reward": result.mean,
        "eval/std_reward": result.std,
        "eval/mean_ep_length": float(np.mean(result.lengths)),
    }
    if result.faults:
        metrics["eval/env_faults"] = len(result.faults)
    if result.success_rate is not None:
        metrics["eval/success_rate"] = result.success_rate
    return metrics if result.promise is None else {**metrics, "eval/imagined_reward": result.promise}


def describe(result: Evaluation) -> str:
    """Return an evaluation as one line of text."""
    unsound = "" if result.unsound is None else f"; from step {result.unsound} on, {UNSOUND}"
    faults = f"; the environments failed {len(result.faults)} time(s), {AGAIN}" if result.faults else ""
    count, told = len(result.returns), len(result.successes)
    where = "" if told == count else f" in the {told} that report it"
    successes = "" if result.success_rate is None else f", success rate {result.success_rate:.0%}{where}"
    episodes = f"{count} episode{'s' * (count > 1)}{successes}"
    disturbed = f"; {DISTURBED}" if result.disturbed else ""
    return f"return {rounded(result.mean)} ± {rounded(result.std)} over {episodes}{unsound}{faults}{disturbed}"
