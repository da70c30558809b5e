"""LaProp and adaptive clipping, against small independent implementations of the same formulas."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from worldmodel.learning.laprop import LaProp, clip_adaptively
from worldmodel.learning.learner import Learner, LearnerConfig


def test_laprop_golden_numbers() -> None:
    """By hand in NumPy, with gradients that change their size a thousandfold."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(20, 3)) * 10.0 ** rng.integers(-2, 2, size=(20, 1))
    theta, lr, b1, b2, eps = np.array([1.0, -2.0, 0.5]), 0.01, 0.9, 0.999, 1e-20
    parameter = nn.Parameter(torch.tensor(theta))
    optimizer = LaProp([parameter], lr=lr, betas=(b1, b2), eps=eps, weight_decay=0.1)
    mean, square = np.zeros(3), np.zeros(3)
    for t, g in enumerate(gradients, 1):
        square = b2 * square + (1 - b2) * g**2
        mean = b1 * mean + (1 - b1) * g / (np.sqrt(square / (1 - b2**t)) + eps)
        theta = theta * (1 - lr * 0.1) - lr * mean / (1 - b1**t)
        parameter.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(parameter.detach().numpy(), theta, rtol=1e-6)


def test_the_first_step_of_laprop_is_lr_whatever_the_size_of_the_gradient() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1e-12, -3.0, 1e12])
    LaProp([parameter], lr=0.1).step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.1, 0.1, -0.1]))


def test_laprop_skips_what_has_no_gradient_and_goes_on_from_its_saved_state() -> None:
    def made() -> tuple[nn.Parameter, nn.Parameter, LaProp]:
        torch.manual_seed(0)
        used, unused = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        return used, unused, LaProp([used, unused], lr=0.1)

    used, unused, optimizer = made()
    before = unused.detach().clone()
    for k in range(3):
        used.grad = torch.full((4,), float(k + 1))
        optimizer.step()
    assert torch.equal(unused, before)
    again, _, other = made()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.data.copy_(used)
    for parameter, each in ((used, optimizer), (again, other)):
        parameter.grad = torch.ones(4)
        each.step()
    assert torch.equal(used, again)


@pytest.mark.parametrize("broken", [math.nan, math.inf, 3.0])
def test_what_is_taken_back_on_a_device_leaves_nothing(broken: float) -> None:
    """As on a GPU, where nobody waits to hear whether a step is to be skipped: the first one, or a later one."""
    for steps in (0, 2):
        parameter, reference = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
        optimizer, other = LaProp([parameter], lr=0.1), LaProp([reference], lr=0.1)
        gradients = [torch.tensor([1.0, 2.0]) * k for k in range(1, steps + 3)]
        for k, gradient in enumerate([*gradients[:steps], torch.full((2,), broken), *gradients[steps:]]):
            parameter.grad = gradient.clone()
            skipped = torch.tensor(float(k == steps))
            with torch.no_grad():
                optimizer._update_unless(skipped, [parameter], optimizer.param_groups[0])
            if k != steps:
                reference.grad = gradient.clone()
                other.step()
        assert torch.equal(parameter, reference)
        for name, value in other.state[reference].items():
            assert torch.equal(optimizer.state[parameter][name], value), name


def test_no_step_is_larger_than_its_bound() -> None:
    """lr / sqrt(1 - b_2), where gradients have been nothing for long; it takes some steps of momentum to come near."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer, moves = LaProp([parameter], lr=0.1, betas=(0.9, 0.99)), []
    for gradient in [1e-6] * 500 + [1.0] * 20:
        before, parameter.grad = float(parameter.detach()), torch.tensor([gradient])
        optimizer.step()
        moves.append(before - float(parameter.detach()))
    assert moves[499] == pytest.approx(0.1, rel=1e-3)
    assert 0.3 < max(moves) <= 0.1 / (1 - 0.99) ** 0.5


def test_adaptive_clipping_is_relative_to_each_tensor() -> None:
    large, small, zero = (nn.Parameter(torch.full((2,), value)) for value in (10.0, 0.1, 0.0))
    for parameter in (large, small, zero):
        parameter.grad = torch.tensor([3.0, 4.0])
    norm = clip_adaptively([large, small, zero], limit=0.3)
    assert norm.item() == pytest.approx(5 * 3**0.5)
    assert large.grad is not None and small.grad is not None and zero.grad is not None
    np.testing.assert_allclose(large.grad, [3 * 0.3 * 200**0.5 / 5, 4 * 0.3 * 200**0.5 / 5], rtol=1e-6)  # 4.24 of 5
    np.testing.assert_allclose(small.grad.norm(), 0.3 * 0.02**0.5, rtol=1e-6)
    np.testing.assert_allclose(zero.grad.norm(), 0.3 * 1e-3, rtol=1e-6)  # it may leave zero


def test_adaptive_clipping_leaves_small_gradients_alone() -> None:
    parameter = nn.Parameter(torch.ones(4))
    parameter.grad = torch.full((4,), 0.1)
    clip_adaptively([parameter], limit=0.3)
    assert torch.equal(parameter.grad, torch.full((4,), 0.1))


def test_warmup_raises_the_rate_linearly_and_then_holds_it() -> None:
    parameter = nn.Parameter(torch.zeros(()))
    config = LearnerConfig("laprop", lr=1.0, warmup=4, eps=1e-20)
    learner = Learner(lambda: (parameter, None), [parameter], config)
    places = [0.0]
    for _ in range(7):
        learner.update()
        places.append(parameter.item())
    np.testing.assert_allclose(-np.diff(places), [0.25, 0.4375, 0.625, 0.8125, 1, 1, 1], rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "laprop"])
@pytest.mark.parametrize("adaptive", [None, 0.3])
def test_both_optimizers_learn(optimizer: str, adaptive: float | None) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 1), torch.randn(200, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 1
    learner = Learner(
        lambda: ((layer(x) - y).square().mean(), None),
        layer.parameters(),
        LearnerConfig(optimizer, lr=0.02, eps=1e-8, adaptive_clip=adaptive),  # type: ignore[arg-type]
    )
    for _ in range(400):
        _, report = learner.update()
    assert report["loss"] < 1e-3


@pytest.mark.parametrize(
    ("change", "message"), [({"adaptive_clip": 0.0}, "adaptive_clip must be positive"), ({"warmup": -1}, "negative")]
)
def test_settings_that_make_no_sense(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnerConfig(**change)  # type: ignore[arg-type]
