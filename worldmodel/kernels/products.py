"""Matrix products and sums in what torch's compiler makes for a CPU: fewer, and fewer passes over memory."""

import math
from typing import Any, cast

import torch
from torch import fx, ops
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from worldmodel.kernels import onednn

ADD, ADDMM, MM = ops.aten.add.Tensor, ops.aten.addmm.default, ops.aten.mm.default
CAT, PERMUTE = ops.aten.cat.default, ops.aten.permute.default
SUM, RESHAPE = ops.aten.sum.dim_IntList, ops.aten.reshape.default
ROWS = 64  # of a sum over many that are added at a time: they stay in the cache while column by column is read
MANY, WIDE = 4096, 64  # rows, and columns, from which that pays
ONEDNN = onednn.is_faster()
THIN = 4  # times narrower than what is summed, for its factors to be copied rather than it


class Products(CustomGraphPass):
    """Rewrites every `addmm`, c + a b, of a graph in which time was unrolled, and sums over many rows.

    The gradient of a weight over n steps is a sum of products, each of few rows, and each of which would write a matrix
    of the weight's size, to be read and added. It is one product of what stands side by side:

        g_1^T x_1 + ... + g_n^T x_n = [g_1; ...; g_n]^T [x_1; ...; x_n]

    Otherwise c is added by itself: torch copies a bias into every row before the product, one more pass over memory,
    where the norm and the activation that follow can add it on their way.

    A sum over rows, as the gradient of a bias is, is taken of few rows, and then of their sums: torch goes down each 16
    columns by themselves, through all of memory every time.

    Products of many rows are made by whom is faster in them, see :mod:`worldmodel.kernels.onednn`. All of this is
    exact but for
    rounding.
    """

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=SUM):
            _take_in_parts(graph, node)
        for node in reversed(graph.find_nodes(op="call_function", target=ADDMM)):
            if not node.users or node.kwargs:  # part of a sum that was joined, or scaled
                continue
            factors = _summed(node)
            with graph.inserting_before(node):
                if factors:
                    result = _joined(graph, *zip(*factors, strict=True))
                else:
                    added, left, right = node.args
                    result = graph.call_function(ADD, (graph.call_function(MM, (left, right)), added))
            result.meta.update(node.meta)
            node.replace_all_uses_with(result)
            graph.erase_node(node)
        if ONEDNN:
            onednn.taken_over(graph)
        graph.eliminate_dead_code()

    def uuid(self) -> Any:
        return get_hash_for_files((__file__, onednn.__file__), str(ONEDNN))


PRODUCTS = Products()
"""Torch compares what it compiled with by identity."""


def _summed(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """The factors g_t and x_t of a sum of thin products g_t^T x_t; none where `node` is something else."""
    factors: list[tuple[fx.Node, fx.Node]] = []
    shape = node.meta["val"].shape
    rest: Any = node
    while rest.target in (ADDMM, MM) and not rest.kwargs and (rest is node or len(rest.users) == 1):
        *added, left, right = rest.args
        transposed = left.target is PERMUTE and list(left.args[1]) == [1, 0]
        if not transposed or THIN * left.meta["val"].shape[1] > min(shape) or rest.meta["val"].shape != shape:
            return []
        factors.append((left.args[0], right))
        if not added:
            return factors
        rest = added[0]
    return []


def _joined(graph: fx.Graph, gradients: tuple[fx.Node, ...], inputs: tuple[fx.Node, ...]) -> fx.Node:
    left, right = (graph.call_function(CAT, (list(each),)) for each in (gradients, inputs))
    return graph.call_function(MM, (graph.call_function(PERMUTE, (left, [1, 0])), right))


def _take_in_parts(graph: fx.Graph, node: fx.Node) -> None:
    """Of a sum over all dimensions but the last, where there are many rows: over `ROWS` of them first."""
    summed, dims, *_ = cast(tuple[Any, ...], node.args)
    value = summed.meta["val"]
    *leading, width = value.shape or (0,)
    known = all(isinstance(size, int) for size in value.shape) and value.dtype in (torch.float32, torch.float64)
    if not known or not leading or node.kwargs or sorted(dims or ()) != list(range(len(leading))):
        return
    count = math.prod(leading)
    if count < MANY or count % ROWS or width < WIDE:
        return
    with graph.inserting_before(node):
        parts = graph.call_function(RESHAPE, (summed, [count // ROWS, ROWS, width]))
        total = graph.call_function(SUM, (graph.call_function(SUM, (parts, [1])), [0]))
        result = graph.call_function(RESHAPE, (total, list(node.meta["val"].shape)))
    result.meta.update(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
