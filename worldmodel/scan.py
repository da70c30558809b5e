"""The only loop over time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Step = Callable[[Any, Tensors], tuple[Any, Tensors]]

COMPILES = ContextVar("COMPILES", default=False)


@contextmanager
def compiled_steps() -> Iterator[None]:
    """In here every scan compiles its step: a fraction of what it takes to compile a loop of so many."""
    token = COMPILES.set(True)
    try:
        yield
    finally:
        COMPILES.reset(token)


def compiles() -> bool:
    """Whether what a scan runs is compiled, by itself or with all that is around it."""
    return torch.compiler.is_compiling() or COMPILES.get()


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
    if not torch.compiler.is_compiling() and COMPILES.get():
        step = torch.compile(step, dynamic=False)  # what was compiled before is found by the code of the step
    length = inputs[0].shape[1] if length is None else length
    slices = [tensor.unbind(1) for tensor in inputs]
    outputs: list[Tensors] = []
    for t in reversed(range(length)) if reverse else range(length):
        carry, output = step(carry, tuple(each[t] for each in slices))
        outputs.append(output)
    if reverse:
        outputs.reverse()
    return carry, tuple(torch.stack(column, 1) for column in zip(*outputs, strict=True))
