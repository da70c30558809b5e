"""A behaviour that searches for the plan with the highest imagined return at every step (PlaNet, TD-MPC2)."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.agents.acting.behaviour import Decision
from worldmodel.agents.acting.noise import disturbed
from worldmodel.agents.actor_critic.actor_critic import ActorCritic, Metrics
from worldmodel.agents.actor_critic.returns import lambda_returns
from worldmodel.agents.planning.search import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    Optimizer,
    Plans,
    RandomShooting,
    RandomShootingConfig,
    Score,
    refined,
)
from worldmodel.imagination import rollout, unroll
from worldmodel.kernels.compiling import compiled
from worldmodel.kernels.precision import PRECISIONS, Precision, products_in
from worldmodel.model import LatentModel
from worldmodel.specs import ActionSpec
from worldmodel.types import Batch, State
from worldmodel.validation import CANDIDATES, HORIZON, MEMBERS, at_most

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "random": RandomShooting,
}

ROWS = 2048
"""The number of states whose rewards are predicted at once. Many are faster, as long as they fit into the CPU cache."""


@dataclass
class PlannerConfig:
    """The settings of planning in imagination. Only the section of the chosen optimizer is used."""

    RENAMED: ClassVar[dict[str, str]] = {"optimiser": "optimizer"}  # old configs still load

    optimizer: Literal["cem", "icem", "mppi", "random"] = "icem"
    horizon: int = 15  # number of imagined steps of a plan
    discount: float = 0.99  # PlaNet: 1
    particles: int = 0  # a plan's score is the mean over this many imagined paths (PlaNet: 1); 0: one path of modes
    noise: float = 0.3  # exploration: std of the noise on actions (PlaNet); discrete: probability of a random action
    refine: int = 0  # steps of gradient ascent on the best plan, only for this decision and for continuous actions
    refine_rate: float = 0.05  # largest change of an action in such a step
    proposals: int = 0  # number of plans proposed by an actor that is trained with the planner (TD-MPC2: 24)
    terminal_value: bool = False  # add the value after the horizon, of a critic trained with the planner (TD-MPC2)
    precision: Precision = "float32"  # of matrix products in imagination; bfloat16 may be faster
    compile: bool = False  # compile the imagined return; takes about half a minute for each of two batch sizes
    cem: CEMConfig = field(default_factory=CEMConfig)
    icem: ICEMConfig = field(default_factory=ICEMConfig)
    mppi: MPPIConfig = field(default_factory=MPPIConfig)
    random: RandomShootingConfig = field(default_factory=RandomShootingConfig)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS or self.precision not in PRECISIONS:
            raise ValueError(f"unknown optimizer '{self.optimizer}' or unknown precision '{self.precision}'")
        if self.horizon < 1 or self.particles < 0:
            raise ValueError(
                f"horizon must be at least 1 and particles at least 0, got {self.horizon} and {self.particles}"
            )
        at_most(self, horizon=HORIZON, particles=MEMBERS, refine=HORIZON, proposals=CANDIDATES)
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must lie in [0, 1], got {self.discount}")
        for name in ("noise", "refine", "proposals"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if not 0 < self.refine_rate < math.inf:
            raise ValueError(f"refine_rate must be positive and finite, got {self.refine_rate}")

    @property
    def guided(self) -> bool:
        """Whether an actor and a critic are trained together with the planner."""
        return self.terminal_value or self.proposals > 0


class Planner(nn.Module):
    """Takes the first action of the best plan, and plans again at the next step, starting from the rest of this plan.

    The score of a plan u_0..u_{H-1} from a latent state s_0 is its imagined return,

        sum_h gamma^h (prod_{i<h} c_i) r_h  [ + gamma^H (prod_{i<H} c_i) v(s_H) ],

    where r_h and c_h are the predicted reward and continuation probability on reaching s_{h+1}. Rewards after a
    predicted end of the episode therefore do not count. The plans of all N environments are evaluated in one batch of
    (N K) imagined trajectories.

    Args:
        action_spec: the spec of the actions.
        guide: an actor-critic that proposes plans and values their last states. It learns in imagination together with
            the planner.
    Raises:
        ValueError: if `refine` is set for discrete actions, which have no gradient; if `noise` is not a probability
            for discrete actions; or if a needed guide is missing.
    """

    place: Tensor

    def __init__(self, config: PlannerConfig, action_spec: ActionSpec, guide: ActorCritic | None = None) -> None:
        super().__init__()
        if config.guided and guide is None:
            raise ValueError("planner.proposals and planner.terminal_value need an actor-critic as guide")
        if config.refine and action_spec.classes:
            raise ValueError("refine needs gradients, which discrete actions do not have: set it to 0")
        if action_spec.classes and config.noise > 1:
            raise ValueError(f"noise is a probability for discrete actions and must be at most 1, got {config.noise}")
        self.config, self.guide = config, guide
        section = getattr(config, config.optimizer)
        self.optimizer = OPTIMIZERS[config.optimizer](section, action_spec, config.horizon)
        # fallback_random: random numbers generated by torch's compiler are several times slower on a CPU
        self.returns = self.imagined_return
        if config.compile:
            options = {"fallback_random": True}
            self.returns = compiled(self.imagined_return, "behaviour.planner.compile", options=options)
        self.register_buffer("place", torch.zeros(()), persistent=False)  # it has the device of the module

    def initial(self, count: int) -> Plans:
        return self.optimizer.initial(count, self.place.device)

    @torch.no_grad()
    def act(self, model: LatentModel, state: State, memory: Plans, deterministic: bool = False) -> Decision:
        """Return the first action of the best plan, with exploration noise unless `deterministic`.

        If the model predicts no finite return for any plan, the action is still valid. It is then the center of the
        distribution that the search began with: the last plan, or the prior without a warm start.
        """
        score = self.score_of(model, state)
        proposals = self.proposed(model, state) if self.config.proposals else None
        plan, memory, sound = self.optimizer.search(score, memory, proposals, deterministic)
        if self.config.refine:
            plan = refined(score, plan, self.config.refine, self.config.refine_rate)
        control = plan[:, 0]
        if not deterministic and self.config.noise:
            control = disturbed(self.optimizer.spec, control, self.config.noise)
        return Decision(control, memory, sound)

    def score_of(self, model: LatentModel, state: State) -> Score:
        """Return the function from plans (N, K, H, A) to their imagined returns (N, K) from `state` (N, ...)."""
        particles, sample = max(self.config.particles, 1), self.config.particles > 0

        def score(plans: Tensor) -> Tensor:
            count, candidates, horizon, width = plans.shape
            copies = candidates * particles
            start = type(state)(*(field.repeat_interleave(copies, 0) for field in state))
            controls = plans.repeat_interleave(particles, 1).reshape(count * copies, horizon, width)
            returns = self.returns(model, start, controls, sample)
            return returns.reshape(count, candidates, particles).mean(-1)

        return score

    def precision(self) -> AbstractContextManager[object]:
        """Return a context in which matrix products have the precision of the config."""
        return products_in(self.config.precision, self.place.device.type, keep=True)

    def imagined_return(self, model: LatentModel, state: State, controls: Tensor, sample: bool) -> Tensor:
        """Return the imagined returns (M,) of plans (M, H, A) from initial states with fields (M, ...)."""
        rewards, conts = [], []
        value = torch.zeros(len(controls), controls.shape[1] + 1, device=controls.device)
        with self.precision():
            for some in controls.split(max(ROWS // len(controls), 1), 1):
                state, features = unroll(model, state, some, sample)
                outcome = model.predict(features, decode=False)
                rewards.append(outcome.reward.float())
                conts.append(outcome.cont.float())
            if self.config.terminal_value and self.guide is not None:
                value = torch.cat([value[:, 1:], self.guide.value(features[:, -1:]).float()], 1)
        reward, cont, discount = torch.cat(rewards, 1), torch.cat(conts, 1), self.config.discount / model.discount
        ended = F.pad(cont, (1, 0), value=1.0).cumprod(1) == 0  # ended with certainty before; ignore predictions there
        reward, value = torch.where(ended[:, :-1], 0, reward), torch.where(ended, 0, value)
        return lambda_returns(reward, cont, value, discount, 1.0)[:, 0]

    def proposed(self, model: LatentModel, state: State) -> Tensor:
        """Return plans (N, L, H, A) that the guide samples in imagination."""
        assert self.guide is not None
        count, family, actor = self.config.proposals, self.guide.family, self.guide.actor
        start = type(state)(*(field.repeat_interleave(count, 0) for field in state))

        def policy(feature: Tensor) -> tuple[Tensor, Tensor]:
            params = actor(feature)
            return family.sample(params), params

        with self.precision():
            trajectory = rollout(model, start, policy, self.config.horizon)
        return trajectory.actions.float().unflatten(0, (-1, count))

    # Learning: only the guide learns.

    def fit_normalizers(self, batch: Batch, keep: bool = False) -> None:
        """See :meth:`worldmodel.agents.actor_critic.actor_critic.ActorCritic.fit_normalizers`."""
        if self.guide is not None:
            self.guide.fit_normalizers(batch, keep)

    def learn(self, model: LatentModel, states: State, batch: Batch) -> Metrics:
        """See :meth:`worldmodel.agents.actor_critic.actor_critic.ActorCritic.learn`. Without a guide, do nothing."""
        return {} if self.guide is None else self.guide.learn(model, states, batch)

    def training_state(self) -> dict[str, Any]:
        """See :meth:`worldmodel.agents.actor_critic.actor_critic.ActorCritic.training_state`."""
        return {} if self.guide is None else self.guide.training_state()

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by :meth:`training_state`."""
        if self.guide is not None:
            self.guide.load_training_state(state)
