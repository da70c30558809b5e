"""`torch.compile`: with a clear error where there is nothing to compile with, and where it pays."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import CodeType, FunctionType
from typing import Any, Literal, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

COMPILERS = ("g++", "clang++", "cl")
STEPS, WHOLE = 2_000, 20_000  # updates on a GPU from which compiled steps, and a compiled update, should pay
SAVED, BUILDING = 0.1, 180.0  # on a CPU: the share of an update that compiled parts save at least, seconds to build
READS = 8  # of what a number is computed from, up to which it is rather computed again than written and read
DECISIONS = 100_000  # that save half a millisecond each: twice the time that compiling takes


Learning = Literal["off", "step", "update"]
Acting = Literal["eager", "compiled"]


def has_compiler() -> bool:
    """Whether a C++ compiler is found, in the environment variable CXX or by its name."""
    return any(name and shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS))


def check_compiler(key: str) -> None:
    """Refuse at once what torch would refuse much later.

    Raises:
        ValueError: naming the key of the config, if no C++ compiler is found.
    """
    if not has_compiler():
        raise ValueError(
            f"{key} needs a C++ compiler, and none of {', '.join(COMPILERS)} is found: install one (on Debian and "
            "Ubuntu: apt install g++), name it in the environment variable CXX, or leave the key out"
        )


def compiled(function: Callable[..., T], key: str, **options: Any) -> Callable[..., T]:
    """The function, to be compiled when it is first called.

    Args:
        key: of the config, for the message. options: of `torch.compile`.
    Raises:
        ValueError: if no C++ compiler is found.
    """
    check_compiler(key)
    _keep_exact_gradients()
    return torch.compile(function, **options)


def _keep_exact_gradients() -> None:
    """A compiled backward pass is not in the autocast around its region, as an eager one is not.

    Torch 2.13 would trace it in that, and round the gradients of what :func:`worldmodel.kernels.precision.exact` left
    alone.
    """
    from torch._functorch import config as functorch  # torch's compiler takes as long to import as torch itself

    if hasattr(functorch, "backward_pass_autocast"):
        functorch.backward_pass_autocast = "off"


REGIONS: ContextVar[str | None] = ContextVar("REGIONS", default=None)
"""The type of the device that regions are compiled for, where they are."""
MADE: dict[tuple[Callable[..., Any], CodeType | None, str], Callable[..., Any]] = {}
"""What was compiled by itself, by function, kind and device: to ask torch.compile takes milliseconds each time."""


@contextmanager
def compiled_regions(device: str) -> Iterator[None]:
    """In here every :func:`region` is compiled by itself, and the step of every loop over time.

    A whole update unrolls its loops and takes many minutes to compile; these take two to six together.
    """
    token = REGIONS.set(device)
    try:
        yield
    finally:
        REGIONS.reset(token)


def regions_device() -> str | None:
    """The type of the device that regions are compiled for; none where they are not, or all around them is."""
    return None if torch.compiler.is_compiling() else REGIONS.get()


def by_itself(function: Callable[P, T], device: str, kind: CodeType | None = None) -> Callable[P, T]:
    """The function, compiled for a type of device.

    On a CPU random numbers are torch's own, the same as without: those of its compiler take several times as long. And
    what calls the compiled operators is C++ there: from Python a call takes some microseconds.

    Args:
        kind: code that the function, which closes over nothing, is given and runs. Torch finds what it compiled by the
            code of a function, and compiles at most eight variants of one: for each kind, it gets code of its own.
    """
    key = (function, kind, device)
    if key not in MADE:
        _keep_exact_gradients()
        options: dict[str, Any] = {}
        if device == "cpu":
            from worldmodel.kernels.products import PRODUCTS  # as above

            options = {"fallback_random": True, "post_grad_custom_post_pass": PRODUCTS, "cpp_wrapper": True}
            options["realize_reads_threshold"] = READS
        if kind is not None:
            code = function.__code__.replace(co_name=f"{function.__name__}_{kind.co_name}_{len(MADE)}")
            function = FunctionType(code, function.__globals__)
        MADE[key] = torch.compile(function, dynamic=False, options=options)
    return MADE[key]


def on_one_thread() -> bool:
    """Whether torch computes on one thread. What is compiled may ask: for another number it is compiled anew."""
    return torch.get_num_threads() == 1


# What `torch.compiler.assume_constant_result` does, which imports torch's compiler for it.
on_one_thread._dynamo_marked_constant = True  # type: ignore[attr-defined]


def region(function: Callable[P, T]) -> Callable[P, T]:
    """A function in which no loop over time runs, compiled :func:`by_itself` inside :func:`compiled_regions`.

    It must not change what it reads, nor may anyone before the gradient is taken: a compiled backward pass may compute
    again what the forward pass has, from what there is by then (torch 2.13 does, pull request 197039 is to end it).
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        device = regions_device()
        return (function if device is None else by_itself(function, device))(*args, **kwargs)

    return called


def choose_learning(device: str, updates: float, seconds: float) -> tuple[Learning, str]:
    """What `auto` stands for in a run of so many updates, each of about so many seconds on a CPU, and why."""
    if not has_compiler():
        return ("off", "there is no C++ compiler")
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        return ("off", f"nobody has measured what it brings on {kind}")
    if kind == "cpu":
        if updates * seconds * SAVED < BUILDING:
            return ("off", f"{updates:,.0f} updates of this size do not pay for it on a CPU")
        return ("step", f"{updates:,.0f} updates of this size pay for the minutes that it takes")
    if updates < STEPS:
        return ("off", f"{updates:,.0f} updates do not pay for it")
    if updates < WHOLE:
        return ("step", f"{updates:,.0f} updates pay for two steps, not for a whole update")
    return ("update", f"{updates:,.0f} updates pay for the minutes that it takes")


def choose_acting(decisions: float) -> tuple[Acting, str]:
    """What `auto` stands for in a run of so many decisions, and why."""
    if not has_compiler():
        return ("eager", "there is no C++ compiler")
    if decisions < DECISIONS:
        return ("eager", f"{decisions:,.0f} decisions do not pay for the half minute that it takes")
    return ("compiled", f"{decisions:,.0f} decisions pay for the half minute that it takes")
