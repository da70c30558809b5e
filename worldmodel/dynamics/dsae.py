"""Disentangled sequential autoencoder (Li and Mandt 2018)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.summary import Recurrence, leaving
from worldmodel.networks.latents import LatentFamily, WithStatic
from worldmodel.networks.layers import MLP, PosteriorNet
from worldmodel.networks.recurrent import GRUCell
from worldmodel.types import State


@dataclass
class DSAEConfig:
    """Sizes of the disentangled sequential autoencoder."""

    static: int = 8  # width of v
    deter: int = 64  # width of the memory, which summarizes z_{<t}, u_{<t}
    hidden: int = 64  # width of the other layers

    def __post_init__(self) -> None:
        if min(self.static, self.deter, self.hidden) < 1:
            raise ValueError(f"static, deter and hidden must be at least 1, but the section is {self}")


class DSAEState(NamedTuple):
    deter: Tensor  # memory of z_{<t}, u_{<t} (..., deter)
    latent: Tensor  # z_t, v (..., Z)
    begun: Tensor  # (..., 1): 0 before x_1, when v has not been sampled yet


class DSAEContext(NamedTuple):
    deter: Tensor  # (..., deter)
    static: Tensor  # v (..., static), without a meaning until it is sampled
    begun: Tensor  # (..., 1)


class DSAE(SequentialVAE):
    """A static v describes the content of a sequence, and a varying z_t describes its motion.

        z_{<t}, u_{<t} ──> z_t ──> x_t        p(v) = N(0, I),  p(z_t | z_{<t}, u_{<t}),  p(x_t | z_t, v)
                            v ──────┘         q(v | x_{1:T}, u),  q(z_t | v, x_{1:T}, u)

    v is sampled at x_1, where its KL is counted, and kept until the next episode begins. z_1 is sampled at the same
    time, and does not depend on v. The posterior reads the whole sequence, so it cannot filter. Given v, the model can
    imagine.

    Derivation Eq. 76 to 78.
    """

    Context = DSAEContext
    can_filter = False
    latent: WithStatic
    standard: Tensor

    def __init__(self, config: DSAEConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        self.latent, self.deter_size = WithStatic(latent, config.static), config.deter
        self.feature_size = self.latent.size
        self.input = MLP(latent.size + control_size, config.hidden, layers=1)
        self.cell = GRUCell(config.hidden, config.deter)
        self.prior_net = MLP(config.deter, config.hidden, 1, latent.parameters)
        self.past = Recurrence(embed_size + control_size, config.hidden, backward=False)
        self.future = Recurrence(embed_size + control_size, config.hidden, backward=True)
        self.static_net = MLP(config.hidden, config.hidden, 1, self.latent.static.parameters)
        self.posterior_net = PosteriorNet(config.static, 2 * config.hidden, config.hidden, latent.parameters)
        self.register_buffer("standard", self.latent.static.standard(), persistent=False)

    def initial(self, batch_size: int) -> DSAEState:
        widths = (self.deter_size, self.latent.size, 1)
        return DSAEState(*(self.standard.new_zeros(batch_size, width) for width in widths))

    def advance(self, state: DSAEState, control: Tensor) -> DSAEContext:
        z, static = state.latent.split([self.latent.varying.size, self.latent.static.size], -1)
        return DSAEContext(self.cell(self.input(torch.cat([z, control], -1)), state.deter), static, state.begun)

    def prior(self, context: DSAEContext) -> Tensor:
        standard = self.standard.expand(*context.begun.shape[:-1], -1)
        return torch.cat([self.prior_net(context.deter), standard, context.static, context.begun], -1)

    def posterior(self, context: DSAEContext, evidence: Tensor) -> Tensor:
        share, static = evidence.split([evidence.shape[-1] - len(self.standard), len(self.standard)], -1)
        varying = self.posterior_net(context.static, share)
        return torch.cat([varying, static, context.static, context.begun], -1)

    def with_latent(self, context: DSAEContext, z: Tensor) -> DSAEState:
        return DSAEState(context.deter, z, torch.ones_like(context.begun))

    def feature(self, state: DSAEState) -> Tensor:
        return state.latent

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        future = self.future(torch.cat([embed, leaving(control)], -1), is_first)
        past = self.past(torch.cat([embed, control], -1), is_first)
        share = self.posterior_net.share(torch.cat([past, future], -1))
        return torch.cat([share, self.static_net(future)], -1)
