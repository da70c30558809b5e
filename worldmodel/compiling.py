"""`torch.compile`, with a clear error where there is nothing to compile with."""

import os
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

COMPILERS = ("g++", "clang++", "cl")


def compiled(function: Callable[..., T], key: str, **options: Any) -> Callable[..., T]:
    """The function, to be compiled when it is first called.

    Args:
        key: of the config, for the message. options: of `torch.compile`.
    Raises:
        ValueError: if no C++ compiler is found, which torch would find out much later.
    """
    known = (os.environ.get("CXX", ""), *COMPILERS)
    if not any(name and shutil.which(name) for name in known):
        raise ValueError(
            f"{key} needs a C++ compiler, and none of {', '.join(COMPILERS)} is found: install one (on Debian and "
            "Ubuntu: apt install g++), name it in the environment variable CXX, or leave the key out"
        )
    return torch.compile(function, **options)
