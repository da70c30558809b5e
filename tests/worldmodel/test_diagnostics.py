"""Diagnostics against independent answers: a dense joint Gaussian, closed forms, systems with known faults."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worldmodel.diagnostics.actions import EARLY, LATE, RIGHT, SHUFFLED, action_test
from worldmodel.diagnostics.baselines import Series, fit_arx, fit_baselines, history, least_squares, repeat_last
from worldmodel.diagnostics.collapse import Collapse, collapse, r2
from worldmodel.diagnostics.evidence import compare, posterior_gap, sequence_elbo
from worldmodel.diagnostics.open_loop import Forecast, open_loop, scores
from worldmodel.diagnostics.probe import linear_probe, probe
from worldmodel.diagnostics.scores import calibration, crps, gaussian_crps, gaussian_scores, paired, pit, skill
from worldmodel.diagnostics.windows import cut, unbroken
from worldmodel.dynamics.linear_gaussian import (
    LinearGaussian,
    LinearGaussianEmission,
    LinearGaussianEncoder,
    LinearSystem,
    Posterior,
    example_system,
)
from worldmodel.model import WorldModel
from worldmodel.networks.encoder import Head
from worldmodel.networks.latents import FullGaussian, Gaussian, OneHot
from worldmodel.networks.outputs import TwoHot
from worldmodel.types import Batch

Build = Callable[..., WorldModel]
Window = Callable[..., Batch]
CONTEXT, HORIZON = 4, 6


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


GEDON = example_system()


class GaussianHead(LinearGaussianEmission):
    """The exact emission with the sampling interface of a learned head."""

    def __init__(self, system: LinearSystem) -> None:
        super().__init__(system)
        self.output = SimpleNamespace(sample=self.family.sample)

    def forward(self, feature: Tensor) -> Tensor:
        return self.family.pack(self.mean(feature), self.R)


def world_model(system: LinearSystem = GEDON, posterior: Posterior = "smoother") -> WorldModel:
    return WorldModel(LinearGaussianEncoder(), LinearGaussian(system, posterior), {"x": GaussianHead(system)})  # type: ignore


def recorded(x: Tensor, control: Tensor) -> Batch:
    reward = torch.zeros_like(x[..., 0])
    never = torch.zeros_like(reward, dtype=torch.bool)
    return Batch({"x": x}, control, reward, never, never, never, torch.ones_like(reward))


def simulate(system: LinearSystem, sequences: int, length: int) -> Batch:
    """x (B, T, X) of a system driven by u ~ U(-2.5, 2.5), z_0 = 0."""
    control = torch.rand(sequences, length, system.B.shape[1], dtype=torch.float64) * 5 - 2.5
    model, x = LinearGaussian(system, "prior"), []
    state, noise = model.initial(sequences), torch.linalg.cholesky(system.R)
    for t in range(length):
        state = model.imagine(state, control[:, t])
        x.append(state.latent @ system.C.mT + torch.randn(sequences, len(system.C), dtype=torch.float64) @ noise.mT)
    return recorded(torch.stack(x, 1), control)


def with_first(batch: Batch, row: int, step: int) -> Batch:
    is_first = batch.is_first.clone()
    is_first[row, step] = True
    return batch._replace(is_first=is_first)


# ------------------------------------------------------------------------------------------------- scores


def test_fair_crps_is_its_definition_over_pairs_of_different_samples() -> None:
    torch.manual_seed(0)
    samples, value = torch.randn(7, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    pairs = [(samples[i] - samples[j]).abs() for i in range(7) for j in range(7) if i != j]
    expected = (samples - value).abs().mean(0) - torch.stack(pairs).mean(0) / 2
    torch.testing.assert_close(crps(samples, value), expected)


@pytest.mark.parametrize("count", [2, 5])
def test_fair_crps_has_the_closed_form_as_its_expectation(count: int) -> None:
    torch.manual_seed(0)
    mean, std, value = tensor(0.5), tensor(2.0), tensor(1.7)
    estimates = crps(mean + std * torch.randn(count, 200_000, dtype=torch.float64), value.expand(200_000))
    error = float(estimates.std() / len(estimates) ** 0.5)
    assert float(estimates.mean()) == pytest.approx(float(gaussian_crps(mean, std, value)), abs=4 * error)


def test_gaussian_crps_is_the_integral_of_the_squared_error_of_the_distribution_function() -> None:
    grid = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    mean, std, value = tensor(0.5), tensor(2.0), tensor(1.7)
    below = torch.distributions.Normal(mean, std).cdf(grid)
    integral = torch.trapezoid((below - (grid >= value).double()).square(), grid)
    assert float(gaussian_crps(mean, std, value)) == pytest.approx(float(integral), abs=1e-4)


@pytest.mark.parametrize("draw", [torch.randn, lambda *n: (torch.rand(*n) < 0.3).float()], ids=["normal", "coin"])
def test_pit_of_a_true_forecast_is_uniform_with_few_samples_and_ties(draw: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    place = pit(draw(3, 100_000), draw(100_000))
    counts = torch.histc(place, 10, 0, 1) / 100_000
    torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=0.005, rtol=0)


def test_calibration_names_a_forecast_that_is_too_narrow() -> None:
    torch.manual_seed(0)
    found = calibration(torch.randn(1000, 5000, 1), 2 * torch.randn(5000, 1) + 1)
    normal = torch.distributions.Normal(1.0, 2.0)
    edges = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.75, 0.9, 0.975]))
    expected = normal.cdf(edges) - normal.cdf(-edges)
    torch.testing.assert_close(found.coverage[:, 0], expected, atol=0.03, rtol=0)
    assert float(found.error_mean) == pytest.approx(1, abs=0.1) and float(found.error_std) == pytest.approx(2, abs=0.1)
    assert found.counts.shape == (10, 1) and int(found.counts.sum()) == 5000
    assert found.counts[0] > 550 and found.counts[-1] > 2000  # of 500 in a flat histogram


def test_a_few_large_differences_do_not_hide_that_all_have_one_sign() -> None:
    found = paired(tensor([0.1] * 24 + [90.0]), torch.zeros(25))
    assert found.z < 2 and float(found.sign) == float(found.clearest) == 5
    even = paired(tensor([1.0, -1.0, 2.0, -2.0]), torch.zeros(4))
    assert float(even.clearest) == float(even.sign) == 0
    assert float(paired(tensor([1.0] * 16), torch.zeros(16), overlap=4).sign) == 2


def test_paired_differences_are_sharper_than_their_parts() -> None:
    torch.manual_seed(0)
    common = 100 * torch.randn(400, dtype=torch.float64)
    difference = paired(common + 1 + torch.randn(400), common)
    assert float(difference.error) == pytest.approx(1 / 20, rel=0.1)
    assert float(difference.mean) == pytest.approx(1, abs=4 * float(difference.error))
    assert float(paired(common, common).z) == 0


# ---------------------------------------------------------------------------------------------- open loop


def dense_forecast(system: LinearSystem, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean (B, K) and covariance (K, K) of x_{C+1:} given x_{1:C} and all controls, from one joint Gaussian."""
    a, b, c, q, r = (matrix.numpy() for matrix in vars(system).values())
    length = CONTEXT + HORIZON
    power = [np.linalg.matrix_power(a, n) for n in range(length)]
    drive = np.block([[power[t - s] if s <= t else 0 * a for s in range(length)] for t in range(length)])
    emit = np.kron(np.eye(length), c)
    inputs = (batch.prev_action.numpy() @ b.T).reshape(len(batch.reward), -1)
    mean = inputs @ drive.T @ emit.T
    spread = emit @ drive @ np.kron(np.eye(length), q) @ drive.T @ emit.T + np.kron(np.eye(length), r)
    gain = spread[CONTEXT:, :CONTEXT] @ np.linalg.inv(spread[:CONTEXT, :CONTEXT])
    error = batch.obs["x"][..., 0].numpy()[:, :CONTEXT] - mean[:, :CONTEXT]
    covariance = spread[CONTEXT:, CONTEXT:] - gain @ spread[:CONTEXT, CONTEXT:]
    return tensor(mean[:, CONTEXT:] + error @ gain.T), tensor(covariance)


