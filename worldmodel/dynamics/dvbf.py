"""Deep variational Bayes filter (Karl et al. 2017, "Deep Variational Bayes Filters")."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.linear_mixture import LinearMixture
from worldmodel.dynamics.summary import Recurrence, leaving
from worldmodel.kernels.precision import exact
from worldmodel.networks.latents import LatentFamily
from worldmodel.networks.layers import MLP, PosteriorNet
from worldmodel.types import State


@dataclass
class DVBFConfig:
    """Sizes of the deep variational Bayes filter, and what its posterior sees."""

    size: int = 16  # width of z_t; the noise w_t has the width of the latent variable
    matrices: int = 8  # number of locally linear systems that are mixed
    hidden: int = 64  # width of the mixing network and the posterior
    posterior: Literal["filter", "smoother"] = "filter"  # sees x_t only, or x_t..x_T through a backward GRU

    def __post_init__(self) -> None:
        if min(self.size, self.matrices, self.hidden) < 1:
            raise ValueError(f"size, matrices and hidden must be at least 1, but the section is {self}")
        if self.posterior not in ("filter", "smoother"):
            raise ValueError(f"posterior must be filter or smoother, but it is '{self.posterior}'")


class DVBFState(NamedTuple):
    latent: Tensor  # z_t (..., size)
    begun: Tensor  # (..., 1): 0 before x_1


class DVBFContext(NamedTuple):
    expected: Tensor  # A z_{t-1} + B u_{t-1} (..., size)
    weights: Tensor  # weights of the systems (..., matrices)
    begun: Tensor  # (..., 1)


class DVBF(SequentialVAE):
    """The latent variable is the noise of the transition. Gradients of the emissions then pass through the dynamics.

        u_{t-1} ──┐
        z_{t-1} ──┼─> z_t ──> x_t        z_t = A z_{t-1} + B u_{t-1} + C w_t,  z_1 = f(w_1)
            w_t ──┘                      p(w_t) = N(0, I),  p(x_t | z_t)

        filter:    q(w_t | z_{t-1}, u_{t-1}, x_t)
        smoother:  q(w_t | z_{t-1}, u_{t-1:T-1}, x_{t:T}); the paper uses this for w_1, and the filter for later ones

    A, B and C are mixtures of learned matrices with weights softmax(g(z_{t-1}, u_{t-1})) (Karl et al. 2017, Eq. 13).
    Everything that q adds to z_t is noise with a cost in KL, so a state that only copies x_t is expensive.

    Derivation Eq. 60 to 62.
    """

    Context = DVBFContext
    standard: Tensor

    def __init__(self, config: DVBFConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        self.latent, self.feature_size, self.can_filter = latent, config.size, config.posterior == "filter"
        count, size = config.matrices, config.size
        self.mixing = MLP(size + control_size, config.hidden, 1, count)
        self.systems = LinearMixture(count, size, control_size)
        self.C = nn.Parameter(0.3 * torch.randn(count, size, latent.size) / latent.size**0.5)
        self.first = MLP(latent.size, config.hidden, 1, size)
        seen = embed_size if self.can_filter else config.hidden
        self.posterior_net = PosteriorNet(size + 1, seen, config.hidden, latent.parameters)
        if not self.can_filter:
            self.future = Recurrence(embed_size + control_size, config.hidden, backward=True)
        self.register_buffer("standard", latent.standard(), persistent=False)

    def initial(self, batch_size: int) -> DVBFState:
        return DVBFState(self.C.new_zeros(batch_size, self.feature_size), self.C.new_zeros(batch_size, 1))

    def advance(self, state: DVBFState, control: Tensor) -> DVBFContext:
        weights = self.mixing(torch.cat([state.latent, control], -1)).softmax(-1)
        return DVBFContext(self.systems(weights, state.latent, control), weights, state.begun)

    def prior(self, context: DVBFContext) -> Tensor:
        return self.standard.expand(*context.begun.shape[:-1], -1)

    def posterior(self, context: DVBFContext, evidence: Tensor) -> Tensor:
        return self.posterior_net(torch.cat([context.expected, context.begun], -1), evidence)

    def with_latent(self, context: DVBFContext, z: Tensor) -> DVBFState:
        later = context.expected + self.noise(context.weights, z)
        return DVBFState(torch.where(context.begun > 0, later, self.first(z)), torch.ones_like(context.begun))

    @exact
    def noise(self, weights: Tensor, w: Tensor) -> Tensor:
        """Return C w (..., size) with the mixed C."""
        return torch.einsum("...m,mij,...j->...i", weights, self.C, w)

    def feature(self, state: DVBFState) -> Tensor:
        return state.latent

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        if not self.can_filter:
            embed = self.future(torch.cat([embed, leaving(control)], -1), is_first)
        return self.posterior_net.share(embed)
