"""Deep Kalman filter, or deep Markov model (Krishnan et al. 2015; 2017, "Structured Inference Networks")."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.distributions import LatentFamily
from worldmodel.dynamics.base import SequentialVAE, restart
from worldmodel.networks import MLP, GRUCell
from worldmodel.scan import scan


@dataclass
class DKFConfig:
    """Sizes of the deep Kalman filter, and what its posterior may see."""

    hidden: int = 64  # width of transition and posterior
    posterior: Literal["filter", "smoother"] = "filter"  # x_t alone, or x_t..x_T through a backward GRU

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1: {self.hidden}")
        if self.posterior not in ("filter", "smoother"):
            raise ValueError(f"posterior is filter or smoother: '{self.posterior}'")


class DKFState(NamedTuple):
    latent: Tensor  # z_t (..., Z)


class DKFContext(NamedTuple):
    linear: Tensor  # (..., P) linear part of the transition
    hidden: Tensor  # (..., hidden) features of z_{t-1}, u_{t-1}


class Future(NamedTuple):
    summary: Tensor  # (B, hidden) of x_t..x_T


class DKF(SequentialVAE):
    """A Markov chain in z_t alone: all memory is in the latent variable.

        u_{t-1} ──┐
        z_{t-1} ──┴─> z_t ──> x_t        p(z_t | z_{t-1}, u_{t-1}),  p(x_t | z_t)

        filter:    q(z_t | z_{t-1}, u_{t-1}, x_t)
        smoother:  q(z_t | z_{t-1}, u_{t-1:T-1}, x_{t:T}), which contains the exact posterior

    The transition is gated as in Krishnan et al. (2017, Eq. 11): (1 - g) linear + g nonlinear, so that slow and
    linear parts of the dynamics are easy to express. Here the gate mixes all parameters of p, not its mean alone.
    """

    Context = DKFContext

    def __init__(self, config: DKFConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        self.latent, self.can_filter = latent, config.posterior == "filter"
        self.feature_size = latent.size
        self.linear = nn.Linear(latent.size + control_size, latent.parameters)
        self.hidden = MLP(latent.size + control_size, config.hidden, layers=2)
        self.nonlinear = nn.Linear(config.hidden, latent.parameters)
        self.gate = nn.Linear(config.hidden, latent.parameters)
        self.posterior_hidden = nn.Linear(config.hidden, config.hidden, bias=False)
        self.posterior_out = nn.Sequential(
            nn.LayerNorm(config.hidden), nn.SiLU(), nn.Linear(config.hidden, latent.parameters)
        )
        self.embed = nn.Linear(embed_size, config.hidden)
        if not self.can_filter:
            self.backward_cell = GRUCell(embed_size + control_size, config.hidden)

    def initial(self, batch_size: int) -> DKFState:
        return DKFState(self.embed.weight.new_zeros(batch_size, self.latent.size))

    def advance(self, state: DKFState, control: Tensor) -> DKFContext:
        inputs = torch.cat([state.latent, control], -1)
        return DKFContext(self.linear(inputs), self.hidden(inputs))

    def prior(self, context: DKFContext) -> Tensor:
        return torch.lerp(context.linear, self.nonlinear(context.hidden), self.gate(context.hidden).sigmoid())

    def posterior(self, context: DKFContext, evidence: Tensor) -> Tensor:
        return self.posterior_out(self.posterior_hidden(context.hidden) + evidence)

    def with_latent(self, context: DKFContext, z: Tensor) -> DKFState:
        return DKFState(z)

    def feature(self, state: DKFState) -> Tensor:
        return state.latent

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor) -> Tensor:
        return self.embed(embed) if self.can_filter else self.embed_future(embed, control, is_first)

    def embed_future(self, embed: Tensor, control: Tensor, is_first: Tensor) -> Tensor:
        """Backward summary of x_t..x_T and u_t..u_{T-1}, which never reads past the end of an episode."""
        leaving = torch.cat([control[:, 1:], torch.zeros_like(control[:, :1])], 1)  # u_t, null before a border
        border = torch.cat([is_first[:, 1:], torch.ones_like(is_first[:, :1])], 1)  # x_{t+1} is another episode's
        empty = Future(embed.new_zeros(len(embed), self.posterior_hidden.in_features))

        def step(future: Future, inputs: tuple[Tensor, ...]) -> tuple[Future, tuple[Tensor, ...]]:
            embed, leaving, border = inputs
            (summary,) = restart(future, empty, border)
            summary = self.backward_cell(torch.cat([embed, leaving], -1), summary)
            return Future(summary), (summary,)

        _, (summaries,) = scan(step, empty, (embed, leaving, border), reverse=True)
        return summaries + self.embed(embed)