@pytest.fixture(scope="module")
def exact() -> tuple[Batch, Forecast]:
    torch.manual_seed(0)
    batch = simulate(GEDON, 400, CONTEXT + HORIZON)
    return batch, open_loop(world_model(), batch, CONTEXT, samples=400)["x"]


def test_open_loop_has_the_predictive_moments_and_density(exact: tuple[Batch, Forecast]) -> None:
    batch, forecast = exact
    mean, covariance = dense_forecast(GEDON, batch)
    std = covariance.diagonal().sqrt()
    torch.testing.assert_close(forecast.mean[..., 0], mean, atol=0.25, rtol=0)
    assert (forecast.mean[..., 0] - mean).mean(0).abs().max() < 0.02
    torch.testing.assert_close(forecast.samples[..., 0].std(0).mean(0), std, rtol=0.02, atol=0)
    expected = torch.distributions.Normal(mean, std).log_prob(batch.obs["x"][:, CONTEXT:, 0])
    torch.testing.assert_close(scores(forecast).nll, -expected.mean(0), atol=0.01, rtol=0)


def test_open_loop_scores_equal_those_of_the_exact_gaussian(exact: tuple[Batch, Forecast]) -> None:
    batch, forecast = exact
    mean, covariance = dense_forecast(GEDON, batch)
    closed = gaussian_scores(mean.unsqueeze(-1), covariance.diagonal().sqrt().unsqueeze(-1), forecast.value)
    found = scores(forecast)
    torch.testing.assert_close(found.crps, closed.crps, rtol=0.02, atol=0)
    torch.testing.assert_close(found.rmse, closed.rmse, rtol=0.02, atol=0)
    assert found.nll.shape == (HORIZON,) and found.crps.shape == found.rmse.shape == (HORIZON, 1)


