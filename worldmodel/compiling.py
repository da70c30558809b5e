"""`torch.compile`: with a clear error where there is nothing to compile with, and where it pays."""

import os
import shutil
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")

COMPILERS = ("g++", "clang++", "cl")
STEPS, WHOLE = 2_000, 20_000  # updates on a GPU from which compiled steps, and a compiled update, should pay
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
    return torch.compile(function, **options)


def choose_learning(device: str, updates: float) -> tuple[Learning, str]:
    """What `auto` stands for in a run of so many updates, and why."""
    if torch.device(device).type != "cuda":
        return ("off", "a compiled update is no faster on a CPU")
    if not has_compiler():
        return ("off", "there is no C++ compiler")
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
