"""Variational autoencoder (Kingma and Welling 2014), the member of the family without dynamics."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.networks.latents import LatentFamily
from worldmodel.networks.layers import MLP
from worldmodel.types import State


@dataclass
class VAEConfig:
    """Sizes of the variational autoencoder."""

    hidden: int = 64  # width of the posterior

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, but it is {self.hidden}")


class VAEState(NamedTuple):
    latent: Tensor  # z_t (..., Z)


class VAEContext(NamedTuple):
    nothing: Tensor  # (..., 0)


class VAE(SequentialVAE):
    """A model of each time step by itself: the case T = 1, and a baseline for the other members.

        z_t ──> x_t        p(z_t) = N(0, I),  p(x_t | z_t),  q(z_t | x_t)

    It ignores the past and the controls. It can filter, but it cannot imagine.

    Derivation Eq. 57.
    """

    Context = VAEContext
    can_imagine = False
    standard: Tensor

    def __init__(self, config: VAEConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        self.latent, self.feature_size = latent, latent.size
        self.posterior_net = MLP(embed_size, config.hidden, 1, latent.parameters)
        self.register_buffer("standard", latent.standard(), persistent=False)

    def initial(self, batch_size: int) -> VAEState:
        return VAEState(self.standard.new_zeros(batch_size, self.latent.size))

    def advance(self, state: VAEState, control: Tensor) -> VAEContext:
        return VAEContext(state.latent[..., :0])

    def prior(self, context: VAEContext) -> Tensor:
        return self.standard.expand(*context.nothing.shape[:-1], -1)

    def posterior(self, context: VAEContext, evidence: Tensor) -> Tensor:
        return evidence

    def with_latent(self, context: VAEContext, z: Tensor) -> VAEState:
        return VAEState(z)

    def feature(self, state: VAEState) -> Tensor:
        return state.latent

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        return self.posterior_net(embed)
