"""Explore where the model's own predictions disagree (Plan2Explore; Sekar et al. 2020)."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from agents.actor_critic import ActorCritic, ActorCriticConfig, Metrics
from agents.behaviour import Decision, Memory
from worldmodel.learner import Learner, LearnerConfig
from worldmodel.model import LatentModel
from worldmodel.recurrent import BlockLinear
from worldmodel.spaces import ActionSpec
from worldmodel.types import Batch, Rollout, State

EPS = 1e-12  # under a square root, whose gradient is not finite at 0


@dataclass
class ExplorationConfig:
    """Plan2Explore."""

    steps: int | None = None  # environment steps of exploration, then it acts for the task (few-shot); null: all
    members: int = 5  # predictors in the ensemble; the paper has 10
    hidden: int = 64  # the paper has 400
    layers: int = 1  # the paper has 4
    weight: float = 1.0  # of the disagreement, in the explorer's reward
    task: float = 0.0  # of the predicted reward, in the explorer's
    separate: bool = True  # whether another actor learns the task alone; false: the explorer is evaluated as well
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(lr=3e-4))

    def __post_init__(self) -> None:
        if self.members < 2 or min(self.hidden, self.layers) < 1:
            raise ValueError(f"members must be at least 2 (one agrees with itself), hidden and layers 1: {self}")
        if self.task < 0 or not (self.task or self.separate):
            raise ValueError(f"task must not be negative, and positive where no other actor learns it: {self.task}")
        if self.steps is not None and not self.separate:
            raise ValueError(f"steps is of no effect where one actor does both (separate: false): {self.steps}")
        if self.weight <= 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"weight must be positive, steps at least 1 or null: {self.weight}, {self.steps}")


class Disagreement(nn.Module):
    """K predictors of the next feature from a feature and a control; where they differ, data is missing.

        mu_k(s_t, u_t) ~ feature(s_{t+1}),   reward(s_t, u_t) = mean over features of std_k mu_k(s_t, u_t)

    All see the same data, and begin differently. What is random, but known to be, they agree upon: each predicts its
    mean. (The paper predicts the next embedding, and takes the variance; its authors' later code takes the standard
    deviation.)
    """

    def __init__(self, config: ExplorationConfig, feature_size: int, action_spec: ActionSpec) -> None:
        super().__init__()
        self.members = config.members
        widths = [*[config.hidden] * config.layers, feature_size]
        modules: list[nn.Module] = [nn.Linear(feature_size + action_spec.width, self.members * config.hidden)]
        for inputs, outputs in pairwise(widths):
            modules += [nn.SiLU(), BlockLinear(self.members * inputs, self.members * outputs, self.members)]
        self.net = nn.Sequential(*modules)
        self.learner = Learner(self.loss, self.parameters(), config.learner)

    def forward(self, feature: Tensor, control: Tensor) -> Tensor:
        """(..., F), (..., A) -> K predictions (..., K, F)."""
        return self.net(torch.cat([feature, control], -1)).unflatten(-1, (self.members, -1))

    def loss(self, feature: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """Squared error of every member on replayed steps (B, T, F), within episodes."""
        predicted = self(feature[:, :-1], batch.prev_action[:, 1:])
        error = (predicted - feature[:, 1:].unsqueeze(-2)).square().mean((-1, -2))
        inside = (batch.mask * ~batch.is_first)[:, 1:]
        loss = (error * inside).sum() / inside.sum().clamp(min=1)
        return loss, {"exploration/error": loss.detach()}

    def reward(self, rollout: Rollout) -> Tensor:
        """(N, H): how much the members differ on where each imagined control leads."""
        predicted = self(rollout.features[:, :-1], rollout.actions)
        spread = (predicted - predicted.mean(-2, keepdim=True)).square().sum(-2) / (self.members - 1)
        return (spread + EPS).sqrt().mean(-1)  # torch.std takes seven times as long on a CPU


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
        self.disagreement = Disagreement(config, feature_size, action_spec)
        self.explorer = ActorCritic(actor_critic, feature_size, action_spec, self.intrinsic)
        self.task = ActorCritic(actor_critic, feature_size, action_spec) if config.separate else self.explorer
        self.exploring = True

    def intrinsic(self, rollout: Rollout) -> Tensor:
        """(N, H): the explorer's reward."""
        return self.config.weight * self.disagreement.reward(rollout) + self.config.task * rollout.reward

    def begin_step(self, steps: int) -> None:
        """Be told how many environment steps have been taken."""
        self.exploring = self.config.steps is None or steps < self.config.steps

    def initial(self, count: int) -> Memory:
        return self.task.initial(count)

    def act(self, model: LatentModel, state: State, memory: Memory, deterministic: bool = False) -> Decision:
        actor = self.explorer if self.exploring and not deterministic else self.task
        return actor.act(model, state, memory, deterministic)

    def fit_units(self, batch: Batch, keep: bool = False) -> None:
        """See :meth:`agents.actor_critic.ActorCritic.fit_units`."""
        self.task.fit_units(batch, keep)
        if self.config.task and self.config.separate:
            self.explorer.fit_units(batch, keep)

    def learn(self, model: LatentModel, states: State, batch: Batch) -> Metrics:
        """Ensemble, task and, while it is of use, explorer."""
        metrics, _ = self.disagreement.learner.update(model.feature(states), batch)
        metrics |= self.task.learn(model, states, batch)
        if self.exploring and self.config.separate:
            learned = self.explorer.learn(model, states, batch)
            metrics |= {f"exploration/{name.partition('/')[2]}": value for name, value in learned.items()}
        return metrics
