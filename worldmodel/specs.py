"""Descriptions of observations and actions for a model: shapes, classes and bounds, without Gymnasium."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from worldmodel.digits import less

T = TypeVar("T")


@dataclass(frozen=True)
class ObservationSpec:
    """One observation key: a real vector, an image, or discrete variables if `classes` is not empty.

    Args:
        shape: the shape of one observation as the environment returns it; (H, W, C) for an image.
        classes: the number of classes of each discrete variable, flattened. Empty for a real vector and an image.
        start: the smallest value of each discrete variable, as in Gymnasium's `Discrete(n, start=s)`. If it is empty,
            all are 0.
        image: whether the observation holds pixels from 0 to 255.
        names: the name of each entry of a real vector, such as the columns of a table. Empty if there are none.
        offset: the numbers that are subtracted from the entries of a real vector before they are stored in single
            precision. If it is empty, all are 0.
    Raises:
        ValueError: if these do not fit each other.
    """

    shape: tuple[int, ...]
    classes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    image: bool = False
    names: tuple[str, ...] = ()
    offset: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_sizes(self.shape, self.classes, self.start)
        for of_each in (self.names, self.offset):
            if of_each and (self.classes or self.image or len(of_each) != self.width):
                raise ValueError(
                    f"names and offset need one value for each of the {self.width} entries of a real vector, but one "
                    f"of them is {of_each}"
                )
        if not self.width:
            raise ValueError(f"an observation of shape {self.shape} is empty. It needs at least one number.")
        if self.image and (len(self.shape) != 3 or self.classes):
            raise ValueError(
                f"an image must have the shape (H, W, C) and no classes, but its shape is {self.shape} and its classes "
                f"are {self.classes}"
            )

    @property
    def width(self) -> int:
        """The number of numbers in a stored observation: entries, pixels, or one index for each discrete variable."""
        return len(self.classes) or int(np.prod(self.shape))

    @property
    def binary(self) -> bool:
        """Whether all variables are discrete and have two classes."""
        return bool(self.classes) and set(self.classes) == {2}

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers of a stored observation."""
        return np.dtype(np.uint8 if self.image else np.int64 if self.classes else np.float32)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Convert observations (n, *shape) of the environment to the form (n, width) of the replay and the model.

        The values are not checked; see :meth:`valid`.

        Raises:
            ValueError: if an image holds floating-point numbers.
        """
        flat = np.asarray(values).reshape(len(values), -1)
        if self.classes:
            return _indices(flat, self.start)
        if self.image and flat.dtype.kind == "f":
            raise ValueError(
                f"an image must hold whole pixels from 0 to 255, but its type is {flat.dtype}. Scale and round it."
            )
        return flat.astype(self.dtype) if self.image else less(flat, self.offset)

    def labels(self, key: str) -> list[str]:
        """Return the name of each stored entry for display: its own name, or the key with its index.

        An offset is part of the label, with the sign that turns the name into the stored number: "time -1700000000".
        """
        alone = self.width == 1
        names = self.names or tuple(key if alone else f"{key}[{entry}]" for entry in range(self.width))
        return [
            f"{name} {-by:+.10g}" if by else name
            for name, by in zip(names, self.offset or [0.0] * len(names), strict=True)
        ]

    def valid(self, rows: np.ndarray) -> np.ndarray:
        """Return for encoded rows (n, width) whether all classes exist and all numbers are finite: (n,) bool."""
        return np.all(_among(rows, self.classes) if self.classes else np.isfinite(rows), axis=-1)


@dataclass(frozen=True)
class ActionSpec:
    """The action of an environment. Its width is 0 if there are no actions.

    A model sees an action as a control vector u. For a continuous action, u is the action scaled to [-1, 1]^A. For a
    discrete one, it is the concatenation of the one-hot vectors of its variables.

    Args:
        shape: the shape of one action as the environment takes it.
        classes: the number of classes of each discrete variable, flattened. Empty for a continuous action.
        start: the smallest value of each discrete variable. If it is empty, all are 0.
        low, high: the bounds of each entry of a continuous action, flattened, in the units of the environment. If they
            are empty, they are -1 and 1.
    Raises:
        ValueError: if these do not fit each other, or the bounds are not finite.
    """

    shape: tuple[int, ...]
    classes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_sizes(self.shape, self.classes, self.start)
        if not self.low and not self.high:
            return
        if self.classes or not len(self.low) == len(self.high) == self.width:
            raise ValueError(f"low and high need one value for each entry of a continuous action: {self}")
        with np.errstate(over="ignore"):
            apart = np.asarray(self.high, np.float32) - np.asarray(self.low, np.float32)
        if not ((apart > 0) & np.isfinite(apart)).all():
            raise ValueError(
                f"low must be below high, and both must be finite in single precision, but low is {self.low} and high "
                f"is {self.high}"
            )

    @property
    def width(self) -> int:
        """The width A of a control vector."""
        return sum(self.classes) or int(np.prod(self.shape))

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Convert actions of the environment (n, *shape) to control vectors (n, A).

        Continuous actions are clipped to the bounds, as environments clip them.

        Raises:
            ValueError: if a discrete action does not exist.
        """
        flat = np.asarray(actions).reshape(len(actions), -1)
        if self.classes:
            index = _indices(flat, self.start)
            known = _among(index, self.classes).all(-1)
            if not known.all():
                raise ValueError(f"the action {flat[~known][0]} does not exist in {self}")
            codes = np.zeros((len(index), self.width), np.float32)
            first = np.cumsum(np.asarray((0, *self.classes[:-1]), np.int64))  # the first column of each variable
            np.put_along_axis(codes, index + first, 1.0, -1)
            return codes
        low, high = self._bounds
        return np.clip(2 * (flat.astype(np.float32) - low) / (high - low) - 1, -1, 1)

    def decode(self, controls: np.ndarray) -> np.ndarray:
        """Convert control vectors (n, A) to actions of the environment (n, *shape), the inverse of :meth:`encode`."""
        if self.classes:
            groups = np.split(controls, np.cumsum(self.classes)[:-1], -1)
            index = np.stack([group.argmax(-1) for group in groups], -1) + np.asarray(self.start or 0, np.int64)
            return index.reshape(len(controls), *self.shape)
        low, high = self._bounds
        actions = low + (np.clip(controls, -1, 1) + 1) / 2 * (high - low)
        return np.clip(actions, low, high).astype(np.float32).reshape(len(controls), *self.shape)

    @property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower and the upper bound of each entry of a continuous action: (A,) each."""
        ones = (1.0,) * self.width
        return np.asarray(self.low or np.negative(ones), np.float32), np.asarray(self.high or ones, np.float32)


def _check_sizes(shape: tuple[int, ...], classes: tuple[int, ...], start: tuple[int, ...]) -> None:
    if min(shape, default=0) < 0 or min(classes, default=1) < 1:
        raise ValueError(
            f"sizes must not be negative and classes must be at least 1, but shape is {shape} and classes is {classes}"
        )
    if classes and len(classes) != math.prod(shape):
        raise ValueError(
            f"classes is {classes}, but it needs one number for each of the {math.prod(shape)} variables of the shape "
            f"{shape}"
        )
    if start and len(start) != len(classes):
        raise ValueError(f"start is {start}, but it needs one number for each of the {len(classes)} discrete variables")


def _indices(values: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
    """Return discrete values (n, G) counted from 0 instead of from `start`."""
    return values.astype(np.int64) - np.asarray(start or 0, np.int64)


def _among(index: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Return whether each class index (n, G) exists."""
    return (index >= 0) & (index < np.asarray(classes))


ObservationSpecs = Mapping[str, ObservationSpec]

OBSERVATION = "observation"
"""The key of a plain observation, one that is neither a dictionary nor a tuple."""

STATE = "state/"
"""The prefix of keys that reveal the state of an environment. They are recorded for diagnosis; no model sees them."""


def observed(named: Mapping[str, T]) -> dict[str, T]:
    """Return the entries that a model may see."""
    return {key: value for key, value in named.items() if not key.startswith(STATE)}


def keyed(specs: ObservationSpecs, observation: Any) -> Mapping[str, Any]:
    """Return an observation as a dictionary. The entries of a tuple get the keys "0", "1", ..."""
    if isinstance(observation, dict | Mapping):
        return observation
    if isinstance(observation, tuple | list) and OBSERVATION not in specs:
        return {str(at): value for at, value in enumerate(observation)}
    return {OBSERVATION: observation}


def encode_observation(specs: ObservationSpecs, observation: object) -> dict[str, np.ndarray]:
    """Encode a batched observation of an environment, an array, dictionary or tuple: {key: (n, width)}."""
    values = keyed(specs, observation)
    return {key: spec.encode(np.asarray(values[key])) for key, spec in specs.items()}
