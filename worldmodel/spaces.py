"""What an observation key and an action look like to a model: shapes, classes and bounds, without Gymnasium."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class ObservationSpec:
    """One observation key: a real vector, discrete variables where it has `classes`, or an image.

    Args:
        shape: shape of one observation as the environment returns it; of an image (H, W, C).
        classes: categories of each discrete variable, flattened; empty for a real vector and an image.
        start: the smallest value of each discrete variable (Gymnasium's `Discrete(n, start=s)`).
        image: whether it holds pixels from 0 to 255.
    """

    shape: tuple[int, ...]
    classes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    image: bool = False

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
        """(n, *shape) as the environment gives it -> (n, width) as the replay and the model take it."""
        flat = np.asarray(values).reshape(len(values), -1)
        if self.classes:
            return flat.astype(np.int64) - np.asarray(self.start or 0, np.int64)
        return flat.astype(self.dtype)


@dataclass(frozen=True)
class ActionSpec:
    """The action. A control vector u is the action in [-1, 1]^A, or the concatenated one-hot codes of its variables.

    Args:
        shape: shape of one action as the environment takes it.
        classes: categories of each discrete variable, flattened; empty for a continuous action.
        start: the smallest value of each discrete variable.
        low, high: bounds of each entry of a continuous action, flattened, in the environment's units.
    """

    shape: tuple[int, ...]
    classes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """A, the width of a control vector."""
        return sum(self.classes) or int(np.prod(self.shape))

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Environment actions (n, *shape) -> controls (n, A), clipped to the bounds as environments do."""
        flat = np.asarray(actions).reshape(len(actions), -1)
        if self.classes:
            index = flat.astype(np.int64) - np.asarray(self.start or 0, np.int64)
            return np.concatenate([np.eye(n, dtype=np.float32)[index[:, g]] for g, n in enumerate(self.classes)], -1)
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        return np.clip(2 * (flat.astype(np.float32) - low) / (high - low) - 1, -1, 1)

    def decode(self, controls: np.ndarray) -> np.ndarray:
        """Controls (n, A) -> environment actions (n, *shape). Inverse of :meth:`encode`."""
        if self.classes:
            groups = np.split(controls, np.cumsum(self.classes)[:-1], -1)
            index = np.stack([group.argmax(-1) for group in groups], -1) + np.asarray(self.start or 0, np.int64)
            return index.reshape(len(controls), *self.shape)
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        actions = low + (np.clip(controls, -1, 1) + 1) / 2 * (high - low)
        return np.clip(actions, low, high).astype(np.float32).reshape(len(controls), *self.shape)


ObservationSpecs = Mapping[str, ObservationSpec]

OBSERVATION = "observation"
"""The key of an observation that is not a dictionary."""

STATE = "state/"
"""Before the keys of what an environment gives away of its state: recorded for diagnosis, never shown to a model."""


def observed(named: Mapping[str, T]) -> dict[str, T]:
    """Those of the keys that a model may see."""
    return {key: value for key, value in named.items() if not key.startswith(STATE)}


def encode_observation(specs: ObservationSpecs, observation: object) -> dict[str, np.ndarray]:
    """A batched environment observation, array or dictionary -> {key: (n, width)}."""
    named = observation if isinstance(observation, Mapping) else {OBSERVATION: observation}
    return {key: spec.encode(np.asarray(named[key])) for key, spec in specs.items()}
