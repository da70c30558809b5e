"""What is rewritten in a compiled graph gives the same numbers, with fewer products, or with none that adds."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from worldmodel.kernels.products import ADD, ADDMM, MANY, MM, PRODUCTS, ROWS, SUM, WIDE


def rewritten(function: Callable[..., Tensor], *args: Tensor) -> Counter[object]:
    """How often each operator is called after the rewriting, of which the result is compared."""
    module = make_fx(function, tracing_mode="fake")(*args)
    PRODUCTS(module.graph)
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(*args), function(*args))
    return Counter(node.target for node in module.graph.nodes)


def summed(*factors: Tensor) -> Tensor:
    """g_1^T x_1 + g_2^T x_2 + ..., as torch's compiler writes it."""
    gradients, inputs = factors[::2], factors[1::2]
    total = gradients[0].permute(1, 0) @ inputs[0]
    for gradient, x in zip(gradients[1:], inputs[1:], strict=True):
        total = torch.addmm(total, gradient.permute(1, 0), x)
    return total


@pytest.mark.parametrize(("rows", "joined"), [(2, True), (4, True), (5, False), (30, False)])
def test_a_sum_of_thin_products_is_one_product(rows: int, joined: bool) -> None:
    found = rewritten(summed, *(torch.randn(rows, width) for width in (16, 24) * 4))
    assert found[MM] == (1 if joined else 4) and not found[ADDMM]


def test_thin_products_of_different_widths_are_joined() -> None:
    rows = (3, 3, 1, 1, 4, 4)
    assert rewritten(summed, *(torch.randn(each, 20) for each in rows))[MM] == 1


def test_a_sum_that_is_used_on_the_way_is_kept() -> None:
    def both(*factors: Tensor) -> Tensor:
        part = summed(*factors[:4])
        return part.sin() + torch.addmm(part, factors[4].permute(1, 0), factors[5])

    found = rewritten(both, *(torch.randn(2, 16) for _ in range(6)))
    assert found[MM] == 2 and not found[ADDMM]  # of the first two, and of the third


def test_what_only_looks_like_such_a_sum_is_kept() -> None:
    def broadcast(column: Tensor, x: Tensor, gradient: Tensor, other: Tensor) -> Tensor:
        return torch.addmm(column.permute(1, 0) @ x, gradient.permute(1, 0), other)

    def upright(left: Tensor, x: Tensor, other: Tensor, more: Tensor) -> Tensor:
        return torch.addmm(left.permute(0, 1) @ x, other.permute(0, 1), more)

    assert rewritten(broadcast, torch.randn(2, 1), *(torch.randn(2, 16) for _ in range(3)))[MM] == 2
    assert rewritten(upright, *(torch.randn(*shape) for shape in ((16, 2), (2, 16)) * 2))[MM] == 2


def test_a_bias_is_added_after_the_product() -> None:
    found = rewritten(torch.addmm, torch.randn(8), torch.randn(4, 8), torch.randn(8, 8))
    assert found[MM] == 1 and found[ADD] == 1 and not found[ADDMM]


def test_a_scaled_sum_is_left_alone() -> None:
    def scaled(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return torch.addmm(bias, left, right, beta=2)

    assert rewritten(scaled, torch.randn(8), torch.randn(4, 8), torch.randn(8, 8))[ADDMM] == 1


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("shape", [(MANY, WIDE), (MANY // 8, 8, 70)])
def test_a_sum_over_many_rows_is_one_of_sums_over_few(shape: tuple[int, ...], keepdim: bool) -> None:
    dims = list(range(len(shape) - 1))
    assert rewritten(lambda x: x.sum(dims, keepdim), torch.randn(shape, dtype=torch.float64))[SUM] == 2


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((MANY - ROWS, WIDE), [0]), ((MANY + 1, WIDE), [0]), ((MANY, WIDE - 1), [0]), ((MANY, WIDE), [1]), ((), [0])],
)
def test_other_sums_are_left_alone(shape: tuple[int, ...], dims: list[int]) -> None:
    assert rewritten(lambda x: x.sum(dims), torch.randn(shape, dtype=torch.float64))[SUM] == 1
