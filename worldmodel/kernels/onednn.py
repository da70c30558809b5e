"""Products with many rows by oneDNN rather than MKL, on the processors where that is faster."""

import platform
from typing import Any, cast

import torch
from torch import Tensor, fx, ops
from torch._inductor.ir import TensorBox
from torch._inductor.lowering import register_lowering
from torch._inductor.mkldnn_ir import LinearUnary

MM, PERMUTE = ops.aten.mm.default, ops.aten.permute.default
LEAST_ROWS, LEAST_WIDTH = 512, 64  # rows, and numbers in a row before and after, from which oneDNN is faster


def is_faster() -> bool:
    """On a processor of AMD that has AVX-512, where MKL, as `MKL_VERBOSE=1` tells, knows of no such instructions.

    On Zen 4, 256 x 256 weights take 15,360 rows at 104 GFLOP/s instead of 87. On Intel's own the two are as fast.
    """
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return libraries and torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return file.read()
    except OSError:
        return platform.processor()


@torch.library.custom_op("worldmodel::product", mutates_args=())
def product(x: Tensor, weight: Tensor) -> Tensor:
    """(N, I), (O, I) -> x weight^T (N, O). In what torch's compiler makes it is a call of oneDNN, not one of Python.

    It has no gradient: it enters graphs that have theirs already.
    """
    return cast(Tensor, ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))


@product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))


@register_lowering(ops.worldmodel.product.default, type_promotion_kind=None)
def _(x: TensorBox, weight: TensorBox) -> TensorBox:
    result: Any = LinearUnary.create(x, weight, None, "none", [], "")
    return result if isinstance(result, TensorBox) else TensorBox.create(result)


def taken_over(graph: fx.Graph) -> None:
    """Rewrite the products of a graph in which oneDNN is faster: of the rows of a matrix that stand side by side.

    Rows with gaps, which it would have to copy first, are left to MKL, as is the gradient of a weight, in which MKL is
    the faster one. Weights, which are small, are transposed for it.
    """
    for node in graph.find_nodes(op="call_function", target=MM):
        left, right = cast(tuple[fx.Node, fx.Node], node.args)
        if not _is_large(left.meta.get("val"), right.meta.get("val")):
            continue
        with graph.inserting_before(node):
            result = graph.call_function(ops.worldmodel.product.default, (left, _transposed(graph, right)))
        result.meta.update(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _transposed(graph: fx.Graph, matrix: fx.Node) -> fx.Node:
    if matrix.target is PERMUTE and list(cast(Any, matrix.args[1])) == [1, 0]:
        return cast(fx.Node, matrix.args[0])
    result = graph.call_function(PERMUTE, (matrix, [1, 0]))
    result.meta["val"] = matrix.meta["val"].t()
    return result


def _is_large(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None or left.dtype != torch.float32:
        return False
    if left.device.type != "cpu" or not left.is_contiguous():
        return False
    sizes = (*left.shape, *right.shape)
    return all(isinstance(size, int) for size in sizes) and len(left) >= LEAST_ROWS and min(right.shape) >= LEAST_WIDTH
