"""Environments drawn by a number, whatever Gymnasium allows and some of what it does not, that log what happened."""

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Random = np.random.Generator
ID, UNCHECKED = "test-worlds/World-v0", "test-worlds/Unchecked-v0"  # with and without Gymnasium's own checks
SIDE = 16  # pixels of a picture
SOUND, WRONG = 0.7, 0.1  # shares of the worlds of which all is sound, and of which the spaces are not supported

FLOATS, WHOLE = (np.float32, np.float64, np.float16), (np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint16)
BROKEN: dict[str, Callable[[Any], Any]] = {  # of an observation of a plain space
    "nan": lambda value: np.full(np.shape(value), np.nan),
    "infinite": lambda value: np.full(np.shape(value), -np.inf),
    "text": lambda value: np.full(np.shape(value), "a"),
    "none": lambda value: None,
    "objects": lambda value: np.full(np.shape(value), object()),
    "ragged": lambda value: [[1.0], [2.0, 3.0]],
    "wider": lambda value: np.zeros((*np.shape(value), 2)),
    "complex": lambda value: np.full(np.shape(value), 1j),
}
REWARDS: dict[str, Any] = {
    "nan": np.nan,
    "infinite": np.inf,
    "beyond": 1e39,
    "two": np.ones(2),
    "none": None,
    "text": "1",
    "empty": np.zeros(0),
    "complex": 1j,
    "huge": 10**400,
}
FORMS: dict[str, Callable[[Any], Any]] = {  # of one number, all of them the number itself
    "plain": lambda value: value,
    "array": np.array,
    "(1,)": lambda value: np.array([value]),
    "(1, 1)": lambda value: np.array([[value]]),
    "list": lambda value: [value],
    "scalar": lambda value: np.asarray(value)[()],
}


class Happened(NamedTuple):
    """A reset, without an action, or a frame."""

    observation: Any
    action: Any = None
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    failed: str = ""  # what was wrong in what was said of it
    seed: int | None = None
    success: bool | None = None


def pick(rng: Random, options: Any) -> Any:
    options = list(options)
    return options[rng.integers(len(options))]


def plain_space(rng: Random) -> spaces.Space[Any]:
    """Of one observation key."""
    shape = pick(rng, [(), (1,), (3,), (7,), (2, 3), (2, 1, 2)])
    kind = pick(rng, ["float", "float", "whole", "discrete", "choices", "bits", "picture", "bounded"])
    if kind in ("float", "bounded"):
        bound = np.inf if kind == "float" else 10.0 ** rng.uniform(-6, 4)
        return spaces.Box(-bound, bound, shape, pick(rng, FLOATS))
    if kind == "whole":
        dtype = pick(rng, WHOLE)
        return spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype)
    if kind == "discrete":
        return spaces.Discrete(int(rng.integers(1, 40)), start=int(rng.integers(-9, 9)))
    if kind == "choices":
        sizes = rng.integers(1, 6, pick(rng, [(1,), (3,), (2, 2)]))
        return spaces.MultiDiscrete(sizes, start=rng.integers(-4, 4, sizes.shape))
    if kind == "bits":
        return spaces.MultiBinary(pick(rng, [1, 4, (2, 2)]))
    layout = pick(rng, [(SIDE, SIDE, 3), (SIDE, SIDE, 1), (3, SIDE, SIDE), (SIDE, SIDE)])
    high, dtype = pick(rng, [(255, np.uint8), (1, np.float32), (65535, np.uint16), (255, np.int32)])
    return spaces.Box(0, high, layout, dtype)


def observation_space(rng: Random, supported: bool) -> spaces.Space[Any]:
    parts = [plain_space(rng) for _ in range(rng.integers(1, 4))]
    if not supported:
        inner = pick(rng, [spaces.Text(3), spaces.Sequence(parts[0]), spaces.Dict(x=parts[0]), spaces.Tuple(parts)])
        return pick(rng, [spaces.Text(5), spaces.Dict({}), spaces.Dict(a=inner), spaces.Tuple((parts[0], inner))])
    names = ["x", "_x", "a b", "position/x", "observation", "0"]
    named = dict(zip(rng.permutation(names).tolist(), parts, strict=False))
    return pick(rng, [parts[0], parts[0], spaces.Dict(named), spaces.Dict(named), spaces.Tuple(parts)])


def action_space(rng: Random) -> spaces.Space[Any]:
    shape, low, width = pick(rng, [(), (1,), (3,), (2, 2)]), rng.uniform(-5, 5), 10.0 ** rng.uniform(-3, 3)
    return pick(
        rng,
        [
            spaces.Box(low, low + width, shape, pick(rng, [np.float32, np.float64])),
            spaces.Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-3, 4))),
            spaces.MultiDiscrete(rng.integers(1, 5, 2)),
            spaces.MultiBinary(3),
        ],
    )