def test_the_exact_model_is_calibrated(exact: tuple[Batch, Forecast]) -> None:
    found = calibration(exact[1].samples, exact[1].value)
    for level, coverage in zip((0.5, 0.8, 0.95), found.coverage, strict=True):
        error = (level * (1 - level) / 400) ** 0.5
        torch.testing.assert_close(coverage, torch.full_like(coverage, level), atol=4 * error, rtol=0)
    assert found.error_mean.abs().max() < 4 / 20
    assert (found.error_std - 1).abs().max() < 0.15


def test_windows_with_a_border_after_the_context_are_left_out() -> None:
    batch = simulate(GEDON, 3, CONTEXT + HORIZON)
    inside, after = with_first(batch, 0, CONTEXT - 1), with_first(batch, 0, CONTEXT)
    assert len(open_loop(world_model(), inside, CONTEXT, 2)["x"].value) == 3
    kept = open_loop(world_model(), after, CONTEXT, 2)["x"].value
    torch.testing.assert_close(kept, batch.obs["x"][1:, CONTEXT:])
    padded = batch._replace(mask=batch.mask.clone())
    padded.mask[2, -1] = 0
    assert len(open_loop(world_model(), padded, CONTEXT, 2)["x"].value) == 2
    with pytest.raises(ValueError, match="shorter"):
        unbroken(with_first(simulate(GEDON, 1, 5), 0, 3), 2)


@pytest.mark.members("imagining")
def test_open_loop_of_every_member_sees_nothing_after_the_context(
    build: Build, window: Window, without_noise: Callable[[WorldModel], WorldModel], member: str, family: str
) -> None:
    model, batch = without_noise(build(member, family)), window(3, 7)
    later = {key: value.clone() for key, value in batch.obs.items()}
    for value in later.values():
        value[:, 4:] = 2 - value[:, 4:]
    for decoder in model.decoders:
        decoder.output.sample = decoder.output.mean  # type: ignore[union-attr, assignment, method-assign]
    found, other = (open_loop(model, each, 4, 2) for each in (batch, batch._replace(obs=later)))
    assert found.keys() == {"x", "phase", "reward"}
    assert found["x"].samples.shape == (2, 3, 3, 2) and found["phase"].mean.shape == (3, 3, 3)
    assert found["x"].log_prob.shape == (3, 3)
    for key in found:
        torch.testing.assert_close(found[key].mean, other[key].mean)
    torch.testing.assert_close(found["phase"].value.argmax(-1), batch.obs["phase"][:, 4:, 0])


