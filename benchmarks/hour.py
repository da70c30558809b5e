"""Where the time of a training run goes, phase by phase.

    python benchmarks/hour.py configs/suites/dmc.yaml --steps 6000 --out results/control18_hour.csv \\
        --env.id dmc:walker_walk --evaluation.final_episodes 10

One ordinary run in one process. A phase's seconds are its own: those of a phase inside it count there alone. Both the
wall clock and the processor time are reported; on an idle core with one thread they differ by waiting for the disk.
End other work first. Rows are added to the CSV.
"""

import argparse
import csv
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from learning import commit_of_code

from worldmodel.agents import ActorCritic, Plan2Explore
from worldmodel.envs import RecordTrajectories
from worldmodel.training.config.config import load_config
from worldmodel.training.loop.evaluations import Evaluations
from worldmodel.training.loop.loop import Loop
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.loop.updater import Updater
from worldmodel.training.run.run import Run
from worldmodel.training.start import train

PHASES: list[tuple[type, str, str]] = [
    (Trainer, "decide", "acting"),
    (RecordTrajectories, "step", "environment and recording"),
    (Updater, "drawn", "sampling of batches"),
    (Updater, "learn", "model update"),
    (Plan2Explore, "learn", "ensemble update"),
    (ActorCritic, "learn", "actor-critic update"),
    (Evaluations, "play", "evaluation"),
    (Run, "save", "saving"),
    (Loop, "log", "logging"),
]
"""What is timed: a class, its method, and the name of the phase."""
REST = "the rest, building included"
COLUMNS = ["config", "task", "env_steps", "phase", "seconds", "cpu_seconds", "share", "calls", "commit"]


class Clock:
    """Seconds by phase; the time of an inner phase is not that of the outer one."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.open = [REST]
        self.since = self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def book(self) -> None:
        """Give what has passed since the last call to the innermost phase."""
        before, self.since = self.since, self.now()
        self.wall[self.open[-1]] += self.since[0] - before[0]
        self.cpu[self.open[-1]] += self.since[1] - before[1]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.book()
        self.open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self.book()
            self.open.pop()

    def timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            with self.phase(name):
                return method(*given, **named)

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, required=True, help="environment steps")
    parser.add_argument("--out", type=Path, help="the CSV to add rows to")
    options, overrides = parser.parse_known_args()
    overrides += ["--training.steps", str(options.steps), "--logger.wandb", "disabled"]
    config, commit = load_config(options.config, overrides), commit_of_code()
    clock = Clock()
    for owner, method, name in PHASES:
        setattr(owner, method, clock.timed(getattr(owner, method), name))
    with tempfile.TemporaryDirectory() as folder:
        train(options.config, overrides, run=Path(folder) / "run")
    clock.book()
    whole = sum(clock.wall.values())
    phases = sorted(clock.wall, key=clock.wall.__getitem__, reverse=True)
    rows = [
        [
            *(options.config, config.env.id, options.steps, name),
            *(round(clock.wall[name], 2), round(clock.cpu[name], 2), round(clock.wall[name] / whole, 4)),
            *(clock.calls[name], commit),
        ]
        for name in phases
    ]
    print(f"{config.env.id}, {options.steps:,} environment steps, {whole:.0f} s\n\n| phase | share | seconds | CPU |")
    print("|---|--:|--:|--:|")
    for row in rows:
        print(f"| {row[3]} | {100 * float(row[6]):.1f} % | {row[4]} | {row[5]} |")
    if options.out:
        fresh = not options.out.exists()
        with options.out.open("a", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerows([COLUMNS] * fresh + rows)


if __name__ == "__main__":
    main()
