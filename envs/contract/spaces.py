"""Gymnasium spaces -> what a model needs to know of them."""

from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces

from worldmodel.digits import Range
from worldmodel.specs import OBSERVATION, ActionSpec, ObservationSpec

SUPPORTED = "Box, Discrete, MultiDiscrete or MultiBinary"
SMALLEST_IMAGE = 16  # pixels a side: what is smaller, as the symbols of MiniGrid, is taken as a vector
CHANNELS = (1, 3, 4)  # grey, colour, and with transparency
IN_FRONT = (1, 3)  # of which four would be moments
BRIGHTEST = 65_535  # from black to white: a Box with wider bounds says nothing of how bright a picture is


class Layout(NamedTuple):
    """How an image is told: where its channels are, and the bounds of its space."""

    channels: str  # "last", "first", or "none" of a grey one
    black: float
    white: float
    fractional: bool  # of floats


def as_dict(space: Space[Any]) -> Space[Any]:
    """A Tuple space as the Dict with the keys "0", "1", ...; any other as it is."""
    if not isinstance(space, spaces.Tuple):
        return space
    return spaces.Dict({str(at): each for at, each in enumerate(space.spaces)})


def observation_specs(space: Space[Any]) -> dict[str, ObservationSpec]:
    """One spec per key of a Dict space, those of a Tuple being "0", "1", ...; one under OBSERVATION for any other.

    Raises:
        ValueError: if the space is not supported; the message names it and what to do.
    """
    space = as_dict(space)
    if not isinstance(space, spaces.Dict):
        return {OBSERVATION: _observation_spec(OBSERVATION, space)}
    if not space.spaces:
        raise ValueError("the observation space is a Dict or a Tuple without entries: give it at least one")
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
        f"the action space {one_line(space)} is not supported: wrap the environment in a gymnasium.ActionWrapper "
        f"whose action_space is a {SUPPORTED}"
    )


def one_line(space: Space[Any]) -> str:
    """A space in a message; that of a matrix has several lines."""
    return " ".join(str(space).split())


def _observation_spec(key: str, space: Space[Any]) -> ObservationSpec:
    _require_entries(f"observation '{key}'", space)
    if isinstance(space, spaces.Box):
        told = layout(space)
        if told is not None and (space.dtype != np.uint8 or told != Layout("last", 0, 255, False)):
            raise ValueError(
                f"observation '{key}' is an image {space.shape} of {space.dtype} from {told.black:g} to "
                f"{told.white:g}: wrap the environment in envs.Images(env, size), which makes it (size, size, "
                "channels) of uint8 from 0 to 255"
            )
        if told is None and len(space.shape) > 2 and sorted(space.shape)[-2] >= SMALLEST_IMAGE:
            raise ValueError(f"observation '{key}' {space.shape} of {space.dtype} looks like images, {_unlike(space)}")
        return ObservationSpec(space.shape, image=told is not None)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return ObservationSpec(_shape(space), *_categories(space))
    raise ValueError(
        f"observation '{key}' has the space {one_line(space)}, which is not supported: wrap the environment in "
        f"gymnasium.wrappers.FlattenObservation, or in a gymnasium.ObservationWrapper that returns a {SUPPORTED}, "
        "or a Dict of these"
    )


def layout(space: Space[Any]) -> Layout | None:
    """How a space tells an image, None if it holds none: :class:`worldmodel.envs.rendering.images.Images` says which
    do.

    A matrix of which no bound says that it is grey, as the features of twenty things, is no image.
    """
    if not isinstance(space, spaces.Box):
        return None
    channels = _channels(space.shape)
    bounds = _bounds(space) if channels is not None else None
    if channels is None or bounds is None:
        return None
    fractional = bool(np.issubdtype(space.dtype, np.floating))
    usual = space.dtype == np.uint8 or bounds in ((0, 255), (0, 65_535)) or (fractional and bounds == (0, 1))
    return Layout(channels, *bounds, fractional) if usual or channels != "none" else None


def _channels(shape: tuple[int, ...]) -> str | None:
    if len(shape) == 2:
        return "none" if min(shape) >= SMALLEST_IMAGE else None
    if len(shape) == 3:
        height, width, count = shape
        if min(height, width) >= SMALLEST_IMAGE and count in CHANNELS:
            return "last"
        count, height, width = shape
        if min(height, width) >= SMALLEST_IMAGE and count in IN_FRONT:
            return "first"
    return None


def _bounds(space: spaces.Box) -> tuple[float, float] | None:
    """The values of black and white: the bounds of a Box, if they are the same everywhere."""
    low, high = float(space.low.min()), float(space.high.max())
    if (space.low == low).all() and (space.high == high).all() and 0 < high - low <= BRIGHTEST:
        return low, high
    return (0, 255) if space.dtype == np.uint8 else None


def _unlike(space: spaces.Box) -> str:
    """Why what looks like images is none, and what to do."""
    flatten = "or flatten what is none, as gymnasium.wrappers.FlattenObservation does"
    if _channels(space.shape) is not None:
        return (
            f"from {space.low.min():g} to {space.high.max():g}, of which nothing says what is black and white: rescale "
            f"it to a Box with one finite low and one high, at most {BRIGHTEST:,} apart, {flatten}"
        )
    return (
        "of which one has 1 or 3 channels, or 4 behind it: show one picture at a time, without "
        "gymnasium.wrappers.FrameStackObservation (the latent state remembers), or each under a key of its own in a "
        f"Dict, {flatten}"
    )


def _require_entries(what: str, space: Space[Any]) -> None:
    if space.shape is not None and np.prod(space.shape) == 0:
        raise ValueError(f"{what} has the space {one_line(space)}, which is empty: give it at least one entry")


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
        raise ValueError(f"the action space {one_line(space)} holds integers: declare it as Discrete or MultiDiscrete")
    low, high = _inner_float32(space.low.ravel(), space.high.ravel())
    with np.errstate(over="ignore"):
        finite = np.isfinite(high - low).all()
    if not finite:
        raise ValueError(
            f"the action space {one_line(space)} has no finite bounds: give its Box a low and a high, for example with "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(low, high, shape))"
        )
    if (low >= high).any():
        entry = int(np.flatnonzero(low >= high)[0])
        raise ValueError(
            f"the action space {one_line(space)} has low >= high at entry {entry}: {low[entry]} >= {high[entry]}"
        )
    seen = Range.of([np.stack([space.low.ravel(), space.high.ravel()])])
    if seen.coarse.any():
        entry = int(np.flatnonzero(seen.coarse)[0])
        raise ValueError(
            f"the action space {one_line(space)} lies so far from 0 that single precision has steps of "
            f"{seen.step[entry]:.3g} between its bounds at entry {entry}: wrap the environment in "
            "gymnasium.wrappers.RescaleAction(env, -1, 1)"
        )
    return ActionSpec(space.shape, low=tuple(low.tolist()), high=tuple(high.tolist()))


def _inner_float32(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds as float32, rounded inwards: an action at a bound must still be in a float64 space."""
    with np.errstate(over="ignore"):
        low32, high32 = low.astype(np.float32), high.astype(np.float32)
    low32 = np.where(low32 < low, np.nextafter(low32, np.float32(np.inf)), low32)
    high32 = np.where(high32 > high, np.nextafter(high32, np.float32(-np.inf)), high32)
    return low32, high32