def test_a_model_without_dynamics_says_so(build: Build, window: Window) -> None:
    with pytest.raises(ValueError, match="cannot imagine"):
        open_loop(build("vae"), window(2, 5), 2, 2)


@pytest.mark.parametrize(("context", "samples"), [(0, 4), (5, 4), (2, 0)])
def test_open_loop_refuses_what_leaves_nothing(build: Build, window: Window, context: int, samples: int) -> None:
    with pytest.raises(ValueError, match=r"context|samples"):
        open_loop(build("rssm"), window(2, 5), context, samples)


# ---------------------------------------------------------------------------------------------- baselines


def autoregression(sequences: int, length: int) -> Series:
    """x_t = 0.3 + 1.5 x_{t-1} - 0.7 x_{t-2} + 0.5 u_{t-1} - 0.2 u_{t-2}, without noise."""
    control = torch.randn(sequences, length, 1, dtype=torch.float64)
    values = [torch.randn(sequences, 1, dtype=torch.float64) for _ in range(2)]
    for t in range(2, length):
        linear = 1.5 * values[-1] - 0.7 * values[-2] + 0.5 * control[:, t] - 0.2 * control[:, t - 1]
        values.append(0.3 + linear)
    x = torch.stack(values, 1)
    never = torch.zeros(sequences, length, dtype=torch.bool)
    return Series(x, control, never, torch.ones(sequences, length, dtype=torch.float64))


def test_arx_recovers_an_autoregression_and_simulates_it() -> None:
    torch.manual_seed(0)
    train, test = autoregression(20, 50), autoregression(5, 20)
    model = fit_arx(train, order=2, ridge=1e-12)
    expected = tensor([1.5, -0.7, 0.5, -0.2, 0.3])
    torch.testing.assert_close(model.weight[:, 0], expected, atol=1e-6, rtol=0)
    free = replace(model, low=model.low - 100, high=model.high + 100)
    torch.testing.assert_close(free(test, 3), test.values[:, 3:], atol=1e-5, rtol=0)
    assert model(test._replace(values=100 * test.values), 3).max() == 2 * train.values.max() - train.values.min()


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_arx_foresees_the_same_in_any_unit(unit: float) -> None:
    torch.manual_seed(0)
    train, test = autoregression(20, 50), autoregression(5, 20)
    expected = fit_arx(train, order=2)(test, 3)
    found = fit_arx(train._replace(values=unit * train.values), order=2)(test._replace(values=unit * test.values), 3)
    torch.testing.assert_close(found / unit, expected, rtol=1e-6, atol=1e-6)


def test_arx_learns_nothing_across_episode_borders() -> None:
    torch.manual_seed(0)
    first, second = autoregression(1, 60), autoregression(1, 60)
    border = second.is_first.clone()
    border[:, 0] = True
    second = second._replace(values=second.values, is_first=border)
    joined = Series(*(torch.cat(parts, 1) for parts in zip(first, second, strict=True)))
    model = fit_arx(joined, order=2, ridge=1e-12)
    torch.testing.assert_close(model.weight[:, 0], tensor([1.5, -0.7, 0.5, -0.2, 0.3]), atol=1e-5, rtol=0)


def ridge_regression(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """Least squares of the standardised columns, with a row of its own for the penalty of each weight."""
    std = x.std(0)
    scale = np.where(std > 0, std, 1)
    penalty = math.sqrt(ridge * len(x)) * np.eye(x.shape[1])
    rows = np.concatenate([(x - x.mean(0)) / scale, penalty])
    weight = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((x.shape[1], y.shape[1]))]))[0]
    weight = weight / scale[:, None]
    return np.concatenate([weight, y.mean(0, keepdims=True) - x.mean(0) @ weight])


