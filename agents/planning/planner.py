"""A behaviour that searches, at every step, for the plan with the best imagined return (PlaNet, TD-MPC2)."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

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
    Optimiser,
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

OPTIMISERS: dict[str, Callable[..., Optimiser]] = {
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "random": RandomShooting,
}

ROWS = 2048
"""States whose rewards are predicted at once: many, for speed, but no more than a processor's cache holds."""


@dataclass
class PlannerConfig:
    """Planning in imagination. Only the section of the optimiser in use matters."""

    optimiser: Literal["cem", "icem", "mppi", "random"] = "icem"
    horizon: int = 15  # imagined steps of a plan
    discount: float = 0.99  # PlaNet has 1
    particles: int = 0  # imagined paths that each plan's score is the mean of (PlaNet: 1); 0: one path of modes
    noise: float = 0.3  # exploration: std added to a control (PlaNet), or the share of random ones where discrete
    refine: int = 0  # steps of gradient ascent on the plan found, which is not kept for later; continuous actions alone
    refine_rate: float = 0.05  # what such a step moves a control at most
    proposals: int = 0  # plans that an actor trained beside it proposes (TD-MPC2: 24)
    terminal_value: bool = False  # whether a critic trained beside it says what follows the horizon (TD-MPC2)
    precision: Precision = "float32"  # of the products in imagination: the half may be faster
    compile: bool = False  # torch.compile of the imagined return: twice half a minute, for the first and another batch
    cem: CEMConfig = field(default_factory=CEMConfig)
    icem: ICEMConfig = field(default_factory=ICEMConfig)
    mppi: MPPIConfig = field(default_factory=MPPIConfig)
    random: RandomShootingConfig = field(default_factory=RandomShootingConfig)

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS or self.precision not in PRECISIONS:
            raise ValueError(f"unknown optimiser '{self.optimiser}' or precision '{self.precision}'")
        if self.horizon < 1 or self.particles < 0:
            raise ValueError(f"horizon must be at least 1, particles at least 0: {self.horizon}, {self.particles}")
        at_most(self, horizon=HORIZON, particles=MEMBERS, refine=HORIZON, proposals=CANDIDATES)
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must lie in [0, 1]: {self.discount}")
        for name in ("noise", "refine", "proposals"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, and finite: {getattr(self, name)}")
        if not 0 < self.refine_rate < math.inf:
            raise ValueError(f"refine_rate must be positive and finite: {self.refine_rate}")

    @property
    def guided(self) -> bool:
        """Whether an actor and a critic are trained beside it."""
        return self.terminal_value or self.proposals > 0


class Planner(nn.Module):
    """Takes the first control of the best plan; plans again at the next step, from where this plan goes on.

    The score of a plan u_0..u_{H-1} from a latent state s_0 is its imagined return,

        sum_h gamma^h (prod_{i<h} c_i) r_h  [ + gamma^H (prod_{i<H} c_i) v(s_H) ],

    r_h and c_h being what the model predicts on arriving at s_{h+1}: what lies after a predicted end of the episode
    does not count. Every environment is planned for at once, as (N K) imagined trajectories.

    Args:
        action_spec: what is controlled.
        guide: proposes plans, and values where they lead; it learns in imagination beside the planner.
    Raises:
        ValueError: if plans of discrete actions are to be refined, which have no gradient.
    """

    place: Tensor

    def __init__(self, config: PlannerConfig, action_spec: ActionSpec, guide: ActorCritic | None = None) -> None:
        super().__init__()
        if config.guided and guide is None:
            raise ValueError("planner.proposals and planner.terminal_value need an actor-critic as guide")
        if config.refine and action_spec.classes:
            raise ValueError("refine follows gradients, which discrete actions do not have: leave it at 0")
        if action_spec.classes and config.noise > 1:
            raise ValueError(f"noise is a probability where actions are discrete, at most 1: {config.noise}")
        self.config, self.guide = config, guide
        section = getattr(config, config.optimiser)
        self.optimiser = OPTIMISERS[config.optimiser](section, action_spec, config.horizon)
        # torch's own random numbers: those that its compiler generates take several times as long on a CPU
        self.returns = self.imagined_return
        if config.compile:
            options = {"fallback_random": True}
            self.returns = compiled(self.imagined_return, "behaviour.planner.compile", options=options)
        self.register_buffer("place", torch.zeros(()), persistent=False)  # where the parameters would be

    def initial(self, count: int) -> Plans:
        return self.optimiser.initial(count, self.place.device)

    @torch.no_grad()
    def act(self, model: LatentModel, state: State, memory: Plans, deterministic: bool = False) -> Decision:
        """The best plan's first control; with exploration noise unless `deterministic`.

        Where the model predicts a finite return for no plan at all, the control is a valid one all the same: the
        middle of what the search began with, which for a warm one is the last plan.
        """
        score = self.score_of(model, state)
        proposals = self.proposed(model, state) if self.config.proposals else None
        plan, memory, sound = self.optimiser.search(score, memory, proposals, deterministic)
        if self.config.refine:
            plan = refined(score, plan, self.config.refine, self.config.refine_rate)
        control = plan[:, 0]
        if not deterministic and self.config.noise:
            control = disturbed(self.optimiser.spec, control, self.config.noise)
        return Decision(control, memory, sound)

    def score_of(self, model: LatentModel, state: State) -> Score:
        """The imagined return of plans from `state` (N, ...): (N, K, H, A) -> (N, K)."""
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
        """In which products are formed while imagining."""
        return products_in(self.config.precision, self.place.device.type, keep=True)

    def imagined_return(self, model: LatentModel, state: State, controls: Tensor, sample: bool) -> Tensor:
        """s_0, each field (M, ...), and (M, H, A) -> (M,)."""
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
        ended = F.pad(cont, (1, 0), value=1.0).cumprod(1) == 0  # for certain, by then: whatever is predicted of it
        reward, value = torch.where(ended[:, :-1], 0, reward), torch.where(ended, 0, value)
        return lambda_returns(reward, cont, value, discount, 1.0)[:, 0]

    def proposed(self, model: LatentModel, state: State) -> Tensor:
        """Plans (N, L, H, A) that the guide draws in imagination."""
        assert self.guide is not None
        count, family, actor = self.config.proposals, self.guide.family, self.guide.actor
        start = type(state)(*(field.repeat_interleave(count, 0) for field in state))

        def policy(feature: Tensor) -> tuple[Tensor, Tensor]:
            params = actor(feature)
            return family.sample(params), params

        with self.precision():
            trajectory = rollout(model, start, policy, self.config.horizon)
        return trajectory.actions.float().unflatten(0, (-1, count))

    # What it learns, its guide learns.

    def fit_units(self, batch: Batch, keep: bool = False) -> None:
        """See :meth:`worldmodel.agents.actor_critic.actor_critic.ActorCritic.fit_units`."""
        if self.guide is not None:
            self.guide.fit_units(batch, keep)

    def learn(self, model: LatentModel, states: State, batch: Batch) -> Metrics:
        """See :meth:`worldmodel.agents.actor_critic.actor_critic.ActorCritic.learn`; nothing without a guide."""
        return {} if self.guide is None else self.guide.learn(model, states, batch)

    def training_state(self) -> dict[str, Any]:
        """See :meth:`worldmodel.agents.actor_critic.actor_critic.ActorCritic.training_state`."""
        return {} if self.guide is None else self.guide.training_state()

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`training_state` gave."""
        if self.guide is not None:
            self.guide.load_training_state(state)
