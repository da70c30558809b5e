"""Stochastic recurrent neural network (Fraccaro et al. 2016, "Sequential Neural Models with Stochastic Layers")."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.summary import Recurrence
from worldmodel.networks.latents import LatentFamily
from worldmodel.networks.layers import MLP, PosteriorNet


@dataclass
class SRNNConfig:
    """Sizes of the stochastic recurrent network, its inputs, and what its posterior sees."""

    deter: int = 64  # width of the deterministic d_t
    hidden: int = 64  # width of the other layers
    posterior: Literal["filter", "smoother"] = "filter"  # sees (d_t, x_t), or (d, x)_{t:T} through a backward GRU
    feedback: bool = False  # whether x_{t-1} is an input of d_t; imagination then decodes it and feeds it back

    def __post_init__(self) -> None:
        if min(self.deter, self.hidden) < 1:
            raise ValueError(f"deter and hidden must be at least 1, but they are {self.deter} and {self.hidden}")
        if self.posterior not in ("filter", "smoother"):
            raise ValueError(f"posterior must be filter or smoother, but it is '{self.posterior}'")


class SRNNState(NamedTuple):
    deter: Tensor  # d_t (..., deter)
    latent: Tensor  # z_t (..., Z)
    seen: Tensor  # embedding of x_t (..., E); its width is 0 without feedback


class SRNNContext(NamedTuple):
    deter: Tensor  # d_t (..., deter)
    previous: Tensor  # z_{t-1} (..., Z)


class SRNN(SequentialVAE):
    """A deterministic layer d_t, which does not depend on the latents, below a Markov chain of latents.

        z_{t-1} ─────────> z_t ──> x_t        d_t = GRU(d_{t-1}, u_{t-1} [, x_{t-1}])
                  ┌──────> │        ↑         p(z_t | z_{t-1}, d_t),  p(x_t | z_t, d_t)
        d_{t-1} ─┴─> d_t ──┴────────┘
        u_{t-1} ──────┘

        filter:    q(z_t | z_{t-1}, d_t, x_t)
        smoother:  q(z_t | z_{t-1}, a_t), a_t = GRU(a_{t+1}, d_t, x_t)

    The posterior network predicts a residual on the parameters of the prior (Fraccaro et al. 2016, Eq. 12). The paper
    does this only for the mean.

    Derivation Eq. 72, 73.
    """

    Context = SRNNContext

    def __init__(self, config: SRNNConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        self.latent, self.can_filter, self.feeds_back = latent, config.posterior == "filter", config.feedback
        self.sizes = (config.deter, latent.size, embed_size if config.feedback else 0)
        self.feature_size = config.deter + latent.size
        self.memory = Recurrence(control_size + self.sizes[2], config.deter, backward=False)
        self.prior_net = MLP(config.deter + latent.size, config.hidden, 2, latent.parameters)
        seen = embed_size if self.can_filter else config.hidden
        self.posterior_net = PosteriorNet(config.deter + latent.size, seen, config.hidden, latent.parameters)
        if not self.can_filter:
            self.future = Recurrence(config.deter + embed_size, config.hidden, backward=True)

    def initial(self, batch_size: int) -> SRNNState:
        like = self.posterior_net.of_context.weight
        return SRNNState(*(like.new_zeros(batch_size, size) for size in self.sizes))

    def advance(self, state: SRNNState, control: Tensor) -> SRNNContext:
        return SRNNContext(self.memory.cell(torch.cat([control, state.seen], -1), state.deter), state.latent)

    def prior(self, context: SRNNContext) -> Tensor:
        return self.prior_net(torch.cat(context, -1))

    def posterior(self, context: SRNNContext, evidence: Tensor) -> Tensor:
        return self.prior(context) + self.posterior_net(torch.cat(context, -1), evidence)

    def with_latent(self, context: SRNNContext, z: Tensor) -> SRNNState:
        return SRNNState(context.deter, z, z.new_zeros(*z.shape[:-1], self.sizes[-1]))

    def with_observation(self, state: SRNNState, embed: Tensor) -> SRNNState:
        return state._replace(seen=embed) if self.feeds_back else state

    def feature(self, state: SRNNState) -> Tensor:
        return torch.cat([state.deter, state.latent], -1)

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: SRNNState) -> Tensor:
        if not self.can_filter:
            embed = self.future(torch.cat([self.drive(embed, control, is_first, state), embed], -1), is_first)
        return self.posterior_net.share(embed)

    def drive(self, embed: Tensor, control: Tensor, is_first: Tensor, state: SRNNState) -> Tensor:
        """Return d_1..d_T (B, T, deter). They do not depend on latents, so they can be computed before inference."""
        if self.feeds_back:
            before = torch.cat([state.seen.unsqueeze(1), embed[:, :-1]], 1)
            control = torch.cat([control, before * ~is_first.unsqueeze(-1)], -1)
        return self.memory(control, is_first, state.deter)
