"""What single members compute, against closed forms."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.dynamics import DVBF, KVAE, DVBFConfig, KVAEConfig
from worldmodel.model import WorldModel
from worldmodel.networks.latents import Gaussian, OneHot, WithStatic
from worldmodel.types import Batch

Build = Callable[..., WorldModel]
Window = Callable[..., Batch]


# The Kalman filter and smoother inside `kvae`, against one dense joint Gaussian over all z and a.


class Dense:
    """Joint moments of z_1..z_T and a_1..a_T of a time-varying system, by substitution."""

    def __init__(self, member: KVAE, weights: np.ndarray, control: np.ndarray) -> None:
        A, B, C = (
            np.einsum("tm,mij->tij", weights, p.detach().numpy())
            for p in (member.system.A, member.system.B, member.system.C)
        )
        T, Z = len(A), A.shape[1]
        q, r = (np.diag(np.exp(p.detach().numpy())) for p in (member.system.log_q, member.system.log_r))
        mean, covariance = np.zeros((T, Z)), np.zeros((T, Z, T, Z))
        before_mean, before = np.zeros(Z), np.eye(Z)
        for t in range(T):
            mean[t] = A[t] @ before_mean + B[t] @ control[t]
            covariance[t, :, t] = A[t] @ before @ A[t].T + q
            for s in range(t):
                covariance[t, :, s] = A[t] @ covariance[t - 1, :, s]
                covariance[s, :, t] = covariance[t, :, s].T
            before_mean, before = mean[t], covariance[t, :, t]
        self.z_mean, self.z_cov = mean.reshape(-1), covariance.reshape(T * Z, T * Z)
        self.C = np.zeros((T * C.shape[1], T * Z))
        for t in range(T):
            self.C[t * C.shape[1] : (t + 1) * C.shape[1], t * Z : (t + 1) * Z] = C[t]
        self.a_mean = self.C @ self.z_mean
        self.a_cov = self.C @ self.z_cov @ self.C.T + np.kron(np.eye(T), r)

    def log_prob(self, a: np.ndarray) -> float:
        """log p(a_1..a_t) of the leading steps."""
        n = a.size
        error, covariance = a.reshape(-1) - self.a_mean[:n], self.a_cov[:n, :n]
        _, log_det = np.linalg.slogdet(covariance)
        return float(-0.5 * (error @ np.linalg.solve(covariance, error) + log_det + n * np.log(2 * np.pi)))

    def posterior(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of z_1..z_T given a_1..a_T."""
        gain = np.linalg.solve(self.a_cov, self.C @ self.z_cov).T
        return self.z_mean + gain @ (a.reshape(-1) - self.a_mean), self.z_cov - gain @ self.C @ self.z_cov


@pytest.fixture
def kvae() -> KVAE:
    torch.manual_seed(0)
    member = KVAE(KVAEConfig(size=3, matrices=2, hidden=8), Gaussian(2), 2, 5).double()
    with torch.no_grad():
        for parameter in member.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return member


