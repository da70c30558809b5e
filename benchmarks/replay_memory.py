"""Memory and time of a replay in memory, and time of an update, beside another checkout of this repository, in turns.

    git worktree add ../before 644b0a0
    python benchmarks/replay_memory.py --before ../before --out results/replay_memory.csv

`growth` is what the resident memory of a process grew by while a ring of 100,000 pictures, 64 x 64 in three colours,
was filled with so many rows, as a share of these rows; `add` and `sample` are microseconds of CPU time of a row, and of
a batch of 16 windows of 64 steps; `update` is milliseconds of one of size S (benchmarks/update_ours.py). Each is in a
process of its own, with memory as `worldmodel train` has it. Both builds take turns; `before` and `now` are medians,
and `ratio` is the median of the ratios of one turn.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROWS = (8_000, 33_000, 50_000, 100_000)
BATCHES = 200
COLUMNS = ("what", "rows", "before", "now", "ratio", "least", "most", "turns")
Turn = dict[tuple[str, int | str], float]
"""What one build measured in one turn."""


def filled(rows: int) -> dict[str, float]:
    """In a process of its own: fill a replay, and sample from it."""
    import numpy as np
    import torch

    from worldmodel import SequenceReplay, TimeStep
    from worldmodel.specs import ActionSpec, ObservationSpec

    torch.set_num_threads(1)
    action = ActionSpec((6,), low=(-1.0,) * 6, high=(1.0,) * 6)
    pictures = np.random.default_rng(0).integers(256, size=(64, 1, 64 * 64 * 3)).astype(np.uint8)
    control, reward, never, env = np.ones((1, 6), np.float32), np.ones(1, np.float32), np.zeros(1, bool), np.arange(1)
    with memory_of_a_run():
        replay = SequenceReplay({"observation": ObservationSpec((64, 64, 3), image=True)}, action, 1, max(ROWS))
        before, began = resident(), time.process_time()
        for row in range(rows):
            replay.add(TimeStep({"observation": pictures[row % 64]}, control, reward, never, never, never), env)
        added, growth = time.process_time() - began, resident() - before
        for _ in range(BATCHES // 4):
            replay.sample(16, 64)
        began = time.process_time()
        for _ in range(BATCHES):
            replay.sample(16, 64)
        sampled = time.process_time() - began
    share = growth / (rows * replay.row_bytes)
    return {"growth": share, "add": added / rows * 1e6, "sample": sampled / BATCHES * 1e6}


def memory_of_a_run() -> Any:
    """As `worldmodel train` has it in this checkout."""
    from worldmodel.kernels import memory

    if hasattr(memory, "room_for_tensors"):
        return memory.room_for_tensors()
    memory.keep_memory()  # until 644b0a0
    return nullcontext()


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def replays(root: Path, rows: int) -> Turn:
    command = [sys.executable, str(HERE), "--fill", str(rows)]
    told = json.loads(subprocess.check_output(command, text=True, env=environment(root), cwd=root))
    return {(what, rows): value for what, value in told.items()}


class Updates:
    """A process of one checkout that makes updates when it is told to."""

    def __init__(self, root: Path, kind: str) -> None:
        asked = ["--size", "S", *(["--pixels"] if kind == "pixels" else [])]
        self.kind = kind
        self.process = subprocess.Popen(
            [sys.executable, str(root / "benchmarks/update_ours.py"), *asked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(root),
            cwd=root,
        )
        self.hear()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def turn(self) -> Turn:
        assert self.process.stdin is not None
        self.process.stdin.write("update 2\n")
        self.process.stdin.flush()
        return {(f"update, {self.kind}", ""): statistics.median(self.hear()["cpu"]) * 1e3}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def rows_of(turns: list[tuple[Turn, Turn]]) -> list[dict[str, Any]]:
    """A row for each thing that was measured in all of these turns, before and now."""
    found = []
    for what in turns[0][0]:
        before, now = ([each[build][what] for each in turns] for build in (0, 1))
        ratios = [late / early for early, late in zip(before, now, strict=True)]
        numbers = (statistics.median(before), statistics.median(now), statistics.median(ratios))
        shown = [f"{number:.4g}" for number in (*numbers, min(ratios), max(ratios))]
        found.append(dict(zip(COLUMNS, (*what, *shown, len(turns)), strict=True)))
    return found


def measured(roots: tuple[Path, Path], rounds: int, updates: int) -> list[dict[str, Any]]:
    """Every other turn begins with the other build."""

    def pair(measure: Any, subjects: Any, turn: int) -> tuple[Turn, Turn]:
        order = (0, 1) if turn % 2 else (1, 0)
        told = {build: measure(subjects[build]) for build in order}
        return told[0], told[1]

    found = []
    for rows in ROWS:
        turns = [pair(lambda root, rows=rows: replays(root, rows), roots, turn) for turn in range(rounds)]
        found += rows_of(turns)
    for kind in ("vector", "pixels"):
        workers = [Updates(root, kind) for root in roots]
        found += rows_of([pair(Updates.turn, workers, turn) for turn in range(updates)])
        for worker in workers:
            worker.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each replay; default: %(default)s")
    parser.add_argument("--updates", type=int, default=15, help="turns of two updates; default: %(default)s")
    parser.add_argument("--out", type=Path, help="the CSV to write")
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        print(json.dumps(filled(options.fill)))
        return
    if options.before is None or options.out is None:
        parser.error("--before and --out are needed")
    found = measured((options.before.resolve(), HERE.parent.parent), options.rounds, options.updates)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(found)
    print(options.out.read_text())


if __name__ == "__main__":
    main()
