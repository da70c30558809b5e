"""`torch.compile`: with a clear error where there is nothing to compile with, and where it pays."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")

COMPILERS = ("g++", "clang++", "cl")
STEPS, WHOLE = 2_000, 20_000  # updates on a GPU from which compiled steps, and a compiled update, should pay
SAVED, BUILDING = 0.1, 180.0  # on a CPU: the share of an update that compiled parts save at least, seconds to build
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
    """Return the function, to be compiled when it is first called.

    Args:
        key: The key of the config that asks for it, for the message.
        options: Of `torch.compile`.
    Raises:
        ValueError: If no C++ compiler is found.
    """
    check_compiler(key)
    return torch.compile(function, **options) if _keep_exact_gradients() else function


def _keep_exact_gradients() -> bool:
    """Keep a compiled backward pass out of the autocast around its forward pass, as an eager one is.

    Torch 2.13 would trace it inside that autocast and round the gradients that
    :func:`worldmodel.kernels.precision.exact` keeps exact. The switch is a private part of torch.

    Returns:
        Whether the switch exists. Without it nothing is compiled, and a warning says so.
    """
    try:
        from torch._functorch import config  # imported here: torch's compiler takes as long to import as torch itself

        config.backward_pass_autocast = "off"
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"torch {torch.__version__} cannot keep gradients exact under compilation ({error}), so that nothing is "
            "compiled. Set learner.compile to off to silence this warning",
            stacklevel=2,
        )
        return False
    return True


MADE: dict[tuple[Callable[..., Any], str], Callable[..., Any]] = {}
"""Every compiled function, by the function and the type of device. A call of torch.compile takes milliseconds."""


@contextmanager
def compiled_methods(methods: Iterable[tuple[object, str]], device: str) -> Iterator[None]:
    """Replace methods by compiled ones, each compiled by itself, until the block ends.

    A whole update unrolls its loops over time and takes many minutes to compile. Its parts take two to six together.
    A method must not change what it reads before the gradient is taken: a compiled backward pass may compute again
    what the forward pass computed (torch 2.13 does; pull request 197039 is to end it).

    Args:
        methods: Pairs of an object and the name of one of its methods.
        device: The type of the device that they run on.
    """
    replaced: list[tuple[object, str]] = []
    try:
        for owner, name in methods:
            if name not in vars(owner):  # else it is named twice
                setattr(owner, name, partial(_compiled(getattr(type(owner), name), device), owner))
                replaced.append((owner, name))
        yield
    finally:
        for owner, name in replaced:
            delattr(owner, name)


def _compiled(function: Callable[..., T], device: str) -> Callable[..., T]:
    """Compile a function for a type of device, once.

    On a CPU, random numbers are drawn by torch itself, so that they are the same as without compilation. Torch's
    compiler would draw others, and take several times as long. `cpp_wrapper` calls the compiled operators from C++: a
    call from Python takes some microseconds, a tenth of an update of a small model.
    """
    if (function, device) not in MADE:
        options: dict[str, Any] = {"fallback_random": True, "cpp_wrapper": True} if device == "cpu" else {}
        exact = _keep_exact_gradients()
        MADE[function, device] = torch.compile(function, dynamic=False, options=options) if exact else function
    return MADE[function, device]


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
