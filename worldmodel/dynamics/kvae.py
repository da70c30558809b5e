"""Kalman variational autoencoder (Fraccaro et al. 2017, "A Disentangled Recognition and Nonlinear Dynamics Model")."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.kalman import Moments
from worldmodel.dynamics.linear_mixture import KalmanMixture
from worldmodel.networks.latents import FullGaussian, Gaussian, LatentFamily
from worldmodel.networks.layers import MLP
from worldmodel.networks.recurrent import GRUCell
from worldmodel.types import State


@dataclass
class KVAEConfig:
    """Sizes of the Kalman variational autoencoder."""

    size: int = 16  # width of z_t; the pseudo-observation a_t has the width of the latent variable
    matrices: int = 8  # number of linear systems that are mixed
    hidden: int = 64  # width of the mixing GRU and of the posterior

    def __post_init__(self) -> None:
        if min(self.size, self.matrices, self.hidden) < 1:
            raise ValueError(f"size, matrices and hidden must be at least 1, but the section is {self}")


class KVAEState(NamedTuple):
    latent: Tensor  # a_t (..., latent size)
    mean: Tensor  # m_{t|t} (..., size)
    covariance: Tensor  # P_{t|t} (..., size * size)
    mixing: Tensor  # GRU memory of a_{<t}, u_{<t} (..., hidden)


class KVAEContext(NamedTuple):
    mean: Tensor  # m_{t|t-1} (..., size)
    covariance: Tensor  # P_{t|t-1} (..., size * size)
    weights: Tensor  # weights of the systems (..., matrices)
    mixing: Tensor  # (..., hidden)


class KVAE(SequentialVAE):
    """An autoencoder x_t <-> a_t. A linear-Gaussian system generates a_t, and its state z_t is integrated out exactly.

        u_{t-1} ──┐
        z_{t-1} ──┴─> z_t ──> a_t ──> x_t        z_t = A_t z_{t-1} + B_t u_{t-1} + N(0, Q),  a_t = C_t z_t + N(0, R)
        a_{<t}, u_{<t} ──> A_t, B_t, C_t         q(a_t | x_t)

    A, B and C are mixtures of learned matrices. A GRU over the past computes their weights. Given the weights, the
    Kalman filter gives the prior of a_t in closed form,

        p(a_t | a_{<t}, u_{<t}) = N(C_t m_{t|t-1}, C_t P_{t|t-1} C_t' + R),

    and therefore also the KL to q. The paper samples z_t from the smoother, but here only a_t is sampled. The heads
    read a_t and the filtered mean m_{t|t}, because rewards and policies need information that a single a_t does not
    contain. `smooth` is the exact smoother of z.

    Derivation Eq. 63 to 68.

    Raises:
        ValueError: for discrete latents, which no Kalman filter can carry.
    """

    Context = KVAEContext
    latent: FullGaussian

    def __init__(self, config: KVAEConfig, latent: LatentFamily, control_size: int, embed_size: int) -> None:
        super().__init__()
        if not isinstance(latent, Gaussian):
            raise ValueError(
                "kvae needs model.latent.family gaussian. For discrete latents, choose another member, such as rssm."
            )
        self.latent, self.encoding = FullGaussian(latent.size), latent
        self.size, self.feature_size = config.size, latent.size + config.size
        self.mixing_input = MLP(latent.size + control_size, config.hidden, layers=1)
        self.mixing_cell = GRUCell(config.hidden, config.hidden)
        self.mixing_out = nn.Linear(config.hidden, config.matrices)
        self.system = KalmanMixture(config.matrices, config.size, control_size, latent.size)
        self.posterior_net = MLP(embed_size, config.hidden, 1, latent.parameters)

    def initial(self, batch_size: int) -> KVAEState:
        widths = (self.latent.size, self.size, self.mixing_out.in_features)
        latent, mean, mixing = (self.system.C.new_zeros(batch_size, width) for width in widths)
        return KVAEState(latent, mean, torch.eye(self.size).to(mean).flatten().expand(batch_size, -1), mixing)

    def moments(self, of: KVAEState | KVAEContext) -> Moments:
        """Return the moments of p(z_t | a_{1:t}, u_{<t}) from a state, or of p(z_t | a_{<t}, u_{<t}) from a context."""
        return Moments(of.mean, of.covariance.unflatten(-1, (self.size, self.size)))

    def advance(self, state: KVAEState, control: Tensor) -> KVAEContext:
        mixing = self.mixing_cell(self.mixing_input(torch.cat([state.latent, control], -1)), state.mixing)
        weights = self.mixing_out(mixing).to(mixing.dtype).softmax(-1)
        mean, covariance = self.system.predict(weights, self.moments(state), control)
        return KVAEContext(mean, covariance.flatten(-2), weights, mixing)

    def prior(self, context: KVAEContext) -> Tensor:
        return self.latent.pack(*self.system.emit(context.weights, self.moments(context)))

    def posterior(self, context: KVAEContext, evidence: Tensor) -> Tensor:
        mean, std = self.encoding.moments(evidence)
        return torch.cat([mean, std.diag_embed().flatten(-2)], -1)

    def with_latent(self, context: KVAEContext, z: Tensor) -> KVAEState:
        """Return the state after the Kalman update with a_t = z."""
        mean, covariance = self.system.update(context.weights, self.moments(context), z)
        return KVAEState(z, mean, covariance.flatten(-2), context.mixing)

    def feature(self, state: KVAEState) -> Tensor:
        return torch.cat([state.latent, state.mean], -1)

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        return self.posterior_net(embed)

    def smooth(self, states: KVAEState, control: Tensor, is_first: Tensor) -> Moments:
        """Return the moments of every z_t given a_{1:T}.

        Args:
            states: s_1..s_T as `observe` infers them, each field (B, T, ...).
            control: (B, T, A), the control that led to each step.
            is_first: (B, T) bool.
        """
        control = control * ~is_first.unsqueeze(-1)
        ahead = self.advance(type(states)(*(field[:, :-1] for field in states)), control[:, 1:])
        return self.system.smooth(ahead.weights, self.moments(states), self.moments(ahead), is_first[:, 1:])
