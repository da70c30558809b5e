"""Policy distributions against torch's own, at their edges, and the gradients that learning rests on."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from worldmodel.agents.acting.policies import ClippedNormal, OneHotCategorical, TanhNormal

CLASSES = (2, 5, 3)
DRAWS = 20_000


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def normal_from(params: Tensor, initial_std: float = 1.0) -> Normal:
    """The Gaussian before the squashing, from the class's description."""
    mean, raw = params.chunk(2, -1)
    shift = math.log(math.exp(initial_std) - 1)
    return Normal(5 * torch.tanh(mean / 5), torch.nn.functional.softplus(raw + shift) + 1e-4)


# --------------------------------------------------------------------------------------------- TanhNormal


def test_tanh_normal_log_prob_is_that_of_the_transformed_gaussian() -> None:
    family = TanhNormal(3)
    params = torch.randn(50, 6) * 2
    control = torch.tanh(torch.randn(50, 3) * 1.5)
    reference = TransformedDistribution(normal_from(params), TanhTransform(cache_size=1))
    torch.testing.assert_close(
        family.log_prob(params, control), reference.log_prob(control).sum(-1), rtol=1e-4, atol=1e-3
    )


def test_tanh_normal_density_integrates_to_one() -> None:
    family = TanhNormal(1)
    grid = torch.linspace(-1 + 1e-5, 1 - 1e-5, 20_001).unsqueeze(-1)
    params = torch.tensor([0.4, -0.5]).expand(len(grid), 2)
    mass = torch.trapezoid(family.log_prob(params, grid).exp(), grid.squeeze(-1))
    assert mass.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("edge", [-1.0, 1.0])
@pytest.mark.parametrize("raw", [-100.0, 0.0, 100.0])
def test_tanh_normal_is_finite_at_the_edges(edge: float, raw: float) -> None:
    """float32 tanh reaches 1 at 9, where atanh is infinite; a std near its floor must not overflow either."""
    family = TanhNormal(2)
    params = torch.tensor([[1e3, -1e3, raw, raw]], requires_grad=True)
    control = torch.full((1, 2), edge)
    log_prob = family.log_prob(params, control)
    (gradient,) = torch.autograd.grad(log_prob.sum(), params)
    assert log_prob.isfinite().all() and gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(family.entropy(params).sum(), params)
    assert gradient.isfinite().all()


def test_tanh_normal_samples_lie_within_bounds_and_spread_as_asked() -> None:
    family = TanhNormal(2, initial_std=0.5)
    params = torch.tensor([0.3, -100.0, 0.0, 0.0]).expand(DRAWS, 4)
    sample = family.sample(params)
    assert sample.shape == (DRAWS, 2) and (sample.abs() <= 1).all()
    before = sample[:, 0].atanh()
    assert before.mean().item() == pytest.approx(5 * math.tanh(0.3 / 5), abs=0.02)
    assert before.std().item() == pytest.approx(0.5, abs=0.02)


def test_tanh_normal_mode_is_the_squashed_mean() -> None:
    params = torch.tensor([[0.7, -40.0, 1.0, 2.0]])
    expected = torch.tanh(torch.tensor([[5 * math.tanh(0.7 / 5), -5.0]]))
    torch.testing.assert_close(TanhNormal(2).mode(params), expected)


def test_tanh_normal_entropy_is_an_unbiased_estimate() -> None:
    """Against the integral -sum p log p over a fine grid."""
    family = TanhNormal(1)
    one = torch.tensor([0.5, -0.3])
    grid = torch.linspace(-1 + 1e-5, 1 - 1e-5, 20_001).unsqueeze(-1)
    log_p = family.log_prob(one.expand(len(grid), 2), grid)
    exact = -torch.trapezoid(log_p.exp() * log_p, grid.squeeze(-1))
    params = one.expand(DRAWS, 2)
    estimate = family.entropy(params)
    assert estimate.mean().item() == pytest.approx(exact.item(), abs=5 * estimate.std().item() / DRAWS**0.5)


