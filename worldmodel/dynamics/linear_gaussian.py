"""A linear-Gaussian state-space model with known matrices. Its ELBO can be computed exactly."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.kalman import product
from worldmodel.dynamics.scan import scan
from worldmodel.networks.latents import FullGaussian
from worldmodel.types import State

Posterior = Literal["smoother", "filter", "prior"]


@dataclass(frozen=True)
class LinearSystem:
    """The system z_t = A z_{t-1} + B u_{t-1} + N(0, Q) and x_t = C z_t + N(0, R), for x (X,), u (A,) and z (Z,).

    Q and R must be positive definite.

    Raises:
        ValueError: if a matrix does not fit the others.
    """

    A: Tensor  # (Z, Z)
    B: Tensor  # (Z, A)
    C: Tensor  # (X, Z)
    Q: Tensor  # (Z, Z) covariance of the transition
    R: Tensor  # (X, X) covariance of the emission

    def __post_init__(self) -> None:
        x, z = self.C.shape
        shapes = {"A": (z, z), "B": (z, self.B.shape[-1]), "Q": (z, z), "R": (x, x)}
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(
                    f"{name} must have shape {shape}, because C has the shape {(x, z)}, but its shape is {found}"
                )


def example_system(dtype: torch.dtype = torch.float64) -> LinearSystem:
    """Return a system with one control, two latents and one observation (Gedon et al. 2021).

    Under u ~ U(-2.5, 2.5), its evidence converges to -1.657723 nats per step. The best causal linear filter reaches
    -1.8217.
    """

    def tensor(values: list[list[float]]) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    A, B, C = tensor([[0.7, 0.8], [0.0, 0.1]]), tensor([[-1.0], [0.1]]), tensor([[1.0, 0.0]])
    return LinearSystem(A, B, C, Q=tensor([[0.25, 0.0], [0.0, 0.25]]), R=tensor([[1.0]]))


class LinearGaussianState(NamedTuple):
    latent: Tensor  # z_t (..., Z)


class LinearGaussianContext(NamedTuple):
    mean: Tensor  # A z_{t-1} + B u_{t-1} (..., Z)


class LinearGaussian(SequentialVAE):
    """A Markov chain with a linear transition, a linear emission and a posterior in closed form.

        u_{t-1} ──┐
        z_{t-1} ──┴─> z_t ──> x_t        p(z_t | z_{t-1}, u_{t-1}) = N(A z_{t-1} + B u_{t-1}, Q),  z_0 = 0
                                         p(x_t | z_t) = N(C z_t, R)

        smoother:  q(z_t | z_{t-1}, u_{t-1:T-1}, x_{t:T}) is exact, so the ELBO is log p(x_{1:T} | u_{0:T-1})
        filter:    q = p(z_t | z_{t-1}, u_{t-1}, x_t) is exact given z_{t-1}, but does not see the future: a gap remains
        prior:     q = p(z_t | z_{t-1}, u_{t-1}): total collapse

    The evidence of the posterior is information about z_t: e_t = [eta_t, Lambda_t]. It stands for a likelihood
    proportional to exp(eta_t' z_t - z_t' Lambda_t z_t / 2), of x_{t:T} (smoother), of x_t (filter), or of nothing
    (prior). Its product with the prior is

        q(z_t | .) = N(S (Q^-1 (A z_{t-1} + B u_{t-1}) + eta_t), S),  S = (Q^-1 + Lambda_t)^-1

    This member is a reference for exact tests. It learns nothing, so it has no config and is not in the registry. Its
    embedding is x_t itself (..., X), which :class:`LinearGaussianEncoder` returns. Its emission is
    :class:`LinearGaussianEmission`.

    Derivation Eq. 23, 24, 80, 81. Source: the two-filter form of the Rauch-Tung-Striebel smoother (Fraser and Potter
    1969).
    """

    Context = LinearGaussianContext
    latent: FullGaussian
    A: Tensor
    B: Tensor
    Q: Tensor
    precision: Tensor
    reading: Tensor
    reading_precision: Tensor

    def __init__(self, system: LinearSystem, posterior: Posterior = "smoother") -> None:
        super().__init__()
        if posterior not in get_args(Posterior):
            raise ValueError(f"posterior must be one of {', '.join(get_args(Posterior))}, but it is '{posterior}'")
        self.feature_size = len(system.A)
        self.latent = FullGaussian(self.feature_size)
        self.posterior_name, self.can_filter = posterior, posterior != "smoother"
        self.register_buffer("A", system.A)
        self.register_buffer("B", system.B)
        self.register_buffer("Q", system.Q)
        self.register_buffer("precision", system.Q.inverse())
        reading = system.C.mT @ system.R.inverse()
        self.register_buffer("reading", reading)  # C' R^-1 (Z, X)
        self.register_buffer("reading_precision", reading @ system.C)  # C' R^-1 C (Z, Z)

    def initial(self, batch_size: int) -> LinearGaussianState:
        return LinearGaussianState(self.A.new_zeros(batch_size, self.feature_size))

    def advance(self, state: LinearGaussianState, control: Tensor) -> LinearGaussianContext:
        return LinearGaussianContext(state.latent @ self.A.mT + control @ self.B.mT)

    def prior(self, context: LinearGaussianContext) -> Tensor:
        return self.latent.pack(context.mean, self.Q)

    def posterior(self, context: LinearGaussianContext, evidence: Tensor) -> Tensor:
        eta, information = self.split(evidence)
        covariance = (self.precision + information).inverse()
        mean = product(covariance, context.mean @ self.precision.mT + eta)
        return self.latent.pack(mean, covariance)

    def with_latent(self, context: LinearGaussianContext, z: Tensor) -> LinearGaussianState:
        return LinearGaussianState(z)

    def feature(self, state: LinearGaussianState) -> Tensor:
        return state.latent

    def evidence(self, embed: Tensor, control: Tensor, is_first: Tensor, state: State) -> Tensor:
        eta = embed @ self.reading.mT
        present = self.join(eta, self.reading_precision.expand(*eta.shape, self.feature_size))
        if self.posterior_name == "prior":
            return torch.zeros_like(present)
        if self.posterior_name == "filter":
            return present
        return self.add_future(present, control, is_first)

    def add_future(self, present: Tensor, control: Tensor, is_first: Tensor) -> Tensor:
        """Return the information of x_{t:T} about z_t from that of each single x_t, both (B, T, Z + Z * Z).

        It begins with e_T = present_T and goes backward by e_{t-1} = present_{t-1} + pull_back(e_t, u_{t-1}). The
        second term is absent if x_t begins another episode.
        """
        none = torch.zeros_like(present[:, 0])

        def step(future: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            present, control, is_first = inputs
            evidence = present + future
            return torch.where(is_first.unsqueeze(-1), none, self.pull_back(evidence, control)), (evidence,)

        _, (evidence,) = scan(step, none, (present, control, is_first), reverse=True)
        return evidence

    def pull_back(self, evidence: Tensor, control: Tensor) -> Tensor:
        """Convert information about z_t to information about z_{t-1}, given u_{t-1} (B, A).

        This integrates z_t out of the product of p and e_t. With M = (I + Lambda_t Q)^-1, the result is
        Lambda = A' M Lambda_t A and eta = A' M (eta_t - Lambda_t B u_{t-1}).
        """
        eta, information = self.split(evidence)
        eta = eta - product(information, control @ self.B.mT)
        spread = torch.eye(self.feature_size).to(self.Q) + information @ self.Q
        eta = torch.linalg.solve(spread, eta.unsqueeze(-1)).squeeze(-1)
        return self.join(eta @ self.A, self.A.mT @ torch.linalg.solve(spread, information) @ self.A)

    def join(self, eta: Tensor, information: Tensor) -> Tensor:
        """Join both parts of the evidence into one tensor: (..., Z), (..., Z, Z) -> (..., Z + Z * Z)."""
        return torch.cat([eta, information.flatten(-2)], -1)

    def split(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """Split the evidence into eta and Lambda, the inverse of :meth:`join`."""
        eta, information = evidence.split([self.feature_size, self.feature_size**2], -1)
        return eta, information.unflatten(-1, (self.feature_size, self.feature_size))


class LinearGaussianEncoder(nn.Module):
    """Returns x_t, the only observation, as its own embedding."""

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        (value,) = obs.values()
        return value


class LinearGaussianEmission(nn.Module):
    """The emission p(x_t | z_t) = N(C z_t, R), in place of a :class:`worldmodel.networks.encoder.Head`."""

    C: Tensor
    R: Tensor

    def __init__(self, system: LinearSystem) -> None:
        super().__init__()
        self.family = FullGaussian(len(system.C))
        self.register_buffer("C", system.C)
        self.register_buffer("R", system.R)

    def log_prob(self, feature: Tensor, value: Tensor) -> Tensor:
        """Return the log density in nats: (..., Z), (..., X) -> (...)."""
        return self.family.log_prob(self.family.pack(self.mean(feature), self.R), value)

    def mean(self, feature: Tensor) -> Tensor:
        """Return the mean of x_t: (..., Z) -> (..., X)."""
        return feature @ self.C.mT
