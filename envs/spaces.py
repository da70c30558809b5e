"""Gymnasium spaces -> what a model needs to know of them."""

from typing import Any

import numpy as np
from gymnasium import Space, spaces

from worldmodel.spaces import OBSERVATION, ActionSpec, ObservationSpec

SUPPORTED = "Box, Discrete, MultiDiscrete or MultiBinary"
SMALLEST_IMAGE = 16  # pixels a side: what is smaller, as the symbols of MiniGrid, is taken as a vector
CHANNELS = (1, 3, 4)  # grey, colour, and with transparency


def observation_specs(space: Space[Any]) -> dict[str, ObservationSpec]:
    """One spec per key of a Dict space, or one under `worldmodel.spaces.OBSERVATION` for any other.

    Raises:
        ValueError: if the space is not supported; the message names it and what to do.
    """
    if not isinstance(space, spaces.Dict):
        return {OBSERVATION: _observation_spec(OBSERVATION, space)}
    if not space.spaces:
        raise ValueError("the observation space is a Dict without keys: give it at least one")
    return {key: _observation_spec(key, value) for key, value in space.spaces.items()}


def action_spec(space: Space[Any]) -> ActionSpec:
    """The spec of an action space.

    Raises:
        ValueError: if the space is not supported; the message names it and what to do.
    """
    _require_entries("the action space", space)
    if isinstance(space, spaces.Box):
        return _continuous_action(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return ActionSpec(_shape(space), *_categories(space))
    raise ValueError(
        f"the action space {space} is not supported: wrap the environment in a gymnasium.ActionWrapper "
        f"whose action_space is a {SUPPORTED}"
    )


def _observation_spec(key: str, space: Space[Any]) -> ObservationSpec:
    _require_entries(f"observation '{key}'", space)
    if isinstance(space, spaces.Box):
        kind = layout(space)
        if kind is not None and (kind != "last" or space.dtype != np.uint8):
            raise ValueError(
                f"observation '{key}' is an image {space.shape} of {space.dtype}: wrap the environment in "
                "envs.Images(env, size), which makes it (size, size, channels) of uint8"
            )
        if (
            kind is None
            and space.dtype == np.uint8
            and len(space.shape) > 2
            and sorted(space.shape)[-2] >= SMALLEST_IMAGE
        ):
            raise ValueError(
                f"observation '{key}' {space.shape} of uint8 looks like images, of which one has 1, 3 or 4 channels: "
                "show one picture at a time, without gymnasium.wrappers.FrameStackObservation (the latent state "
                "remembers), or each under a key of its own in a Dict"
            )
        return ObservationSpec(space.shape, image=kind is not None)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return ObservationSpec(_shape(space), *_categories(space))
    raise ValueError(
        f"observation '{key}' has the space {space}, which is not supported: wrap the environment in "
        f"gymnasium.wrappers.FlattenObservation, or in a gymnasium.ObservationWrapper that returns a {SUPPORTED}, "
        "or a Dict of these"
    )


def layout(space: Space[Any]) -> str | None:
    """Where the channels of an image are: "last", "first", or "none" of a grey one; None if a space holds no images.

    They are what :class:`envs.images.Images` says.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
        return None
    fractions = np.issubdtype(space.dtype, np.floating) and (space.low == 0).all() and (space.high == 1).all()
    if space.dtype != np.uint8 and not fractions:
        return None
    if len(space.shape) == 2:
        return "none" if min(space.shape) >= SMALLEST_IMAGE else None
    for name, (sides, channels) in {
        "last": (space.shape[:2], space.shape[2]),
        "first": (space.shape[1:], space.shape[0]),
    }.items():
        if min(sides) >= SMALLEST_IMAGE and channels in CHANNELS:
            return name
    return None


def _require_entries(what: str, space: Space[Any]) -> None:
    if space.shape is not None and np.prod(space.shape) == 0:
        raise ValueError(f"{what} has the space {space}, which is empty: give it at least one entry")


def _shape(space: Space[Any]) -> tuple[int, ...]:
    return tuple(space.shape or ())


def _categories(
    space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(classes, start) of each discrete variable, flattened."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),), (int(space.start),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist())
    entries = int(np.prod(space.shape))
    return (2,) * entries, (0,) * entries


def _continuous_action(space: spaces.Box) -> ActionSpec:
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"the action space {space} holds integers: declare it as Discrete or MultiDiscrete")
    low, high = _inner_float32(space.low.ravel(), space.high.ravel())
    with np.errstate(over="ignore"):
        finite = np.isfinite(high - low).all()
    if not finite:
        raise ValueError(
            f"the action space {space} has no finite bounds: give its Box a low and a high, for example with "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(low, high, shape))"
        )
    if (low >= high).any():
        entry = int(np.flatnonzero(low >= high)[0])
        raise ValueError(f"the action space {space} has low >= high at entry {entry}: {low[entry]} >= {high[entry]}")
    return ActionSpec(space.shape, low=tuple(low.tolist()), high=tuple(high.tolist()))


def _inner_float32(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds as float32, rounded inwards: an action at a bound must still be in a float64 space."""
    with np.errstate(over="ignore"):
        low32, high32 = low.astype(np.float32), high.astype(np.float32)
    low32 = np.where(low32 < low, np.nextafter(low32, np.float32(np.inf)), low32)
    high32 = np.where(high32 > high, np.nextafter(high32, np.float32(-np.inf)), high32)
    return low32, high32
