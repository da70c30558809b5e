"""Nested state on disk, such as that of an optimizer: tensors and numbers. Reading it back executes no code."""

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

TREE_KEY = "tree"  # the entry of the file's metadata that holds everything but tensors
TENSOR_MARK, ARRAY_MARK, ITEMS_MARK = "__tensor__", "__array__", "__items__"  # keys that mark types JSON lacks


def save_tree(path: Path, tree: Any) -> None:
    """Write nested mappings and lists of tensors, arrays, numbers, strings and None, atomically.

    Raises:
        TypeError: for a leaf of another type.
    """
    tensors: dict[str, Tensor] = {}

    def kept(value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            name = str(len(tensors))
            own = torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
            tensors[name] = own
            return {TENSOR_MARK if isinstance(value, Tensor) else ARRAY_MARK: name}
        if isinstance(value, Mapping):  # as pairs, since the keys of an optimizer's state are numbers
            return {ITEMS_MARK: [[key, kept(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [kept(item) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"cannot write a {type(value).__name__}: {value!r}.")

    described = json.dumps(kept(tree))
    write_bytes_atomic(path, save(tensors, {TREE_KEY: described}))


def load_tree(path: Path) -> Any:
    """Read back what :func:`save_tree` wrote. Tuples become lists.

    Raises:
        ValueError: if the file is of another kind, or incomplete.
    """
    try:
        with safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {})[TREE_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - `file` is not a mapping
    except (SafetensorError, LookupError, OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable training state, or incomplete: {error}") from error

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == ITEMS_MARK:
            return {key: found(item) for key, item in content}
        return tensors[content] if kind == TENSOR_MARK else tensors[content].numpy()

    try:
        return found(described)
    except (LookupError, ValueError, TypeError) as error:  # a mark whose content does not fit it
        raise ValueError(f"{path}: not a readable training state: {error!r}") from error


def shaped(like: Any, tree: Any) -> Any:
    """Return `tree` with its lists turned into the named tuples of `like`, and its tensors on the same devices."""
    if isinstance(like, Tensor):
        return tree.to(like.device)
    if isinstance(like, tuple):
        parts = [shaped(part, item) for part, item in zip(like, tree, strict=True)]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return tree


@contextmanager
def fitting_state(file: Path) -> Iterator[None]:
    """Turn errors in the body, which puts the content of `file` into the parts of a run, into one that names the file.

    Raises:
        ValueError: if something is missing in the file, or has another type or shape than the parts of the run.
    """
    try:
        yield
    except EnvironmentFault:  # of an episode that is being continued
        raise
    except (LookupError, TypeError, AttributeError, RuntimeError, AssertionError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{file} is not a training state of this run: {reason}") from error
