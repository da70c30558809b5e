"""What a user would try first: Stable-Baselines3's SAC, PPO and DQN with its defaults, evaluated as we evaluate ours.

    python benchmarks/sb3.py --seeds 11-13 --out results/sb3.csv

One core, one torch thread. Evaluations are deterministic, on the episodes of `benchmarks/learning.py`; seconds include
them, as there. Rows that the CSV has are not made again.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback

from worldmodel.envs import EnvConfig, make_vector
from worldmodel.envs.wrappers.episodes import evaluation_seeds
from worldmodel.training.loop.evaluations import PERIODIC

COLUMNS = ["task", "variant", "seed", "env_steps", "frames", "return", "seconds"]
CASES = [  # task, algorithm, environment steps, steps between evaluations
    ("Pendulum-v1", SAC, 10_000, 500),
    ("Pendulum-v1", PPO, 100_000, 10_000),
    ("CartPole-v1", PPO, 50_000, 2_500),
    ("CartPole-v1", DQN, 50_000, 2_500),
]
EPISODES = 20


def evaluated(model: Any, task: str) -> float:
    """Mean return of the deterministic policy."""
    envs = make_vector(EnvConfig(task, restarts=0), EPISODES)
    observation, _ = envs.reset(seed=evaluation_seeds(EPISODES, PERIODIC))
    total, running = np.zeros(EPISODES), np.ones(EPISODES, bool)
    while running.any():
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = envs.step(action)
        total += np.where(running, reward, 0)
        running &= ~(terminated | truncated)
    envs.close()
    return float(total.mean())


class Evaluate(BaseCallback):
    """A row every so many steps."""

    def __init__(self, task: str, name: str, seed: int, every: int, rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self.task, self.name, self.seed, self.every, self.rows = task, name, seed, every, rows
        self.began = time.monotonic()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            score, seconds = evaluated(self.model, self.task), time.monotonic() - self.began
            values = (self.task, self.name, self.seed, self.num_timesteps, self.num_timesteps, score, round(seconds, 1))
            self.rows.append(dict(zip(COLUMNS, values, strict=True)))
            print(*values, flush=True)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="11-13", help="FIRST-LAST (default: 11-13)")
    parser.add_argument("--only", default="", help="cases whose 'task algorithm' contains this")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, last = map(int, options.seeds.split("-"))
    rows: list[dict[str, Any]] = list(csv.DictReader(options.out.open())) if options.out.is_file() else []
    done = {(row["task"], row["variant"], int(row["seed"])) for row in rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for task, algorithm, steps, every in CASES:
        name = f"sb3-{algorithm.__name__.lower()}"
        for seed in range(first, last + 1):
            if (task, name, seed) in done or options.only not in f"{task} {name}":
                continue
            model = algorithm("MlpPolicy", gym.make(task), seed=seed, device="cpu")
            model.learn(steps, callback=Evaluate(task, name, seed, every, rows))
            with options.out.open("w", newline="") as file:
                table = csv.DictWriter(file, COLUMNS)
                table.writeheader()
                table.writerows(rows)


if __name__ == "__main__":
    main()