@pytest.mark.parametrize("rows", [30, 300])
def test_least_squares_solves_the_smaller_system(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of the one-hot codes of many actions, of which most were never taken."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.eye(120)[rng.integers(100, size=rows)], 5 + rng.normal(size=(rows, 2))], 1)
    y = rng.normal(size=(rows, 3))
    solved, solve = [], torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda a, b: solved.append(len(a)) or solve(a, b))
    weight = least_squares(torch.from_numpy(x), torch.from_numpy(y), 1e-2)
    np.testing.assert_allclose(weight.numpy(), ridge_regression(x, y, 1e-2), atol=1e-9)
    assert not weight[100:120].any()
    assert len(solved) == 1 and solved[0] <= min(rows, 102)


def test_history_stops_at_the_border_of_the_episode() -> None:
    values = torch.arange(6.0).reshape(1, 6, 1)
    series = Series(values, 10 + values, torch.arange(6)[None] == 2, torch.ones(1, 6))
    lags, controls = history(series, 4, 3)
    assert lags.flatten().tolist() == [3, 2, 2] and controls.flatten().tolist() == [13, 0]
    lags, controls = history(series, 6, 3)
    assert lags.flatten().tolist() == [5, 4, 3] and controls.flatten().tolist() == [15, 14]


def test_baselines_know_their_own_errors_and_lose_to_the_exact_model(exact: tuple[Batch, Forecast]) -> None:
    torch.manual_seed(1)
    train, (batch, forecast) = simulate(GEDON, 300, CONTEXT + HORIZON), exact
    baselines = fit_baselines(world_model(), train, train, CONTEXT)
    test = Series(batch.obs["x"], batch.prev_action, batch.is_first, batch.mask)
    own = scores(forecast)
    for name, (predict, std, _) in baselines.items():
        mean = predict(test, CONTEXT)
        judged = gaussian_scores(mean, std, forecast.value)
        torch.testing.assert_close(judged.rmse, std, rtol=0.2, atol=0)
        assert skill(own.rmse, judged.rmse).mean() > (0 if name == "linear ARX" else 0.1), name  # linear is the truth
        assert own.nll.mean() < judged.nll.mean(), name
    torch.testing.assert_close(repeat_last(test, CONTEXT)[:, -1], batch.obs["x"][:, CONTEXT - 1])


# ----------------------------------------------------------------------------------------------- collapse


def test_a_posterior_that_is_the_prior_has_collapsed() -> None:
    torch.manual_seed(0)
    batch = simulate(GEDON, 50, 20)
    found = collapse(world_model(posterior="prior"), batch)
    assert found.verdict() == "posterior collapse" and float(found.kl.abs().max()) < 1e-12
    healthy = collapse(world_model(), batch)
    assert healthy.verdict() == "healthy" and float(healthy.kl.sum()) > 0.1
    assert int(healthy.active_by_variance) == 2


def test_a_quantity_that_is_called_noise_is_named() -> None:
    """The second observation of this model is noise to it; in the data it is the first one again."""
    torch.manual_seed(0)
    blind = LinearSystem(GEDON.A, GEDON.B, tensor([[1.0, 0], [0, 0]]), GEDON.Q, torch.eye(2, dtype=torch.float64))
    batch = simulate(GEDON, 50, 20)
    twice = batch._replace(obs={"x": batch.obs["x"].expand(-1, -1, 2)})
    verdict = collapse(world_model(blind), twice).verdict()
    assert verdict.startswith("partial collapse. Not represented: x[1] (R^2 ") and "x[0]" not in verdict


def test_of_much_that_is_not_represented_the_worst_is_named() -> None:
    told = torch.ones(1)
    verdict = Collapse(told, told, {"x": torch.linspace(0.9, 0, 31)}).verdict()  # 17 of them below 0.5
    assert verdict.startswith("partial collapse. Not represented: x[23] (R^2 0.21), x[24]")
    assert "x[30] (R^2 0.00) and 9 others. Unless this is noise" in verdict
    assert verdict.count("R^2") == 8


def test_a_posterior_that_is_told_something_and_says_nothing_of_it_is_no_partial_collapse() -> None:
    told = torch.ones(1)
    verdict = Collapse(told, told, {"x": tensor([0.1, -0.2]), "still": tensor([torch.nan])}).verdict()
    assert verdict.startswith("no quantity is represented, although the posterior carries information: x[0] (R^2")


