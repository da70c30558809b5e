"""Recurrent variational autoencoder, causal (Leglaive et al. 2020, "A Recurrent Variational Autoencoder ...")."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.summary import Recurrence, leaving
from worldmodel.networks.latents import LatentFamily
from worldmodel.networks.layers import MLP, PosteriorNet
from worldmodel.networks.recurrent import GRUCell
from worldmodel.types import State


@dataclass
class RVAEConfig:
    """Sizes of the recurrent variational autoencoder, and what its posterior sees."""

    deter: int = 64  # width of the recurrent h_t
    hidden: int = 64  # width of the layers around it
    posterior: Literal["filter", "smoother"] = "filter"  # sees x_t only, or x_t..x_T through a backward GRU

    def __post_init__(self) -> None:
        if min(self.deter, self.hidden) < 1:
            raise ValueError(f"deter and hidden must be at least 1, but they are {self.deter} and {self.hidden}")
        if self.posterior not in ("filter", "smoother"):
            raise ValueError(f"posterior must be filter or smoother, but it is '{self.posterior}'")


class RVAEState(NamedTuple):
    deter: Tensor  # h_t (..., deter): of z_{1:t}, u_{0:t-1}
    latent: Tensor  # z_t (..., Z)


class RVAEContext(NamedTuple):
    deter: Tensor  # h_{t-1} (..., deter)
    control: Tensor  # u_{t-1} (..., A)


class RVAE(SequentialVAE):
    """Independent latents with a recurrent decoder that remembers them.

    u_{t-1} ──┐
        z_t ──┴─> h_t ──> x_t        h_t = GRU(h_{t-1}, z_t, u_{t-1})
    h_{t-1} ─────> │                 p(z_t) = N(0, I),  p(x_t | z_{1:t}, u_{0:t-1}) through h_t

    filter:    q(z_t | z_{1:t-1}, u_{0:t-1}, x_t)
    smoother:  q(z_t | z_{1:t-1}, u_{0:T-1}, x_{t:T}), as in the paper

    Derivation Eq. 74, 75.
    """

    Context = RVAEContext
    standard: Tensor

    def __init__(self, config: RVAEConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        self.latent, self.can_filter = latent, config.posterior == "filter"
        self.sizes = (config.deter, latent.size)
        self.feature_size = config.deter + latent.size
        self.input = MLP(latent.size + control_size, config.hidden, layers=1)
        self.cell = GRUCell(config.hidden, config.deter)
        seen = embed_size if self.can_filter else config.hidden
        self.posterior_net = PosteriorNet(config.deter + control_size, seen, config.hidden, latent.parameters)
        if not self.can_filter:
            self.future = Recurrence(embed_size + control_size, config.hidden, backward=True)
        self.register_buffer("standard", latent.standard(), persistent=False)

    def initial(self, batch_size: int) -> RVAEState:
        return RVAEState(*(self.standard.new_zeros(batch_size, size) for size in self.sizes))

    def advance(self, state: RVAEState, control: Tensor) -> RVAEContext:
        return RVAEContext(state.deter, control)

    def prior(self, context: RVAEContext) -> Tensor:
        return self.standard.expand(*context.deter.shape[:-1], -1)

    def posterior(self, context: RVAEContext, evidence: Tensor) -> Tensor:
        return self.posterior_net(torch.cat([context.deter, context.control], -1), evidence)

    def with_latent(self, context: RVAEContext, z: Tensor) -> RVAEState:
        return RVAEState(self.cell(self.input(torch.cat([z, context.control], -1)), context.deter), z)

    def feature(self, state: RVAEState) -> Tensor:
        return torch.cat([state.deter, state.latent], -1)

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        if not self.can_filter:
            embed = self.future(torch.cat([embed, leaving(control)], -1), is_first)
        return self.posterior_net.share(embed)
