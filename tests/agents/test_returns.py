"""Lambda returns against their definition, the weights of imagined states, and the scale of returns."""

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.agents.actor_critic.returns import ReturnScale, discount_weights, lambda_returns, percentile_spread

N, H = 5, 7
DISCOUNT = 0.9


def trajectory(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Reward (N, H), cont (N, H), with some certain ends, and value (N, H + 1)."""
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(N, H, generator=generator, dtype=torch.float64)
    cont = torch.rand(N, H, generator=generator, dtype=torch.float64)
    cont[0], cont[1, 3], cont[2] = 1, 0, 0
    return reward, cont, torch.randn(N, H + 1, generator=generator, dtype=torch.float64)


def n_step(reward: Tensor, cont: Tensor, value: Tensor, h: int, n: int) -> Tensor:
    """r_h + .. over n steps from s_h, then the value of s_{h+n}: written from the definition, one product per term."""
    total = torch.zeros(len(reward), dtype=reward.dtype)
    for k in range(n):
        total = total + DISCOUNT**k * cont[:, h : h + k].prod(1) * reward[:, h + k]
    return total + DISCOUNT**n * cont[:, h : h + n].prod(1) * value[:, h + n]


def by_definition(reward: Tensor, cont: Tensor, value: Tensor, lambda_: float) -> Tensor:
    """sum_{n < H - h} (1 - lambda) lambda^{n - 1} R^(n), and lambda^{H - h - 1} of the longest."""
    columns = []
    for h in range(reward.shape[1]):
        longest = reward.shape[1] - h
        total = lambda_ ** (longest - 1) * n_step(reward, cont, value, h, longest)
        for n in range(1, longest):
            total = total + (1 - lambda_) * lambda_ ** (n - 1) * n_step(reward, cont, value, h, n)
        columns.append(total)
    return torch.stack(columns, 1)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_are_the_weighted_sum_of_n_step_returns(lambda_: float) -> None:
    reward, cont, value = trajectory()
    expected = by_definition(reward, cont, value, lambda_)
    torch.testing.assert_close(lambda_returns(reward, cont, value, DISCOUNT, lambda_), expected)


def test_lambda_returns_golden() -> None:
    """R_2 = 3 + .5 * 8 = 7;  R_1 = 2 + .5 (.5 * 4 + .5 * 7) = 4.75;  R_0 = 1 + .5 (.5 * 2 + .5 * 4.75) = 2.6875."""
    reward, value = torch.tensor([[1.0, 2, 3]]), torch.tensor([[99.0, 2, 4, 8]])
    returns = lambda_returns(reward, torch.ones(1, 3), value, discount=0.5, lambda_=0.5)
    assert returns.tolist() == [[2.6875, 4.75, 7.0]]


def test_lambda_zero_looks_one_step_ahead_and_lambda_one_to_the_horizon() -> None:
    reward, cont, value = trajectory()
    one_step = reward + DISCOUNT * cont * value[:, 1:]
    torch.testing.assert_close(lambda_returns(reward, cont, value, DISCOUNT, 0.0), one_step)
    last_only = torch.cat([torch.full_like(value[:, :-1], 1e6), value[:, -1:]], 1)
    to_the_end = lambda_returns(reward, cont, last_only, DISCOUNT, 1.0)
    torch.testing.assert_close(to_the_end[:, 0], n_step(reward, cont, value, 0, H))


def test_nothing_behind_a_terminal_state_counts() -> None:
    reward, _, value = trajectory()
    cont = torch.ones(N, H, dtype=torch.float64)
    cont[:, 3] = 0  # s_4 is terminal: its reward r_3 is the last, its value and all that follows are void
    returns = lambda_returns(reward, cont, value, DISCOUNT, 0.95)
    torch.testing.assert_close(returns[:, 3], reward[:, 3])
    other_reward, other_value = reward.clone(), value.clone()
    other_reward[:, 4:] += 100
    other_value[:, 4:] += 100
    changed = lambda_returns(other_reward, cont, other_value, DISCOUNT, 0.95)
    torch.testing.assert_close(changed[:, :4], returns[:, :4], rtol=0, atol=0)
    assert (changed[:, 4:] > returns[:, 4:] + 50).all()


def test_discount_weights_golden() -> None:
    cont = torch.tensor([[1.0, 0.5, 1.0, 0.2], [0.0, 1.0, 1.0, 1.0]])
    weights = discount_weights(torch.ones(2), cont, discount=0.5)
    assert weights.tolist() == [[1, 0.5, 0.125, 0.0625], [1, 0, 0, 0]]


def test_an_action_never_weighs_its_own_outcome() -> None:
    """u_h leads to s_{h+1}: whether that is terminal may change the weight of later steps, not of step h."""
    cont = torch.rand(N, H, generator=torch.Generator().manual_seed(0)) + 0.1
    weights = discount_weights(torch.ones(N), cont, DISCOUNT)
    for h in range(H):
        ended = cont.clone()
        ended[:, h] = 0
        changed = discount_weights(torch.ones(N), ended, DISCOUNT)
        assert torch.equal(changed[:, : h + 1], weights[:, : h + 1])
        assert (changed[:, h + 1 :] == 0).all() and (weights[:, h + 1 :] > 0).all()


def test_dead_starts_weigh_nothing_and_weights_carry_no_gradient() -> None:
    cont = torch.ones(2, H, requires_grad=True)
    weights = discount_weights(torch.tensor([0.0, 1.0]), cont, DISCOUNT)
    assert not weights.requires_grad
    assert (weights[0] == 0).all()
    torch.testing.assert_close(weights[1], DISCOUNT ** torch.arange(H))


UNKNOWN = torch.tensor(float("nan"))  # a spread that no average takes


def spread(width: float) -> torch.Tensor:
    """Of returns spread evenly over so much."""
    return percentile_spread(torch.linspace(0, width, 101))


def test_return_scale_is_the_spread_between_percentiles() -> None:
    returns = torch.randn(64, 15, generator=torch.Generator().manual_seed(0)) ** 3 * 10
    low, high = np.percentile(returns.numpy(), [5, 95])
    scale = ReturnScale(rate=0.01).after(percentile_spread(returns))
    assert scale.item() == pytest.approx(high - low, rel=1e-5)  # at once: the start at zero is corrected


def test_return_scale_averages_with_its_rate() -> None:
    """Bias-corrected, as Adam's moments are: sum_k (1 - rate)^(n - k) x_k over sum_k (1 - rate)^(n - k)."""
    rate, widths = 0.1, [10.0, 20.0, 5.0, 40.0]
    scale = ReturnScale(rate)
    for width in widths[:-1]:
        scale.update(spread(width / 0.9))  # P95 - P5 is 0.9 of the width
    weights = [(1 - rate) ** (len(widths) - 1 - k) for k in range(len(widths))]
    assert scale.after(spread(widths[-1] / 0.9)).item() == pytest.approx(np.average(widths, weights=weights), rel=1e-5)


def test_return_scale_has_a_floor() -> None:
    """Small returns are not blown up; before any batch the scale is the floor, too."""
    scale = ReturnScale(floor=2.0)
    assert scale.after(UNKNOWN).item() == scale.after(spread(0.1)).item() == 2.0
    assert scale.after(spread(1e4)).item() > 2.0


def test_return_scale_is_saved_with_its_owner() -> None:
    scale, copy = ReturnScale(0.1), ReturnScale(0.1)
    scale.update(spread(50))
    copy.load_state_dict(scale.state_dict())
    assert copy.after(UNKNOWN).item() == scale.after(UNKNOWN).item() > 1


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_returns_that_are_not_finite_leave_the_scale_as_it_was(broken: float) -> None:
    scale, other = ReturnScale(), ReturnScale()
    for each in (spread(50), percentile_spread(torch.full((8,), broken)), spread(10)):
        scale.update(each)
        if each.isfinite():
            other.update(each)
    assert torch.equal(scale.after(UNKNOWN), other.after(UNKNOWN)) and scale.after(UNKNOWN) > 1


def test_return_scale_is_known_before_it_is_kept() -> None:
    scale = ReturnScale(0.1)
    for width in (8.0, float("nan"), 3.0):
        before, after = scale.after(UNKNOWN), scale.after(torch.tensor(width))
        assert torch.equal(scale.after(UNKNOWN), before)
        scale.update(torch.tensor(width))
        assert torch.equal(scale.after(UNKNOWN), after) and after > 1


def test_the_return_scale_of_dreamer_v3_grows_from_its_floor() -> None:
    """Its average begins at zero and stays uncorrected: max(1, 50 (1 - 0.99^n)) after n updates at a spread of 50."""
    scale, width = ReturnScale(0.01, corrected=False), torch.tensor(50.0)
    assert scale.after(width).item() == 1
    assert ReturnScale(0.01).after(width).item() == pytest.approx(50)
    for updates in range(1, 200):
        scale.update(width)
        assert scale.after(UNKNOWN).item() == pytest.approx(max(1.0, 50 * (1 - 0.99**updates)), rel=1e-4)
