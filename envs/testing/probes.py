"""Probe environments: so small that the right answer is known. Each probe tests a different part of a program.

Importing this module registers them. `gymnasium.make("worldmodel.envs.testing.probes:worldmodel/Counter-v0")` does
both.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Ending = Literal["terminate", "truncate"]


class Probe(gym.Env[Any, Any], ABC):
    """The base class of probes. An episode has `length` steps, after which it terminates or is truncated.

    A subclass defines `_start` and `_advance`.
    """

    def __init__(self, length: int, ending: Ending = "terminate") -> None:
        if length < 1 or ending not in ("terminate", "truncate"):
            raise ValueError(
                f"length must be at least 1, and ending 'terminate' or 'truncate', got {length} and {ending!r}"
            )
        self.length, self.ending = length, ending
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._start(seed), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        observation, reward = self._advance(action)
        over = self.time >= self.length
        return observation, reward, over and self.ending == "terminate", over and self.ending == "truncate", {}

    @abstractmethod
    def _start(self, seed: int | None) -> Any:
        """Return the first observation; `self.time` is 0."""

    @abstractmethod
    def _advance(self, action: Any) -> tuple[Any, float]:
        """Return the observation and the reward after `action`; `self.time` has already been increased."""


class Counter(Probe):
    """Tests alignment: every observation contains its time and the action before it.

    Observation [count, echo] and reward r, at time t after the reset of episode e (e = 0 after a seeded reset):
        count_t = offset + e (length + 2) + t;  echo_t = a_{t-1}, 0 at reset;  r_t = count_t.
    So count_t = count_{t-1} + 1 within an episode and never across two of them.
    """

    def __init__(
        self, length: int = 5, ending: Ending = "terminate", offset: float = 0.0, continuous: bool = False
    ) -> None:
        super().__init__(length, ending)
        self.offset = offset
        self.episode = -1
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-2, 2, (1,), np.float32) if continuous else spaces.Discrete(3)

    def _count(self) -> float:
        return self.offset + self.episode * (self.length + 2) + self.time

    def _start(self, seed: int | None) -> np.ndarray:
        self.episode = self.episode + 1 if seed is None else 0
        return np.array([self._count(), 0], np.float32)

    def _advance(self, action: Any) -> tuple[np.ndarray, float]:
        echo = float(np.asarray(action).reshape(()))
        return np.array([self._count(), echo], np.float32), self._count()


class Identity(Probe):
    """The best action repeats the observation. Each observation is independent of the past.

    Discrete, n symbols: r = 1 if the action equals the symbol, else 0. A perfect policy earns `length`; a uniform or
    a constant policy earns `length / n` on average.
    Continuous, x ~ U(-1, 1): r = 1 - (a - x)^2. A perfect policy earns `length`, the constant action 0 earns 2/3 of
    it on average, and a uniform policy 1/3.
    The value of a state at time t under the perfect policy is (1 - gamma^(length - t)) / (1 - gamma).
    """

    def __init__(self, n: int = 4, continuous: bool = False, length: int = 1) -> None:
        super().__init__(length)
        box = spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = box if continuous else spaces.Discrete(n)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if continuous else spaces.Discrete(n)
        self.n, self.continuous = n, continuous
        self.seen: Any = None

    def _start(self, seed: int | None) -> Any:
        continuous = self.continuous
        self.seen = (
            self.np_random.uniform(-1, 1, 1).astype(np.float32) if continuous else self.np_random.integers(self.n)
        )
        return self.seen

    def _advance(self, action: Any) -> tuple[Any, float]:
        if self.continuous:
            reward = 1 - float(np.asarray(action - self.seen).reshape(())) ** 2
        else:
            reward = float(action == self.seen)
        return self._start(None), reward


class Choice(Probe):
    """The best action names the side of the observation: x = centre + s unit, with s = -1 or 1 at random.

    The actions are 0 (s = -1) and 1 (s = 1). r = `reward` if the action names the side of the previous observation,
    else 0. A perfect policy earns `length` times `reward`; a uniform or a constant policy earns half of it on average.
    """

    def __init__(self, centre: float = 0.0, unit: float = 1.0, reward: float = 1.0, length: int = 20) -> None:
        super().__init__(length)
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.centre, self.unit, self.reward = centre, unit, reward
        self.side = 0

    def _start(self, seed: int | None) -> np.ndarray:
        self.side = int(self.np_random.integers(2))
        return np.array([self.centre + (2 * self.side - 1) * self.unit], np.float64)

    def _advance(self, action: Any) -> tuple[np.ndarray, float]:
        reward = self.reward * float(int(action) == self.side)
        return self._start(None), reward


class DelayedReward(Probe):
    """The first action a_0 in {0, 1} is rewarded at the end: r_length = a_0, and every other reward is 0.

    The observation is only the time, t / length, so the model must remember the action. The value is
    gamma^(length - 1) before the first action (choose 1), and a_0 gamma^(length - t - 1) at times 0 < t < length.
    """

    def __init__(self, length: int = 5) -> None:
        super().__init__(length)
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.first = 0.0

    def _clock(self) -> np.ndarray:
        return np.array([self.time / self.length], np.float32)

    def _start(self, seed: int | None) -> np.ndarray:
        return self._clock()

    def _advance(self, action: Any) -> tuple[np.ndarray, float]:
        if self.time == 1:
            self.first = float(action)
        return self._clock(), self.first if self.time == self.length else 0.0


class ConstantReward(Probe):
    """The reward is 1 at every step for every action. The observation is t / length.

    With ending="truncate" the return goes on after the time limit: every value is 1 / (1 - gamma). With "terminate" it
    stops there: the value at time t is (1 - gamma^(length - t)) / (1 - gamma), and 0 at the end.
    """

    def __init__(self, length: int = 10, ending: Ending = "truncate") -> None:
        super().__init__(length, ending)
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def _start(self, seed: int | None) -> np.ndarray:
        return np.array([self.time / self.length], np.float32)

    def _advance(self, action: Any) -> tuple[np.ndarray, float]:
        return self._start(None), 1.0


class LinearGaussian(Probe):
    """The controlled linear-Gaussian system of Gedon et al. (2021), section 5.1, whose evidence is known exactly.

        z_t = A z_{t-1} + B u_{t-1} + w_t,  w_t ~ N(0, Q);    x_t = C z_t + v_t,  v_t ~ N(0, R);    z_0 = 0

    The observation of a reset is x_1, reached with the control u_0 = 0. Every reward is 0, and the episode is
    truncated. Under u ~ U(-2.5, 2.5) the exact evidence is -1.657723 nats per step.
    """

    A = np.array([[0.7, 0.8], [0.0, 0.1]])
    B = np.array([-1.0, 0.1])
    C = np.array([1.0, 0.0])
    Q = 0.25 * np.eye(2)
    R = 1.0
    ROOT_Q = np.linalg.cholesky(Q)

    def __init__(self, length: int = 100) -> None:
        super().__init__(length, "truncate")
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-2.5, 2.5, (1,), np.float32)
        self.latent = np.zeros(2)

    def _emit(self, control: float) -> np.ndarray:
        noise = self.ROOT_Q @ self.np_random.normal(size=2)
        self.latent = self.A @ self.latent + self.B * control + noise
        return np.array([self.C @ self.latent + np.sqrt(self.R) * self.np_random.normal()], np.float32)

    def _start(self, seed: int | None) -> np.ndarray:
        self.latent = np.zeros(2)
        return self._emit(0.0)

    def _advance(self, action: Any) -> tuple[np.ndarray, float]:
        return self._emit(float(np.clip(np.asarray(action).reshape(()), -2.5, 2.5))), 0.0


class LinearQuadratic(Probe):
    """A double integrator that has to be brought to rest. The best control is linear in the state.

        x_t = A x_{t-1} + B u_{t-1},    r_t = -(x_{t-1}' Q x_{t-1} + u_{t-1}' R u_{t-1})

    The initial state is uniform in [-1, 1]^2, and the episode is truncated. The best control never reaches its bounds.
    """

    A = np.array([[1.0, 0.2], [0.0, 1.0]])
    B = np.array([[0.02], [0.2]])
    Q = np.diag([1.0, 0.1])
    R = np.array([[0.1]])
    BOUND = 6.0

    def __init__(self, length: int = 50) -> None:
        super().__init__(length, "truncate")
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-self.BOUND, self.BOUND, (1,), np.float32)
        self.x = np.zeros(2)

    @classmethod
    def gains(cls, horizon: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the solution of the Riccati recursion for H steps.

        Returns:
            The gains K_0..K_{H-1} of the best control u_h = -K_h x_h, and P_0 of the best return -x_0' P_0 x_0.
        """
        P, gains = np.zeros_like(cls.Q), []
        for _ in range(horizon):
            K = np.linalg.solve(cls.R + cls.B.T @ P @ cls.B, cls.B.T @ P @ cls.A)
            P = cls.Q + cls.A.T @ P @ (cls.A - cls.B @ K)
            gains.append(K)
        return gains[::-1], P

    def _start(self, seed: int | None) -> np.ndarray:
        self.x = self.np_random.uniform(-1, 1, 2)
        return self.x.astype(np.float32)

    def _advance(self, action: Any) -> tuple[np.ndarray, float]:
        u = np.clip(np.asarray(action, float).reshape(1), -self.BOUND, self.BOUND)
        reward = -float(self.x @ self.Q @ self.x + u @ self.R @ u)
        self.x = self.A @ self.x + self.B @ u
        return self.x.astype(np.float32), reward


