"""Nested state on disk, such as an optimiser's: tensors and numbers, read back without executing anything."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from worldmodel.envs import EnvironmentFault
from worldmodel.training.run.weights import write_bytes_atomic

TREE = "tree"  # the entry of the file's metadata that holds everything but tensors
TENSOR, ARRAY, ITEMS = "__tensor__", "__array__", "__items__"  # mark what JSON has no word for


def save_tree(path: Path, tree: Any) -> None:
    """Write nested mappings and lists of tensors, arrays, numbers, strings and None, atomically.

    Raises:
        TypeError: for a leaf of another kind.
    """
    tensors: dict[str, Tensor] = {}

    def kept(value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            name = str(len(tensors))
            own = torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
            tensors[name] = own
            return {TENSOR if isinstance(value, Tensor) else ARRAY: name}
        if isinstance(value, Mapping):  # as pairs: an optimiser's keys are numbers
            return {ITEMS: [[key, kept(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [kept(item) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"cannot write a {type(value).__name__}: {value!r}")

    described = json.dumps(kept(tree))
    write_bytes_atomic(path, save(tensors, {TREE: described}))


def load_tree(path: Path) -> Any:
    """Read back what :func:`save_tree` wrote; tuples have become lists.

    Raises:
        ValueError: if it is another file, or cut short.
    """
    try:
        with safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {})[TREE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, LookupError, OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable training state, or cut short: {error}") from error

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == ITEMS:
            return {key: found(item) for key, item in content}
        return tensors[content] if kind == TENSOR else tensors[content].numpy()

    try:
        return found(described)
    except (LookupError, ValueError, TypeError) as error:  # a marker before what it does not mark
        raise ValueError(f"{path}: not a readable training state: {error!r}") from error


def shaped(like: Any, tree: Any) -> Any:
    """What was read back as lists, as the named tuples that `like` is made of, its tensors on their devices."""
    if isinstance(like, Tensor):
        return tree.to(like.device)
    if isinstance(like, tuple):
        parts = [shaped(part, item) for part, item in zip(like, tree, strict=True)]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return tree


@contextmanager
def fitting_state(file: Path) -> Iterator[None]:
    """While what a file holds is put into the parts of a run.

    Raises:
        ValueError: naming the file, for anything missing in it, or of another kind or shape than the parts have.
    """
    try:
        yield
    except EnvironmentFault:  # of an episode that is taken up again
        raise
    except (LookupError, TypeError, AttributeError, RuntimeError, AssertionError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{file} is no training state of this run: {reason}") from error
