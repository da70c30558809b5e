"""Stochastic recurrent network (Bayer and Osendorfer 2014, "Learning Stochastic Recurrent Networks")."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.networks.latents import LatentFamily
from worldmodel.networks.layers import MLP, PosteriorNet
from worldmodel.networks.recurrent import GRUCell
from worldmodel.types import State


@dataclass
class STORNConfig:
    """Sizes of the stochastic recurrent network."""

    deter: int = 64  # width of the memory of the generative network, and of that of the recognition network
    hidden: int = 64  # width of the layers around them

    def __post_init__(self) -> None:
        if min(self.deter, self.hidden) < 1:
            raise ValueError(f"deter and hidden must be at least 1, but they are {self.deter} and {self.hidden}")


class STORNState(NamedTuple):
    deter: Tensor  # h_t (..., deter), a function of x_{<t}, z_{<=t}, u_{<t}
    recogniser: Tensor  # g_t (..., deter), a function of x_{<t}, u_{<t}
    latent: Tensor  # z_t (..., Z)
    seen: Tensor  # embedding of x_t (..., E)


class STORNContext(NamedTuple):
    deter: Tensor  # h_{t-1} (..., deter)
    recogniser: Tensor  # g_t (..., deter)
    arriving: Tensor  # x_{t-1}, u_{t-1} (..., E + A)


class STORN(SequentialVAE):
    """A recurrent network with independent noise z_t as an additional input.

        x_{t-1}, u_{t-1} ──┐
                     z_t ──┴─> h_t ──> x_t        h_t = GRU(h_{t-1}, z_t, x_{t-1}, u_{t-1})
                 h_{t-1} ─────> │                 p(z_t) = N(0, I),  p(x_t | h_t, z_t)
                                                  q(z_t | x_{<=t}, u_{<t}), by a separate recognition network

    The prior is the same at all steps, and all dynamics are in h_t. Imagination decodes x_t and feeds it back.

    Derivation Eq. 69, 70.
    """

    Context = STORNContext
    feeds_back = True
    standard: Tensor

    def __init__(self, config: STORNConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        self.latent, self.sizes = latent, (config.deter, config.deter, latent.size, embed_size)
        self.feature_size = config.deter + latent.size
        arriving = embed_size + control_size
        self.input = MLP(latent.size + arriving, config.hidden, layers=1)
        self.cell = GRUCell(config.hidden, config.deter)
        self.recogniser_input = MLP(arriving, config.hidden, layers=1)
        self.recogniser_cell = GRUCell(config.hidden, config.deter)
        self.posterior_net = PosteriorNet(config.deter, embed_size, config.hidden, latent.parameters)
        self.register_buffer("standard", latent.standard(), persistent=False)

    def initial(self, batch_size: int) -> STORNState:
        return STORNState(*(self.standard.new_zeros(batch_size, size) for size in self.sizes))

    def advance(self, state: STORNState, control: Tensor) -> STORNContext:
        arriving = torch.cat([state.seen, control], -1)
        recogniser = self.recogniser_cell(self.recogniser_input(arriving), state.recogniser)
        return STORNContext(state.deter, recogniser, arriving)

    def prior(self, context: STORNContext) -> Tensor:
        return self.standard.expand(*context.deter.shape[:-1], -1)

    def posterior(self, context: STORNContext, evidence: Tensor) -> Tensor:
        return self.posterior_net(context.recogniser, evidence)

    def with_latent(self, context: STORNContext, z: Tensor) -> STORNState:
        deter = self.cell(self.input(torch.cat([z, context.arriving], -1)), context.deter)
        return STORNState(deter, context.recogniser, z, z.new_zeros(*z.shape[:-1], self.sizes[-1]))

    def with_observation(self, state: STORNState, embed: Tensor) -> STORNState:
        return state._replace(seen=embed)

    def feature(self, state: STORNState) -> Tensor:
        return torch.cat([state.deter, state.latent], -1)

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        return self.posterior_net.share(embed)
