"""Checks that refuse sizes beyond the machine before the work begins. A later failed allocation ends the process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

LAYERS, HORIZON, CANDIDATES, MEMBERS, THREADS = 100, 10_000, 1_000_000, 1_000, 1_024
"""Upper limits for values of a config. They are far beyond normal use, so that they only catch typing errors."""

PER_PARAMETER = 16  # bytes: the weight, its gradient and the two moments of the optimizer, each in float32
CONTAINER = Path("/sys/fs/cgroup/memory.max")


def at_most(config: Any, **limits: int) -> None:
    """Check that numbers of a config do not exceed these limits. A value of None is not checked.

    Raises:
        ValueError: if one does. The message names the first.
    """
    for name, limit in limits.items():
        value = getattr(config, name)
        if value is not None and value > limit:
            raise ValueError(f"{name} must be at most {limit:,}, but it is {value:,}")


def memory() -> int | None:
    """Return the bytes of memory that this process may use, or None if the system does not say.

    This is the smallest of the memory of the machine and the limits of the container and the shell.
    """
    try:
        own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # for example on Windows
        return None
    limit = CONTAINER.read_text().strip() if CONTAINER.is_file() else "max"
    return min([own, *([int(limit)] if limit.isdigit() else []), *address_limits()])


def address_limits() -> list[int]:
    """Return the limits on the address space of this process in bytes, such as `ulimit -v`. There may be none."""
    try:
        import resource  # Windows does not have it
    except ImportError:
        return []
    limits = [resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Check that something fits into the memory.

    Args:
        needed: the number of bytes that it takes.
        what: its name in the plural, the beginning of the message. remedy: advice, the end of the message.
    Raises:
        ValueError: if it needs more memory than there is.
    """
    there = memory()
    if there is not None and needed > there:
        raise ValueError(
            f"{what} take at least {needed / 1e9:,.1f} GB, but the memory has only {there / 1e9:,.1f} GB: {remedy}"
        )


def outlined(build: Callable[[], M], what: str) -> M:
    """Build a module on the meta device, without memory for its parameters. Only its sizes can be used.

    Args:
        build: returns the module. what: its name in the message.
    Raises:
        ValueError: if training its parameters needs more memory than there is.
    """
    try:
        with torch.device("meta"):
            module = build()
    except (RuntimeError, OverflowError, TypeError, MemoryError) as error:  # from torch, for sizes beyond 64 bits
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what} cannot have these sizes: {reason}") from error
    count = sum(parameter.numel() for parameter in module.parameters())
    check_memory(
        count * PER_PARAMETER,
        f"the {count:,} parameters of {what}, their gradients and the optimizer",
        "choose smaller sizes",
    )
    return module
