"""What no machine could serve is refused before it is begun: an allocation that fails later ends the process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

LAYERS, HORIZON, CANDIDATES, MEMBERS, THREADS = 100, 10_000, 1_000_000, 1_000, 1_024
"""The most of each that a config may ask for: far beyond use, so that a slip of the keyboard is told apart from it."""

PER_PARAMETER = 16  # bytes: float32 of the weight, its gradient and the two moments of the optimiser
CONTAINER = Path("/sys/fs/cgroup/memory.max")


def at_most(config: Any, **limits: int) -> None:
    """Refuse numbers of a config above these limits, by name; None is no number.

    Raises:
        ValueError: naming the first.
    """
    for name, limit in limits.items():
        value = getattr(config, name)
        if value is not None and value > limit:
            raise ValueError(f"{name} must be at most {limit:,}: {value:,}")


def memory() -> int | None:
    """Bytes of memory of this machine, or that the container or the shell allow; None where the system does not say."""
    try:
        own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
    limit = CONTAINER.read_text().strip() if CONTAINER.is_file() else "max"
    return min([own, *([int(limit)] if limit.isdigit() else []), *address_limits()])


def address_limits() -> list[int]:
    """Bytes of addresses that this process may use, as `ulimit -v` sets it; empty without a limit."""
    try:
        import resource  # there is none on Windows
    except ImportError:
        return []
    limits = [resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Refuse what takes more bytes than the machine has.

    Args:
        what: takes them, as the beginning of a sentence. remedy: its end.
    Raises:
        ValueError: with both numbers.
    """
    there = memory()
    if there is not None and needed > there:
        raise ValueError(
            f"{what} take {needed / 1e9:,.1f} GB at least, and the memory has {there / 1e9:,.1f} GB: {remedy}"
        )


def outlined(build: Callable[[], M], what: str) -> M:
    """What `build` builds, without memory for its parameters: to be asked for sizes, and for nothing else.

    Args:
        what: is built, for the message.
    Raises:
        ValueError: if its parameters, with all that training them takes, do not fit into the memory.
    """
    try:
        with torch.device("meta"):
            module = build()
    except (RuntimeError, OverflowError, TypeError, MemoryError) as error:  # of torch, for more than 64 bits count
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what} cannot have these sizes: {reason}") from error
    count = sum(parameter.numel() for parameter in module.parameters())
    check_memory(
        count * PER_PARAMETER,
        f"the {count:,} parameters of {what} and what training them needs",
        "choose smaller sizes",
    )
    return module
