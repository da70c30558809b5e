"""Bounds from weighted samples, against the exact evidence and against each other."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldmodel.dynamics.linear_gaussian import (
    LinearGaussian,
    LinearGaussianEmission,
    LinearGaussianEncoder,
    Posterior,
    example_system,
)
from worldmodel.dynamics.vae import VAEState
from worldmodel.learning.bounds import Particles, fivo, importance_bound, increments, iwae, log_likelihood, resampled
from worldmodel.model import WorldModel
from worldmodel.types import Batch

Build = Callable[..., WorldModel]
Window = Callable[..., Batch]

# The five steps of tests/worldmodel/test_exact_elbo.py.
EVIDENCE = -5.860411491125925
EVIDENCE_PER_STEP = [-1.04651, -1.124352, -1.198621, -1.293582, -1.197346]


def exact(posterior: Posterior) -> tuple[WorldModel, Batch]:
    def tensor(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    system = example_system()
    dynamics, emission = LinearGaussian(system, posterior), LinearGaussianEmission(system)
    model = WorldModel(LinearGaussianEncoder(), dynamics, {"x": emission})  # type: ignore[arg-type, dict-item]
    x = tensor([-0.8, 0.4, 0.1, 0.6, -1.5]).reshape(1, 5, 1)
    control = tensor([1, -1, 0.5, 0, 2]).reshape(1, 5, 1)
    flags, ones = torch.zeros(1, 5, dtype=torch.bool), torch.ones(1, 5, dtype=torch.float64)
    return model, Batch({"x": x}, control, 0 * ones, flags, flags, flags, ones)


def copies(batch: Batch, count: int) -> Batch:
    return Batch(
        {k: v.expand(count, -1, -1) for k, v in batch.obs.items()},
        *(each.expand(count, *each.shape[1:]) for each in batch[1:]),
    )


def test_exact_posterior_needs_one_particle() -> None:
    """With the exact smoother every weight is the evidence: IWAE is exact whatever K."""
    model, batch = exact("smoother")
    for count in (1, 7):
        assert float(iwae(model, batch, count).sum()) == pytest.approx(EVIDENCE, abs=1e-10)


def test_bounds_rise_with_particles_to_the_evidence() -> None:
    model, batch = exact("prior")
    many = copies(batch, 4000)
    bounds = [float(iwae(model, many, k).sum(1).mean()) for k in (1, 2, 8, 64)]
    elbo = float(model.elbo(many).total.sum(1).mean())
    assert bounds[0] == pytest.approx(elbo, abs=0.15)
    assert bounds == sorted(bounds) and bounds[1] > bounds[0] + 0.5
    assert bounds[3] == pytest.approx(EVIDENCE, abs=0.1) and bounds[3] < EVIDENCE


@pytest.mark.parametrize("posterior", ["filter", "prior"])
@pytest.mark.parametrize(("particles", "resample"), [(4, 0.0), (4, 0.5), (4, 1.0), (16, 0.5)])
def test_estimates_of_the_evidence_are_unbiased(posterior: Posterior, particles: int, resample: float) -> None:
    model, batch = exact(posterior)
    torch.manual_seed(0)
    estimates = importance_bound(model, copies(batch, 8000), particles, resample).sum(1).exp()
    error = float(estimates.std() / len(estimates) ** 0.5)
    assert float(estimates.mean()) == pytest.approx(math.exp(EVIDENCE), abs=4 * error)
    assert error < 0.05 * math.exp(EVIDENCE)


def test_particle_filter_gives_the_increments_of_the_evidence() -> None:
    model, batch = exact("filter")
    torch.manual_seed(0)
    steps = fivo(model, copies(batch, 20), 2000).mean(0)
    torch.testing.assert_close(steps, torch.tensor(EVIDENCE_PER_STEP, dtype=torch.float64), atol=0.02, rtol=0)


def test_resampling_pays_on_a_long_sequence() -> None:
    """200 steps of the system's own data: the prior as proposal, 32 particles."""
    model, batch = exact("prior")
    torch.manual_seed(0)
    long = Batch(
        {"x": torch.randn(16, 200, 1).double()}, *(each.repeat(16, 40, *[1] * (each.ndim - 2)) for each in batch[1:])
    )
    plain, filtered = iwae(model, long, 32).sum(1), fivo(model, long, 32).sum(1)
    truth = iwae(exact("smoother")[0], long, 1).sum(1)
    assert (truth - filtered).mean() < 0.25 * (truth - plain).mean()
    assert (truth - filtered).mean() > 0