class Tree(Probe):
    """A tree with a random reward at every node, small enough to search all paths for the best one.

    Node i has the children `branches` i + 1, ..., `branches` (i + 1), one for each action. The episode terminates at
    some random nodes and at the leaves, after `depth` steps. The tree is drawn once, from `seed`.
    """

    def __init__(self, branches: int = 3, depth: int = 5, seed: int = 0) -> None:
        super().__init__(depth)
        rng = np.random.default_rng(seed)
        self.branches = branches
        count = sum(branches**k for k in range(depth + 1))
        self.rewards = rng.uniform(-1, 1, count)
        self.ends = rng.random(count) < 0.1
        self.ends[0] = False
        self.observation_space, self.action_space = spaces.Box(0, count, (1,), np.float32), spaces.Discrete(branches)
        self.node = 0

    def best(self, node: int = 0, depth: int = 0) -> float:
        """Return the highest sum of rewards on any path from a node."""
        if depth == self.length or self.ends[node]:
            return 0.0
        children = range(self.branches * node + 1, self.branches * (node + 1) + 1)
        return max(float(self.rewards[child]) + self.best(child, depth + 1) for child in children)

    def _start(self, seed: int | None) -> np.ndarray:
        self.node = 0
        return np.zeros(1, np.float32)

    def _advance(self, action: Any) -> tuple[np.ndarray, float]:
        self.node = self.branches * self.node + 1 + int(action)
        return np.array([self.node], np.float32), float(self.rewards[self.node])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or bool(self.ends[self.node]), truncated, info


for _probe in (Counter, Identity, Choice, DelayedReward, ConstantReward, LinearGaussian, LinearQuadratic, Tree):
    gym.register(f"worldmodel/{_probe.__name__}-v0", entry_point=f"worldmodel.envs.testing.probes:{_probe.__name__}")
