"""Environment steps per second with updates made after each step, and while environments in processes take it.

    python benchmarks/overlap.py --config configs/suites/carracing.yaml --steps 200 --out results/overlap.csv

The same run twice, in turns: `training.overlap` off and on, environments in processes of their own both times. The
prefill and its updates are left out. It needs a second core that has nothing else to do.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from worldmodel.kernels.memory import room_for_tensors
from worldmodel.training.config.config import load_config
from worldmodel.training.logging.progress import Progress
from worldmodel.training.loop.loop import Loop
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.run import Run
from worldmodel.training.start import opened

COLUMNS = ["config", "overlap", "steps", "seconds", "steps_per_second", "env_seconds", "ratio"]


def timed(options: argparse.Namespace, overlap: bool, folder: Path) -> float:
    """Seconds of so many steps with the updates that they pay for."""
    given = ["--training.prefill", "300", "--training.pretrain", "1", "--env.timeout", "60", *options.overrides]
    given += ["--training.overlap", str(overlap).lower(), "--logger.wandb", "disabled"]
    config = load_config(options.config, given)
    torch.set_num_threads(config.training.threads)
    run = Run.create(folder, config)
    loop = Loop(Trainer(run), evaluates=False)
    run.begin()
    with room_for_tensors(), Progress(300 + options.steps) as progress, opened(loop, progress):
        loop.run(310)
        begun = time.perf_counter()
        loop.run(310 + options.steps)
        taken = time.perf_counter() - begun
    loop.trainer.envs.close()
    return taken


def alone(options: argparse.Namespace) -> float:
    """Seconds of so many steps of the environment, in its process."""
    config = load_config(options.config, ["--env.timeout", "60", *options.overrides])
    envs = Trainer(Run.create(Path(tempfile.mkdtemp()) / "run", config)).envs
    actions = [envs.action_space.sample() for _ in range(options.steps)]
    begun = time.perf_counter()
    for each in actions:
        envs.step(each)
    taken = time.perf_counter() - begun
    envs.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/suites/carracing.yaml")
    parser.add_argument("--steps", type=int, default=200, help="environment steps that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options, overrides = parser.parse_known_args()
    options.overrides = overrides
    taken: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            for overlap in (False, True):
                taken[overlap].append(timed(options, overlap, Path(folder) / f"{turn}{overlap}"))
    env_seconds = alone(options)
    ratio = statistics.median(off / on for off, on in zip(taken[False], taken[True], strict=True))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        for table in (csv.writer(file), csv.writer(sys.stdout)):
            table.writerow(COLUMNS)
            for overlap in (False, True):
                seconds = statistics.median(taken[overlap])
                speed = f"{options.steps / seconds:.2f}"
                row = (Path(options.config).stem, overlap, options.steps, f"{seconds:.1f}", speed, f"{env_seconds:.1f}")
                table.writerow((*row, f"{ratio if overlap else 1:.3f}"))


if __name__ == "__main__":
    main()
