"""Learning: one update of the model, and one of the behaviour that imagines in it."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldmodel.agents import ActorCritic
from worldmodel.learning.learner import Learner
from worldmodel.learning.objective import Annealed, Metrics, annealed, model_loss
from worldmodel.replay.places import Places
from worldmodel.training.run.run import Run
from worldmodel.types import Batch, State, pack, restart, unpack

SKIPPED = "/skipped"  # the end of the names of the metrics that say whether an update was skipped


class Update(NamedTuple):
    """Everything but the weights that an update depends on: enough to compute it again."""

    batch: Batch
    places: Places
    now: Annealed
    start: State | None
    random: Tensor  # the state of torch's generator


class Updater:
    """Updates the model and the behaviour of a run on batches from its replay.

    Raises:
        ValueError: if the config asks for one loss of model and behaviour, and they cannot have one.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        self.loss = partial(model_loss, run.model, run.config.objective)
        self.joint = together(run) if run.config.training.joint else None
        trained = list(run.model.parameters())
        if self.joint is None:
            self.learner = Learner(self.loss, trained, run.config.learner, self.steps)
        else:
            self.learner = Learner(self.joint_loss, [*trained, *self.joint.trained], run.config.learner, self.steps)
        self.updates = 0  # made so far
        self.last: Update | None = None
        self.updating = False  # an error in an update leaves it True

    def learners(self) -> list[Learner]:
        """Return the learner of the model, and that of each part of the behaviour that has one."""
        found = [self.learner, *(getattr(part, "learner", None) for part in self.run.behaviour.modules())]
        return [learner for learner in found if isinstance(learner, Learner)]

    def update(self) -> tuple[Metrics, Tensor]:
        """Update the model on a replayed batch, and the behaviour on what it imagines from the states of the batch.

        Returns:
            The metrics, and whether numbers were not finite, so that a part of the update was skipped.
        """
        self.updating = True
        self.last = self.drawn()
        metrics = self.learn(self.last)
        self.updating = False
        skipped = [metrics.pop(name) for name in list(metrics) if name.endswith(SKIPPED)]
        return metrics, torch.stack(skipped).amax()

    def drawn(self) -> Update:
        """Draw what the next update begins from."""
        config, replay, device = self.config.replay, self.run.replay, self.config.training.device
        places = replay.draw(config.batch_size, config.window)
        start = self.context(places, device) if config.context else None
        now = annealed(self.config.objective, self.updates, device)
        return Update(replay.gather(places, device), places, now, start, torch.get_rng_state())

    def learn(self, update: Update) -> Metrics:
        """Compute the update and apply it."""
        model, behaviour, batch = self.run.model, self.run.behaviour, update.batch
        (states, metrics), report = self.learner.update(batch, update.now, update.start)
        self.updates += 1
        states = type(states)(*(field.detach() for field in states))
        if self.config.replay.context:
            self.run.replay.remember(update.places, pack(states))
        if self.joint is None:
            metrics |= {f"world_model/{name}": value for name, value in report.items()}
            return {**metrics, **behaviour.learn(model, states, batch)}
        self.joint.update_slow_copies(metrics)
        return {**metrics, **{f"joint/{name}": value for name, value in report.items()}}

    def joint_loss(self, batch: Batch, now: Annealed, start: State | None) -> tuple[Tensor, tuple[State, Metrics]]:
        """Return the sum of the losses of model and behaviour. The values of replayed states shape the model, too."""
        assert self.joint is not None
        loss, (states, metrics) = self.loss(batch, now, start)
        more, learned = self.joint.loss(self.run.model, *self.joint.given(self.run.model, states, batch))
        return loss + more, (states, {**metrics, **learned})

    def steps(self, *_: Any) -> list[tuple[object, str]]:
        """Return the methods that `learner.compile: step` compiles, each with its owner."""
        of_behaviour = [] if self.joint is None else self.joint.steps(self.run.model)
        return [*self.run.model.steps(), *of_behaviour]

    def context(self, places: Places, device: str) -> State:
        """Return the last state that was inferred before each window; the initial state where there is none."""
        start = self.run.model.initial(len(places.env))
        stored = self.run.replay.context(places, device)
        if stored is None:
            return start
        packed, known = stored
        return restart(unpack(packed, start), start, ~known)

    def state(self) -> dict[str, Any]:
        """Return what the next update depends on besides the weights."""
        return {"learner": self.learner.state(), "updates": self.updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.learner.load(state["learner"])
        self.updates = state["updates"]


def together(run: Run) -> ActorCritic:
    """Return the behaviour of a run whose model and behaviour have one loss.

    Raises:
        ValueError: if the gradients of the behaviour would change the model.
    """
    behaviour = run.behaviour
    assert isinstance(behaviour, ActorCritic), type(behaviour)  # the config refuses others
    if behaviour.pathwise:
        raise ValueError(
            "With training.joint, pathwise gradients of the actor would change the model in favour of the actor. Set "
            "behaviour.actor_critic.gradient to score, or training.joint to false."
        )
    return behaviour