def test_what_the_state_holds_and_the_head_does_not_say_is_no_collapse() -> None:
    """The numbers of a run: 0.219 by the head, 0.949 by a linear map; a second quantity is nowhere, a third is said."""
    told, explained = torch.ones(1), {"x": tensor([0.9, 0.219]), "kind": tensor([0.1])}
    found = Collapse(told, told, explained)
    said = (
        "the latent state holds what the head does not decode: x[1] (R^2 0.22 by its head, 0.95 by a linear map). Give"
    )
    probed = {"x": tensor([0.4, 0.949]), "kind": tensor([0.2, torch.nan, 0.1]), "unseen": tensor([0.0])}
    verdict = found.verdict(probed)
    assert verdict.startswith("partial collapse. Not represented: kind (R^2 0.10). Unless this is noise")
    assert said in verdict and verdict.count("x[1]") == 1 and "unseen" not in verdict
    probed["kind"] = tensor([0.8, torch.nan, 0.9])
    verdict = found.verdict(probed)
    assert "collapse" not in verdict and "kind (R^2 0.10 by its head, 0.85 by a linear map), x[1] (" in verdict
    assert found.verdict().startswith("partial collapse. Not represented: kind (R^2 0.10), x[1] (R^2")
    none = Collapse(told, told, {"x": tensor([-0.593])})
    assert none.verdict({"x": tensor([0.817])}).startswith(
        "the latent state holds what the head does not decode: x (R^2 -0.59"
    )


def test_a_head_that_reads_nothing_is_told_from_a_state_that_holds_nothing() -> None:
    """An exact posterior of which one head looks at nothing: only the linear map finds what it is told of."""

    class Deaf(GaussianHead):
        def mean(self, feature: Tensor) -> Tensor:
            return torch.zeros_like(super().mean(feature))

    torch.manual_seed(0)
    batch = simulate(GEDON, 50, 20)
    model = WorldModel(LinearGaussianEncoder(), LinearGaussian(GEDON, "smoother"), {"x": Deaf(GEDON)})  # type: ignore
    read = linear_probe(model, batch, {"x": batch.obs["x"]})
    assert (
        collapse(model, batch).verdict(read).startswith("the latent state holds what the head does not decode: x (R^2")
    )


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_baseline_of_three_steps_needs_four(length: int) -> None:
    flags = torch.zeros(2, length, dtype=torch.bool)
    train = Series(torch.randn(2, length, 1), torch.randn(2, length, 1), flags, torch.ones(2, length))
    with pytest.raises(ValueError, match="no episode is longer than the order 3"):
        fit_arx(train, order=3)


def test_r2_by_hand() -> None:
    value = tensor([[0.0, 1, 5], [2, 3, 5]])
    guess = tensor([[0.5, 2, 5], [1.5, 2, 5]])
    found = r2(value, guess)
    assert found[:2].tolist() == [0.75, 0.0] and found[2].isnan()
    assert float(r2(value[:, :2], guess[:, :2], pooled=True)) == pytest.approx(1 - 1.25 / 2)


def test_kl_by_unit_of_dependent_dimensions_is_that_of_each_given_those_before() -> None:
    """Against the Gaussian conditionals of two dimensions, written out."""
    latent = FullGaussian(2)
    q = latent.pack(tensor([0.3, -1.0]), tensor([[2.0, 0.6], [0.6, 0.5]]))
    p = latent.pack(tensor([0.0, 0.5]), tensor([[1.0, -0.4], [-0.4, 0.8]]))
    first, second = latent.kl_by_unit(q, p).tolist()
    assert first == pytest.approx(0.5 * (2.0 + 0.3**2 - 1 - math.log(2.0)))
    slope_q, rest_q = 0.6 / 2.0, 0.5 - 0.6**2 / 2.0  # of z_2 given z_1 under q
    slope_p, rest_p = -0.4, 0.8 - 0.4**2
    # the difference of the conditional means is a + b z_1, averaged over q(z_1)
    b, a = slope_q - slope_p, (-1.0 - slope_q * 0.3) - 0.5
    square = (a + b * 0.3) ** 2 + b**2 * 2.0
    assert second == pytest.approx(0.5 * (rest_q / rest_p + square / rest_p - 1 + math.log(rest_p / rest_q)))
    assert first + second == pytest.approx(float(latent.kl(q, p)))


