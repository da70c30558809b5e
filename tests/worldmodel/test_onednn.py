"""Products of many rows are made by oneDNN where that is wanted, with the same result, and others are left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, ops
from torch._inductor.utils import fresh_inductor_cache, run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from worldmodel.kernels import onednn, products
from worldmodel.kernels.compiling import by_itself, has_compiler
from worldmodel.kernels.onednn import LEAST_ROWS as ROWS
from worldmodel.kernels.onednn import LEAST_WIDTH as WIDTH
from worldmodel.kernels.onednn import MM, PERMUTE, is_faster, taken_over
from worldmodel.kernels.products import PRODUCTS

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")
PRODUCT = ops.worldmodel.product.default


def rewritten(function: Callable[..., Tensor], *args: Tensor) -> fx.Graph:
    """The graph after the rewriting, whose result is compared."""
    module = make_fx(function, tracing_mode="fake")(*args)
    taken_over(module.graph)
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(*args), function(*args))
    return module.graph


def calls(graph: fx.Graph, target: Any) -> int:
    return len(graph.find_nodes(op="call_function", target=target))


def of_layer(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.permute(1, 0)  # as torch's compiler writes it


def of_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient @ weight


def test_products_of_many_rows_are_taken_over() -> None:
    rows, weight = torch.randn(ROWS, WIDTH), torch.randn(2 * WIDTH, WIDTH)
    graph = rewritten(of_layer, rows, weight)
    assert calls(graph, PRODUCT) == 1 and not calls(graph, MM)
    (node,) = graph.find_nodes(op="call_function", target=PRODUCT)
    assert node.args[1].op == "placeholder"  # the weight as it is stored, which nobody has to copy
    graph = rewritten(of_gradient, torch.randn(ROWS, 2 * WIDTH), weight)
    assert calls(graph, PRODUCT) == 1 and calls(graph, PERMUTE) == 1


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.randn(ROWS - 1, WIDTH), torch.randn(WIDTH, WIDTH)),  # few rows
        (torch.randn(ROWS, 1), torch.randn(1, WIDTH)),  # narrow
        (torch.randn(ROWS, WIDTH), torch.randn(WIDTH, 3)),
        (torch.randn(WIDTH, ROWS).t(), torch.randn(WIDTH, WIDTH)),  # the gradient of a weight
        (torch.randn(ROWS, 2 * WIDTH)[:, :WIDTH], torch.randn(WIDTH, WIDTH)),  # with gaps
        (torch.randn(ROWS, WIDTH, dtype=torch.float64), torch.randn(WIDTH, WIDTH, dtype=torch.float64)),
    ],
    ids=["rows", "inputs", "outputs", "transposed", "gaps", "precision"],
)
def test_other_products_are_left_alone(left: Tensor, right: Tensor) -> None:
    graph = rewritten(of_gradient, left, right)
    assert calls(graph, MM) == 1 and not calls(graph, PRODUCT)


def test_what_was_joined_before_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a weight, one product of what stands side by side; that of a layer, less its bias, is taken."""

    def both(one: Tensor, other: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        total = torch.addmm(one.permute(1, 0) @ one, other.permute(1, 0), other)
        return total.sum() + torch.addmm(bias, x, weight)

    args = (torch.randn(2, 16), torch.randn(2, 16), torch.randn(ROWS, WIDTH), torch.randn(WIDTH, WIDTH))
    bias = torch.randn(WIDTH)
    for wanted in (True, False):
        monkeypatch.setattr(products, "ONEDNN", wanted)
        module = make_fx(both, tracing_mode="fake")(*args, bias)
        PRODUCTS(module.graph)
        module.recompile()
        torch.testing.assert_close(module(*args, bias), both(*args, bias))
        assert (calls(module.graph, PRODUCT), calls(module.graph, MM)) == ((1, 1) if wanted else (0, 2))


@pytest.mark.parametrize(
    ("told", "capability", "faster"),
    [
        ("vendor_id\t: AuthenticAMD", "AVX512", True),
        ("vendor_id\t: AuthenticAMD", "AVX2", False),
        ("vendor_id\t: GenuineIntel", "AVX512", False),
    ],
)
def test_where_it_is_faster(told: str, capability: str, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_processor", lambda: told)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert is_faster() == (faster and torch.backends.mkl.is_available())


def test_what_was_compiled_for_one_is_not_taken_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps what it compiled on the disk, which machines may share."""
    names = []
    for wanted in (True, False):
        monkeypatch.setattr(products, "ONEDNN", wanted)
        names.append(PRODUCTS.uuid())
    assert names[0] != names[1]


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products are calls of oneDNN in what was written, and the result is that of MKL."""
    monkeypatch.setattr(products, "ONEDNN", True)

    def loss(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (torch.tanh(x @ first.t()) @ second.t()).square().mean()

    x, weights = torch.randn(ROWS, WIDTH), [torch.randn(WIDTH, WIDTH, requires_grad=True) for _ in range(2)]
    with fresh_inductor_cache():
        _, written = run_and_get_code(by_itself(loss, "cpu"), x, *weights)
        assert "_linear_pointwise" in written[0]
        found = torch.autograd.grad(by_itself(loss, "cpu")(x, *weights), weights)
    torch.testing.assert_close(found, torch.autograd.grad(loss(x, *weights), weights), rtol=1e-4, atol=1e-5)
