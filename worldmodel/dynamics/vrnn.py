"""Variational recurrent neural network (Chung et al. 2015, "A Recurrent Latent Variable Model for Sequential Data")."""

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
class VRNNConfig:
    """Sizes of the variational recurrent network."""

    deter: int = 64  # width of the recurrent h_t
    hidden: int = 64  # width of the layers around it

    def __post_init__(self) -> None:
        if min(self.deter, self.hidden) < 1:
            raise ValueError(f"deter and hidden must be at least 1, but they are {self.deter} and {self.hidden}")


class VRNNState(NamedTuple):
    deter: Tensor  # h_t (..., deter)
    latent: Tensor  # z_t (..., Z)
    seen: Tensor  # embedding of x_t (..., E)


class VRNNContext(NamedTuple):
    deter: Tensor  # h_t (..., deter)


class VRNN(SequentialVAE):
    """A recurrent memory of all past latents, controls and observations.

        x_{t-1} ──┐
        u_{t-1} ──┤
        z_{t-1} ──┴─> h_t ──> z_t        h_t = GRU(h_{t-1}, z_{t-1}, x_{t-1}, u_{t-1})
        h_{t-1} ─────> │       │         p(z_t | h_t)
                       └─> x_t <┘        q(z_t | h_t, x_t),  p(x_t | h_t, z_t)

    The RSSM is this model without the arrow from x_{t-1}. Imagination decodes x_t and feeds it back.

    Derivation Eq. 71.
    """

    Context = VRNNContext
    feeds_back = True

    def __init__(self, config: VRNNConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        self.latent, self.sizes = latent, (config.deter, latent.size, embed_size)
        self.feature_size = config.deter + latent.size
        self.input = MLP(latent.size + embed_size + control_size, config.hidden, layers=1)
        self.cell = GRUCell(config.hidden, config.deter)
        self.prior_net = MLP(config.deter, config.hidden, 1, latent.parameters)
        self.posterior_net = PosteriorNet(config.deter, embed_size, config.hidden, latent.parameters)

    def initial(self, batch_size: int) -> VRNNState:
        like = self.posterior_net.of_context.weight
        return VRNNState(*(like.new_zeros(batch_size, size) for size in self.sizes))

    def advance(self, state: VRNNState, control: Tensor) -> VRNNContext:
        inputs = torch.cat([state.latent, state.seen, control], -1)
        return VRNNContext(self.cell(self.input(inputs), state.deter))

    def prior(self, context: VRNNContext) -> Tensor:
        return self.prior_net(context.deter)

    def posterior(self, context: VRNNContext, evidence: Tensor) -> Tensor:
        return self.posterior_net(context.deter, evidence)

    def with_latent(self, context: VRNNContext, z: Tensor) -> VRNNState:
        return VRNNState(context.deter, z, z.new_zeros(*z.shape[:-1], self.sizes[-1]))

    def with_observation(self, state: VRNNState, embed: Tensor) -> VRNNState:
        return state._replace(seen=embed)

    def feature(self, state: VRNNState) -> Tensor:
        return torch.cat([state.deter, state.latent], -1)

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        return self.posterior_net.share(embed)
