"""Actor and critic learned in imagination (Hafner et al. 2020-2023, Dreamer V1-V3)."""

import copy
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from agents.behaviour import Decision, Memory
from agents.policies import OneHotCategorical, PolicyFamily, TanhNormal
from agents.returns import ReturnScale, arrival_weights, lambda_returns
from worldmodel.imagination import rollout
from worldmodel.learner import Learner, LearnerConfig
from worldmodel.model import LatentModel, ScalarOutput, scalar_output
from worldmodel.networks import MLP, Head
from worldmodel.outputs import Normal
from worldmodel.spaces import ActionSpec
from worldmodel.types import Batch, Rollout, State

Metrics = dict[str, Tensor]

LIFETIME = 1000.0  # steps that count where nothing is discounted


@dataclass
class ActorCriticConfig:
    """Actor-critic in imagination."""

    hidden: int = 64
    layers: int = 2
    starts: int = 256  # imagined trajectories per update, drawn from the posterior states of the batch
    horizon: int = 15  # imagined steps
    discount: float = 0.99
    lambda_: float = 0.95
    gradient: Literal["auto", "pathwise", "score"] = "auto"  # auto: pathwise for continuous actions, else score
    entropy: float = 3e-3  # weight of the entropy beside normalised returns
    value_output: ScalarOutput = "normal"
    slow_critic_rate: float = 0.1  # share of the critic that enters its slow copy, the target, per update
    slow_actor_rate: float = 0.02  # share of the actor that enters its average, the deterministic policy, per update
    scale_rate: float = 0.01  # share of a batch in the running return scale
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(lr=1e-3))

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers, self.starts, self.horizon) < 1:
            raise ValueError("hidden, layers, starts and horizon must be at least 1")
        if not (0 <= self.discount <= 1 and 0 <= self.lambda_ <= 1):
            raise ValueError(f"discount and lambda_ must lie in [0, 1]: {self.discount}, {self.lambda_}")
        if self.entropy < 0:
            raise ValueError(f"entropy must not be negative: {self.entropy}")
        for name in ("slow_critic_rate", "slow_actor_rate", "scale_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1]: {getattr(self, name)}")


