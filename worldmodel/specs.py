"""What an observation key and an action look like to a model: shapes, classes and bounds, without Gymnasium."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from worldmodel.digits import less

T = TypeVar("T")


@dataclass(frozen=True)
class ObservationSpec:
    """One observation key: a real vector, discrete variables where it has `classes`, or an image.

    Args:
        shape: shape of one observation as the environment returns it; of an image (H, W, C).
        classes: categories of each discrete variable, flattened; empty for a real vector and an image.
        start: the smallest value of each discrete variable (Gymnasium's `Discrete(n, start=s)`); 0 where empty.
        image: whether it holds pixels from 0 to 255.
        names: of each entry of a real vector, as the columns of a table have them; empty where they have none.
        offset: subtracted from each entry of a real vector before it is stored in single precision; 0 where empty.
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
                raise ValueError(f"names and offset are of each of the {self.width} entries of a vector: {of_each}")
        if not self.width:
            raise ValueError(f"an observation has one number at least: {self.shape}")
        if self.image and (len(self.shape) != 3 or self.classes):
            raise ValueError(f"an image has the shape (H, W, C) and no classes, got {self.shape} and {self.classes}")

    @property
    def width(self) -> int:
        """Numbers per stored observation: vector entries, pixels, or one index per discrete variable."""
        return len(self.classes) or int(np.prod(self.shape))

    @property
    def binary(self) -> bool:
        """Whether every variable is on or off."""
        return bool(self.classes) and set(self.classes) == {2}

    @property
    def dtype(self) -> np.dtype:
        """Of a stored observation."""
        return np.dtype(np.uint8 if self.image else np.int64 if self.classes else np.float32)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """(n, *shape) as the environment gives it -> (n, width) as the replay and the model take it.

        Values are taken as they are, see :meth:`valid`.

        Raises:
            ValueError: for an image of floats.
        """
        flat = np.asarray(values).reshape(len(values), -1)
        if self.classes:
            return _indices(flat, self.start)
        if self.image and flat.dtype.kind == "f":
            raise ValueError(f"an image is recorded as pixels from 0 to 255, not as {flat.dtype}: scale and round it")
        return flat.astype(self.dtype) if self.image else less(flat, self.offset)

    def labels(self, key: str) -> list[str]:
        """What each entry is called where it is shown as it is stored: its name, or the key with its index."""
        alone = self.width == 1
        names = self.names or tuple(key if alone else f"{key}[{entry}]" for entry in range(self.width))
        return [
            f"{name} {-by:+.10g}" if by else name
            for name, by in zip(names, self.offset or [0.0] * len(names), strict=True)
        ]

    def valid(self, rows: np.ndarray) -> np.ndarray:
        """Encoded (n, width) -> (n,) bool: whether all classes are among those there are, all numbers finite."""
        return np.all(_among(rows, self.classes) if self.classes else np.isfinite(rows), axis=-1)


@dataclass(frozen=True)
class ActionSpec:
    """The action; of no width where there is none.

    A control vector u is the action in [-1, 1]^A, or the concatenated one-hot codes of its variables.

    Args:
        shape: shape of one action as the environment takes it.
        classes: categories of each discrete variable, flattened; empty for a continuous action.
        start: the smallest value of each discrete variable; 0 where empty.
        low, high: bounds of each entry of a continuous action, flattened, in the environment's units; -1 and 1 where
            empty.
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
            raise ValueError(f"low and high are of each entry of a continuous action {self.shape}: {self}")
        with np.errstate(over="ignore"):
            apart = np.asarray(self.high, np.float32) - np.asarray(self.low, np.float32)
        if not ((apart > 0) & np.isfinite(apart)).all():
            raise ValueError(f"low must be below high, both finite in single precision: {self.low}, {self.high}")

    @property
    def width(self) -> int:
        """A, the width of a control vector."""
        return sum(self.classes) or int(np.prod(self.shape))

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Environment actions (n, *shape) -> controls (n, A), clipped to the bounds as environments do.

        Raises:
            ValueError: for a discrete action that there is not.
        """
        flat = np.asarray(actions).reshape(len(actions), -1)
        if self.classes:
            index = _indices(flat, self.start)
            known = _among(index, self.classes).all(-1)
            if not known.all():
                raise ValueError(f"{flat[~known][0]} is no action: {self}")
            codes = np.zeros((len(index), self.width), np.float32)
            first = np.cumsum(np.asarray((0, *self.classes[:-1]), np.int64))  # where the code of each variable begins
            np.put_along_axis(codes, index + first, 1.0, -1)
            return codes
        low, high = self._bounds
        return np.clip(2 * (flat.astype(np.float32) - low) / (high - low) - 1, -1, 1)

    def decode(self, controls: np.ndarray) -> np.ndarray:
        """Controls (n, A) -> environment actions (n, *shape). Inverse of :meth:`encode`."""
        if self.classes:
            groups = np.split(controls, np.cumsum(self.classes)[:-1], -1)
            index = np.stack([group.argmax(-1) for group in groups], -1) + np.asarray(self.start or 0, np.int64)
            return index.reshape(len(controls), *self.shape)
        low, high = self._bounds
        actions = low + (np.clip(controls, -1, 1) + 1) / 2 * (high - low)
        return np.clip(actions, low, high).astype(np.float32).reshape(len(controls), *self.shape)

    @property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each entry of a continuous action, (A,) each."""
        ones = (1.0,) * self.width
        return np.asarray(self.low or np.negative(ones), np.float32), np.asarray(self.high or ones, np.float32)


def _check_sizes(shape: tuple[int, ...], classes: tuple[int, ...], start: tuple[int, ...]) -> None:
    if min(shape, default=0) < 0 or min(classes, default=1) < 1:
        raise ValueError(f"shape must not be negative, classes at least 1: {shape}, {classes}")
    if classes and len(classes) != math.prod(shape):
        raise ValueError(f"classes {classes} are of each of the {math.prod(shape)} variables of the shape {shape}")
    if start and len(start) != len(classes):
        raise ValueError(f"start {start} is of each discrete variable, of which there are {len(classes)}")


def _indices(values: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
    """Discrete values (n, G) from `start` on -> from 0 on."""
    return values.astype(np.int64) - np.asarray(start or 0, np.int64)


def _among(index: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """(n, G) -> bool: whether there is such a class."""
    return (index >= 0) & (index < np.asarray(classes))


ObservationSpecs = Mapping[str, ObservationSpec]

OBSERVATION = "observation"
"""The key of an observation that is not a dictionary."""

STATE = "state/"
"""Before the keys of what an environment gives away of its state: recorded for diagnosis, never shown to a model."""


def observed(named: Mapping[str, T]) -> dict[str, T]:
    """Those of the keys that a model may see."""
    return {key: value for key, value in named.items() if not key.startswith(STATE)}


def keyed(specs: ObservationSpecs, observation: Any) -> Mapping[str, Any]:
    """An observation as a dictionary: a tuple that is none of a plain observation has the keys "0", "1", ..."""
    if isinstance(observation, dict | Mapping):
        return observation
    if isinstance(observation, tuple | list) and OBSERVATION not in specs:
        return {str(at): value for at, value in enumerate(observation)}
    return {OBSERVATION: observation}


def encode_observation(specs: ObservationSpecs, observation: object) -> dict[str, np.ndarray]:
    """A batched environment observation, array, dictionary or tuple -> {key: (n, width)}."""
    values = keyed(specs, observation)
    return {key: spec.encode(np.asarray(values[key])) for key, spec in specs.items()}