def test_log_likelihood_is_the_iwae_of_all_its_samples() -> None:
    model, batch = exact("prior")
    torch.manual_seed(0)
    value = log_likelihood(model, batch, 20_000, chunk=999)
    assert float(value.sum()) == pytest.approx(EVIDENCE, abs=0.05)
    assert not value.requires_grad


def test_an_episode_inside_a_window_has_its_own_estimate() -> None:
    sums = torch.tensor([[1.0, 3.0, 2.0, 5.0]])
    first = torch.tensor([[False, False, True, False]])
    expected = torch.tensor([[1 - math.log(4), 2, 2 - math.log(4), 3]])
    torch.testing.assert_close(increments(sums, first, 4), expected)
    model, batch = exact("filter")
    both = Batch({"x": torch.cat([batch.obs["x"]] * 2, 1)}, *(torch.cat([each] * 2, 1) for each in batch[1:]))
    both.is_first[:, [0, 5]] = True
    torch.manual_seed(0)
    for resample in (0.0, 0.5):
        value = importance_bound(model, copies(both, 500), 200, resample).mean(0)
        torch.testing.assert_close(value[:5], value[5:], atol=0.05, rtol=0)


def test_the_control_beside_a_reset_leads_nowhere() -> None:
    """Whatever is recorded there: the first step of an episode has a null control."""
    model, batch = exact("filter")
    batch.is_first[:, [0, 2]] = True
    for resample in (0.0, 0.5):
        values = []
        for control in (0.0, 7.0):
            batch.prev_action[:, [0, 2]] = control
            torch.manual_seed(0)
            values.append(importance_bound(model, batch, 5, resample))
        torch.testing.assert_close(values[0], values[1])


def test_systematic_resampling_draws_each_particle_its_share() -> None:
    weights = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.3, 0.3, 0.2, 0.2]]).clamp(min=1e-30)
    particles = Particles(VAEState(torch.arange(8.0).unsqueeze(1)), weights.log())
    poor = resampled(particles, 0.7)  # effective sizes 2.67 and 3.85 of 4
    drawn = poor.state.latent.flatten().tolist()
    assert sorted(drawn[:4]) == [0, 0, 1, 2]
    assert drawn[4:] == [4, 5, 6, 7]
    torch.testing.assert_close(poor.log_weights.exp()[0], torch.full((4,), 0.25))
    torch.testing.assert_close(poor.log_weights[1], weights.log()[1])


@pytest.mark.parametrize("resample", [0.0, 0.9])
def test_every_member_has_every_bound(build: Build, window: Window, member: str, family: str, resample: float) -> None:
    model, batch = build(member, family), window(2, 5)
    mask, first = batch.mask.clone(), batch.is_first.clone()
    mask[:, 4], first[:, 4] = 0, True
    batch = batch._replace(mask=mask, is_first=first)
    value = importance_bound(model, batch, 3, resample)
    assert value.shape == (2, 5) and value.isfinite().all()
    torch.testing.assert_close(value[:, 4], torch.zeros(2), atol=1e-5, rtol=0)
    value.sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize(("particles", "resample"), [(0, 0.0), (4, -0.1), (4, 1.5)])
def test_nonsense_is_refused(particles: int, resample: float) -> None:
    with pytest.raises(ValueError, match="particles >= 1"):
        importance_bound(*exact("prior"), particles, resample)


def test_no_samples_are_refused(build: Build, window: Window) -> None:
    with pytest.raises(ValueError, match="at least 1: 0, 50"):
        log_likelihood(build("rssm"), window(1, 2), 0)