@pytest.mark.parametrize("latent", [Gaussian(3), OneHot(3, 4), OneHot(3, 4, unimix=0.0)])
def test_kl_by_unit_has_the_parts_of_the_kl(latent: Gaussian | OneHot) -> None:
    torch.manual_seed(0)
    q, p = torch.randn(2, 5, latent.parameters, dtype=torch.float64)
    parts = latent.kl_by_unit(q, p)
    torch.testing.assert_close(parts.sum(-1), latent.kl(q, p))
    if isinstance(latent, Gaussian):
        normals = [torch.distributions.Normal(*latent.moments(params)) for params in (q, p)]
    else:
        normals = [torch.distributions.Categorical(latent.probs(params)) for params in (q, p)]
    torch.testing.assert_close(parts, torch.distributions.kl_divergence(*normals))


def test_collapse_of_every_member(build: Build, window: Window, member: str, family: str) -> None:
    found = collapse(build(member, family), window(3, 5))
    assert found.explained["x"].shape == (2,) and found.explained["phase"].shape == (1,)
    assert len(found.kl) == (8 if member == "dsae" else 4)  # half of them are of its static variable
    assert found.variance.shape == found.kl.shape


# ------------------------------------------------------------------------------------------------ actions


@pytest.fixture(scope="module")
def driven() -> Batch:
    torch.manual_seed(0)
    return simulate(GEDON, 120, 14)


def test_a_model_that_uses_its_actions(driven: Batch) -> None:
    found = action_test(world_model(), driven, 4)
    assert found.verdict() == "the model uses its actions"
    assert found.elbo.keys() == found.log_likelihood.keys() == {RIGHT, SHUFFLED, LATE, EARLY}
    for variant in (SHUFFLED, LATE, EARLY):
        assert found.loss(variant).mean > 0.2
        assert found.log_likelihood[RIGHT].mean() > found.log_likelihood[variant].mean() + 0.2


def test_a_model_that_ignores_its_actions(driven: Batch) -> None:
    deaf = LinearSystem(GEDON.A, torch.zeros_like(GEDON.B), GEDON.C, GEDON.Q, GEDON.R)
    assert action_test(world_model(deaf), driven, 4, samples=32).verdict() == "the model ignores its actions"


@pytest.mark.parametrize("shift", [-1, 1])
def test_controls_recorded_one_step_off(driven: Batch, shift: int) -> None:
    wrong = driven._replace(prev_action=driven.prev_action.roll(shift, 1))
    assert action_test(world_model(), wrong, 4).verdict() == "the actions look misaligned by one step"


def test_without_controls_there_is_nothing_to_test(driven: Batch) -> None:
    free = LinearSystem(GEDON.A, GEDON.B[:, :0], GEDON.C, GEDON.Q, GEDON.R)
    silent = driven._replace(prev_action=driven.prev_action[..., :0])
    assert action_test(world_model(free), silent, 4).verdict() == "there are no actions"
    constant = driven._replace(prev_action=torch.ones_like(driven.prev_action))
    assert action_test(world_model(), constant, 4).verdict() == "the actions never vary"


def test_few_sequences_do_not_decide(driven: Batch) -> None:
    few = recorded(driven.obs["x"][:3], driven.prev_action[:3])
    assert action_test(world_model(), few, 4).verdict() == "undecided: 3 sequences are too few for a verdict"


def test_a_model_without_dynamics_can_be_tested_by_its_elbo(build: Build, window: Window) -> None:
    found = action_test(build("vae"), window(300, 8), 2, samples=64)
    assert not found.log_likelihood and found.verdict() == "the model ignores its actions"


# --------------------------------------------------------------------------------------- evidence and probe


def test_the_smoother_explains_more_than_the_filter_by_what_the_future_adds(driven: Batch) -> None:
    torch.manual_seed(0)
    difference = compare(world_model(), world_model(posterior="filter"), driven, samples=32)
    assert difference.error < 0.02
    assert 0.1 < float(difference.mean) < 0.25  # 0.198 nats per frame in a stationary sequence
    assert sequence_elbo(world_model(), driven).shape == (120,)