def value_of(rng: Random, space: spaces.Space[Any], unit: float) -> Any:
    """An observation of a plain space, of a size of choice, exactly as the space's dtype holds it."""
    if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f" and space.shape[-1:] != (SIDE,):
        if SIDE in space.shape:
            return rng.random(space.shape).astype(space.dtype)
        largest = np.finfo(space.dtype).max / 10
        return np.clip(rng.normal(0, unit, space.shape), -largest, largest).astype(space.dtype)
    if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f":
        return rng.random(space.shape).astype(space.dtype)
    if isinstance(space, spaces.Box):
        info = np.iinfo(space.dtype)
        low, high = max(int(space.low.min()), info.min), min(int(space.high.max()), info.max)
        return rng.integers(max(low, -(2**40)), min(high, 2**40), space.shape, endpoint=True).astype(space.dtype)
    space.seed(int(rng.integers(2**31)))
    return space.sample()


def presented(how: str, value: Any) -> Any:
    """The same numbers as something else that NumPy takes; of a picture, floats would mean something else."""
    array = np.asarray(value)
    if how == "wide" and SIDE in array.shape:
        return value
    if how == "list":
        return array.tolist()
    if how == "wide":
        return array.astype(np.float64) if array.dtype.itemsize < 8 else array
    if how == "strided":
        return np.repeat(array[..., None], 2, -1)[..., 0] if array.ndim else array
    if how == "locked":
        array = array.copy()
        array.flags.writeable = False
        return array
    if how == "swapped":
        return array.astype(array.dtype.newbyteorder())
    return value


INFOS: dict[str, Callable[[int], Any]] = {
    "grows": lambda t: np.arange(t % 50),
    "mixed": lambda t: (t, "text", None, {"a": t}, [1, [2]], 1.5, np.zeros(2), True)[t % 8],
    "large": lambda t: (-1) ** t * 2 ** (60 + t % 40),
    "text": lambda t: "x" * (t % 5),
    "object": lambda t: (RuntimeError, lambda: t, {t}, object(), np.array([None, {}]))[t % 5],
    "nested": lambda t: {"a": {"b": [t] * (t % 3)}, "_a": t} if t % 2 else t,
    "dtype": lambda t: np.zeros(2, (np.int8, np.float64, "U3", bool)[t % 4]),
    "proxy": lambda t: MappingProxyType({"a": t}),
}
NAMES = (
    "x",
    "_x",
    "path",
    "final_obs",
    "final_info",
    "_final_obs",
    "episode",
    "terminal_observation",
    7,
    None,
    ("a", 1),
)


