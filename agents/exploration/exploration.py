"""Explore where the model's own predictions disagree (Plan2Explore; Sekar et al. 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from worldmodel.agents.acting.behaviour import Decision, Memory
from worldmodel.agents.actor_critic.actor_critic import ActorCritic, ActorCriticConfig, Metrics
from worldmodel.agents.exploration.ensemble import Disagreement, EnsembleConfig
from worldmodel.model import LatentModel
from worldmodel.specs import ActionSpec
from worldmodel.types import Batch, Rollout, State


@dataclass
class ExplorationConfig:
    """Plan2Explore."""

    steps: int | None = None  # environment steps of exploration, then it acts for the task (few-shot); null: all
    weight: float = 1.0  # of the disagreement, in the explorer's reward
    task: float = 0.0  # of the predicted reward, in the explorer's
    separate: bool = True  # whether another actor learns the task alone; false: the explorer is evaluated as well
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)

    def __post_init__(self) -> None:
        if self.task < 0 or not (self.task or self.separate):
            raise ValueError(f"task must not be negative, and positive where no other actor learns it: {self.task}")
        if self.steps is not None and not self.separate:
            raise ValueError(f"steps is of no effect where one actor does both (separate: false): {self.steps}")
        if self.weight <= 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"weight must be positive, steps at least 1 or null: {self.weight}, {self.steps}")


class Plan2Explore(nn.Module):
    """Two actor-critics in one world model: an explorer, and one for the task that never acts until asked.

    While it explores, controls are the explorer's; it is rewarded with :class:`Disagreement` alone. A deterministic
    answer, and so every evaluation, is that of the task's actor, which learns from imagination with the predicted
    reward: zero-shot. After `exploration.steps` it collects as well: few-shot.

    With `task` the explorer also wants the reward, and is drawn to what it does not know only as long as there is such;
    then one actor is enough (`separate: false`).
    """

    def __init__(
        self, config: ExplorationConfig, actor_critic: ActorCriticConfig, feature_size: int, action_spec: ActionSpec
    ) -> None:
        super().__init__()
        self.config = config
        self.disagreement = Disagreement(config.ensemble, feature_size, action_spec)
        self.explorer = ActorCritic(actor_critic, feature_size, action_spec, self.intrinsic)
        self.task = ActorCritic(actor_critic, feature_size, action_spec) if config.separate else self.explorer
        self.exploring = True

    def intrinsic(self, rollout: Rollout) -> Tensor:
        """(N, H): the explorer's reward."""
        feature = rollout.features.transpose(0, 1)[:-1]
        disagreement = self.disagreement.spread(feature, rollout.actions.transpose(0, 1)).t()
        return self.config.weight * disagreement + self.config.task * rollout.reward

    def begin_step(self, steps: int) -> None:
        """Be told how many environment steps have been taken."""
        self.exploring = self.config.steps is None or steps < self.config.steps

    def initial(self, count: int) -> Memory:
        return self.task.initial(count)

    def act(self, model: LatentModel, state: State, memory: Memory, deterministic: bool = False) -> Decision:
        actor = self.explorer if self.exploring and not deterministic else self.task
        return actor.act(model, state, memory, deterministic)

    def fit_normalizers(self, batch: Batch, keep: bool = False) -> None:
        """See :meth:`worldmodel.agents.actor_critic.actor_critic.ActorCritic.fit_normalizers`."""
        self.task.fit_normalizers(batch, keep)
        if self.config.task and self.config.separate:
            self.explorer.fit_normalizers(batch, keep)

    def learn(self, model: LatentModel, states: State, batch: Batch) -> Metrics:
        """Ensemble, task and, while it is of use, explorer."""
        metrics, report = self.disagreement.learner.update(model.feature(states), batch)
        metrics["ensemble/skipped"] = report["skipped"]
        metrics |= self.task.learn(model, states, batch)
        if self.exploring and self.config.separate:
            learned = self.explorer.learn(model, states, batch)
            metrics |= {f"exploration/{name.partition('/')[2]}": value for name, value in learned.items()}
        return metrics

    def training_state(self) -> dict[str, Any]:
        """See :meth:`worldmodel.agents.actor_critic.actor_critic.ActorCritic.training_state`."""
        state = {"ensemble": self.disagreement.learner.state(), "task": self.task.training_state()}
        return {**state, "explorer": self.explorer.training_state()} if self.config.separate else state

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`training_state` gave."""
        self.disagreement.learner.load(state["ensemble"])
        self.task.load_training_state(state["task"])
        if self.config.separate:
            self.explorer.load_training_state(state["explorer"])