def test_tanh_normal_entropy_has_a_gradient() -> None:
    """Also where no sampled control carries one, as in the score-function actor.

    Wider means more entropy: d H / d log sigma is near 1 for a narrow one.
    """
    family = TanhNormal(1)
    params = torch.tensor([0.0, -3.0], requires_grad=True)
    rows = params.expand(DRAWS, 2)
    entropy = family.entropy(rows).mean()
    (gradient,) = torch.autograd.grad(entropy, params)
    assert gradient[1].item() > 0.5


def test_tanh_normal_sample_is_pathwise_differentiable() -> None:
    """d tanh(mu + sigma eps) / d mu = 1 - u^2, and with respect to the std that times eps."""
    family = TanhNormal(1)
    params = torch.tensor([[0.2, 0.1]], requires_grad=True)
    sample = family.sample(params)
    (gradient,) = torch.autograd.grad(sample.sum(), params)
    base = normal_from(params.detach())
    slope = 1 - sample.detach().square()
    noise = (sample.detach().atanh() - base.loc) / base.scale
    d_mean = 1 - (base.loc / 5).square()
    d_std = torch.sigmoid(params.detach()[:, 1:] + math.log(math.e - 1))
    torch.testing.assert_close(gradient, torch.cat([slope * d_mean, slope * noise * d_std], -1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("initial_std", [1.0, 5.0, 20.0])
def test_tanh_normal_score_is_zero_on_average(initial_std: float) -> None:
    """E[d log p(u) / d params] = 0, whatever share of the samples lies where float32 tells no controls apart."""
    family = TanhNormal(1, initial_std)
    rows = torch.tensor([3.0, 0.2]).expand(20 * DRAWS, 2).clone().requires_grad_()
    control = family.sample(rows).detach()
    (scores,) = torch.autograd.grad(family.log_prob(rows, control).sum(), rows)
    error = 5 * scores.std(0) / len(rows) ** 0.5
    assert (scores.mean(0).abs() < error).all()


# ----------------------------------------------------------------------------------------- ClippedNormal


@pytest.mark.parametrize(("mean", "raw"), [(0.0, 0.0), (0.6, 3.0), (-2.0, -1.0)])
def test_clipped_normal_has_mass_at_its_bounds_and_density_between(mean: float, raw: float) -> None:
    family, params = ClippedNormal(1), torch.tensor([mean, raw])
    grid = torch.linspace(-1 + 1e-6, 1 - 1e-6, 20_001).unsqueeze(-1)
    inside = torch.trapezoid(family.log_prob(params.expand(len(grid), 2), grid).exp(), grid.squeeze(-1))
    below, above = family.log_prob(params.expand(2, 2), torch.tensor([[-1.0], [1.0]])).exp()
    assert float(inside + below + above) == pytest.approx(1, abs=1e-4)
    sample = family.sample(params.expand(DRAWS, 2))
    for bound, mass in ((-1.0, below), (1.0, above)):
        error = 5 * float(mass * (1 - mass) / DRAWS) ** 0.5 + 1e-9
        assert float((sample == bound).float().mean()) == pytest.approx(float(mass), abs=error)
    std = 0.1 + 0.9 / (1 + math.exp(-raw - 2))
    torch.testing.assert_close(family.entropy(params), Normal(0.0, std).entropy())
    torch.testing.assert_close(family.mode(params), torch.tensor([math.tanh(mean)]))


def test_clipped_normal_score_is_the_gradient_of_the_expectation() -> None:
    """E[u] of a clipped Gaussian in closed form; its derivative against the score-function estimate."""
    family = ClippedNormal(1)
    params = torch.tensor([0.8, -0.4], dtype=torch.float64, requires_grad=True)
    mean, std = family.moments(params)
    low, high = (-1 - mean) / std, (1 - mean) / std
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    inside = normal.cdf(high) - normal.cdf(low)
    density = normal.log_prob(low).exp() - normal.log_prob(high).exp()
    expectation = mean * inside + std * density - normal.cdf(low) + (1 - normal.cdf(high))
    (exact,) = torch.autograd.grad(expectation.sum(), params)
    rows = params.detach().expand(20 * DRAWS, 2).clone().requires_grad_()
    control = family.sample(rows).detach()
    gain = (control - control.mean()).squeeze(-1)  # a baseline
    (scores,) = torch.autograd.grad((gain * family.log_prob(rows, control)).sum(), rows)
    error = 5 * scores.std(0) / len(rows) ** 0.5
    assert ((scores.mean(0) - exact).abs() < error).all()


# ------------------------------------------------------------------------------------- OneHotCategorical


def references(params: Tensor, unimix: float) -> list[Categorical]:
    probs = [group.softmax(-1) for group in params.split(CLASSES, -1)]
    return [Categorical(probs=(1 - unimix) * p + unimix / p.shape[-1]) for p in probs]


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.3])
def test_one_hot_log_prob_and_entropy_are_sums_over_variables(unimix: float) -> None:
    family = OneHotCategorical(CLASSES, unimix)
    params = torch.randn(20, 10)
    control = family.sample(params)
    expected_log, expected_entropy = torch.zeros(20), torch.zeros(20)
    for code, reference in zip(control.split(CLASSES, -1), references(params, unimix), strict=True):
        expected_log += reference.log_prob(code.argmax(-1))
        expected_entropy += reference.entropy()
    torch.testing.assert_close(family.log_prob(params, control), expected_log)
    torch.testing.assert_close(family.entropy(params), expected_entropy)


