"""Features that end in one-hot codes: their product with a matrix is a sum of some of its columns.

    W [h, z] + b = W_h h + b + sum_g W_z[:, c_g],        z_t the codes of classes c_1..c_G

On a CPU the sum takes an eighth of the product's time. It is taken where nothing has to know how the result changes
with z_t: imagination with score-function gradients, and every head that judges it. The gradient of W_z is the product
that it always was or, compiled for one thread, a sum as well: for every entry, of the gradients of the rows in which it
is 1. That takes half the time for 16 classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels.compiling import on_one_thread

T = TypeVar("T")

LEAST = 2**14  # entries of W_z from which a sum is faster
ROWS = 64  # from which it is: W_z is transposed before
CLASSES = 12  # from which the sum of its gradient is


class Coded(NamedTuple):
    """Features of which some are one-hot codes, [h_t, z_t], and which entries of the codes are 1.

    Only for codes that are exactly 0 and 1, as a sample or a mode is; an initial state is none.
    """

    rest: Tensor  # (..., F - Z), h_t
    codes: Tensor  # (..., Z), z_t
    ones: Tensor  # (..., G) int64, from 0 for the first entry of the codes; each variable has as many classes
    codes_first: bool = False  # whether they stand before the rest, as in the input of a recurrent cell, [z_t, u_t]


Features = Tensor | Coded


def dense(features: Features) -> Tensor:
    """(..., F), whatever else is known of them: a copy of what is kept apart."""
    if not isinstance(features, Coded):
        return features
    return torch.cat(_in_order(features.rest, features.codes, features.codes_first), -1)


def _in_order(of_rest: T, of_codes: T, codes_first: bool) -> tuple[T, T]:
    return (of_codes, of_rest) if codes_first else (of_rest, of_codes)


def parts(features: Features) -> tuple[Tensor, ...]:
    """What they consist of, as :func:`of_parts` takes it."""
    return features[:3] if isinstance(features, Coded) else (features,)


def of_parts(parts: Sequence[Tensor], like: Features) -> Features:
    """Features of the same kind as `like`."""
    if not isinstance(like, Coded):
        return parts[0]
    return Coded(parts[0], parts[1], parts[2], like.codes_first)


def detached(features: Features) -> Features:
    """Without a gradient; codes have none."""
    return features if isinstance(features, Coded) else features.detach()


def in_time(features: Features, start: int | None = None, stop: int | None = None) -> Features:
    """Some of the steps of (N, T, ...), time first: (T, N, ...), without gaps, as a product wants its rows.

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
    if not isinstance(features, Coded) or not _pays(features, weight):
        return F.linear(dense(features), weight, bias)
    return _SumOfColumns.apply(*features, weight, bias)


def _pays(features: Coded, weight: Tensor) -> bool:
    """Whether the sum is faster, and whether nothing has to know how it changes with the features."""
    rest, codes, which, _ = features
    if rest.requires_grad or codes.requires_grad or rest.dtype != weight.dtype:
        return False
    return codes.shape[-1] * len(weight) >= LEAST and which.numel() >= ROWS * which.shape[-1]


class _SumOfColumns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rest: Tensor, codes: Tensor, which: Tensor, codes_first: bool, weight: Tensor, bias: Tensor
    ) -> Tensor:
        rows, which = rest.flatten(0, -2), which.flatten(0, -2)
        shape, ctx.codes_first, ctx.entries = rest.shape[:-1], codes_first, codes.shape[-1]
        ctx.by_entry = _adds_by_entry(codes.shape[-1] // which.shape[-1])
        ctx.save_for_backward(rows, which if ctx.by_entry else codes.flatten(0, -2))
        sizes = _in_order(rest.shape[-1], codes.shape[-1], codes_first)
        one, other = weight.split(sizes, 1)
        of_rest, of_codes = _in_order(one, other, codes_first)
        columns = of_codes.t().clone(memory_format=torch.contiguous_format)
        columns[: len(columns) // which.shape[-1]] += bias  # each sum has one of the first variable's classes
        out = F.embedding_bag(which, columns, mode="sum")
        if torch.compiler.is_compiling():  # whatever follows adds both as it reads them
            out = out + rows @ of_rest.t() if rows.shape[1] else out
        else:  # in place: two passes over memory less
            out = torch.addmm(out, rows, of_rest.t(), out=out)
        return out.unflatten(0, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None, Tensor, Tensor]:
        rows = gradient.flatten(0, -2)
        rest, codes = ctx.saved_tensors
        of_rest = rows.t() @ rest
        of_codes = _by_entry(rows, codes, ctx.entries).t() if ctx.by_entry else rows.t() @ codes
        of_weight = torch.cat(_in_order(of_rest, of_codes, ctx.codes_first), 1)
        return None, None, None, None, of_weight, rows.sum(0)


def _adds_by_entry(classes: int) -> bool:
    """Whether :func:`_by_entry` is faster than a product. Without a compiler it is not; several threads would wait."""
    return torch.compiler.is_compiling() and on_one_thread() and classes >= CLASSES


def _by_entry(rows: Tensor, which: Tensor, entries: int) -> Tensor:
    """(N, P), (N, G) -> (Z, P): for each entry of the codes, the sum of the rows in which it is 1."""
    values = rows[:, None].expand(-1, which.shape[1], -1)
    return rows.new_zeros(entries, rows.shape[1]).index_put((which,), values, accumulate=True)
