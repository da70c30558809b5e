"""Convolutions that halve and double an image are torch's own, values and gradients."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worldmodel.kernels.convolutions import LEAST, Doubling, Halving, doubled
from worldmodel.networks.images import ChannelNorm


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """What a module makes of x, and the gradients of x and of each parameter; none of them has a symmetry."""
    y = module(x)
    weights = torch.arange(y.numel(), dtype=y.dtype).sin().view(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize(
    ("kind", "like", "size"), [(Doubling, nn.ConvTranspose2d, LEAST), (Halving, nn.Conv2d, 2 * LEAST)]
)
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize("more", [0, 8, -2], ids=["square", "wide", "small"])
def test_they_are_torchs_own(kind: Any, like: Any, size: int, last: bool, more: int) -> None:
    ours, theirs = kind(5, 3).double(), like(5, 3, 4, 2, 1).double()
    theirs.load_state_dict(ours.state_dict())  # by the same names
    x = torch.randn(2, 5, size, size + more, dtype=torch.double)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    for mine, reference in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(mine, reference)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_doubling_is_one_operator_whose_layout_a_compiler_knows() -> None:
    found = torch.library.opcheck(doubled, (torch.randn(2, 4, 6, 5), torch.randn(4, 3, 4, 4), torch.randn(3)))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("kind", "like"), [(Doubling, nn.ConvTranspose2d), (Halving, nn.Conv2d)])
@pytest.mark.parametrize("size", [LEAST // 2, 2 * LEAST])
def test_in_half_precision_so_they_are(kind: Any, like: Any, size: int) -> None:
    ours, theirs = kind(5, 3), like(5, 3, 4, 2, 1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, size, size, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = [gradients(module, x) for module in (ours, theirs)]
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference)


def test_a_large_mean_does_not_drown_a_compiled_norm() -> None:
    norm, x = ChannelNorm(6), 1000 + torch.randn(2, 6, 8, 8, requires_grad=True)
    traced = torch.compile(norm, backend="eager", fullgraph=True)
    exact = torch.nn.functional.group_norm(x.double(), 1)
    torch.testing.assert_close(traced(x).double(), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_the_norm_that_a_compiler_is_given_is_the_same(last: bool) -> None:
    norm = ChannelNorm(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 6, 4, 5, dtype=torch.double) + 2
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    torch.compiler.reset()
    traced = torch.compile(norm, backend="eager", fullgraph=True)
    for mine, reference in zip(gradients(traced, x), gradients(norm, x), strict=True):
        torch.testing.assert_close(mine, reference)
