"""Actor and critic learned in imagination (Hafner et al. 2020-2023, Dreamer V1-V3)."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from worldmodel.agents.acting.behaviour import Decision, Memory
from worldmodel.agents.acting.noise import PinkNoise, disturbed
from worldmodel.agents.acting.policies import ClippedNormal, OneHotCategorical, PolicyFamily, TanhNormal
from worldmodel.agents.actor_critic.returns import ReturnScale, discount_weights, lambda_returns, percentile_spread
from worldmodel.imagination import rollout, starts
from worldmodel.kernels.precision import doubled
from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.model import LatentModel, ScalarOutput, WorldModel, scalar_output
from worldmodel.networks.encoder import Head
from worldmodel.networks.layers import MLP, LayerConfig
from worldmodel.networks.outputs import SMALLEST, Normal
from worldmodel.specs import ActionSpec
from worldmodel.types import Batch, Rollout, State
from worldmodel.validation import CANDIDATES, HORIZON, LAYERS, at_most

Metrics = dict[str, Tensor]

LIFETIME = 1000.0  # steps that count where nothing is discounted
CHOICES = {"policy": ("tanh", "clipped"), "noise": ("white", "pink"), "bootstrap": ("slow", "own")}
COUNTS = ("hidden", "actor_layers", "critic_layers", "horizon", "slow_critic_every")


@dataclass
class ActorCriticConfig:
    """Actor-critic in imagination."""

    hidden: int = 64
    actor_layers: int = 2
    critic_layers: int = 2
    layer: LayerConfig = field(default_factory=LayerConfig)
    starts: int = 256  # imagined trajectories per update, drawn from the batch's posterior states; 0: from every one
    horizon: int = 15  # imagined steps
    discount: float = 0.99
    lambda_: float = 0.95
    policy: Literal["tanh", "clipped"] = "tanh"  # of continuous actions: squashed (V1), or clipped (V3)
    initial_std: float = 1.0  # of a squashed one, before the squashing (V1: 5)
    gradient: Literal["auto", "pathwise", "score"] = "auto"  # auto: pathwise for continuous actions, else score
    noise: Literal["white", "pink"] = "white"  # of continuous actions while exploring: over time, see agents/noise.py
    action_noise: float = 0.0  # added to a control while exploring (V1: 0.3); where discrete, the share drawn anew
    entropy: float = 3e-3  # weight of the entropy beside normalised returns
    value_output: ScalarOutput = "normal"
    normalise: bool = True  # returns by the spread of a batch, as DreamerV3; V1 and V2 take them as they are
    bootstrap: Literal["slow", "own"] = "slow"  # values imagined states: the slow copy (V2), or the critic (V1, V3)
    slow_critic_rate: float = 0.1  # share of the critic that enters its slow copy (V2: 1, V3: 0.02)
    slow_critic_every: int = 1  # updates between two such steps (V2: 100)
    slow_regulariser: float = 0.0  # weight of the slow copy's value as a second target of the critic (V3: 1)
    replay_value: float = 0.0  # weight of the critic's loss on replayed steps (V3: 0.3); needs starts: 0
    slow_actor_rate: float = 0.02  # share of the actor that enters its average, the deterministic policy, per update
    scale_rate: float = 0.01  # share of a batch in the running return scale
    scale_corrected: bool = True  # for its start at zero, so that it holds from the first update on (V3: false)
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(lr=1e-3))

    def __post_init__(self) -> None:
        if min(getattr(self, name) for name in COUNTS) < 1:
            raise ValueError(f"{', '.join(COUNTS)} must be at least 1: {self}")
        at_most(self, actor_layers=LAYERS, critic_layers=LAYERS, horizon=HORIZON, starts=CANDIDATES)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {' or '.join(choices)}: '{getattr(self, name)}'")
        if not (0 <= self.discount <= 1 and 0 <= self.lambda_ <= 1):
            raise ValueError(f"discount and lambda_ must lie in [0, 1]: {self.discount}, {self.lambda_}")
        for name in ("starts", "action_noise", "entropy", "slow_regulariser", "replay_value"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")
        if self.initial_std <= 0:
            raise ValueError(f"initial_std must be positive: {self.initial_std}")
        if self.replay_value and self.starts:
            raise ValueError(
                f"replay_value needs the imagined return of every replayed state, starts: 0: {self.starts}"
            )
        for name in ("slow_critic_rate", "slow_actor_rate", "scale_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1]: {getattr(self, name)}")


def polyak_update(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    """slow <- (1 - rate) slow + rate fast, for every parameter."""
    with torch.no_grad():
        for average, latest in zip(slow.parameters(), fast.parameters(), strict=True):
            average.lerp_(latest, rate)


@contextmanager
def frozen(model: object) -> Iterator[None]:
    """Nothing of the model is trained in here, whatever flows through it.

    A compiled backward pass computes the gradient of all that asks for one; without this, of every weight it passes.
    """
    parameters = [each for each in model.parameters() if each.requires_grad] if isinstance(model, nn.Module) else []
    for each in parameters:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in parameters:
            each.requires_grad_(True)


def policy_family(config: ActorCriticConfig, spec: ActionSpec) -> PolicyFamily:
    """The distribution of controls that a config names."""
    if spec.classes:
        return OneHotCategorical(spec.classes)
    return ClippedNormal(spec.width) if config.policy == "clipped" else TanhNormal(spec.width, config.initial_std)


class Replayed(NamedTuple):
    """Recorded steps, for values that are learned from them."""

    feature: Tensor  # (B, T, F)
    batch: Batch


class PinkMemory(NamedTuple):
    """Of exploration."""

    processes: Tensor  # (N, A, K)


class ActorCritic(nn.Module):
    """A policy and a value function over latent features.

    Args:
        feature_size: F of the world model. action_spec: what the policy controls.
        reward: of an imagined trajectory, (N, H); what the model predicts by default.
    """

    def __init__(
        self,
        config: ActorCriticConfig,
        feature_size: int,
        action_spec: ActionSpec,
        reward: Callable[[Rollout], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.reward = config, reward
        discrete = bool(action_spec.classes)
        self.pathwise = config.gradient == "pathwise" or (config.gradient == "auto" and not discrete)
        self.family = policy_family(config, action_spec)
        self.action_spec = action_spec
        self.pink = PinkNoise() if config.noise == "pink" and not discrete else None
        sizes, layer = (feature_size, config.hidden), config.layer
        self.actor = MLP(*sizes, config.actor_layers, self.family.parameters, 0.01, layer)
        self.critic = Head.of_vectors(*sizes, config.critic_layers, scalar_output(config.value_output), 0.0, layer)
        self.slow_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.scale = ReturnScale(config.scale_rate, corrected=config.scale_corrected)
        self.updates = 0
        self.trained = [*self.actor.parameters(), *self.critic.parameters()]
        self.learner = Learner(self.loss, self.trained, config.learner, self.steps)

    def fit_normalizers(self, batch: Batch, keep: bool = False) -> None:
        """Take the unit of the value from recorded rewards: their root mean square over a discounted lifetime.

        With `keep` the predicted values stay the same; see :meth:`worldmodel.model.WorldModel.fit_normalizers`. The
        scale of returns learns how large a reward is. A value that is predicted in symlog has a unit of about 1, and so
        has its scale, as in DreamerV3.
        """
        if not isinstance(self.critic.output, Normal):
            return
        rewards = doubled(batch.reward[(batch.mask > 0) & ~batch.is_first])  # squares of 1e25 leave single precision
        square = rewards.square().sum() / max(len(rewards), 1)
        unit = square.sqrt() / max(1 - self.config.discount, 1 / LIFETIME)
        unit = torch.where(unit > SMALLEST, unit, torch.ones_like(unit))
        for critic in (self.critic, self.slow_critic):
            output = cast(Normal, critic.output)
            change = output.normalizer.change(torch.zeros(1), unit.reshape(1))
            if keep:
                output.keep(critic.last, *change)
        self.scale.lower_floor(torch.cat([rewards.abs(), rewards.new_zeros(1)]).amax().to(self.scale.floor))

    def initial(self, count: int) -> Memory:
        device = self.slow_critic.last.weight.device
        return () if self.pink is None else PinkMemory(self.pink.initial(count, self.action_spec.width, device=device))

    def act(self, model: LatentModel, state: State, memory: Memory, deterministic: bool = False) -> Decision:
        """A sample of the actor, or the mode of its slow average.

        The average over recent updates is what the actor fluctuates about (Polyak and Juditsky 1992), so that one
        unlucky update does not decide an evaluation.
        """
        feature = model.feature(state)
        params = (self.slow_actor if deterministic else self.actor)(feature)
        if deterministic:
            control = self.family.mode(params)
        elif self.pink is None:
            control = self.family.sample(params)
        else:
            noise, processes = self.pink.step(memory.processes)
            control, memory = self.family.sample(params, noise), PinkMemory(processes)
        if self.config.action_noise and not deterministic:
            control = disturbed(self.action_spec, control, self.config.action_noise)
        return Decision(control, memory, params.isfinite().all(-1) & control.isfinite().all(-1))  # a class always is

    def value(self, feature: Tensor) -> Tensor:
        """(..., F) -> (...): what returns bootstrap from. Gradients reach the feature, and never a critic."""
        if self.config.bootstrap == "slow":
            return self.slow_critic.mean(feature).squeeze(-1)
        fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        return self.critic.output.mean(functional_call(self.critic, fixed, (feature,))).squeeze(-1)

    def values(self, features: Tensor, judged: Tensor) -> Tensor:
        """(H + 1, N): of every imagined state (H + 1, N, F).

        Args:
            judged: what the critic says of all but the last (H, N, P). Where it is its own bootstrap, and no gradient
                has to reach the features, that is most of the answer.
        """
        if self.pathwise or self.config.bootstrap == "slow":
            return self.value(features)
        return torch.cat([self.critic.output.mean(judged).squeeze(-1), self.value(features[-1:])])

    def learn(self, model: LatentModel, states: State, batch: Batch) -> Metrics:
        """One update in imagination from replayed states (B, T, ...)."""
        return self.update(model, *self.given(model, states, batch))

    def given(self, model: LatentModel, states: State, batch: Batch) -> tuple[State, Tensor, Replayed | None]:
        """What an update learns from: states (N, ...) to imagine from, which can go on (N,), and recorded steps.

        A critic of another reward than the recorded one learns from imagination alone.
        """
        begin, alive = starts(states, batch, self.config.starts)
        replays = self.config.replay_value and self.reward is None
        return begin, alive, Replayed(model.feature(states), batch) if replays else None

    def update(self, model: LatentModel, starts: State, alive: Tensor, replayed: Replayed | None = None) -> Metrics:
        """Learn from trajectories imagined from `starts` (N, ...); `alive` (N,) is 0 where nothing can follow."""
        with frozen(model):
            metrics, report = self.learner.update(model, starts, alive, replayed)
        self.update_slow_copies(metrics)
        return {**metrics, **{f"actor_critic/{name}": value for name, value in report.items()}}

    def update_slow_copies(self, metrics: Metrics) -> None:
        """After each update: the slow copies, and the scale of returns.

        Args:
            metrics: of the loss.
        """
        self.scale.update(metrics["actor_critic/return_spread"])
        polyak_update(self.slow_actor, self.actor, self.config.slow_actor_rate)
        self.updates += 1
        if self.updates % self.config.slow_critic_every == 0:
            polyak_update(self.slow_critic, self.critic, self.config.slow_critic_rate)

    def training_state(self) -> dict[str, Any]:
        """What learning on needs besides the weights; see :meth:`worldmodel.learning.learner.Learner.state`."""
        return {"learner": self.learner.state(), "updates": self.updates, "floor": float(self.scale.floor)}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`training_state` gave."""
        self.learner.load(state["learner"])
        self.updates = state["updates"]
        self.scale.floor.fill_(state.get("floor", 1.0))  # newer than format 2

    def loss(
        self, model: LatentModel, starts: State, alive: Tensor, replayed: Replayed | None = None
    ) -> tuple[Tensor, Metrics]:
        """Actor and critic loss over one imagined batch; their gradients do not meet."""
        discount = self.config.discount / model.discount
        return self.judge(self.imagine(model, starts), alive, replayed, discount)

    def judge(
        self, trajectory: Rollout, alive: Tensor, replayed: Replayed | None, discount: float
    ) -> tuple[Tensor, Metrics]:
        """What :meth:`loss` gives, of what was imagined.

        Args:
            discount: what a continuation does not hold already.
        """
        config = self.config
        reward = trajectory.reward if self.reward is None else self.reward(trajectory)
        by_time = trajectory.features.transpose(0, 1)  # (H + 1, N, F), as they stand in memory
        feature = by_time[:-1].detach()
        judged = self.critic(feature)
        value = self.values(by_time, judged.detach()).t()
        returns = lambda_returns(reward, trajectory.cont, value, discount, config.lambda_)
        weight = discount_weights(alive, trajectory.cont, discount)
        spread = percentile_spread(returns)
        scale = self.scale.after(spread)
        actor, entropy = self.actor_loss(trajectory, returns, value, scale)
        critic = self.critic_loss(judged, feature, returns.detach().t()).t()
        assert actor.shape == critic.shape == weight.shape == trajectory.reward.shape
        loss = (weight * (actor + critic)).mean()
        metrics = {
            "imagination/return": returns.mean(),
            "imagination/reward": reward.mean(),
            "imagination/continue": trajectory.cont.mean(),
            "actor_critic/actor_loss": (weight * actor).mean(),
            "actor_critic/critic_loss": (weight * critic).mean(),
            "actor_critic/entropy": entropy.mean(),
            "actor_critic/return_scale": scale,
            "actor_critic/return_spread": spread,
        }
        if replayed is not None:
            value_loss = self.replay_loss(replayed, returns[:, 0].detach()).mean()
            loss = loss + config.replay_value * value_loss
            metrics["actor_critic/replay_loss"] = value_loss
        return loss, {name: value.detach() for name, value in metrics.items()}

    def replay_loss(self, replayed: Replayed, imagined: Tensor) -> Tensor:
        """(B, T - 1): the critic's loss for returns along recorded rewards (DreamerV3).

            R_t = r_{t+1} + gamma (1 - terminal_{t+1}) ((1 - lambda) V_{t+1} + lambda R_{t+1})

        Where an episode or the window ends, R is V, the return (B T,) imagined from there. Gradients reach the
        replayed features.
        """
        batch, ends = replayed.batch, replayed.batch.is_last.clone()
        ends[:, :-1] |= batch.is_first[:, 1:]  # also where the replay's oldest step follows its newest
        goes_on = 1 - batch.is_terminal[:, 1:].float()
        trust = self.config.lambda_ * (1 - ends[:, 1:].float())
        value = imagined.view_as(batch.reward)
        returns = lambda_returns(batch.reward[:, 1:], goes_on, value, self.config.discount, trust)
        feature = replayed.feature[:, :-1].contiguous()
        return self.critic_loss(self.critic(feature), feature, returns) * (batch.mask * ~ends)[:, :-1]

    def critic_loss(self, judged: Tensor, feature: Tensor, returns: Tensor) -> Tensor:
        """(...): - log p(R_h | s_h), and with a regulariser - log p(v_slow(s_h) | s_h) (DreamerV3).

        Args:
            judged: what the critic says of the features, (..., P).
        """
        output, weight = self.critic.output, self.config.slow_regulariser
        if not weight:
            return -output.log_prob(judged, returns.unsqueeze(-1))
        targets = torch.stack([returns.unsqueeze(-1), self.slow_critic.mean(feature).detach()])
        to_return, to_slow = output.log_prob(judged, targets)
        return -to_return - weight * to_slow

    def policy(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F) -> sampled actions (N, A) and the parameters (N, P) of their distribution."""
        params = self.actor(feature.detach())
        return self.family.sample(params if self.pathwise else params.detach()), params

    def imagine(self, model: LatentModel, starts: State) -> Rollout:
        """Imagine with the current policy; with gradients through the model where the actor learns from them."""
        return rollout(model, starts, self.policy, self.config.horizon, through=self.pathwise)

    def steps(self, model: LatentModel, *_: Any) -> list[tuple[object, str]]:
        """Return the methods that `learner.compile: step` compiles, each with its owner."""
        of_model = [(model, "imagine"), (model, "predict")] if isinstance(model, WorldModel) else []
        return [(self, "policy"), (self, "judge"), *of_model]

    def actor_loss(self, trajectory: Rollout, returns: Tensor, value: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H) loss and entropy.

        Pathwise: - R_h / S, differentiated through dynamics, reward and value (Dreamer V1, Eq. 7).
        Score: - log pi(u_h | s_h) sg((R_h - v_h) / S) (REINFORCE with a baseline; DreamerV3, Eq. 6).
        """
        unit = scale if self.config.normalise else 1.0
        if self.pathwise:
            gain = returns / unit
        else:
            advantage = (returns - value[:, :-1]) / unit
            gain = advantage * self.family.log_prob(trajectory.policy, trajectory.actions)
        entropy = self.family.entropy(trajectory.policy)
        return -gain - self.config.entropy * entropy, entropy
