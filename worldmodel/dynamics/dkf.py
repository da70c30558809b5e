"""Deep Kalman filter, or deep Markov model (Krishnan et al. 2015; 2017, "Structured Inference Networks")."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.summary import Recurrence, leaving
from worldmodel.networks.latents import LatentFamily
from worldmodel.networks.layers import MLP, PosteriorNet
from worldmodel.types import State


@dataclass
class DKFConfig:
    """Sizes of the deep Kalman filter, and what its posterior sees."""

    hidden: int = 64  # width of the transition and the posterior
    posterior: Literal["filter", "smoother"] = "filter"  # sees x_t only, or x_t..x_T through a backward GRU

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, but it is {self.hidden}")
        if self.posterior not in ("filter", "smoother"):
            raise ValueError(f"posterior must be filter or smoother, but it is '{self.posterior}'")


class DKFState(NamedTuple):
    latent: Tensor  # z_t (..., Z)


class DKFContext(NamedTuple):
    inputs: Tensor  # z_{t-1}, u_{t-1} (..., Z + A)
    hidden: Tensor  # features of z_{t-1}, u_{t-1} (..., hidden)


class DKF(SequentialVAE):
    """A Markov chain of z_t. The latent variable is the only memory.

        u_{t-1} ──┐
        z_{t-1} ──┴─> z_t ──> x_t        p(z_t | z_{t-1}, u_{t-1}),  p(x_t | z_t)

        filter:    q(z_t | z_{t-1}, u_{t-1}, x_t)
        smoother:  q(z_t | z_{t-1}, u_{t-1:T-1}, x_{t:T}), which contains the exact posterior

    The transition is gated as in Krishnan et al. (2017, Eq. 11): (1 - g) linear + g nonlinear. The gate makes slow and
    linear parts of the dynamics easy to learn. Here it mixes all parameters of p, and not only the mean.

    Derivation Eq. 58, 59.
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
        self.posterior_net = PosteriorNet(config.hidden, embed_size, config.hidden, latent.parameters)
        if not self.can_filter:
            self.future = Recurrence(embed_size + control_size, config.hidden, backward=True)

    def initial(self, batch_size: int) -> DKFState:
        return DKFState(self.linear.weight.new_zeros(batch_size, self.latent.size))

    def advance(self, state: DKFState, control: Tensor) -> DKFContext:
        inputs = torch.cat([state.latent, control], -1)
        return DKFContext(inputs, self.hidden(inputs))

    def prior(self, context: DKFContext) -> Tensor:
        gate = self.gate(context.hidden).sigmoid()
        params = torch.lerp(self.linear(context.inputs), self.nonlinear(context.hidden), gate)
        return params.to(self.gate.weight.dtype)

    def posterior(self, context: DKFContext, evidence: Tensor) -> Tensor:
        return self.posterior_net(context.hidden, evidence)

    def with_latent(self, context: DKFContext, z: Tensor) -> DKFState:
        return DKFState(z)

    def feature(self, state: DKFState) -> Tensor:
        return state.latent

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        present = self.posterior_net.share(embed)
        if self.can_filter:
            return present
        return present + self.future(torch.cat([embed, leaving(control)], -1), is_first)
