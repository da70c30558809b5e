"""One environment step, and one update of the model and of the behaviour that imagines in it."""

from functools import partial

import numpy as np
from torch import Tensor

from agents import Agent, AgentState, Behaviour, Plan2Explore, RandomBehaviour
from envs import RecordTrajectories, make_vector
from training.run import Run
from worldmodel.learner import Learner
from worldmodel.model import WorldModel
from worldmodel.objective import Annealed, ObjectiveConfig, annealed, objective
from worldmodel.types import Batch, State

Metrics = dict[str, Tensor]


def model_loss(
    model: WorldModel, config: ObjectiveConfig, batch: Batch, now: Annealed | None = None
) -> tuple[Tensor, tuple[State, Metrics]]:
    """The mean objective over recorded steps, the posterior states, and the exact ELBO in nats per step."""
    loss, inference, elbo = objective(model, batch, config, now)
    count = batch.mask.sum()
    terms = {"elbo": elbo.total, "kl": elbo.kl}
    terms |= {f"log_likelihood/{key}": value for key, value in elbo.log_likelihood.items()}
    metrics = {f"world_model/{name}": value.detach().sum() / count for name, value in terms.items()}
    states = type(inference.states)(*(field.detach() for field in inference.states))
    return loss.sum() / count, (states, metrics)


def diverged(
    step: int, what: str, remedy: str = "learner.lr or behaviour.actor_critic.learner.lr"
) -> FloatingPointError:
    """The error of a run whose numbers have left the finite ones."""
    return FloatingPointError(
        f"training diverged by step {step}: {what} is not finite. The last good weights are kept; a lower "
        f"{remedy} is the first thing to try"
    )


class Trainer:
    """Collects arrivals for a run, replays them, and updates its model and its behaviour."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        self.envs = RecordTrajectories(make_vector(run.config.env), run.replay.add)
        self.learner = Learner(
            partial(model_loss, run.model, run.config.objective), run.model.parameters(), run.config.learner
        )
        self.updates = 0
        self.unsound = 0  # decisions on predictions that were not finite
        self.acting: AgentState | None = None
        self.observation, _ = self.envs.reset(seed=run.config.seed)
        self.start = np.ones(self.envs.num_envs, bool)  # which observations are those of a reset

    def collect(self, behaviour: Behaviour) -> None:
        """One step of every environment, recorded."""
        if isinstance(behaviour, Plan2Explore):
            behaviour.begin_step(self.envs.steps)
        agent = Agent(self.run.model, behaviour, self.run.obs_specs, self.run.action_spec)
        actions, self.acting = agent.predict(self.observation, self.acting, self.start)
        if not np.isfinite(actions).all():
            raise diverged(self.run.env_steps, "an action")
        self.unsound += int((~self.acting.sound).sum())
        self.observation, _, terminated, truncated, _ = self.envs.step(actions)
        self.start = terminated | truncated
        self.run.env_steps = self.envs.steps

    def prefill(self) -> None:
        """Record random actions, and take the units of model and behaviour from what they showed."""
        random = RandomBehaviour(self.run.action_spec)
        while self.envs.steps < min(self.config.training.prefill, self.config.training.steps):
            self.collect(random)
        recorded = self.run.replay.everything()
        self.run.model.fit_units(recorded)
        self.run.behaviour.fit_units(recorded)
        self.acting = None  # it was filtered in other units

    def refit_units(self, before: int) -> None:
        """Measure in the units of everything recorded, each time that has doubled since the prefill.

        Args:
            before: environment steps before the last one of each environment.
        """
        prefill = max(self.config.training.prefill, 1)
        if (self.envs.steps // prefill).bit_length() > (before // prefill).bit_length():
            recorded = self.run.replay.everything()
            self.run.model.fit_units(recorded, keep=True)
            self.run.behaviour.fit_units(recorded, keep=True)

    def update(self) -> Metrics:
        """One update of the model on a replayed batch, and one of the behaviour imagined from its states."""
        replay, device = self.config.replay, self.config.training.device
        batch = self.run.replay.sample(replay.batch_size, replay.window, device)
        now = annealed(self.config.objective, self.updates, device)
        (states, metrics), report = self.learner.update(batch, now)
        self.updates += 1
        metrics |= {f"world_model/{name}": value for name, value in report.items()}
        return {**metrics, **self.run.behaviour.learn(self.run.model, states, batch)}
