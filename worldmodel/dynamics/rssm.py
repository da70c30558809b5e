"""Recurrent state-space model (Hafner et al. 2019, "Learning Latent Dynamics for Planning from Pixels")."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.networks.latents import LatentFamily
from worldmodel.networks.layers import MLP, LayerConfig, PosteriorNet
from worldmodel.networks.recurrent import BlockGRU, GRUCell, PlainGRUCell
from worldmodel.types import State
from worldmodel.validation import LAYERS, at_most


@dataclass
class RSSMConfig:
    """Sizes of the recurrent state-space model."""

    deter: int = 64  # width of the recurrent h_t
    hidden: int = 64  # width of the layers around it
    cell: Literal["norm", "plain", "blocks"] = "norm"  # GRU with layer norm (V2), without (PlaNet, V1), in blocks (V3)
    blocks: int = 8  # that deter is divided into by the cell of that name
    prior_layers: int = 1  # hidden layers of p(z_t | h_t); DreamerV3 has 2
    layer: LayerConfig = field(default_factory=LayerConfig)  # around the cell; the layers in blocks are those of V3

    def __post_init__(self) -> None:
        if min(self.deter, self.hidden, self.blocks, self.prior_layers) < 1:
            raise ValueError(f"deter, hidden, blocks and prior_layers must be at least 1: {self}")
        at_most(self, prior_layers=LAYERS)
        if self.cell not in ("norm", "plain", "blocks"):
            raise ValueError(f"cell is norm, plain or blocks: '{self.cell}'")
        if self.cell == "blocks" and self.deter % self.blocks:
            raise ValueError(f"blocks must divide deter {self.deter}: {self.blocks}")


class RSSMState(NamedTuple):
    deter: Tensor  # h_t (..., deter)
    latent: Tensor  # z_t (..., Z)


class RSSMContext(NamedTuple):
    deter: Tensor  # h_t (..., deter)


class Core(nn.Module):
    """h_t = GRU(h_{t-1}, MLP(z_{t-1}, u_{t-1})) (PlaNet, Dreamer V1 and V2)."""

    def __init__(self, latent: int, control: int, config: RSSMConfig) -> None:
        super().__init__()
        self.input = MLP(latent + control, config.hidden, layers=1, layer=config.layer)
        cell = GRUCell if config.cell == "norm" else PlainGRUCell
        self.cell = cell(config.hidden, config.deter)

    def forward(self, z: Tensor, control: Tensor, h: Tensor) -> Tensor:
        return self.cell(self.input(torch.cat([z, control], -1)), h)


def core(latent: int, control: int, config: RSSMConfig) -> nn.Module:
    """Build the module that maps z_{t-1}, u_{t-1}, h_{t-1} to h_t."""
    if config.cell == "blocks":
        return BlockGRU(latent, control, config.hidden, config.deter, config.blocks)
    return Core(latent, control, config)


class RSSM(SequentialVAE):
    """A deterministic memory h_t and a stochastic z_t.

        u_{t-1} ──┐
        z_{t-1} ──┴─> h_t ──> z_t        h_t = GRU(h_{t-1}, z_{t-1}, u_{t-1})
        h_{t-1} ─────> │       │         p(z_t | h_t)
                       └─> x_t <┘        q(z_t | h_t, x_t),  p(x_t | h_t, z_t)

    The posterior filters: it can act. With Gaussian latents this is PlaNet's and Dreamer V1's model, with one-hot
    latents Dreamer V2's and V3's.

    Derivation Eq. 79.
    """

    Context = RSSMContext

    def __init__(self, config: RSSMConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        self.latent, self.deter_size = latent, config.deter
        self.feature_size = config.deter + latent.size
        self.core = core(latent.size, control_size, config)
        layer = config.layer
        self.prior_net = MLP(config.deter, config.hidden, config.prior_layers, latent.parameters, layer=layer)
        self.posterior_net = PosteriorNet(config.deter, embed_size, config.hidden, latent.parameters, layer)

    def initial(self, batch_size: int) -> RSSMState:
        like = self.posterior_net.of_context.weight
        return RSSMState(like.new_zeros(batch_size, self.deter_size), like.new_zeros(batch_size, self.latent.size))

    def advance(self, state: RSSMState, control: Tensor) -> RSSMContext:
        return RSSMContext(self.core(state.latent, control, state.deter))

    def prior(self, context: RSSMContext) -> Tensor:
        return self.prior_net(context.deter)

    def posterior(self, context: RSSMContext, evidence: Tensor) -> Tensor:
        return self.posterior_net(context.deter, evidence)

    def with_latent(self, context: RSSMContext, z: Tensor) -> RSSMState:
        return RSSMState(context.deter, z)

    def feature(self, state: RSSMState) -> Tensor:
        return torch.cat([state.deter, state.latent], -1)

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        return self.posterior_net.share(embed)
