"""An environment that fails in every way there is, at a place that depends on its seed alone."""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

OF_VALUES = ("nan", "inf", "shape", "dtype", "class", "missing", "reward nan", "reward inf", "reward shape")
IN_PROCESS = (*OF_VALUES, "exception", "mute", "tuple", "end", "info")
ALONE = ("sleep", "busy", "kill", "exit")  # what only an owner in another process can outlive
LENGTH, AT = 8, 3


class Mute(Exception):
    """Cannot say what it is of."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Failing(gym.Env[Any, Any]):
    """Fails in the way `how` at step `at` of every episode whose seed is even, or one of `seeds`; 0 is the reset.

    Episodes terminate after `length` steps. What is observed depends on seed and actions, the reward on the seed alone.
    """

    def __init__(self, how: str = "", at: int = AT, seeds: Sequence[int] | None = None, length: int = LENGTH) -> None:
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict({"x": box, "phase": spaces.Discrete(3)})
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.how, self.at, self.seeds, self.length = how, at, seeds, length
        self.seed, self.time, self.x, self.closed = 0, 0, np.zeros(2, np.float32), 0

    def fails(self) -> bool:
        chosen = self.seed % 2 == 0 if self.seeds is None else self.seed in self.seeds
        return chosen and self.time == self.at

    def returned(self) -> tuple[Any, Any]:
        """Observation and reward, or worse."""
        observation: dict[str, Any] = {"x": self.x.copy(), "phase": np.int64(self.time % 3)}
        reward: Any = reward_of(self.seed)
        if not self.fails():
            return observation, reward
        if self.how == "exception":
            raise RuntimeError("the simulator died")
        if self.how == "mute":
            raise Mute
        if self.how in ("sleep", "busy"):
            os.write(1, b"hangs\n")
        if self.how == "sleep":
            time.sleep(1000)
        if self.how == "busy":
            ctypes.PyDLL(None).sleep(1000)  # keeps Python's lock, as C code does that hangs
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exit":
            os._exit(3)
        broken = {
            "nan": {"x": np.array([0, np.nan], np.float32)},
            "inf": {"x": np.array([np.inf, 0], np.float32)},
            "shape": {"x": np.zeros(3, np.float32)},
            "dtype": {"x": np.array(["a", "b"])},
            "class": {"phase": np.int64(3)},
        }
        observation |= broken.get(self.how, {})
        if self.how == "missing":
            del observation["phase"]
        return observation, {"reward nan": np.nan, "reward inf": np.inf, "reward shape": np.ones(2)}.get(
            self.how, reward
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.time, self.x = 0, self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.returned()[0], {}

    def step(self, action: Any) -> Any:
        self.time += 1
        self.x = np.float32(0.9) * self.x + np.float32(0.1) * np.float32(action)
        result = (*self.returned(), self.time == self.length, False, {})
        if not self.fails():
            return result
        broken = {
            "tuple": result[:4],
            "end": (*result[:2], np.zeros(2, bool), *result[3:]),
            "info": (*result[:4], None),
        }
        return broken.get(self.how, result)

    def close(self) -> None:
        self.closed += 1
        super().close()


class Talking(Failing):
    """Its infos hold what can be sent to another process and what cannot, its second observation is of the latter."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        info = {"number": 1, "text": "one", "array": np.array([1, 2]), "object": lambda: 1, "list": [open]}
        return super().reset(seed=seed)[0], info

    def step(self, action: Any) -> Any:
        return lambda: 1, *super().step(action)[1:]


class Odd(Failing):
    """Its infos hold what looks as if it could be sent to another process, and cannot."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        class Local(int):
            pass

        info = {"objects": np.array([lambda: 1]), "local": Local(3), ("a", 1): 2, "text": "a", "big": 2**80}
        return super().reset(seed=seed)[0], info

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], None


class Parent(Failing):
    """Starts a process of its own, tells its number, and never ends it."""

    def __init__(self, how: str = "", at: int = AT, seeds: Sequence[int] | None = None) -> None:
        super().__init__(how, at, seeds)
        self.child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        self.child.start()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed)[0], {"child": self.child.pid}


class Noting(Failing):
    """Writes to a file that it was closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def close(self) -> None:
        with self.file.open("a") as file:
            file.write("closed\n")


def reward_of(seed: int) -> float:
    """Of every step of an episode."""
    return seed % 97 / 97


gym.register("test-failing/Failing-v0", entry_point=Failing, disable_env_checker=True, order_enforce=False)
