"""How long a decision takes, and how soon a run begins to learn.

    python benchmarks/acting.py --out results/acting.csv

A decision is `Agent.predict`: observations of N environments as NumPy arrays, one step of the filter, the policy, and
its actions as NumPy arrays, on one thread; of the model of size S in benchmarks/update_ours.py, and of the defaults
(configs/pendulum.yaml), eager and compiled (`training.acting`). `seconds` is the median of many.

`help` is `worldmodel --help` as a process, `first update` the time from the start of the process of `worldmodel train
configs/pendulum.yaml` to the end of its first update, imports and 200 recorded steps included: medians of five.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from update_ours import SIZES

from worldmodel.agents import ActorCritic, Agent
from worldmodel.kernels.memory import room_for_tensors
from worldmodel.model import WorldModel
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training.config.config import load_config

FIRST = """
import sys, worldmodel.training.loop.trainer as trainer
learn = trainer.Trainer.update
def update(self):
    result = learn(self)
    sys.exit(0)
trainer.Trainer.update = update
from worldmodel.__main__ import main
sys.argv = ["worldmodel", "train", "configs/pendulum.yaml", "--run", sys.argv[1], "--logger.wandb", "disabled"]
main()
"""


def median(action: Callable[[], object], count: int) -> float:
    """Seconds of a call."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def agent(path: str, changes: dict[str, object], compile: bool = False) -> Agent:
    """An untrained one."""
    config = load_config(path, (), **changes)
    specs, action = {"observation": ObservationSpec((3,))}, ActionSpec((1,), low=(-1.0,), high=(1.0,))
    model = WorldModel.build(config.model, specs, action)
    return Agent(model, ActorCritic(config.behaviour.actor_critic, model.feature_size, action), specs, action, compile)


def decision(agent: Agent, count: int) -> float:
    observation, first = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32), np.zeros(count, bool)
    state = agent.predict(observation)[1]

    def decide() -> None:
        nonlocal state
        _, state = agent.predict(observation, state, first)

    median(decide, 100)
    return median(decide, 2000)


def command(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subjects = {"S": SIZES["S"], "pendulum": ("configs/pendulum.yaml", {})}
    rows = [
        (f"decision, {name}{', compiled' * compiled}", count, decision(agent(*subject, compiled), count))
        for name, subject in subjects.items()
        for compiled in (False, True)
        for count in (1, 64)
    ]
    rows.append(("help", "", median(command("-m", "worldmodel", "--help"), 5)))
    with tempfile.TemporaryDirectory() as folder:
        runs = iter(range(10))
        rows.append(("first update", "", median(lambda: command("-c", FIRST, f"{folder}/{next(runs)}")(), 5)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        for table in (csv.writer(file), csv.writer(sys.stdout)):
            table.writerow(("what", "environments", "seconds"))
            table.writerows((what, count, f"{seconds:.6f}") for what, count, seconds in rows)


if __name__ == "__main__":
    with room_for_tensors():  # as `worldmodel train` does
        main()
