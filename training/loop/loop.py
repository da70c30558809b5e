"""The collect-learn loop, and what a person sees of it."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from worldmodel.agents import Behaviour
from worldmodel.envs import Restart
from worldmodel.training.evaluation.evaluation import Evaluation, evaluate
from worldmodel.training.evaluation.returns import rounded
from worldmodel.training.logging.logger import Averages, Logger
from worldmodel.training.logging.progress import Progress
from worldmodel.training.loop.faults import LearningFaults
from worldmodel.training.loop.interrupt import Interrupt
from worldmodel.training.loop.trainer import OnStep, Trainer, unbothered
from worldmodel.training.run.run import FINAL, Run

PERIODIC = 3  # stream of evaluation seeds during training; 1 served while the settings were chosen
UNSOUND = "the model predicts returns that are not finite; the actions taken are valid all the same"
DISTURBED = "its environments disturb each other"
SHARED = (
    f"warning: {DISTURBED}: the simulator has one state for the whole process. Returns of evaluations are not to be "
    "trusted, nor rows of several training environments; the running episode of training is cut off at each "
    "evaluation, and nothing is filmed before the end, so that no wrong row follows. Set env.timeout, which gives each "
    "environment a process of its own, or evaluation.reuse_envs with env.num_envs 1"
)
AGAIN = "which does not count: other episodes were played instead"
RECENT = 100  # episodes in the running mean of returns, as in Stable-Baselines3


Film = Callable[[Run, Logger, Progress, int], None]
"""Makes and logs the films of an evaluation, after so many environment steps."""


def unfilmed(run: Run, logger: Logger, progress: Progress, steps: int) -> None:
    """Make no films."""


class Loop:
    """When to update, log and evaluate; what a person sees of it."""

    logger: Logger  # both while it is opened
    progress: Progress

    def __init__(self, trainer: Trainer, evaluates: bool = True, film: Film = unfilmed) -> None:
        self.trainer, self.evaluates, self.film = trainer, evaluates, film
        self.interrupt = Interrupt()
        self.config, self.cuda = trainer.config, trainer.run.agent.device.type == "cuda"
        self.logged: Mapping[str, Any] | None = None  # where the logger of this run stands, if it had one before
        self.finished = False
        self.evaluation_due = self.milestone_due = False  # still True after one that was interrupted
        self.looked = self.shared = False  # whether environments of one process disturb each other, once that is known
        self.evaluation_seconds = 0.0  # that evaluations have taken until now
        self.averages = Averages()
        self.faults = LearningFaults(trainer, lambda line: self.progress.note(line))
        self.unread = torch.zeros(())  # updates that were skipped since the last row, on the device
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self.shown: dict[str, float] = {}
        self.began = time.monotonic()
        self.due = 0.0  # updates that have been paid for
        self.begun: int | None = None  # environment steps when learning did
        self.until = self.config.training.steps  # environment steps in all
        self.log_every = self.config.training.log_every

    @property
    def steps(self) -> int:
        return self.trainer.envs.steps

    def run(self, until: int, on_step: OnStep = unbothered) -> bool:
        """Prefill, then one environment step and the updates it pays for. Called again, it goes on.

        Args:
            until: environment steps in all. on_step: called after each; the loop ends when it answers False.
        Returns:
            Whether it never did, and nobody interrupted.
        """
        config = self.config.training
        goes_on, self.until = True, until
        if not self.trainer.prefilled:
            goes_on = self.prefill(min(config.prefill, until), on_step)
            self.due = float(config.pretrain) if self.trainer.prefilled else 0.0
        if self.begun is None and self.trainer.prefilled:
            self.begun = self.steps
        per_step = self.config.updates_per_step
        self.evaluate()
        few = 1 + per_step * self.trainer.envs.num_envs  # updates, more than a step pays for: not those of the prefill
        while goes_on:
            ahead = config.overlap and self.trainer.pending is None and self.due < few
            if ahead and self.steps < until and not self.interrupt.asked:
                self.acts(self.trainer.decide)
            while self.due >= 1 and (self.trainer.pending is not None or not self.interrupt.asked):
                self.due -= 1
                self.learn()
                self.progress.update(self.steps, **self.shown)
            before = self.steps
            if before >= until or (self.interrupt.asked and self.trainer.pending is None):
                break
            unsound = self.trainer.unsound
            if not self.acts(self.trainer.collect):
                continue
            if self.trainer.unsound > unsound == 0:
                self.progress.note(f"{self.steps:>7} steps: {UNSOUND}")
            self.trainer.refit_units(before)
            self.due += per_step * (self.steps - before)
            goes_on = self.stepped(on_step)
            self.report(before)
        if self.averages.counts and not self.interrupt.asked:  # what the last steps paid for, or the prefill
            self.log()
        return goes_on and not self.interrupt.asked

    def prefill(self, steps: int, on_step: OnStep) -> bool:
        """See :meth:`worldmodel.training.loop.trainer.Trainer.prefill`; an agent that was loaded acts as it has
        learned."""
        try:
            return self.trainer.prefill(steps, lambda: self.stepped(on_step))
        except FloatingPointError as error:
            raise self.faults.stop(str(error)) from error
        finally:
            self.warn()

    def warn(self) -> None:
        """Tell what is wrong with the values that were recorded."""
        for line in self.trainer.pop_warnings():
            self.progress.note(f"{self.steps:>7} steps: warning: {line}")

    def acts(self, what: Callable[[Behaviour], None]) -> bool:
        """Let the behaviour do it; where its actions are not finite, though the weights are, older ones return."""
        try:
            what(self.trainer.run.behaviour)
        except FloatingPointError as error:
            self.faults.restore(str(error))
            return False
        return True

    def learn(self) -> None:
        """One update; what it measured, unless it was skipped."""
        self.age()
        try:
            metrics, skipped = self.trainer.update()
        except torch.linalg.LinAlgError:
            self.trainer.doing = "nothing"
            self.faults.count(1, "a covariance has no decomposition")
            return
        except FloatingPointError as error:
            self.trainer.doing = "nothing"
            self.faults.restore(str(error))
            return
        if self.cuda:  # reading it now would wait for the device; the last batch is kept for a report until it is read
            self.unread = self.unread + skipped
        elif bool(skipped):
            self.faults.count(1)
            return
        else:
            self.trainer.last = None
        self.faults.sound = True
        self.averages.add(metrics)

    def age(self) -> None:
        """Tell the learners how much of their time is over: steps since learning began, of those until it ends."""
        begun = self.steps if self.begun is None else self.begun
        for learner in self.trainer.learners():
            learner.progress = (self.steps - begun) / max(self.until - begun, 1)

    def stepped(self, on_step: OnStep) -> bool:
        """After each step of the environments: whether to go on."""
        at_random = self.trainer.before == 0 and not self.trainer.prefilled
        self.trainer.run.returns.ended([episode.total_reward for episode in self.trainer.ended], at_random)
        self.recent.extend((episode.total_reward, episode.length) for episode in self.trainer.ended)
        for failure in self.trainer.failures:
            self.progress.note(f"{self.steps:>7} steps: {failure}")
        self.warn()
        return on_step() and not self.interrupt.asked

    def report(self, before: int) -> None:
        """Log, and evaluate and save, where the last step crossed a multiple of the configured interval."""
        if self.steps // self.log_every > before // self.log_every:
            self.log()
        config = self.config.evaluation
        crossed = self.steps // config.every > before // config.every
        if not self.evaluates:
            if crossed:
                self.save_or_tell()
            return
        self.evaluation_due = crossed
        self.milestone_due = any(before < milestone <= self.steps for milestone in config.milestones)
        self.evaluate()

    def log(self) -> None:
        metrics = self.averages.pop()
        if skipped := round(float(self.unread)):
            self.faults.count(skipped)
        self.unread = torch.zeros(())
        metrics |= self.faults.metrics()
        if self.recent:
            returns, lengths = zip(*self.recent, strict=True)
            metrics |= {"rollout/ep_rew_mean": float(np.mean(returns)), "rollout/ep_len_mean": float(np.mean(lengths))}
        if self.trainer.unsound:
            metrics["rollout/unsound_decisions"] = self.trainer.unsound
        if self.trainer.envs.faults:
            metrics["rollout/env_faults"] = self.trainer.envs.faults
        metrics["time/fps"] = self.steps / (time.monotonic() - self.began)
        metrics["time/frames"] = self.trainer.envs.frames
        metrics["replay/steps"] = len(self.trainer.run.replay)
        self.age()
        metrics["world_model/lr"] = self.trainer.learner.lr
        self.logger.log(metrics, self.trainer.run.env_steps)  # with those of an agent that was loaded
        names = {"return": "rollout/ep_rew_mean", "elbo": "world_model/elbo"}
        self.shown |= {name: metrics[key] for name, key in names.items() if key in metrics}

    def evaluate(self) -> None:
        """Play the evaluations that are due, the final episodes of a milestone first; later, if asked to stop now."""
        if self.interrupt.asked:
            return
        config, run, say = self.config.evaluation, self.trainer.run, self.progress.note
        if self.milestone_due:
            result = self.play("milestone", lambda: self.episodes(config.final_episodes, FINAL))
            self.milestone_due = False
            say(f"{self.steps:>7} steps: milestone, on the seeds of the final evaluation: {describe(result)}")
        if self.evaluation_due:
            mean = None
            if config.episodes:
                result = self.play("eval", lambda: self.episodes(config.episodes, PERIODIC))
                say(f"{self.steps:>7} steps: evaluation {describe(result)}")
                mean = result.mean if np.isfinite(result.mean) else None
            self.evaluation_due = False
            self.save_or_tell(mean)
            if config.videos and not self.shared:
                self.film(run, self.logger, self.progress, self.steps)

    def episodes(self, count: int, stream: int) -> Evaluation:
        """So many of the seeds of a stream, without what is imagined."""
        run, say, look = self.trainer.run, self.progress.note, not self.looked
        beside = self.config.side_by_side
        return evaluate(run.agent, self.config.env, count, stream, say=say, num_envs=beside, lent=self.lent, look=look)

    @property
    def lent(self) -> list[Restart]:
        """The environments of training, where evaluations are to play in them."""
        return self.trainer.lent if self.config.evaluation.reuse_envs else []

    def play(self, kind: str, episodes: Callable[[], Evaluation]) -> Evaluation:
        """Play episodes, and log what came of them under the name of their kind: "eval", "milestone" or "final".

        They may take long and change nothing that is saved, so that the first interrupt ends them at once. Where they
        have stepped what training learns from, its episodes begin anew.

        Raises:
            KeyboardInterrupt: if it was asked for while they were played.
        """
        began, self.interrupt.at_once = time.monotonic(), True
        try:
            result = episodes()
        finally:
            self.evaluation_seconds += time.monotonic() - began
        if self.interrupt.asked:  # in code that swallowed the error
            raise KeyboardInterrupt
        self.interrupt.at_once = False
        if result.disturbed and not self.shared:
            self.progress.note(SHARED)
        self.looked, self.shared = True, self.shared or result.disturbed
        if self.shared or self.config.evaluation.reuse_envs:
            self.trainer.begin_episodes()
        self.trainer.run.returns.evaluated(result.mean)
        metrics = {name.replace("eval/", f"{kind}/"): value for name, value in evaluation_metrics(result).items()}
        metrics |= {"time/frames": self.trainer.envs.frames, "time/evaluation_seconds": self.evaluation_seconds}
        self.logger.log(metrics, self.trainer.run.env_steps)
        return result

    def save_or_tell(self, mean_return: float | None = None) -> None:
        """:meth:`save`; a full disk is no reason to stop."""
        try:
            self.save(mean_return)
        except OSError as error:
            self.progress.note(
                f"{self.steps:>7} steps: not saved ({error}); the checkpoint before stays, and training goes on"
            )

    def save(self, mean_return: float | None = None) -> None:
        """Write what was recorded and learned, and what going on from here needs.

        Args:
            mean_return: of an evaluation of what was learned.
        """
        between = self.trainer.doing not in ("acting", "updating") and self.trainer.pending is None
        resumable = between and self.faults.sound
        self.faults.recent = 0 if resumable else self.faults.recent
        self.trainer.run.save(self.state() if resumable else None, mean_return)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, besides weights and recorded rows; see :func:`resume`."""
        cuda = torch.cuda.get_rng_state(self.trainer.run.agent.device) if self.cuda else None
        return {
            "behaviour": self.trainer.run.behaviour.training_state(),
            "trainer": self.trainer.state(),
            "returns": asdict(self.trainer.run.returns),
            "loop": {
                "due": self.due,
                "begun": self.begun,
                "sums": self.averages.sums,
                "counts": dict(self.averages.counts),
                "recent": list(self.recent),
                "shown": self.shown,
                "logged": self.logger.position(),
                "finished": self.finished,
                "evaluation_due": self.evaluation_due,
                "milestone_due": self.milestone_due,
                "evaluation_seconds": self.evaluation_seconds,
                "faults": self.faults.state(),
            },
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave as "loop"."""
        self.due, self.shown, self.logged = state["due"], state["shown"], state["logged"]
        self.averages.sums, self.averages.counts = state["sums"], Counter(state["counts"])
        self.recent.extend((total, length) for total, length in state["recent"])
        self.begun = state.get("begun")  # format 1 has none
        self.finished, self.evaluation_due = state["finished"], state["evaluation_due"]
        self.milestone_due = state.get("milestone_due", False)  # both are newer than format 2
        self.evaluation_seconds = state.get("evaluation_seconds", 0.0)
        self.faults.load_state(state["faults"])


def evaluation_metrics(result: Evaluation) -> dict[str, float]:
    """Under the names people know from Stable-Baselines3."""
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
    """One line for a person."""
    unsound = "" if result.unsound is None else f"; at step {result.unsound} {UNSOUND}"
    faults = f"; its environments failed {len(result.faults)} time(s), {AGAIN}" if result.faults else ""
    count, told = len(result.returns), len(result.successes)
    of = "of them" if told == count else f"of the {told} that tell"
    successes = "" if result.success_rate is None else f", {result.success_rate:.0%} {of} successful"
    episodes = f"{count} episode{'s' * (count > 1)}{successes}"
    disturbed = f"; {DISTURBED}" if result.disturbed else ""
    return f"return {rounded(result.mean)} ± {rounded(result.std)} over {episodes}{unsound}{faults}{disturbed}"
