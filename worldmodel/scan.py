"""The only loop over time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldmodel.compiling import by_itself

Tensors = tuple[Tensor, ...]
Step = Callable[[Any, Tensors], tuple[Any, Tensors]]


def scan(
    step: Step,
    carry: Any,
    inputs: Tensors,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Any, Tensors]:
    """Run `carry, outputs = step(carry, inputs_t)` for t = 1..T.

    Args:
        step: maps a carry and one time slice of every input, each (B, ...), to the next carry and its outputs.
        carry: anything `step` understands, usually a member's state.
        inputs: tensors (B, T, ...); may be empty when `length` is given.
        length: T, read from the inputs by default.
        reverse: go from t = T to t = 1; outputs still stand in the order of time.
    Returns:
        The last carry, and every output stacked as (B, T, ...).
    """
    step = by_itself(step)
    length = inputs[0].shape[1] if length is None else length
    slices = [tensor.unbind(1) for tensor in inputs]
    outputs: list[Tensors] = []
    for t in reversed(range(length)) if reverse else range(length):
        carry, output = step(carry, tuple(each[t] for each in slices))
        outputs.append(output)
    if reverse:
        outputs.reverse()
    return carry, tuple(torch.stack(column, 1) for column in zip(*outputs, strict=True))
