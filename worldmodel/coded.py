"""Features that end in one-hot codes: their product with a matrix is a sum of some of its columns.

    W [h, z] + b = W_h h + b + sum_g W_z[:, c_g],        z_t the codes of classes c_1..c_G

On a CPU the sum takes an eighth of the product's time. It is taken where nothing has to know how the result changes
with z_t: imagination with score-function gradients, and every head that judges it. The gradient of W is the product
that it always was.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 2**14  # entries of W_z from which a sum is faster


class Coded(NamedTuple):
    """Features whose last entries are one-hot codes, and which of these entries are 1.

    Only for codes that are exactly 0 and 1, as a sample or a mode is; an initial state is none.
    """

    values: Tensor  # (..., F)
    ones: Tensor  # (..., G) int64, from 0 for the first entry of the codes; each variable has as many classes
    width: int  # entries of the codes


Features = Tensor | Coded


def dense(features: Features) -> Tensor:
    """(..., F), whatever else is known of them."""
    return features.values if isinstance(features, Coded) else features


def parts(features: Features) -> tuple[Tensor, ...]:
    """What they consist of, as :func:`of_parts` takes it."""
    return (features.values, features.ones) if isinstance(features, Coded) else (features,)


def of_parts(parts: Sequence[Tensor], like: Features) -> Features:
    """Features of the same kind as `like`."""
    return Coded(parts[0], parts[1], like.width) if isinstance(like, Coded) else parts[0]


def detached(features: Features) -> Features:
    """Without a gradient; codes have none."""
    return features if isinstance(features, Coded) else features.detach()


def steps(features: Features, start: int, stop: int | None) -> Features:
    """Some of the steps of (N, T, ...); a copy, since a view with gaps is multiplied far more slowly."""
    return of_parts([part[:, start:stop].contiguous() for part in parts(features)], features)


def ones(codes: Tensor, classes: int) -> Tensor:
    """One-hot codes (..., G * C) -> (..., G): which of the entries are 1."""
    groups = codes.unflatten(-1, (-1, classes))
    index = groups.float() @ torch.arange(classes, dtype=torch.float32, device=codes.device)
    return index.long() + torch.arange(0, codes.shape[-1], classes, device=codes.device)


def are_codes(codes: Tensor, classes: int) -> bool:
    """Whether every group of (..., G * C) is a one-hot code."""
    groups = codes.unflatten(-1, (-1, classes))
    return bool(((groups.amax(-1) == 1) & (groups.sum(-1) == 1)).all() & (groups.amin() >= 0))


def linear(features: Features, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., F), (P, F), (P,) -> (..., P)."""
    if not isinstance(features, Coded):
        return F.linear(features, weight, bias)
    values, which, width = features
    if values.requires_grad or values.dtype != weight.dtype or width * len(weight) < LEAST:
        return F.linear(values, weight, bias)
    return _SumOfColumns.apply(values, which, width, weight, bias)


class _SumOfColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, which: Tensor, width: int, weight: Tensor, bias: Tensor) -> Tensor:
        rows, first = values.flatten(0, -2), weight.shape[1] - width
        ctx.save_for_backward(rows)
        before, of_before = rows[:, :first], weight[:, :first].t()
        columns = weight[:, first:].t().clone(memory_format=torch.contiguous_format)
        columns[: width // which.shape[-1]] += bias  # each sum has one of the first variable's classes
        out = F.embedding_bag(which.flatten(0, -2), columns, mode="sum")
        if torch.compiler.is_compiling():  # whatever follows adds both as it reads them
            out = out + before @ of_before
        else:  # in place: two passes over memory less
            out = torch.addmm(out, before, of_before, out=out)
        return out.unflatten(0, values.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        (rows,) = ctx.saved_tensors
        rows_of_gradient = gradient.flatten(0, -2)
        return None, None, None, rows_of_gradient.t() @ rows, rows_of_gradient.sum(0)