def follow(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    """slow <- (1 - rate) slow + rate fast, for every parameter."""
    with torch.no_grad():
        for average, latest in zip(slow.parameters(), fast.parameters(), strict=True):
            average.lerp_(latest, rate)


class ActorCritic(nn.Module):
    """A policy and a value function over latent features.

    Args:
        feature_size: F of the world model. action_spec: what the policy controls.
    """

    def __init__(self, config: ActorCriticConfig, feature_size: int, action_spec: ActionSpec) -> None:
        super().__init__()
        self.config = config
        discrete = bool(action_spec.classes)
        self.pathwise = config.gradient == "pathwise" or (config.gradient == "auto" and not discrete)
        self.family: PolicyFamily = (
            OneHotCategorical(action_spec.classes) if discrete else TanhNormal(action_spec.width)
        )
        self.actor = MLP(feature_size, config.hidden, config.layers, self.family.parameters, output_scale=0.01)
        self.critic = Head(feature_size, config.hidden, config.layers, scalar_output(config.value_output), 0.0)
        self.slow_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.scale = ReturnScale(config.scale_rate)
        trained = [*self.actor.parameters(), *self.critic.parameters()]
        self.learner = Learner(self.loss, trained, config.learner)

    def fit_units(self, batch: Batch, keep: bool = False) -> None:
        """Take the unit of the value from recorded rewards: their root mean square over a discounted lifetime.

        With `keep` the values stay what they were; see :meth:`worldmodel.model.WorldModel.fit_units`.
        """
        if isinstance(self.critic.output, Normal):
            received = batch.mask * ~batch.is_first
            square = (batch.reward.square() * received).sum() / received.sum().clamp(min=1)
            unit = square.sqrt() / max(1 - self.config.discount, 1 / LIFETIME)
            unit = torch.where(unit > 0, unit, torch.ones_like(unit))
            for critic in (self.critic, self.slow_critic):
                output = cast(Normal, critic.output)
                change = output.units.change(torch.zeros(1, device=unit.device), unit.reshape(1))
                if keep:
                    output.keep(critic.last, *change)

    def initial(self, count: int) -> Memory:
        return ()

    def act(self, model: LatentModel, state: State, memory: Memory, deterministic: bool = False) -> Decision:
        """A sample of the actor, or the mode of its slow average.

        The average over recent updates is what the actor fluctuates about (Polyak and Juditsky 1992), so that one
        unlucky update does not decide an evaluation.
        """
        feature = model.feature(state)
        if deterministic:
            control = self.family.mode(self.slow_actor(feature))
        else:
            control = self.family.sample(self.actor(feature))
        return Decision(control, memory, control.isfinite().all(-1))

    def value(self, feature: Tensor) -> Tensor:
        """(..., F) -> (...): the slow critic's value, which is what returns bootstrap from."""
        return self.slow_critic.mean(feature).squeeze(-1)

    def update(self, model: LatentModel, starts: State, alive: Tensor) -> Metrics:
        """Learn from trajectories imagined from `starts` (N, ...); `alive` (N,) is 0 where nothing can follow."""
        metrics, report = self.learner.update(model, starts, alive)
        follow(self.slow_actor, self.actor, self.config.slow_actor_rate)
        follow(self.slow_critic, self.critic, self.config.slow_critic_rate)
        return {**metrics, **{f"actor_critic/{name}": value for name, value in report.items()}}

    def loss(self, model: LatentModel, starts: State, alive: Tensor) -> tuple[Tensor, Metrics]:
        """Actor and critic loss over one imagined batch; their gradients do not meet."""
        config = self.config
        trajectory = self.imagine(model, starts)
        value = self.value(trajectory.features)
        returns = lambda_returns(trajectory.reward, trajectory.cont, value, config.discount, config.lambda_)
        weight = arrival_weights(alive, trajectory.cont, config.discount)
        self.scale.update(returns.detach())
        actor, entropy = self.actor_loss(trajectory, returns, value)
        critic = -self.critic.log_prob(trajectory.features[:, :-1].detach(), returns.detach().unsqueeze(-1))
        assert actor.shape == critic.shape == weight.shape == trajectory.reward.shape
        metrics = {
            "imagination/return": returns.mean(),
            "imagination/reward": trajectory.reward.mean(),
            "imagination/continue": trajectory.cont.mean(),
            "actor_critic/actor_loss": (weight * actor).mean(),
            "actor_critic/critic_loss": (weight * critic).mean(),
            "actor_critic/entropy": entropy.mean(),
            "actor_critic/return_scale": self.scale.value,
        }
        return (weight * (actor + critic)).mean(), {name: value.detach() for name, value in metrics.items()}

    def imagine(self, model: LatentModel, starts: State) -> Rollout:
        """Trajectories of the current policy; with gradients only where the actor learns through them."""

        def policy(feature: Tensor) -> tuple[Tensor, Tensor]:
            params = self.actor(feature.detach())
            return self.family.sample(params), params

        with torch.set_grad_enabled(self.pathwise and torch.is_grad_enabled()):
            return rollout(model, starts, policy, self.config.horizon)

    def actor_loss(self, trajectory: Rollout, returns: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H) loss and entropy.

        Pathwise: - R_h / S, differentiated through dynamics, reward and value (Dreamer V1, Eq. 7).
        Score: - log pi(u_h | s_h) sg((R_h - v_h) / S) (REINFORCE with a baseline; DreamerV3, Eq. 6).
        """
        scale = self.scale.value
        if self.pathwise:
            params = trajectory.policy
            gain = returns / scale
        else:
            params = self.actor(trajectory.features[:, :-1])  # with gradient, for all steps at once
            advantage = (returns - value[:, :-1]) / scale
            gain = advantage * self.family.log_prob(params, trajectory.actions)
        entropy = self.family.entropy(params)
        return -gain - self.config.entropy * entropy, entropy
