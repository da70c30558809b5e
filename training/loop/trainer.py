"""The two things a run does: a step of its environments, and an update of its model and behaviour."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from worldmodel.agents import Behaviour, RandomBehaviour
from worldmodel.learning.learner import Learner
from worldmodel.learning.objective import Metrics
from worldmodel.networks.images import ENOUGH
from worldmodel.training.loop.collector import Collector
from worldmodel.training.loop.normalization import Normalization
from worldmodel.training.loop.updater import Updater
from worldmodel.training.run.run import Run

OnStep = Callable[[], bool]
"""A function that is called after each step of the environments; it returns whether to continue."""


def unbothered() -> bool:
    """Continue."""
    return True


class Trainer:
    """Collects time steps for a run, fits its normalizers, and updates its model and its behaviour.

    Args:
        state: what :meth:`state` of another trainer of this run returned. This trainer continues from there.
    """

    def __init__(self, run: Run, state: Mapping[str, Any] | None = None) -> None:
        self.run, self.config = run, run.config
        self.collector = Collector(run)
        self.updater = Updater(run)
        self.normalization = Normalization(run, self.collector.envs.recorder)
        self.envs = self.collector.envs
        self.prefilled = False
        self.overwritten = False  # whether a full replay on disk no longer holds the steps that it held at the save
        if state is None:
            self.collector.reset()
        else:
            self._load_state(state)

    @property
    def trained_before(self) -> bool:
        """Whether the run was trained before, so that its behaviour acts during the prefill."""
        return self.collector.before > 0

    @property
    def before_learning(self) -> Behaviour:
        """What acts during the prefill: random actions, unless the run was trained before."""
        return self.run.behaviour if self.trained_before else RandomBehaviour(self.run.action_spec)

    @property
    def between_steps(self) -> bool:
        """Whether nothing is half done: no decision, no pending action and no update."""
        idle = self.collector.doing != "acting" and not self.updater.updating
        return idle and self.collector.pending is None

    def prefill(self, steps: int, on_step: OnStep = unbothered) -> bool:
        """Record random actions, then fit the normalizers of model and behaviour to the records.

        If the run was trained before, its behaviour acts instead, and its weights keep their meaning.

        Args:
            steps: environment steps to record.
            on_step: called after each step. The recording ends when it returns False.
        Returns:
            True if `on_step` never returned False.
        """
        trained, behaviour, goes_on = self.trained_before, self.before_learning, True
        while goes_on and self.envs.steps < steps:
            self.collect(behaviour)
            goes_on = on_step()
        if self.envs.steps < steps:  # interrupted
            return False
        self.normalization.fit(keep=trained)
        images = self.run.model.image_keys
        if images:
            every = max(len(self.run.replay) // ENOUGH, 1)
            self.run.model.fit_images(self.run.replay.everything(images, every))
        self.collector.acting = None  # it was inferred with the old normalizers
        self.prefilled = True
        return goes_on

    def decide(self, behaviour: Behaviour) -> None:
        """See :meth:`worldmodel.training.loop.collector.Collector.decide`."""
        self.collector.decide(behaviour)

    def collect(self, behaviour: Behaviour) -> None:
        """See :meth:`worldmodel.training.loop.collector.Collector.collect`."""
        self.updater.updating = False  # an update that was interrupted before is over
        self.collector.collect(behaviour)

    def refit_normalizers(self, before: int) -> None:
        """Fit the normalizers again if it is time; see :class:`worldmodel.training.loop.normalization.Normalization`.

        Args:
            before: environment steps before the last step of the environments.
        """
        collector = self.collector
        self.normalization.refit(before, self.envs.steps, collector.observation, collector.reward)

    def update(self) -> tuple[Metrics, Tensor]:
        """See :meth:`worldmodel.training.loop.updater.Updater.update`."""
        return self.updater.update()

    def learners(self) -> list[Learner]:
        """See :meth:`worldmodel.training.loop.updater.Updater.learners`."""
        return self.updater.learners()

    def state(self) -> dict[str, Any]:
        """Return what the next steps depend on besides weights and records: nested mappings of arrays and numbers."""
        return {
            "learned": self.updater.state(),
            "replay": self.run.replay.training_state(),
            "numbers": [self.collector.before, self.prefilled, self.collector.unsound],
            "measured": self.normalization.reach.rows,
            "recorder": self.envs.recorder.counters(),
            "episodes": self.collector.episodes(),
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.updater.load_state(state["learned"])
        same = self.run.replay.load_training_state(state["replay"])
        self.overwritten = not same
        self.collector.before, self.prefilled, self.collector.unsound = state["numbers"]
        if self.prefilled:
            rows = state.get("measured", len(self.run.replay))  # absent in format 2
            self.normalization.reach.take(self.run.model, rows)
        behaviour = self.run.behaviour if self.prefilled else self.before_learning
        self.collector.resume(state["episodes"] if same else None, state["recorder"], behaviour)
