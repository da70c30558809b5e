"""Disentangled sequential autoencoder (Li and Mandt 2018)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.distributions import Gaussian, LatentFamily
from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.summary import Recurrence, leaving
from worldmodel.networks import MLP, GRUCell, PosteriorNet
from worldmodel.types import State


@dataclass
class DSAEConfig:
    """Sizes of the disentangled sequential autoencoder."""

    static: int = 8  # width of v
    deter: int = 64  # width of the memory of z_{<t}, u_{<t}
    hidden: int = 64  # width of the other layers

    def __post_init__(self) -> None:
        if min(self.static, self.deter, self.hidden) < 1:
            raise ValueError(f"static, deter and hidden must be at least 1: {self}")


class WithStatic(LatentFamily):
    """Of a varying z and a static v: [z, v], where v is drawn once and held from then on.

    Parameters are [those of z, those of v, the v that is held, whether it is held]. A held v is certain under q and
    p alike: it costs no nats. A free one is N(mu, diag sigma^2).
    """

    def __init__(self, varying: LatentFamily, static: int) -> None:
        self.varying, self.static = varying, Gaussian(static)
        self.size = varying.size + static
        self.sizes = [varying.parameters, self.static.parameters, static, 1]
        self.parameters = sum(self.sizes)

    def sample(self, params: Tensor) -> Tensor:
        z, v, held, is_held = params.split(self.sizes, -1)
        return torch.cat([self.varying.sample(z), torch.lerp(self.static.sample(v), held, is_held)], -1)

    def mode(self, params: Tensor) -> Tensor:
        z, v, held, is_held = params.split(self.sizes, -1)
        return torch.cat([self.varying.mode(z), torch.lerp(self.static.mode(v), held, is_held)], -1)

    def kl(self, q: Tensor, p: Tensor) -> Tensor:
        (z_q, v_q, _, is_held), (z_p, v_p, _, _) = q.split(self.sizes, -1), p.split(self.sizes, -1)
        return self.varying.kl(z_q, z_p) + (1 - is_held.squeeze(-1)) * self.static.kl(v_q, v_p)

    def log_prob(self, params: Tensor, z: Tensor) -> Tensor:
        varying, v, _, is_held = params.split(self.sizes, -1)
        now, static = z.split([self.varying.size, self.static.size], -1)
        return self.varying.log_prob(varying, now) + (1 - is_held.squeeze(-1)) * self.static.log_prob(v, static)

    def standard(self) -> Tensor:
        return torch.cat([self.varying.standard(), self.static.standard(), torch.zeros(self.static.size + 1)])


class DSAEState(NamedTuple):
    deter: Tensor  # memory of z_{<t}, u_{<t} (..., deter)
    latent: Tensor  # z_t, v (..., Z)
    begun: Tensor  # (..., 1): 0 before x_1, where v is still to be drawn


class DSAEContext(NamedTuple):
    deter: Tensor  # (..., deter)
    static: Tensor  # v (..., static), of no meaning until it is drawn
    begun: Tensor  # (..., 1)


class DSAE(SequentialVAE):
    """One static v says what is in a sequence, a varying z_t how it moves.

        z_{<t}, u_{<t} ──> z_t ──> x_t        p(v) = N(0, I),  p(z_t | z_{<t}, u_{<t}),  p(x_t | z_t, v)
                            v ──────┘         q(v | x_{1:T}, u),  q(z_t | v, x_{1:T}, u)

    v is drawn with x_1, where its KL is counted, and held until the next episode begins; z_1, drawn beside it, does
    not see it. The posterior reads the whole sequence and cannot filter; given v the model can imagine.
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
