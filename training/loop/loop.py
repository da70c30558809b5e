"""The training loop: when a run acts, learns, logs, evaluates and saves."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from worldmodel.agents import Behaviour
from worldmodel.training.loop.evaluations import UNSOUND, Evaluations, Film, unfilmed
from worldmodel.training.loop.faults import LearningFaults
from worldmodel.training.loop.interrupt import Interrupt
from worldmodel.training.loop.record import Record
from worldmodel.training.loop.trainer import OnStep, Trainer, unbothered


class Loop:
    """Collects time steps and makes the updates that they pay for.

    Args:
        evaluates: whether it evaluates; without, it only saves where an evaluation would be due.
        film: makes the films of an evaluation.
    """

    def __init__(self, trainer: Trainer, evaluates: bool = True, film: Film = unfilmed) -> None:
        self.trainer, self.evaluates = trainer, evaluates
        self.config, self.cuda = trainer.config, trainer.run.agent.device.type == "cuda"
        self.interrupt = Interrupt()
        self.record = Record(trainer)
        self.evaluations = Evaluations(trainer, self.record, self.interrupt, self.save_or_tell, film)
        self.faults = LearningFaults(trainer, self.record.note)
        self.unread = torch.zeros(())  # updates that were skipped since the last row, on the device
        self.finished = False
        self.due = 0.0  # updates that are paid for and not yet made
        self.begun: int | None = None  # environment steps when learning began
        self.until = self.config.training.steps  # environment steps at which learning ends
        self.log_every = self.config.training.log_every

    @property
    def steps(self) -> int:
        """Environment steps of this run so far."""
        return self.trainer.envs.steps

    def run(self, until: int, on_step: OnStep = unbothered) -> bool:
        """Prefill the replay, then alternate environment steps with updates. A further call continues.

        Args:
            until: environment steps in all.
            on_step: called after each step of the environments. The loop ends when it returns False.
        Returns:
            True if all steps were taken and the run was not interrupted.
        """
        self.until = until
        goes_on = self._begin(on_step)
        self.evaluations.play_due()
        while goes_on:
            self._learn_due()
            before, pending = self.steps, self.trainer.collector.pending
            if before >= self.until or (self.interrupt.asked and pending is None):
                break
            if self._collect():
                self.trainer.refit_normalizers(before)
                self.due += self.config.updates_per_step * (self.steps - before)
                goes_on = self.stepped(on_step)
                self.report(before)
        if self.record.averages.counts and not self.interrupt.asked:  # the updates after the last row
            self.log()
        return goes_on and not self.interrupt.asked

    def _begin(self, on_step: OnStep) -> bool:
        """Prefill the replay unless this is done; return whether to continue."""
        config, goes_on = self.config.training, True
        if not self.trainer.prefilled:
            goes_on = self.prefill(min(config.prefill, self.until), on_step)
            self.due = float(config.pretrain) if self.trainer.prefilled else 0.0
        if self.begun is None and self.trainer.prefilled:
            self.begun = self.steps
        return goes_on

    def prefill(self, steps: int, on_step: OnStep) -> bool:
        """See :meth:`worldmodel.training.loop.trainer.Trainer.prefill`."""
        try:
            return self.trainer.prefill(steps, lambda: self.stepped(on_step))
        except FloatingPointError as error:
            raise self.faults.stop(str(error)) from error
        finally:
            self.record.warn()

    def _learn_due(self) -> None:
        """Make the updates that are due. With `training.overlap` the environments step meanwhile."""
        collector, asked = self.trainer.collector, self.interrupt
        few = 1 + self.config.updates_per_step * self.trainer.envs.num_envs  # the prefill pays for more than this
        ahead = self.config.training.overlap and collector.pending is None and self.due < few
        if ahead and self.steps < self.until and not asked.asked:
            self.acts(self.trainer.decide)
        while self.due >= 1 and (collector.pending is not None or not asked.asked):
            self.due -= 1
            self.learn()
            self.record.update_progress()

    def _collect(self) -> bool:
        """Step the environments; return False if an action was not finite."""
        collector = self.trainer.collector
        unsound = collector.unsound
        if not self.acts(self.trainer.collect):
            return False
        if collector.unsound > unsound == 0:
            self.record.note_now(UNSOUND)
        return True

    def acts(self, what: Callable[[Behaviour], None]) -> bool:
        """Let the behaviour act. If its actions are not finite, restore a checkpoint and return False."""
        try:
            what(self.trainer.run.behaviour)
        except FloatingPointError as error:
            self.faults.restore(str(error))
            return False
        return True

    def learn(self) -> None:
        """Make one update, and average what it measured unless it was skipped."""
        self.age()
        updater = self.trainer.updater
        try:
            metrics, skipped = self.trainer.update()
        except torch.linalg.LinAlgError:
            updater.updating = False
            self.faults.count(1, "a covariance has no decomposition")
            return
        except FloatingPointError as error:
            updater.updating = False
            self.faults.restore(str(error))
            return
        if self.cuda:  # reading it now would wait for the device; the last batch is kept for a report until then
            self.unread = self.unread + skipped
        elif bool(skipped):
            self.faults.count(1)
            return
        else:
            updater.last = None
        self.faults.sound = True
        self.record.averages.add(metrics)

    def age(self) -> None:
        """Tell the learners which share of the steps from the beginning of learning to its end is over."""
        begun = self.steps if self.begun is None else self.begun
        for learner in self.trainer.learners():
            learner.progress = (self.steps - begun) / max(self.until - begun, 1)

    def stepped(self, on_step: OnStep) -> bool:
        """Take note of a step of the environments; return whether to continue."""
        trainer = self.trainer
        at_random = not trainer.trained_before and not trainer.prefilled
        trainer.run.returns.ended([episode.total_reward for episode in trainer.collector.ended], at_random)
        self.record.note_step()
        return on_step() and not self.interrupt.asked

    def report(self, before: int) -> None:
        """Log, evaluate and save if the last step crossed a multiple of the configured interval."""
        if self.steps // self.log_every > before // self.log_every:
            self.log()
        if self.evaluates:
            self.evaluations.schedule(before)
            self.evaluations.play_due()
        elif self.evaluations.crossed(before):
            self.save_or_tell()

    def log(self) -> None:
        """Write a row of metrics."""
        metrics = self.record.averages.pop()
        if skipped := round(float(self.unread)):
            self.faults.count(skipped)
        self.unread = torch.zeros(())
        self.age()
        self.record.write(metrics | self.faults.metrics())

    def save_or_tell(self, mean_return: float | None = None) -> None:
        """Save as :meth:`save` does. An error of the disk is shown and does not end the run."""
        try:
            self.save(mean_return)
        except OSError as error:
            self.record.note_now(f"not saved ({error}); the previous checkpoint is kept, and training continues")

    def save(self, mean_return: float | None = None) -> None:
        """Write what was recorded and learned, and what is needed to resume from here.

        Args:
            mean_return: the result of an evaluation of the present weights.
        """
        resumable = self.trainer.between_steps and self.faults.sound
        self.faults.recent = 0 if resumable else self.faults.recent
        self.trainer.run.save(self.state() if resumable else None, mean_return)

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, besides weights and records."""
        cuda = torch.cuda.get_rng_state(self.trainer.run.agent.device) if self.cuda else None
        return {
            "behaviour": self.trainer.run.behaviour.training_state(),
            "trainer": self.trainer.state(),
            "returns": asdict(self.trainer.run.returns),
            "loop": {
                "due": self.due,
                "begun": self.begun,
                "finished": self.finished,
                "faults": self.faults.state(),
                **self.record.state(),
                **self.evaluations.state(),
            },
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned as "loop"."""
        self.due, self.finished = state["due"], state["finished"]
        self.begun = state.get("begun")  # absent in format 1
        self.record.load_state(state)
        self.evaluations.load_state(state)
        self.faults.load_state(state["faults"])
