"""Convert Gymnasium spaces to the specs that a model is built from."""

from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces

from worldmodel.digits import Range
from worldmodel.specs import OBSERVATION, ActionSpec, ObservationSpec

SUPPORTED = "Box, Discrete, MultiDiscrete or MultiBinary"
SMALLEST_IMAGE = 16  # pixels a side; a smaller array, such as the symbols of MiniGrid, is a vector
CHANNELS = (1, 3, 4)  # grey, colour, and colour with transparency
IN_FRONT = (1, 3)  # channels in the first dimension; four there would be stacked frames
BRIGHTEST = 65_535  # largest distance from black to white; wider bounds do not define the brightness of an image


class Layout(NamedTuple):
    """The format of an image: where its channels are, and the bounds of its space."""

    channels: str  # "last", "first", or "none" for a grey image without channels
    black: float
    white: float
    fractional: bool  # whether the pixels are floats


def as_dict(space: Space[Any]) -> Space[Any]:
    """Return a Tuple space as a Dict space with the keys "0", "1", ...; return any other space unchanged."""
    if not isinstance(space, spaces.Tuple):
        return space
    return spaces.Dict({str(at): each for at, each in enumerate(space.spaces)})


def observation_specs(space: Space[Any]) -> dict[str, ObservationSpec]:
    """Return {key: spec} for an observation space.

    The keys are those of a Dict space, "0", "1", ... for a Tuple space, and OBSERVATION for any other space.

    Raises:
        ValueError: if the space is not supported. The message names the space and says what to do.
    """
    space = as_dict(space)
    if not isinstance(space, spaces.Dict):
        return {OBSERVATION: _observation_spec(OBSERVATION, space)}
    if not space.spaces:
        raise ValueError("the observation space is an empty Dict or Tuple: give it at least one entry")
    return {key: _observation_spec(key, value) for key, value in space.spaces.items()}


def action_spec(space: Space[Any]) -> ActionSpec:
    """Return the spec of an action space.

    Raises:
        ValueError: if the space is not supported. The message names the space and says what to do.
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
    """Return the text of a space without line breaks, for a message."""
    return " ".join(str(space).split())


def _observation_spec(key: str, space: Space[Any]) -> ObservationSpec:
    _require_entries(f"observation '{key}'", space)
    if isinstance(space, spaces.Box):
        told = layout(space)
        if told is not None and (space.dtype != np.uint8 or told != Layout("last", 0, 255, False)):
            raise ValueError(
                f"observation '{key}' is an image {space.shape} of {space.dtype} from {told.black:g} to "
                f"{told.white:g}: wrap the environment in envs.Images(env, size), which converts it to (size, size, "
                "channels) of uint8 from 0 to 255"
            )
        if told is None and len(space.shape) > 2 and sorted(space.shape)[-2] >= SMALLEST_IMAGE:
            raise ValueError(
                f"observation '{key}' {space.shape} of {space.dtype} looks like an image, but {_unlike(space)}"
            )
        return ObservationSpec(space.shape, image=told is not None)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return ObservationSpec(_shape(space), *_categories(space))
    raise ValueError(
        f"observation '{key}' has the space {one_line(space)}, which is not supported: wrap the environment in "
        f"gymnasium.wrappers.FlattenObservation, or in a gymnasium.ObservationWrapper that returns a {SUPPORTED}, "
        "or a Dict of these"
    )


def layout(space: Space[Any]) -> Layout | None:
    """Return the layout of an image space, or None if the space does not hold an image.

    :class:`worldmodel.envs.rendering.images.Images` defines which spaces hold an image. A matrix without the bounds of
    a grey image, such as a table of features, does not.
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
    """Return the values of black and white: the bounds of a Box, if they are the same for all entries."""
    low, high = float(space.low.min()), float(space.high.max())
    if (space.low == low).all() and (space.high == high).all() and 0 < high - low <= BRIGHTEST:
        return low, high
    return (0, 255) if space.dtype == np.uint8 else None


def _unlike(space: spaces.Box) -> str:
    """Say why a space that looks like an image is not one, and what to do."""
    flatten = "If it is not an image, flatten it, for example with gymnasium.wrappers.FlattenObservation"
    if _channels(space.shape) is not None:
        return (
            f"its bounds, {space.low.min():g} to {space.high.max():g}, do not define black and white. Rescale it to a "
            f"Box with one finite low and one finite high, at most {BRIGHTEST:,} apart. {flatten}"
        )
    return (
        "an image has 1 or 3 channels before or behind its pixels, or 4 behind them. Return one image at a time, "
        "without gymnasium.wrappers.FrameStackObservation (the latent state remembers earlier images), or return each "
        f"image under its own key of a Dict. {flatten}"
    )


def _require_entries(what: str, space: Space[Any]) -> None:
    if space.shape is not None and np.prod(space.shape) == 0:
        raise ValueError(f"{what} has the space {one_line(space)}, which is empty: give it at least one entry")


def _shape(space: Space[Any]) -> tuple[int, ...]:
    return tuple(space.shape or ())


def _categories(
    space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the number of classes and the first class of each discrete variable, flattened."""
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
    """Round bounds inwards to float32, so that an action at a bound still lies in the float64 space."""
    with np.errstate(over="ignore"):
        low32, high32 = low.astype(np.float32), high.astype(np.float32)
    low32 = np.where(low32 < low, np.nextafter(low32, np.float32(np.inf)), low32)
    high32 = np.where(high32 > high, np.nextafter(high32, np.float32(-np.inf)), high32)
    return low32, high32