def test_the_gap_is_the_price_of_an_inexact_posterior(driven: Batch) -> None:
    """None for the exact smoother; for the filter what its ELBO lies below the evidence."""
    torch.manual_seed(0)
    few = recorded(driven.obs["x"][:40], driven.prev_action[:40])
    exact, inexact = posterior_gap(world_model(), few, 10), posterior_gap(world_model(posterior="filter"), few, 200)
    assert abs(float(exact.mean)) < 4 * float(exact.error) + 1e-9 and exact.error < 0.02
    missing = compare(world_model(), world_model(posterior="filter"), few, samples=64)
    assert float(inexact.mean) == pytest.approx(float(missing.mean), abs=4 * float(inexact.error + missing.error))
    assert inexact.z > 5


def test_models_of_different_things_are_not_compared(driven: Batch, build: Build) -> None:
    with pytest.raises(ValueError, match="different emissions"):
        compare(world_model(), build("rssm"), driven)


def test_a_density_is_not_compared_with_a_mass(build: Build, window: Window) -> None:
    """In other units the one would change by nats and the other would not."""
    one, other = build("rssm"), build("rssm")
    other.reward = Head(nn.Linear(other.feature_size, 255), TwoHot())
    with pytest.raises(ValueError, match=r"of 'reward' cannot be compared, .* a probability mass: Normal and TwoHot"):
        compare(one, other, window(2, 5))
    assert compare(other, other, window(2, 5)).mean.isfinite()


def test_probe_finds_a_linear_map_and_no_other() -> None:
    torch.manual_seed(0)
    feature = torch.randn(20, 30, 6)
    mapped = feature @ torch.randn(6, 1) + 3
    noisy = mapped + mapped.std() * torch.randn_like(mapped)
    target = torch.cat([mapped, noisy, torch.randn_like(mapped)], -1)
    found = probe(feature, target, torch.ones(20, 30))
    assert float(found[0]) > 0.999
    assert float(found[1]) == pytest.approx(0.5, abs=0.1)
    assert abs(float(found[2])) < 0.05


def test_probe_does_not_profit_from_what_a_sequence_says_about_itself() -> None:
    """Each sequence has its own constant in both: a fit that saw other steps of it would know the target."""
    torch.manual_seed(0)
    feature = torch.randn(12, 1, 40).expand(-1, 30, -1) + 0.01 * torch.randn(12, 30, 40)
    found = probe(feature, torch.randn(12, 1, 1).expand(-1, 30, -1), torch.ones(12, 30), folds=4)
    assert float(found) < 0.5
    with pytest.raises(ValueError, match="folds"):
        probe(feature, feature, torch.ones(12, 30), folds=13)


def test_the_latent_of_the_exact_model_shows_the_observed_quantity(driven: Batch) -> None:
    found = linear_probe(world_model(), driven, {"x": driven.obs["x"]})
    assert 0.5 < float(found["x"]) < 1


# ------------------------------------------------------------------------------------------------ windows


def test_windows_lie_inside_episodes_and_share_no_step() -> None:
    steps = torch.arange(20.0)
    x = steps.reshape(1, 20, 1)
    stream = recorded(x, torch.zeros(1, 20, 1))._replace(is_first=torch.isin(steps, torch.tensor([0.0, 7, 9]))[None])
    found = cut(stream, 3, 3)
    assert found.obs["x"][..., 0].tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11], [12, 13, 14], [15, 16, 17]]
    assert not found.is_first[:, 1:].any()
    assert cut(stream, 3, 1).obs["x"][:, 0, 0].tolist() == [0, 1, 2, 3, 4, *range(9, 18)]
    assert len(cut(stream, 12, 1).reward) == len(cut(stream, 30, 1).reward) == 0


def test_r2_of_an_entry_does_not_depend_on_the_units_of_another() -> None:
    value = torch.randn(500, 2) * torch.tensor([5000.0, 0.1]) + torch.tensor([1e5, 0.5])
    torch.testing.assert_close(r2(value, value.mean(0).expand_as(value)), torch.zeros(2), atol=1e-3, rtol=0)
    assert r2(torch.full((9, 1), 7.0), torch.zeros(9, 1)).isnan().all()
