"""The sequential ELBO against exact answers: the Kalman evidence, a dense joint Gaussian, closed-form divergences."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worldmodel.dynamics.linear_gaussian import (
    LinearGaussian,
    LinearGaussianEmission,
    LinearGaussianEncoder,
    LinearGaussianState,
    LinearSystem,
    Posterior,
    example_system,
)
from worldmodel.model import WorldModel
from worldmodel.networks.latents import FullGaussian, Gaussian, LatentFamily, OneHot
from worldmodel.types import Batch, Inference


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Five steps of the system, with an evidence computed elsewhere.
GEDON = example_system()
CONTROLS = tensor([1, -1, 0.5, 0, 2]).reshape(1, 5, 1)  # u_0..u_4
OBSERVATIONS = tensor([-0.8, 0.4, 0.1, 0.6, -1.5]).reshape(1, 5, 1)  # x_1..x_5
EVIDENCE = -5.860411491125925
EVIDENCE_PER_STEP = [-1.04651, -1.124352, -1.198621, -1.293582, -1.197346]
FILTERED_MEAN = [-1.72233723, 0.20602366]
FILTERED_COVARIANCE = [[0.37945261, 0.01309249], [0.01309249, 0.25224622]]
NATS_PER_FRAME: dict[Posterior, float] = {"smoother": -1.657723, "filter": -1.855441, "prior": -2.273734}


def world_model(system: LinearSystem, posterior: Posterior) -> WorldModel:
    return WorldModel(LinearGaussianEncoder(), LinearGaussian(system, posterior), {"x": LinearGaussianEmission(system)})


def recorded(x: Tensor, control: Tensor, is_first: Tensor | None = None) -> Batch:
    """Time steps of x (B, T, X) and u (B, T, A), in the middle of an episode unless `is_first` (T,) says otherwise."""
    reward = torch.zeros_like(x[..., 0])
    never = torch.zeros_like(reward, dtype=torch.bool)
    first = never if is_first is None else is_first.expand(len(x), -1)
    return Batch({"x": x}, control, reward, first, never, never, torch.ones_like(reward))


def log_weights(model: WorldModel, batch: Batch, inference: Inference) -> Tensor:
    """(B, T): log p(x_t | z_t) + log p(z_t | z_{t-1}) - log q(z_t | .) of the latents that were sampled."""
    z, log_prob = inference.states.latent, model.dynamics.latent.log_prob
    emitted = model.log_likelihood(batch, model.feature(inference.states))["x"]
    return emitted + log_prob(inference.prior, z) - log_prob(inference.posterior, z)


class Random(NamedTuple):
    """A random system with data from nowhere: the evidence must hold for any x and u."""

    system: LinearSystem
    x: Tensor  # (T, X)
    control: Tensor  # (T, A)


def random_case(seed: int, length: int) -> Random:
    rng = np.random.default_rng(seed)
    size, width, controls = 3, 2, 2

    def covariance(n: int) -> np.ndarray:
        root = rng.normal(size=(n, n))
        return root @ root.T + 0.1 * np.eye(n)

    matrices = (
        0.6 * rng.normal(size=(size, size)),
        rng.normal(size=(size, controls)),
        rng.normal(size=(width, size)),
        covariance(size),
        covariance(width),
    )
    data = rng.normal(size=(length, width)), rng.normal(size=(length, controls))
    return Random(LinearSystem(*map(tensor, matrices)), *map(tensor, data))


def dense_evidence(case: Random, z0: np.ndarray | float = 0.0) -> float:
    """log N(x_{1:T}; mean, covariance) from the joint of all latents: no recursion, no conditioning."""
    a, b, c, q, r = (matrix.numpy() for matrix in vars(case.system).values())
    x, control = case.x.numpy(), case.control.numpy()
    length, size = len(x), len(a)
    powers = [np.linalg.matrix_power(a, n) for n in range(length + 1)]
    # z_t = A^t z_0 + sum_{s <= t} A^{t-s} (B u_{s-1} + w_s), and x = C z + v, as one linear map of all the noises.
    drive = np.block([[powers[t - s] if s <= t else np.zeros_like(a) for s in range(length)] for t in range(length)])
    start = np.concatenate([powers[t + 1] @ np.broadcast_to(z0, size) for t in range(length)])
    emit = np.kron(np.eye(length), c)
    mean = emit @ (start + drive @ (control @ b.T).ravel())
    spread = emit @ drive @ np.kron(np.eye(length), q) @ drive.T @ emit.T + np.kron(np.eye(length), r)
    error = x.ravel() - mean
    log_det = np.linalg.slogdet(2 * np.pi * spread)[1]
    return float(-0.5 * (error @ np.linalg.solve(spread, error) + log_det))


def test_dense_evidence_knows_the_test_vector() -> None:
    assert dense_evidence(Random(GEDON, OBSERVATIONS[0], CONTROLS[0])) == pytest.approx(EVIDENCE, abs=1e-12)


def test_every_sample_of_the_exact_smoother_has_the_evidence_as_its_weight() -> None:
    torch.manual_seed(0)
    batch = recorded(OBSERVATIONS.expand(100, -1, -1), CONTROLS.expand(100, -1, -1))
    model = world_model(GEDON, "smoother")
    inference = model.observe(batch)
    assert inference.states.latent.std(0).min() > 0.1
    weights = log_weights(model, batch, inference).sum(1)
    torch.testing.assert_close(weights, torch.full_like(weights, EVIDENCE), atol=1e-10, rtol=0)


def test_prefixes_decompose_the_evidence_by_step() -> None:
    """log p(x_t | x_{<t}) is what one more row adds to the evidence of the window before it."""
    model = world_model(GEDON, "smoother")
    prefixes = [recorded(OBSERVATIONS[:, :n], CONTROLS[:, :n]) for n in range(1, 6)]
    totals = torch.stack([log_weights(model, batch, model.observe(batch)).sum() for batch in prefixes])
    steps = totals.diff(prepend=torch.zeros(1, dtype=totals.dtype))
    torch.testing.assert_close(steps, tensor(EVIDENCE_PER_STEP), atol=1e-6, rtol=0)


def test_elbo_averages_to_the_evidence_with_the_smoother_and_stays_below_it_otherwise() -> None:
    torch.manual_seed(0)
    batch = recorded(OBSERVATIONS.expand(20_000, -1, -1), CONTROLS.expand(20_000, -1, -1))
    samples = {name: world_model(GEDON, name).elbo(batch).total.sum(1) for name in NATS_PER_FRAME}
    error = {name: float(elbo.std() / len(elbo) ** 0.5) for name, elbo in samples.items()}
    mean = {name: float(elbo.mean()) for name, elbo in samples.items()}
    assert error["smoother"] < 0.01
    assert mean["smoother"] == pytest.approx(EVIDENCE, abs=4 * error["smoother"])
    assert mean["filter"] < EVIDENCE - 0.15
    assert mean["prior"] < mean["filter"] - 0.3


def test_last_latent_of_the_smoother_has_the_kalman_filtered_moments() -> None:
    torch.manual_seed(0)
    batch = recorded(OBSERVATIONS.expand(50_000, -1, -1), CONTROLS.expand(50_000, -1, -1))
    last = world_model(GEDON, "smoother").observe(batch).states.latent[:, -1]
    torch.testing.assert_close(last.mean(0), tensor(FILTERED_MEAN), atol=0.012, rtol=0)
    torch.testing.assert_close(last.T.cov(), tensor(FILTERED_COVARIANCE), atol=0.012, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 7, 20])
@pytest.mark.parametrize("seed", range(3))
def test_smoother_equals_a_dense_joint_gaussian(seed: int, length: int) -> None:
    case = random_case(seed, length)
    model = world_model(case.system, "smoother")
    batch = recorded(case.x[None], case.control[None])
    weight = log_weights(model, batch, model.observe(batch)).sum()
    assert float(weight) == pytest.approx(dense_evidence(case), abs=1e-7)


def test_smoother_continues_from_a_given_state() -> None:
    case = random_case(3, 6)
    model, batch = world_model(case.system, "smoother"), recorded(case.x[None], case.control[None])
    z0 = np.array([1.0, -2.0, 0.5])
    inference = model.observe(batch, LinearGaussianState(torch.from_numpy(z0)[None]))
    assert float(log_weights(model, batch, inference).sum()) == pytest.approx(dense_evidence(case, z0), abs=1e-7)


def test_smoother_cuts_the_window_at_episode_borders() -> None:
    """Each episode has its own evidence, with a null control at its first row, whatever stands around it."""
    case = random_case(4, 9)
    is_first = torch.arange(9) == 5
    model = world_model(case.system, "smoother")
    batch = recorded(case.x[None], case.control[None], is_first)
    weights = log_weights(model, batch, model.observe(batch))[0]
    control = case.control.clone()
    control[5] = 0
    before = case._replace(x=case.x[:5], control=control[:5])
    after = case._replace(x=case.x[5:], control=control[5:])
    assert float(weights[:5].sum()) == pytest.approx(dense_evidence(before), abs=1e-7)
    assert float(weights[5:].sum()) == pytest.approx(dense_evidence(after), abs=1e-7)


def simulate(system: LinearSystem, sequences: int, length: int) -> tuple[Tensor, Tensor]:
    """x and u (B, T, 1) of a one-input, one-output system, u ~ U(-2.5, 2.5), z_0 = 0."""
    control = torch.rand(sequences, length, 1, dtype=torch.float64) * 5 - 2.5
    model = LinearGaussian(system, "prior")
    state = model.initial(sequences)
    x = []
    for t in range(length):
        state = model.imagine(state, control[:, t])
        x.append(state.latent @ system.C.mT + torch.randn(sequences, 1, dtype=torch.float64) @ system.R.sqrt())
    return torch.stack(x, 1), control


BURN_IN = 20  # steps at either end: z_0 = 0 is not stationary, and the last steps have no future to smooth with


@pytest.fixture(scope="module")
def simulated() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return simulate(GEDON, 4000, 100 + 2 * BURN_IN)


@pytest.mark.parametrize("posterior", NATS_PER_FRAME)
def test_stationary_elbo_of_each_posterior(simulated: tuple[Tensor, Tensor], posterior: Posterior) -> None:
    torch.manual_seed(1)
    elbo = world_model(GEDON, posterior).elbo(recorded(*simulated)).total[:, BURN_IN:-BURN_IN].mean(1)
    error = float(elbo.std() / len(elbo) ** 0.5)
    assert error < 0.006
    assert float(elbo.mean()) == pytest.approx(NATS_PER_FRAME[posterior], abs=4 * error)


@pytest.mark.parametrize("shift", [-1, 1])
def test_controls_shifted_by_one_step_make_the_evidence_worse(simulated: tuple[Tensor, Tensor], shift: int) -> None:
    """An off-by-one in the alignment of actions costs about a nat per frame here: it cannot hide."""
    x, control = (values[:200] for values in simulated)
    model = world_model(GEDON, "smoother")

    def evidence(control: Tensor) -> Tensor:
        batch = recorded(x[:, 1:-1], control[:, 1:-1])
        return log_weights(model, batch, model.observe(batch)).mean(1)

    assert (evidence(control) > evidence(control.roll(shift, 1)) + 0.2).all()


# Divergences.


def triangular(*shape: int) -> Tensor:
    """Random lower-triangular factors (..., Z, Z) with a positive diagonal."""
    return torch.randn(shape, dtype=torch.float64).tril(-1) + torch.diag_embed(0.5 + torch.rand(shape[:-1]).double())


def pair(family: LatentFamily) -> tuple[Tensor, Tensor]:
    """Parameters (6, P) of six q and six p."""
    torch.manual_seed(0)
    if isinstance(family, FullGaussian):
        mean, factor = torch.randn(2, 6, family.size, dtype=torch.float64), triangular(2, 6, family.size, family.size)
        q, p = torch.cat([mean, factor.flatten(-2)], -1)
    else:
        q, p = 2 * torch.randn(2, 6, family.parameters, dtype=torch.float64)
    return q, p


def reference(family: LatentFamily, params: Tensor) -> torch.distributions.Distribution:
    """The same distribution in torch.distributions, from the definition of the parameters."""
    if isinstance(family, OneHot):
        probs = params.unflatten(-1, (family.groups, family.classes)).softmax(-1)
        probs = (1 - family.unimix) * probs + family.unimix / family.classes
        return torch.distributions.Independent(torch.distributions.OneHotCategorical(probs), 1)
    mean, rest = params[..., : family.size], params[..., family.size :]
    if isinstance(family, Gaussian):
        std = nn.functional.softplus(rest) + family.min_std
        return torch.distributions.Independent(torch.distributions.Normal(mean, std), 1)
    factor = rest.unflatten(-1, (family.size, family.size))
    return torch.distributions.MultivariateNormal(mean, scale_tril=factor)


LATENTS = [Gaussian(3), OneHot(3, 4), OneHot(3, 4, unimix=0.0), FullGaussian(3)]


@pytest.mark.parametrize("latent", LATENTS, ids=lambda each: type(each).__name__)
class TestDivergence:
    def test_of_a_distribution_with_itself_is_zero(self, latent: LatentFamily) -> None:
        q, _ = pair(latent)
        torch.testing.assert_close(latent.kl(q, q), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)

    def test_equals_torch_distributions(self, latent: LatentFamily) -> None:
        q, p = pair(latent)
        expected = torch.distributions.kl_divergence(reference(latent, q), reference(latent, p))
        assert (expected > 0.1).all()
        torch.testing.assert_close(latent.kl(q, p), expected)

    def test_is_the_mean_log_ratio_of_samples(self, latent: LatentFamily) -> None:
        q, p = (params.expand(20_000, -1, -1) for params in pair(latent))
        z = latent.sample(q)
        ratio = latent.log_prob(q, z) - latent.log_prob(p, z)
        error = ratio.std(0) / len(ratio) ** 0.5
        assert ((ratio.mean(0) - latent.kl(q[0], p[0])).abs() < 4 * error).all()

    def test_log_prob_equals_torch_distributions(self, latent: LatentFamily) -> None:
        q, p = pair(latent)
        z = latent.sample(p)
        value = z.unflatten(-1, (latent.groups, latent.classes)) if isinstance(latent, OneHot) else z
        torch.testing.assert_close(latent.log_prob(q, z), reference(latent, q).log_prob(value))


# Padding and batch size.


def padded(batch: Batch, extra: int) -> Batch:
    """`extra` rows of rubbish after every window, masked out and begun by is_first, as a replay pads."""

    def extend(values: Tensor) -> Tensor:
        return torch.cat([values, torch.full_like(values[:, :1], 2).expand(-1, extra, *values.shape[2:])], 1)

    is_first = extend(batch.is_first)
    is_first[:, batch.reward.shape[1] + 1 :] = False
    mask = extend(batch.mask)
    mask[:, batch.reward.shape[1] :] = 0
    extended = Batch({key: extend(value) for key, value in batch.obs.items()}, *map(extend, batch[1:]))
    return extended._replace(is_first=is_first, mask=mask)


def per_step(model: WorldModel, batch: Batch) -> dict[str, Tensor]:
    """Everything per step (B, T, ...) that inference and the ELBO give."""
    inference = model.observe(batch)
    elbo = model.elbo(batch, inference)
    parts = {"prior": inference.prior, "posterior": inference.posterior, "kl": elbo.kl, "total": elbo.total}
    return parts | inference.states._asdict() | {f"log {key}": log for key, log in elbo.log_likelihood.items()}


def check_padding_and_batch_size(model: WorldModel, batch: Batch) -> None:
    """`model` must be free of noise."""
    whole, extended = per_step(model, batch), per_step(model, padded(batch, 3))
    rows = [per_step(model, single_row(batch, i)) for i in range(len(batch.reward))]
    length = batch.reward.shape[1]
    for name, values in whole.items():
        torch.testing.assert_close(extended[name][:, :length], values, msg=f"padding changes {name}")
        torch.testing.assert_close(torch.cat([row[name] for row in rows]), values, msg=f"batch size changes {name}")
        if name in ("kl", "total") or name.startswith("log "):
            assert (extended[name][:, length:] == 0).all(), f"padded steps contribute to {name}"


def single_row(batch: Batch, i: int) -> Batch:
    return Batch({key: value[i : i + 1] for key, value in batch.obs.items()}, *(each[i : i + 1] for each in batch[1:]))


def test_padding_and_batch_size_change_nothing(
    build: Callable[..., WorldModel], window: Callable[..., Batch], without_noise: Callable, member: str, family: str
) -> None:
    check_padding_and_batch_size(without_noise(build(member, family)), window(4, 6))


@pytest.mark.parametrize("posterior", NATS_PER_FRAME)
def test_padding_and_batch_size_change_nothing_in_an_exact_model(
    without_noise: Callable, simulated: tuple[Tensor, Tensor], posterior: Posterior
) -> None:
    x, control = (values[:4, :6] for values in simulated)
    check_padding_and_batch_size(without_noise(world_model(GEDON, posterior)), recorded(x, control))


def test_unknown_posterior_and_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="'future'"):
        LinearGaussian(GEDON, "future")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Q must have shape \(2, 2\)"):
        LinearSystem(GEDON.A, GEDON.B, GEDON.C, torch.eye(3), GEDON.R)
