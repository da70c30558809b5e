"""The loop over time of recorded sequences."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
        step: Maps a carry and one time slice of every input, each (B, ...), to the next carry and its outputs.
        carry: Anything that `step` understands, usually a member's state.
        inputs: Tensors (B, T, ...). They may be empty if `length` is given.
        length: T. By default, the length of the inputs.
        reverse: Go from t = T to t = 1. The outputs still stand in the order of time.
    Returns:
        The last carry, and every output stacked as (B, T, ...).
    """
    length = inputs[0].shape[1] if length is None else length
    slices = [tensor.unbind(1) for tensor in inputs]
    outputs: list[Tensors] = []
    for t in reversed(range(length)) if reverse else range(length):
        carry, output = step(carry, tuple(each[t] for each in slices))
        outputs.append(output)
    in_order = outputs[::-1] if reverse else outputs
    return carry, tuple(torch.stack(column, 1) for column in zip(*in_order, strict=True))
