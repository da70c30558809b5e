"""Output distributions are normalised, in nats, with constants and Jacobians; two-hot against an independent one."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.networks.encoder import Encoder, codes
from worldmodel.networks.layers import UNLIKELY, Logits
from worldmodel.networks.outputs import (
    Bernoulli,
    Categorical,
    Normal,
    Normalizer,
    Output,
    SymlogNormal,
    TwoHot,
    symexp,
    symlog,
)
from worldmodel.specs import ObservationSpec

VALUES = torch.tensor([-1e6, -3.0, -1.0, -0.01, 0.0, 1e-4, 0.5, 2.0, 1e4], dtype=torch.float64)


def fitted_normal() -> Normal:
    """A Normal in the units of records with mean 5 and standard deviation 4."""
    output = Normal(1)
    output.fit(torch.tensor([[1.0], [9.0], [1000.0]]), torch.tensor([1.0, 1.0, 0.0]))
    return output


def integral(output: Output, params: Tensor) -> float:
    """Of the density over x, on a grid that is fine near 0 and wide."""
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64).sinh()
    density = output.double().log_prob(params.double().expand(len(grid), -1), grid.unsqueeze(-1)).exp()
    return float(torch.trapezoid(density, grid))


@pytest.mark.parametrize("params", [[0.0, 0.0], [2.0, -3.0], [-1.0, 4.0]])
@pytest.mark.parametrize("make", [lambda: Normal(1), fitted_normal], ids=["plain", "fitted"])
def test_normal_density_integrates_to_one(make: type[Normal], params: list[float]) -> None:
    assert integral(make(), torch.tensor(params)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("param", [-2.0, 0.0, 3.0])
def test_symlog_density_integrates_to_one(param: float) -> None:
    assert integral(SymlogNormal(1), torch.tensor([param])) == pytest.approx(1, abs=1e-5)


def test_normal_is_the_normal_of_the_recorded_units() -> None:
    output = fitted_normal()
    params, value = torch.tensor([0.5, 0.2]), torch.tensor([8.0])
    std = 4 * (math.log1p(math.exp(0.2)) + output.min_std)
    expected = torch.distributions.Normal(5 + 4 * 0.5, std).log_prob(value).sum()
    torch.testing.assert_close(output.log_prob(params, value), expected)
    torch.testing.assert_close(output.mean(params), torch.tensor([7.0]))


def test_log_probs_sum_over_the_entries_of_an_observation() -> None:
    params, value = torch.randn(5, 6), torch.randn(5, 3)
    mean, raw = params.chunk(2, -1)
    entries = [Normal(1).log_prob(torch.stack([mean[:, i], raw[:, i]], -1), value[:, i : i + 1]) for i in range(3)]
    torch.testing.assert_close(Normal(3).log_prob(params, value), torch.stack(entries).sum(0))


def test_bernoulli_and_categorical_masses() -> None:
    logits = torch.tensor([0.3, -1.2])
    both = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    mass = Bernoulli(2).log_prob(logits.expand(4, -1), both).exp()
    assert float(mass.sum()) == pytest.approx(1)
    p = Bernoulli(2).mean(logits)
    torch.testing.assert_close(mass[2], p[0] * (1 - p[1]))

    output, params = Categorical((2, 3)), torch.tensor([0.1, -0.4, 1.0, 0.0, -1.0])
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    mass = output.log_prob(params.expand(6, -1), pairs).exp()
    assert float(mass.sum()) == pytest.approx(1)
    first, second = output.mean(params).split([2, 3])
    torch.testing.assert_close(mass, (first[:, None] * second).flatten())


def test_symlog_and_symexp_are_inverse() -> None:
    torch.testing.assert_close(symexp(symlog(VALUES)), VALUES, rtol=1e-12, atol=0)
    torch.testing.assert_close(symlog(VALUES), -symlog(-VALUES))
    assert float(symlog(torch.tensor(math.e - 1))) == pytest.approx(1)
    torch.testing.assert_close(SymlogNormal(9).mean(symlog(VALUES)), VALUES)


def test_standardise_keeps_the_scale_of_what_is_at_rest() -> None:
    units = Normalizer(3)
    rows = torch.tensor([[1.0, 0.0, 7.0], [3.0, 1e-1, 7.0], [999.0, 999.0, 999.0]])
    units.fit(rows[None], torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(units.loc, torch.tensor([2.0, 5e-2, 7.0]))
    torch.testing.assert_close(units.scale, torch.tensor([1.0, 5e-2, 1.0]))
    torch.testing.assert_close(units(rows[:2]), torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]))
    torch.testing.assert_close(units.inverse(units(rows)), rows)


SIGNS = torch.tensor([[-1.0], [1.0]]).repeat(500, 1)


@pytest.mark.parametrize(
    ("centre", "unit"), [(0, 1e-4), (48.137, 1e-3), (0, 1e-9), (0, 1e-30), (0, 1e6), (0, 1e25), (-1e7, 100.0)]
)
def test_what_moves_is_measured_in_its_own_unit_whatever_that_is(centre: float, unit: float) -> None:
    units = Normalizer(1)
    units.fit(centre + unit * SIGNS, torch.ones(1000))
    assert units.scale.item() == pytest.approx(unit, rel=2e-3)
    assert units.loc.item() == pytest.approx(centre, abs=max(1e-3 * unit, 1e-6 * abs(centre)))
    torch.testing.assert_close(units(centre + unit * SIGNS), SIGNS, rtol=0, atol=5e-3)


@pytest.mark.parametrize("value", [0.0, 48.137, 1e-20, 1e25])
def test_rounding_is_no_movement(value: float) -> None:
    """Of a constant in single precision, and of a zero that is left over beside numbers of another size."""
    units, rows = Normalizer(2), torch.full((1000, 2), value)
    rows[::2, 0] *= 1 + 1.2e-7
    rows[:, 1] = 1e-16 * max(value, 1e-30) * SIGNS[:, 0]
    units.fit(rows, torch.ones(1000))
    assert units.scale.tolist() == [1, 1] and units(rows).isfinite().all()


def test_the_likelihood_of_a_value_differs_by_the_logarithm_of_its_unit_alone() -> None:
    value, params = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, -0.5])
    found = {}
    for unit in (1e-6, 1.0, 1e9):
        output = Normal(1)
        output.fit(unit * value, torch.ones(200))
        found[unit] = output.log_prob(params, unit * value)
    for unit in (1e-6, 1e9):
        torch.testing.assert_close(found[unit], found[1.0] - math.log(unit), rtol=0, atol=1e-3)


def test_a_recording_has_its_own_units_however_small_or_far_from_zero() -> None:
    units, mask = Normalizer(3), torch.ones(1000)
    shape = torch.sin(torch.arange(1000.0)) * 2**0.5
    rows = torch.stack([1e-7 * shape, 5e4 + 3 * shape, torch.full_like(shape, 101325.3)], -1)
    units.fit(rows, mask)
    torch.testing.assert_close(units.scale, torch.tensor([1e-7, 3.0, 1.0]), rtol=1e-2, atol=0)
    torch.testing.assert_close(units(rows)[:, :2], torch.stack([shape, shape], -1), rtol=0, atol=1e-2)
    torch.testing.assert_close(units.loc[2], rows[0, 2])


@pytest.mark.parametrize("units", [(1.0, 1e-6), (1e-8, 1.0)], ids=["from rest to tiny", "from noise to movement"])
def test_an_entry_whose_unit_changes_beyond_measure_begins_anew(units: tuple[float, float]) -> None:
    """Weights that were multiplied by a million would never come back."""
    torch.manual_seed(0)
    output, layer, encoder = Normal(1), torch.nn.Linear(3, 2), Encoder({"x": ObservationSpec((1,))}, 8, 1)
    before = copy.deepcopy([layer.state_dict(), encoder.mlp.state_dict()])
    for unit in units:
        output.fit(unit * SIGNS, torch.ones(1000), layer if unit == units[1] else None)
        encoder.fit({"x": unit * SIGNS}, torch.ones(1000), keep=unit == units[1])
    assert output.normalizer.scale.item() == pytest.approx(units[1])
    for old, new in zip(before, [layer.state_dict(), encoder.mlp.state_dict()], strict=True):
        torch.testing.assert_close(new, old)


def test_new_units_keep_what_a_layer_predicts() -> None:
    torch.manual_seed(0)
    output, layer, features = Normal(2), torch.nn.Linear(3, 4), torch.randn(5, 3)
    torch.nn.init.constant_(layer.bias[2:].detach(), -5)  # sigma far below its unit, where it is exact
    output.min_std = 0.0
    value = torch.tensor([3.0, -40.0]) + torch.tensor([0.3, 7.0]) * torch.randn(50, 2)
    before = output.log_prob(layer(features), value[:5])
    output.fit(value, torch.ones(50), layer)
    assert not torch.isclose(output.normalizer.scale, torch.ones(2)).any()
    torch.testing.assert_close(output.log_prob(layer(features), value[:5]), before, rtol=2e-2, atol=0)
    plain = Normal(2)
    plain.fit(value, torch.ones(50))
    torch.testing.assert_close(plain.normalizer.scale, output.normalizer.scale)


# Two-hot.


def bins_by_hand(count: int, limit: float) -> np.ndarray:
    grid = np.linspace(-limit, limit, count)
    return np.sign(grid) * np.expm1(np.abs(grid))


def two_hot_by_hand(value: float, bins: np.ndarray) -> np.ndarray:
    """One value at a time, by looking through the bins."""
    value = min(max(value, bins[0]), bins[-1])
    code = np.zeros(len(bins))
    for low in range(len(bins) - 1):
        if bins[low] <= value <= bins[low + 1]:
            share = (value - bins[low]) / (bins[low + 1] - bins[low])
            code[low], code[low + 1] = 1 - share, share
            return code
    raise AssertionError(value)


def two_hot(output: TwoHot, value: torch.Tensor) -> torch.Tensor:
    """(...) -> (..., bins): the code that `log_prob` is the cross entropy with."""
    above, share = (each.unsqueeze(-1) for each in output.between(value))
    return torch.zeros(*value.shape, len(output.bins)).scatter(-1, above - 1, 1 - share).scatter(-1, above, share)


def test_two_hot_golden_numbers() -> None:
    """Five bins at symexp(-2, -1, 0, 1, 2) = (-6.389, -1.718, 0, 1.718, 6.389)."""
    output = TwoHot(5, 2.0)
    torch.testing.assert_close(output.bins, torch.tensor([-6.3890561, -1.7182818, 0.0, 1.7182818, 6.3890561]))
    targets = two_hot(output, torch.tensor([0.8591409, -1.7182818, 0.0, 100.0, -100.0]))
    expected = [[0, 0, 0.5, 0.5, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float32))


def test_two_hot_equals_an_independent_implementation() -> None:
    output, bins = TwoHot(), bins_by_hand(255, 20.0)
    values = torch.cat([torch.tensor([-1e9, -1e7, -3.0, -0.01, 0.0, 0.3, 41.0, 1e5, 1e9]), torch.linspace(-5, 5, 41)])
    by_hand = np.stack([two_hot_by_hand(float(value), bins) for value in values])
    target = two_hot(output, values)
    torch.testing.assert_close(target, torch.from_numpy(by_hand).float(), atol=2e-5, rtol=0)
    torch.testing.assert_close(target.sum(-1), torch.ones(len(values)))
    inside = values.abs() < bins[-1]
    assert inside.sum() == len(values) - 2
    torch.testing.assert_close((target * output.bins).sum(-1)[inside], values[inside], rtol=1e-5, atol=1e-5)


def test_two_hot_mean_is_the_expected_bin_and_log_prob_the_cross_entropy() -> None:
    torch.manual_seed(0)
    output, bins = TwoHot(31, 5.0), bins_by_hand(31, 5.0)
    params, value = torch.randn(20, 31), 20 * torch.randn(20, 1)
    probs = params.softmax(-1).double().numpy()
    np.testing.assert_allclose(output.mean(params)[:, 0].numpy(), probs @ bins, rtol=1e-4)
    codes = np.stack([two_hot_by_hand(float(each), bins) for each in value])
    np.testing.assert_allclose(output.log_prob(params, value).numpy(), (codes * np.log(probs)).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("targets", [(), (2,), (3, 2)])
def test_the_gradient_of_a_two_hot_loss_is_that_of_the_cross_entropy(targets: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    output = TwoHot(31, 5.0)
    params, value = torch.randn(4, 5, 31, requires_grad=True), 60 * torch.randn(*targets, 4, 5, 1)  # some lie outside
    outer = torch.randn(*targets, 4, 5)
    cross_entropy = (two_hot(output, value.squeeze(-1)) * params.log_softmax(-1)).sum(-1)
    (expected,) = torch.autograd.grad((outer * cross_entropy).sum(), params)
    (gradient,) = torch.autograd.grad((outer * output.log_prob(params, value)).sum(), params)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("shape", [(4, 1), (1, 5), (5,), (4, 5)])
def test_two_hot_gradients_reach_broadcast_predictions_and_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    output = TwoHot(7, 2.0)
    params, value = torch.randn(*shape, 7, requires_grad=True), torch.randn(4, 5, 1, requires_grad=True)
    above, share = output.between(value)
    log = params.log_softmax(-1).expand(4, 5, -1)
    expected = ((1 - share) * log.gather(-1, above - 1) + share * log.gather(-1, above)).squeeze(-1)
    outer = torch.randn(4, 5)
    for mine, reference in zip(
        torch.autograd.grad((outer * output.log_prob(params, value)).sum(), (params, value)),
        torch.autograd.grad((outer * expected).sum(), (params, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference)


def test_two_hot_learns_in_half_precision_and_from_nothing() -> None:
    params = torch.randn(4, 7, dtype=torch.bfloat16, requires_grad=True)
    TwoHot(7, 2.0).log_prob(params, torch.randn(4, 1)).sum().backward()
    assert params.grad is not None and params.grad.isfinite().all()
    nothing = torch.randn(0, 5, 7, requires_grad=True)
    TwoHot(7, 2.0).log_prob(nothing, torch.randn(0, 5, 1)).sum().backward()
    assert nothing.grad is not None and nothing.grad.shape == (0, 5, 7)


def test_two_hot_reads_logits_of_more_classes_than_bins() -> None:
    """Those of :class:`worldmodel.networks.layers.Logits`."""
    torch.manual_seed(0)
    output, logits = TwoHot(31, 5.0), Logits(4, 31)
    x, value = torch.randn(6, 4), 20 * torch.randn(6, 1)
    params = logits(x)[..., :31]
    for read in (output.mean, lambda params: output.log_prob(params, value)):
        torch.testing.assert_close(read(logits(x)), read(params))
    torch.manual_seed(1)
    drawn = output.sample(logits(x))
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, output.sample(params))


SEVERAL = [Normal(2), SymlogNormal(2), TwoHot(), Bernoulli(2), Categorical((2, 2, 3))]


@pytest.mark.parametrize("output", SEVERAL, ids=lambda output: type(output).__name__)
def test_one_prediction_can_be_asked_for_several_values(output: Output) -> None:
    params, values = torch.randn(4, 3, output.parameters_size), torch.rand(5, 4, 3, output.width).round()
    values = values.long() if isinstance(output, Categorical) else values
    each = torch.stack([output.log_prob(params, value) for value in values])
    torch.testing.assert_close(output.log_prob(params, values), each)


def test_two_hot_predicts_exactly_zero_where_all_logits_are_equal() -> None:
    """At the start the huge outer bins must cancel, or the first predictions are rounding errors of 1e8."""
    assert torch.equal(TwoHot().mean(torch.full((3, 255), 0.7)), torch.zeros(3, 1))


@pytest.mark.parametrize("low", [0, 100, 126, 128])
@pytest.mark.parametrize("width", [255, 256])
def test_two_hot_is_exact_to_rounding_while_its_outer_bins_have_equal_mass(low: int, width: int) -> None:
    """As after some learning, where a bin may have less mass than they have."""
    logits = torch.zeros(255)
    logits[127:140], logits[low] = torch.linspace(8, 4, 13), -1.0
    exact = logits.double().softmax(-1) @ TwoHot().bins.double()
    padded = F.pad(logits, (0, width - 255), value=UNLIKELY)
    if low:
        torch.testing.assert_close(TwoHot().mean(padded).double(), exact.reshape(1), rtol=1e-6, atol=1e-6)
    else:  # the outer one itself: to the rounding of what is huge
        torch.testing.assert_close(TwoHot().mean(padded).double(), exact.reshape(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bins", [1, 4, 254])
def test_two_hot_refuses_bins_without_a_middle(bins: int) -> None:
    with pytest.raises(ValueError, match=str(bins)):
        TwoHot(bins)


@pytest.mark.parametrize("classes", [(3, 3, 2, 5, 5, 5), (4,), (2, 3, 2)])
def test_variables_of_any_number_of_classes_are_each_a_categorical(classes: tuple[int, ...]) -> None:
    output, params = Categorical(classes), torch.randn(7, 2, sum(classes))
    value = torch.stack([torch.randint(count, (7, 2)) for count in classes], -1)
    each = [torch.distributions.Categorical(logits=part) for part in params.split(list(classes), -1)]
    expected = torch.stack([one.log_prob(value[..., i]) for i, one in enumerate(each)]).sum(0)
    torch.testing.assert_close(output.log_prob(params, value), expected)
    torch.testing.assert_close(output.mean(params), torch.cat([one.probs for one in each], -1))
    drawn = output.sample(params).split(list(classes), -1)
    assert [part.shape[-1] for part in drawn] == list(classes)
    assert all((part.sum(-1) == 1).all() and (part.max(-1).values == 1).all() for part in drawn)
    coded = [torch.nn.functional.one_hot(value[..., i], count).float() for i, count in enumerate(classes)]
    torch.testing.assert_close(codes(value, classes), torch.cat(coded, -1), rtol=0, atol=0)
