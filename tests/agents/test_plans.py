"""Distributions over plans."""

from collections.abc import Iterator

import pytest
import torch

from worldmodel.agents.planning.plans import BoxPlans, OneHotPlans, colour

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("horizon", [1, 2, 7, 12, 50])
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
def test_coloured_noise_has_variance_one_at_every_step(horizon: int, beta: float) -> None:
    mixing = colour(horizon, beta).double()
    covariance = mixing.T @ mixing  # of white noise times it
    torch.testing.assert_close(covariance.diagonal(), torch.ones(horizon).double(), rtol=0, atol=1e-6)
    if beta == 0:
        torch.testing.assert_close(covariance, torch.eye(horizon).double(), rtol=0, atol=1e-6)


def test_coloured_noise_has_the_spectrum_that_it_is_named_after() -> None:
    horizon, beta = 64, 2.0
    noise = torch.randn(20_000, horizon) @ colour(horizon, beta)
    power = torch.fft.rfft(noise).abs().square().mean(0)[1:-1]
    frequency = torch.arange(1, horizon // 2).float()
    slope = torch.linalg.lstsq(
        torch.stack([frequency.log(), torch.ones_like(frequency)], 1), power.log().unsqueeze(1)
    ).solution[0]
    assert float(slope) == pytest.approx(-beta, abs=0.02)


def test_box_plans_are_clipped_normals() -> None:
    family = BoxPlans(2, std=0.4)
    params = family.prior(1, 3, CPU)
    plans = family.sample(params, torch.randn(1, 50_000, 3, 2))
    assert plans.abs().max() <= 1
    assert float(plans.std()) == pytest.approx(0.39, abs=0.01)
    torch.testing.assert_close(family.sample(params, 9 * torch.ones(1, 1, 3, 2)), torch.ones(1, 1, 3, 2))


def test_box_fit_takes_weighted_moments() -> None:
    family = BoxPlans(1, min_std=0.1, max_std=0.3)
    plans = torch.tensor([0.5, -0.5, 0.9]).reshape(1, 3, 1, 1)
    params = family.fit(plans, torch.tensor([[0.75, 0.25, 0.0]]))
    torch.testing.assert_close(params.flatten(), torch.tensor([0.25, 0.3]))  # std 0.433, held to 0.3
    params = family.fit(plans, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(params.flatten(), torch.tensor([0.5, 0.1]))


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_one_hot_plans_have_their_frequencies_at_every_step_whatever_the_colour(beta: float) -> None:
    family = OneHotPlans((2, 3))
    probs = torch.tensor([[0.9, 0.1, 0.2, 0.5, 0.3], [0.5, 0.5, 0.0, 0.25, 0.75]]).unsqueeze(0)
    noise = (torch.randn(1, 40_000, 5, 2) @ colour(2, beta)).mT
    plans = family.sample(probs, noise)
    assert set(plans.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(plans[..., :2].sum(-1), torch.ones(1, 40_000, 2))
    assert torch.equal(plans[..., 2:].sum(-1), torch.ones(1, 40_000, 2))
    torch.testing.assert_close(plans.mean(1), probs, rtol=0, atol=0.01)


def test_coloured_one_hot_plans_hold_on_to_a_category() -> None:
    family, horizon = OneHotPlans((3,)), 12

    def repeats(beta: float) -> float:
        noise = (torch.randn(1, 5_000, 3, horizon) @ colour(horizon, beta)).mT
        chosen = family.sample(family.prior(1, horizon, CPU), noise).argmax(-1)
        return float((chosen[..., 1:] == chosen[..., :-1]).float().mean())

    assert repeats(0.0) == pytest.approx(1 / 3, abs=0.01)
    assert repeats(2.0) > 0.6


def test_one_hot_fit_counts_and_rules_nothing_out() -> None:
    family = OneHotPlans((4,), floor=0.2)
    plans = torch.eye(4)[[0, 0, 1]].reshape(1, 3, 1, 4)
    params = family.fit(plans, torch.tensor([[0.25, 0.25, 0.5]]))
    torch.testing.assert_close(params.flatten(), torch.tensor([0.45, 0.45, 0.05, 0.05]))
    wide = family.widen(params)
    assert torch.equal(family.mode(wide), family.mode(params)) and float(wide.sum()) == pytest.approx(1)
