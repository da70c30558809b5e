"""How fast a dream is stepped: imagined steps per second by episodes side by side, and what Stable-Baselines3 takes.

    python benchmarks/dream_env.py --out results/dream_speed.csv

One torch thread, CPU time, the best of several rounds. The models are untrained: their speed does not depend on what
they know. `env` steps the dream alone, `dummy` the same number of single imagined environments in SB3's `DummyVecEnv`;
`PPO` and `SAC` learn in the dream, and `sb3_share` is the part of their time that is not the dream's.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from worldmodel import ModelConfig, WorldModel
from worldmodel.envs import ImaginedEnv, ImaginedVectorEnv, PriorStarts, action_spec
from worldmodel.envs.imagined.sb3 import ImaginedVecEnv
from worldmodel.kernels.memory import room_for_tensors
from worldmodel.specs import OBSERVATION, ObservationSpec

TORQUE = gym.spaces.Box(-2, 2, (1,), np.float32)
HORIZON = 15
ROUNDS = 3
COLUMNS = ["what", "environments", "steps", "cpu_seconds", "steps_per_second", "sb3_share"]


class Row(NamedTuple):
    what: str
    environments: int
    steps: int
    cpu_seconds: float
    sb3_share: float | None = None

    def values(self) -> tuple[Any, ...]:
        share = "" if self.sb3_share is None else round(self.sb3_share, 3)
        speed = round(self.steps / self.cpu_seconds)
        return (self.what, self.environments, self.steps, round(self.cpu_seconds, 4), speed, share)


class Timed(ImaginedVecEnv):
    """Counts the CPU time spent in the dream."""

    spent = 0.0

    def step_wait(self) -> Any:
        begun = time.process_time()
        result = super().step_wait()
        self.spent += time.process_time() - begun
        return result


def world_model() -> WorldModel:
    """That of the default config, for `Pendulum-v1`."""
    torch.manual_seed(0)
    return WorldModel.build(ModelConfig(), {OBSERVATION: ObservationSpec((3,))}, action_spec(TORQUE))


def batched(model: WorldModel, count: int) -> Timed:
    return Timed(ImaginedVectorEnv(model, TORQUE, PriorStarts(model, 1), count, HORIZON))


def dummy(model: WorldModel, count: int) -> VecEnv:
    return DummyVecEnv([lambda: ImaginedEnv(model, TORQUE, PriorStarts(model, 1), HORIZON) for _ in range(count)])


def fastest(what: Callable[[], None]) -> float:
    """CPU seconds of the best of several rounds, after one to warm up."""
    times = []
    for _ in range(ROUNDS + 1):
        begun = time.process_time()
        what()
        times.append(time.process_time() - begun)
    return min(times[1:])


def stepped(name: str, envs: VecEnv, steps: int) -> Row:
    """Whole episodes of random actions."""
    envs.reset()
    actions = np.random.default_rng(0).uniform(-2, 2, (steps, envs.num_envs, 1)).astype(np.float32)

    def go() -> None:
        for row in actions:
            envs.step(row)

    return Row(name, envs.num_envs, steps * envs.num_envs, fastest(go))


def learned(name: str, model: WorldModel, count: int) -> Row:
    """PPO with one epoch over rollouts of the horizon; SAC with one gradient step per batched step."""
    envs, steps = batched(model, count), 4 * HORIZON * count
    policy = {"policy_kwargs": {"net_arch": [64, 64]}, "device": "cpu", "seed": 0}
    if name == "PPO":
        algorithm: Any = PPO("MlpPolicy", envs, n_steps=HORIZON, batch_size=max(count, 60), n_epochs=1, **policy)
    else:
        algorithm = SAC("MlpPolicy", envs, batch_size=256, buffer_size=50_000, learning_starts=0, **policy)
    best = (float("inf"), 0.0)
    for _ in range(ROUNDS + 1):
        envs.spent, begun = 0.0, time.process_time()
        algorithm.learn(steps)
        best = min(best, (time.process_time() - begun, envs.spent))
    return Row(name, count, steps, best[0], 1 - best[1] / best[0])


def rows() -> list[Row]:
    model = world_model()
    found = [stepped("env", batched(model, count), 4 * HORIZON) for count in (1, 64, 256, 1024)]
    found += [stepped("dummy", dummy(model, 256), HORIZON)]
    return found + [learned(name, model, count) for name in ("PPO", "SAC") for count in (1, 64, 256, 1024)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = rows()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(row.values() for row in found)
    print(options.out.read_text())
    speed = {(row.what, row.environments): row.steps / row.cpu_seconds for row in found}
    print(f"256 in one batch: {speed['env', 256] / speed['dummy', 256]:.0f} times 256 single ones")


if __name__ == "__main__":
    with room_for_tensors():  # as `worldmodel train` does
        main()