class World(gym.Env[Any, Any]):
    """Everything about it follows from its number, the seed of the episode, and how often it was stepped.

    Args:
        usual: whether it breaks nothing, and says all so that Gymnasium's own vectors take it.
    Attributes:
        shown: the worlds that were made, in this order.
    """

    shown: list["World"] = []  # noqa: RUF012 - of all of them

    def __init__(self, number: int, usual: bool = False, render_mode: str | None = None) -> None:
        rng = np.random.default_rng([number, 1])
        self.number, self.usual, self.render_mode = number, usual, render_mode
        kind = rng.random()
        self.supported = kind >= WRONG
        self.observation_space = observation_space(rng, self.supported)
        self.action_space = action_space(rng)
        self.unit, self.price = 10.0 ** rng.uniform(-6, 9, 2)
        self.longest = int(10 ** rng.uniform(0, 3))
        self.reuses, self.how = bool(rng.integers(2)), pick(rng, ["", "list", "wide", "strided", "locked", "swapped"])
        self.form, self.flag = pick(rng, FORMS), pick(rng, [*FORMS, "number"])
        self.spoils = bool(rng.integers(2))  # changes the actions that it is given
        self.infos = {key: pick(rng, INFOS) for key in rng.permutation(np.array(NAMES, object))[: rng.integers(5)]}
        self.success = pick(rng, ["", "bool", "number", "(1,)", "text", "two"])
        sound = kind >= 1 - SOUND
        broken = pick(rng, ["observation", "reward", "flag", "raises", "reset", "missing", "extra", "info"])
        self.breaks = "" if sound or usual else broken
        self.how = "" if usual else self.how
        self.at, self.what = int(rng.integers(1, 25)), rng.integers(1000)  # frames until it does
        self.named = dict(self._parts())
        self.buffers = {key: np.zeros(s.shape, s.dtype) for key, s in self.named.items()} if self.supported else {}
        self.whole, self.info = dict[str, Any](), dict[Any, Any]()
        self.log: list[Happened] = []
        self.frames, self.time, self.seed, self.resets = 0, 0, 0, 0
        World.shown.append(self)

    def _parts(self) -> Any:
        space = self.observation_space
        if isinstance(space, spaces.Tuple):
            return {str(at): each for at, each in enumerate(space.spaces)}
        return space.spaces if isinstance(space, spaces.Dict) else {"observation": space}

    # What it says.

    def say(self, truth: dict[str, Any]) -> Any:
        """The truth, as this world says it."""
        said = {key: presented(self.how, value) for key, value in truth.items()}
        if self.reuses:
            for key, value in truth.items():
                self.buffers[key][...] = value
            said = self.buffers
        if not isinstance(self.observation_space, spaces.Dict):
            values = tuple(said.values())
            return values if isinstance(self.observation_space, spaces.Tuple) else values[0]
        if self.reuses:
            self.whole.update(said)
            return self.whole
        return OrderedDict(said) if self.number % 2 else said

    def broken(self, observation: Any) -> Any:
        """One key of an observation spoilt."""
        if isinstance(observation, dict):
            key = pick(np.random.default_rng(self.what), self.named)
            changed = dict(observation)
            if self.breaks == "missing":
                del changed[key]
            elif self.breaks == "extra":
                changed["unknown"] = 1.0
            else:
                changed[key] = list(BROKEN.values())[self.what % len(BROKEN)](changed[key])
            return changed
        if isinstance(observation, tuple):
            return observation[:-1] if len(observation) > 1 else (*observation, 1.0)
        return list(BROKEN.values())[self.what % len(BROKEN)](observation)

    def inform(self, over: bool) -> Any:
        if self.usual:
            return {"time": self.time}
        found = {key: INFOS[kind](self.time) for key, kind in self.infos.items()}
        if over and (told := self.told()) is not None:
            found["is_success"] = {"bool": told, "number": 3.0 * told, "(1,)": np.array([told])}[self.success]
        elif over and self.success in ("text", "two"):
            found["is_success"] = "yes" if self.success == "text" else np.ones(2)
        if not self.reuses:
            return found
        self.info.clear()
        self.info.update(found)
        return self.info

    def told(self) -> bool | None:
        return bool(self.seed % 2) if self.success in ("bool", "number", "(1,)") else None

    def flagged(self, value: bool) -> Any:
        return int(value) if self.flag == "number" else FORMS[self.flag](value)

    # Gymnasium's interface.

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.resets += 1
        if self.breaks == "reset" and self.resets == 2:
            raise RuntimeError("the second reset")
        self.seed = seed if seed is not None else (self.seed * 7 + self.resets) % 2**31
        self.time, rng = 0, np.random.default_rng([self.number, self.seed])
        self.length = int(rng.integers(1, self.longest + 1))
        truth = {key: value_of(rng, space, self.unit) for key, space in self.named.items()}
        self.log.append(Happened(deepcopy(truth), seed=seed))
        return self.say(truth), self.inform(False)

    def step(self, action: Any) -> Any:
        self.time, self.frames = self.time + 1, self.frames + 1
        rng = np.random.default_rng([self.number, self.seed, self.time])
        truth = {key: value_of(rng, space, self.unit) for key, space in self.named.items()}
        reward = float(np.float32(rng.normal(0, self.price)))
        over = self.time >= self.length
        terminated, truncated = over and self.seed % 3 != 0, over and self.seed % 3 != 1
        taken = deepcopy(action)
        if self.spoils and isinstance(action, np.ndarray) and action.ndim and action.flags.writeable:
            action *= 0
        ends = self.flagged(terminated), self.flagged(truncated)
        result = (self.say(truth), FORMS[self.form](reward), *ends, self.inform(over))
        broken = self.breaks if self.breaks != "reset" and self.frames == self.at else ""
        happened = Happened(deepcopy(truth), taken, reward, terminated, truncated, broken)
        self.log.append(happened._replace(success=self.told() if over else None))
        return self.failing(*result) if broken else result

    def failing(self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any) -> Any:
        """What it returns instead, once."""
        if self.breaks == "raises":
            errors = [RuntimeError("two\nlines"), KeyError("x"), ZeroDivisionError()]
            raise pick(np.random.default_rng(self.what), errors)
        if self.breaks == "reward":
            reward = pick(np.random.default_rng(self.what), REWARDS.values())
        elif self.breaks == "flag":
            terminated = pick(np.random.default_rng(self.what), [None, "no", np.zeros(2, bool), np.nan, []])
        elif self.breaks == "info":
            info = pick(np.random.default_rng(self.what), [None, [], "info", 3])
        else:
            observation = self.broken(observation)
        return observation, reward, terminated, truncated, info


gym.register(ID, World)
gym.register(UNCHECKED, World, disable_env_checker=True, order_enforce=False)
