"""What a replay costs: in memory of the process and in time, against the steps it holds.

    python benchmarks/replay.py --pictures 1000000 --vectors 10000000 --out results/replay.csv

`disk` is a replay of 64 x 64 pictures in three colours in files, 12 GB for a million of them, `memory` one of a
walker's vectors (17 numbers, 6 controls) in memory. At every power of ten steps, and at the end, batches of 16 windows
of 64 steps are sampled: `warm` again and again; at the end `cold`, each after the system was told to forget what it
holds of the files. `resident_mb` and `peak_mb` are the memory of the whole process, torch included.
"""

import argparse
import csv
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from worldmodel import SequenceReplay, TimeStep
from worldmodel.specs import ActionSpec, ObservationSpec

BATCH, WINDOW = 16, 64
WARM, COLD = 100, 20  # batches
ENVS = {"disk": 4, "memory": 16}
SPECS = {"disk": ObservationSpec((64, 64, 3), image=True), "memory": ObservationSpec((17,))}
ACTION = ActionSpec((6,), low=(-1.0,) * 6, high=(1.0,) * 6)


class Row(NamedTuple):
    storage: str
    steps: int  # stored
    row_bytes: int  # of one step
    added_per_second: int  # steps, since the row above
    warm_batches_per_second: float
    warm_batches_per_cpu_second: float
    cold_batches_per_second: float | str
    resident_mb: int  # after sampling
    peak_mb: int  # at any time until then


def resident() -> int:
    """Of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6


def peak() -> int:
    """The most of it since the process began, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6


def time_steps(name: str) -> Iterator[TimeStep]:
    """Random rows of all environments, in episodes of 500 steps, without end; pictures that cannot be compressed."""
    rng, count, spec = np.random.default_rng(0), ENVS[name], SPECS[name]
    some = rng.integers(256, size=(64, count, spec.width)).astype(spec.dtype)
    control, reward = rng.uniform(-1, 1, (count, 6)).astype(np.float32), np.zeros(count, np.float32)
    step = 0
    while True:
        first, last = np.full(count, step % 500 == 0), np.full(count, step % 500 == 499)
        yield TimeStep({"observation": some[step % 64]}, control, reward, first, last, last)
        step += 1


def speed(replay: SequenceReplay, batches: int, folder: Path | None = None) -> tuple[float, float]:
    """Batches per second, and per second of CPU time; of a cold cache where the files are in `folder`."""
    spent, computed = 0.0, 0.0
    for _ in range(batches):
        if folder is not None:
            forget(folder)
        begun, began = time.perf_counter(), time.process_time()
        replay.sample(BATCH, WINDOW)
        spent, computed = spent + time.perf_counter() - begun, computed + time.process_time() - began
    return round(batches / spent, 1), round(batches / computed, 1)


def forget(folder: Path) -> None:
    """Let the system drop what it holds of the files."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measured(name: str, steps: int, folder: Path | None = None) -> Iterator[Row]:
    """Fill a replay, and sample from it on the way."""
    replay = SequenceReplay({"observation": SPECS[name]}, ACTION, ENVS[name], steps)
    if folder is not None:
        replay.move(folder)
    rows, envs = time_steps(name), np.arange(ENVS[name])
    marks = [10**power for power in range(4, 12) if 10**power < steps] + [steps]
    before, begun = 0, time.perf_counter()
    for mark in marks:
        while len(replay) < mark:
            for _ in range(min(1000, -(-(mark - len(replay)) // len(envs)))):
                replay.add(next(rows), envs)
        added = (len(replay) - before) / (time.perf_counter() - begun)
        replay.flush()  # what is dirty cannot be forgotten
        speed(replay, WARM)
        warm = speed(replay, WARM)
        at_last = folder is not None and mark == steps
        cold = speed(replay, COLD, folder)[0] if at_last else ""
        yield Row(name, len(replay), replay.row_bytes, round(added), *warm, cold, resident(), peak())
        before, begun = len(replay), time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000, help="steps on the disk; default: %(default)s")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="steps in memory; default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where files are made, and removed; default: a temporary one")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file, tempfile.TemporaryDirectory(dir=options.folder) as folder:
        table = csv.writer(file)
        for shown in (table, csv.writer(sys.stdout)):
            shown.writerow(Row._fields)
        for name, steps, where in (
            ("disk", options.pictures, Path(folder) / "replay"),
            ("memory", options.vectors, None),
        ):
            for row in measured(name, steps, where):
                for shown in (table, csv.writer(sys.stdout)):
                    shown.writerow(row)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
