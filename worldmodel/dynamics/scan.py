"""The only loop over time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from worldmodel.kernels.compiling import by_itself, on_one_thread, regions_device

Tensors = tuple[Tensor, ...]
Step = Callable[[Any, Tensors], tuple[Any, Tensors]]

FEW = 64  # rows, of which a step asks more of Python than of the processor
TOGETHER = (8, 7, 6, 5, 4)  # steps that are compiled as one: as many as leave the fewest alone
IMAGINED = (5, 4, 3, 2, 1)  # the same of imagined ones, where several threads share them: as many as leave none alone


def scan(
    step: Step,
    carry: Any,
    inputs: Tensors,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Any, Tensors]:
    """Run `carry, outputs = step(carry, inputs_t)` for t = 1..T.

    Inside :func:`worldmodel.kernels.compiling.compiled_regions` the step is compiled, several of few rows as one.

    Args:
        step: maps a carry and one time slice of every input, each (B, ...), to the next carry and its outputs.
        carry: anything `step` understands, usually a member's state.
        inputs: tensors (B, T, ...); may be empty when `length` is given.
        length: T; all that the inputs have by default.
        reverse: go from t = T to t = 1; outputs still stand in the order of time.
    Returns:
        The last carry, and every output stacked as (B, T, ...): views of what the step gave where
        there is but one, so that nobody may write to them.
    """
    length = inputs[0].shape[1] if length is None else length
    carry, parts = in_parts(step, carry, inputs, length, reverse)
    return carry, tuple(joined(column) for column in zip(*parts, strict=True))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Outputs of consecutive steps, each (B, n, ...) -> (B, T, ...)."""
    return torch.cat(list(parts), 1) if len(parts) > 1 else parts[0]


def in_parts(step: Step, carry: Any, inputs: Tensors, length: int, reverse: bool = False) -> tuple[Any, list[Tensors]]:
    """As :func:`scan`, its outputs of one or more consecutive steps each, (B, n, ...), in the order of time."""
    device = regions_device()
    if device is None:
        carry, single = one_by_one(step, carry, inputs, length, reverse)
        return carry, [tuple(value.unsqueeze(1) for value in output) for output in single]
    alone, together = divided(length, len(inputs[0]) if inputs else None)
    sizes = [alone] * (alone > 0) + [together] * ((length - alone) // together)
    parts = [tensor[:, :length].split(sizes[::-1] if reverse else sizes, 1) for tensor in inputs]
    compiled = by_itself(unrolled, device, getattr(step, "__code__", None))  # a partial has none
    outputs: list[Tensors] = []
    for n, size in enumerate(sizes):
        run = unrolled if alone and n == 0 else compiled
        carry, output = run(step, carry, tuple(each[-1 - n if reverse else n] for each in parts), size, reverse)
        outputs.append(output)
    return carry, outputs[::-1] if reverse else outputs


def unrolled(step: Step, carry: Any, inputs: Tensors, length: int, reverse: bool) -> tuple[Any, Tensors]:
    """What :func:`scan` does, as it is."""
    carry, outputs = one_by_one(step, carry, inputs, length, reverse)
    return carry, tuple(joined([value.unsqueeze(1) for value in column]) for column in zip(*outputs, strict=True))


def one_by_one(step: Step, carry: Any, inputs: Tensors, length: int, reverse: bool) -> tuple[Any, list[Tensors]]:
    """The outputs of every step, each (B, ...), in the order of time."""
    slices = [tensor.unbind(1) for tensor in inputs]
    outputs: list[Tensors] = []
    for t in reversed(range(length)) if reverse else range(length):
        carry, output = step(carry, tuple(each[t] for each in slices))
        outputs.append(output)
    return carry, outputs[::-1] if reverse else outputs


def divided(length: int, rows: int | None) -> tuple[int, int]:
    """How many steps at the beginning run as they are, and how many of the others are compiled as one.

    Steps of few rows take no longer than it takes to ask for them. The first one is not compiled with others: it goes
    on from a state that asks for no gradient, those after it from states that do, and would be a program of its own.

    Imagined steps, to which nothing is given (`rows` is None), have many rows: to ask for them is a hundredth of an
    update. Where several threads share the rest it is a twentieth, and worth the half minute more that it takes to
    compile five as one.
    """
    if rows is None and not on_one_thread():
        return 0, next(size for size in IMAGINED if length % size == 0)
    if rows is None or rows > FEW or length <= min(TOGETHER):
        return 0, 1
    together = min(TOGETHER, key=lambda size: (length - 1) % size)
    return 1 + (length - 1) % together, together