def test_one_hot_entropy_is_exact_where_minus_log_prob_is_an_estimate() -> None:
    family = OneHotCategorical(CLASSES)
    params = torch.randn(10).expand(DRAWS, 10)
    control = family.sample(params)
    estimate = -family.log_prob(params, control)
    exact = family.entropy(params)
    assert exact.std().item() < 1e-5 < 0.1 < estimate.std().item()
    assert estimate.mean().item() == pytest.approx(exact[0].item(), abs=5 * estimate.std().item() / DRAWS**0.5)


def test_unimix_keeps_every_action_possible() -> None:
    family = OneHotCategorical((4,), unimix=0.01)
    params = torch.tensor([[1e4, 0, 0, 0]], requires_grad=True)
    unlikely = torch.tensor([[0.0, 1, 0, 0]])
    log_prob = family.log_prob(params, unlikely)
    assert log_prob.item() == pytest.approx(math.log(0.01 / 4), rel=1e-4)
    (gradient,) = torch.autograd.grad(log_prob.sum(), params)
    assert gradient.isfinite().all()


def test_one_hot_samples_are_codes_with_the_right_frequencies() -> None:
    family = OneHotCategorical(CLASSES, unimix=0.1)
    params = torch.randn(10).expand(DRAWS, 10)
    sample = family.sample(params)
    for codes, reference in zip(sample.split(CLASSES, -1), references(params[0], 0.1), strict=True):
        torch.testing.assert_close(codes, codes.round(), atol=1e-6, rtol=0)
        assert (codes.round().sum(-1) == 1).all() and (codes.round() >= 0).all()
        torch.testing.assert_close(codes.mean(0), reference.probs, atol=0.02, rtol=0)


def test_one_hot_mode_is_the_most_likely_code() -> None:
    params = torch.tensor([[0.1, 0.2, 5, 1, 1, 1, 1, -3, -2, -1]])
    assert OneHotCategorical(CLASSES).mode(params).tolist() == [[0, 1, 1, 0, 0, 0, 0, 0, 0, 1]]


def test_one_hot_sample_carries_the_gradient_of_the_probabilities() -> None:
    """Straight through: the forward value is a code, the backward one that of (1 - unimix) softmax + unimix / n."""
    family = OneHotCategorical((4,), unimix=0.2)
    params, weight = torch.randn(1, 4, requires_grad=True), torch.tensor([1.0, -2, 3, 0.5])
    (through,) = torch.autograd.grad((family.sample(params) * weight).sum(), params)
    probs = 0.8 * params.softmax(-1) + 0.05
    (expected,) = torch.autograd.grad((probs * weight).sum(), params)
    torch.testing.assert_close(through, expected)
    assert through.abs().max() > 1e-3