def inferred(member: KVAE, border: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log p(a_t | a_{<t}), a, control, mixing weights, is_first, of two windows of six steps."""
    generator = torch.Generator().manual_seed(1)
    embed, control = (torch.randn(2, 6, n, generator=generator, dtype=torch.float64) for n in (5, 2))
    is_first = torch.zeros(2, 6, dtype=torch.bool)
    if border is not None:
        is_first[:, border] = True
        control = control * ~is_first.unsqueeze(-1)
    inference = member.observe(embed, control, is_first)
    weights = member.mixing_out(inference.states.mixing).softmax(-1)
    member.kept = inference.states
    return member.latent.log_prob(inference.prior, inference.sample), inference.sample, control, weights, is_first


def numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


def test_kvae_prior_is_the_evidence_of_what_was_encoded(kvae: KVAE) -> None:
    logs, a, control, weights, _ = inferred(kvae)
    for row in range(2):
        dense = Dense(kvae, *numpy(weights[row], control[row]))
        values = a[row].detach().numpy()
        expected = [dense.log_prob(values[: t + 1]) - (dense.log_prob(values[:t]) if t else 0) for t in range(6)]
        np.testing.assert_allclose(logs[row].detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("border", [None, 2, 5])
def test_kvae_smoother_is_the_posterior_of_z(kvae: KVAE, border: int | None) -> None:
    _, a, control, weights, is_first = inferred(kvae, border)
    smoothed = kvae.smooth(kvae.kept, control, is_first)
    parts = [slice(0, 6)] if border is None else [slice(0, border), slice(border, 6)]
    for part in parts:
        dense = Dense(kvae, *numpy(weights[0, part], control[0, part]))
        mean, covariance = dense.posterior(a[0, part].detach().numpy())
        np.testing.assert_allclose(smoothed.mean[0, part].detach().numpy().reshape(-1), mean, atol=1e-9)
        for i, t in enumerate(range(*part.indices(6))):
            block = covariance[3 * i : 3 * i + 3, 3 * i : 3 * i + 3]
            np.testing.assert_allclose(smoothed.covariance[0, t].detach().numpy(), block, atol=1e-9)


def test_kvae_covariance_stays_positive_in_single_precision() -> None:
    torch.manual_seed(0)
    member = KVAE(KVAEConfig(size=8, matrices=4, hidden=8), Gaussian(4), 1, 5)
    with torch.no_grad():
        member.system.log_r.fill_(-12.0)
    embed, control = torch.randn(4, 150, 5), torch.randn(4, 150, 1)
    states = member.observe(embed, control, torch.zeros(4, 150, dtype=torch.bool)).states
    eigenvalues = torch.linalg.eigvalsh(member.moments(states).covariance.double())
    assert eigenvalues.min() > -1e-6
    assert states.mean.isfinite().all()


# The static variable of `dsae`.


@pytest.mark.parametrize("varying", [Gaussian(2), OneHot(2, 3)], ids=["gaussian", "onehot"])
def test_a_held_variable_costs_nothing_and_a_free_one_its_divergence(varying: Gaussian | OneHot) -> None:
    family = WithStatic(varying, 2)
    z, v = (torch.randn(2, 5, n) for n in (varying.parameters, 4))
    held = torch.randn(1, 5, 2).expand(2, -1, -1)

    def params(is_held: float) -> tuple[Tensor, Tensor]:
        q, p = torch.cat([z, v, held, torch.full((2, 5, 1), is_held)], -1)
        return q, p

    moving = varying.kl(z[0], z[1])
    torch.testing.assert_close(family.kl(*params(1.0)), moving)
    torch.testing.assert_close(family.kl(*params(0.0)), moving + family.static.kl(v[0], v[1]))
    assert torch.equal(family.sample(params(1.0)[0])[:, -2:], held[0])
    draws = torch.stack([family.sample(params(0.0)[0])[:, -2:] for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), family.static.mode(v[0]), atol=0.1, rtol=0)


def test_dsae_draws_one_static_variable_for_each_episode(build: Build, window: Window) -> None:
    model, batch = build("dsae"), window(3, 8)
    batch.is_first[:, 5] = True
    inference = model.observe(batch)
    static = inference.states.latent[..., -model.dynamics.latent.static.size :]
    assert torch.equal(static[:, :5], static[:, :1].expand(-1, 5, -1))
    assert torch.equal(static[:, 5:], static[:, 5:6].expand(-1, 3, -1))
    assert not torch.isclose(static[:, 0], static[:, 5]).any()
    control = batch.prev_action[:, 0]
    imagined = model.imagine(type(inference.states)(*(field[:, -1] for field in inference.states)), control)
    assert torch.equal(imagined.latent[..., -static.shape[-1] :], static[:, -1])


# The transition of `dvbf`.


def test_dvbf_divergence_is_that_of_the_states_it_induces() -> None:
    """KL(q(w) || N(0, I)) = KL between the Gaussians of z_t = expected + C w (derivation, Eq. 62)."""
    torch.manual_seed(0)
    family = Gaussian(3)
    member = DVBF(DVBFConfig(size=3, matrices=2, hidden=8), family, 1, 4).double()
    state = member.initial(5)._replace(latent=torch.randn(5, 3).double(), begun=torch.ones(5, 1).double())
    context = member.advance(state, torch.randn(5, 1).double())
    q, p = (
        member.posterior(context, member.posterior_net.share(torch.randn(5, 4).double())),
        member.prior(context).double(),
    )
    kl = family.kl(q, p)
    C = torch.einsum("bm,mij->bij", context.weights, member.C)
    mean, std = family.moments(q)
    induced = torch.distributions.MultivariateNormal(
        context.expected + (C @ mean.unsqueeze(-1)).squeeze(-1), C @ std.square().diag_embed() @ C.mT
    )
    prior = torch.distributions.MultivariateNormal(context.expected, C @ C.mT)
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(induced, prior), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_untrained_linear_dynamics_stay_bounded_over_a_long_record(seed: int) -> None:
    """Observed, and imagined from then on."""
    torch.manual_seed(seed)
    never = torch.zeros(1, 1000, dtype=torch.bool)
    for member in (DVBF(DVBFConfig(), Gaussian(16), 1, 4), KVAE(KVAEConfig(), Gaussian(16), 1, 4)):
        with torch.no_grad():
            states = member.observe(torch.randn(1, 1000, 4), torch.randn(1, 1000, 1), never).states
            state = type(states)(*(field[:, -1] for field in states))
            for _ in range(1000):
                state = member.imagine(state, torch.randn(1, 1))
        assert all(field.abs().max() < 1e3 for field in (*states, *state))
