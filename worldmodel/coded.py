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
    """Features that end in one-hot codes, [h_t, z_t], and which entries of the codes are 1.

    Only for codes that are exactly 0 and 1, as a sample or a mode is; an initial state is none.
    """

    before: Tensor  # (..., F - Z), h_t
    codes: Tensor  # (..., Z), z_t
    ones: Tensor  # (..., G) int64, from 0 for the first entry of the codes; each variable has as many classes


Features = Tensor | Coded


def dense(features: Features) -> Tensor:
    """(..., F), whatever else is known of them."""
    return torch.cat([features.before, features.codes], -1) if isinstance(features, Coded) else features


def parts(features: Features) -> tuple[Tensor, ...]:
    """What they consist of, as :func:`of_parts` takes it."""
    return tuple(features) if isinstance(features, Coded) else (features,)


def of_parts(parts: Sequence[Tensor], like: Features) -> Features:
    """Features of the same kind as `like`."""
    return Coded(*parts) if isinstance(like, Coded) else parts[0]


def detached(features: Features) -> Features:
    """Without a gradient; codes have none."""
    return features if isinstance(features, Coded) else features.detach()


def in_time(features: Features, start: int | None = None, stop: int | None = None) -> Features:
    """Some of the steps of (N, T, ...), as (T, N, ...): without gaps, as a product wants its rows.

    No copy of what was imagined, which stands in memory like that.
    """
    return of_parts([part.transpose(0, 1)[start:stop].contiguous() for part in parts(features)], features)


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
    before, codes, which = features
    followed, few = before.requires_grad or codes.requires_grad, codes.shape[-1] * len(weight) < LEAST
    if followed or few or before.dtype != weight.dtype:
        return F.linear(dense(features), weight, bias)
    return _SumOfColumns.apply(before, codes, which, weight, bias)


def of_codes(codes: Tensor, which: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """W z + b: (..., Z), (..., G), (P, Z), (P,) -> (..., P); the sum where it is known which entries are 1.

    No gradient reaches the codes then.
    """
    if which is None or weight.numel() < LEAST:
        return F.linear(codes, weight, bias)
    return _summed(which, weight, bias).unflatten(0, which.shape[:-1])


def _summed(which: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., G), (P, Z), (P,) -> (N, P): the sum of some columns and the bias."""
    columns = weight.t().clone(memory_format=torch.contiguous_format)
    columns[: len(columns) // which.shape[-1]] += bias  # each sum has one of the first variable's classes
    return F.embedding_bag(which.flatten(0, -2), columns, mode="sum")


class _SumOfColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, codes: Tensor, which: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = before.flatten(0, -2)
        ctx.save_for_backward(rows, codes.flatten(0, -2))
        of_before, of_codes = weight.split([before.shape[-1], codes.shape[-1]], 1)
        out = _summed(which, of_codes, bias)
        if torch.compiler.is_compiling():  # whatever follows adds both as it reads them
            out = out + rows @ of_before.t()
        else:  # in place: two passes over memory less
            out = torch.addmm(out, rows, of_before.t(), out=out)
        return out.unflatten(0, which.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        rows = gradient.flatten(0, -2)
        of_weight = torch.cat([rows.t() @ each for each in ctx.saved_tensors], 1)
        return None, None, None, of_weight, rows.sum(0)
