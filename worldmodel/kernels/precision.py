"""Products in half the precision, what must not be formed in it, and what needs twice as much."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Literal, ParamSpec, TypeVar, get_args

import torch

P = ParamSpec("P")
T = TypeVar("T")

Precision = Literal["float32", "bfloat16"]
PRECISIONS = get_args(Precision)
KINDS = ("cpu", "cuda", "mps", "xpu")


def products_in(precision: Precision, device: str, keep: bool = False) -> AbstractContextManager[object]:
    """In here matrix products and convolutions on that type of device have factors of this precision.

    Weights stay what they are, and each product casts them anew: of those that autocast keeps, the gradients of all
    steps are added in bfloat16, which over 64 steps of a recurrent layer doubles their error.

    Args:
        keep: the cast weights all the same, where they have no gradient.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device, torch.bfloat16, cache_enabled=keep)


def doubled(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in double precision, on the CPU: not every device has it."""
    return x.to("cpu").to(torch.float64)


def exact(function: Callable[P, T]) -> Callable[P, T]:
    """A function that forms its products in the precision of their factors: closed forms, that networks feed."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        for kind in KINDS:
            if torch.is_autocast_enabled(kind):
                with torch.autocast(kind, enabled=False):
                    return function(*args, **kwargs)
        return function(*args, **kwargs)

    return called
