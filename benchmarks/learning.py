"""Learning curves of a suite of tasks over several seeds, as CSV files that anyone can make again.

    python benchmarks/learning.py classic --seeds 11-15 --jobs 2 --out results/classic.csv
    python benchmarks/learning.py control18 --seeds 1 --out results/control18.csv --runs ~/runs --at 1a2b3c4
    python benchmarks/learning.py control18 --seeds 1 --out results/control18.csv --runs ~/runs --at 1a2b3c4 --status

Every curve is one ordinary `worldmodel train` with a fixed config; only the seed differs. A run belongs to the commit
and the config it was begun with: its folder is named after them, and its rows say both. The rows of a finished run are
merged into the CSV at once, those of its final evaluation and of milestones into NAME_final.csv; rows of other runs
stay as they are (learning_rows.py). A run whose rows are there is not made again.

The same command goes on where it was stopped. Ctrl-C, SIGTERM and SIGHUP let every run save itself first. `--at COMMIT`
runs from a checkout of that commit under --runs, so that work in this folder changes nothing; `--status` shows what is
done, running and missing, and starts nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import learning_rows
from learning_rows import Row
from learning_runs import JOURNAL, ROOT, Cell, checkout, commit_of_code, journal
from learning_suites import SUITES

from worldmodel.training.config.config import load_config
from worldmodel.training.run.folder import check_writable

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
DEVELOPMENT = range(1, 4)  # seeds of control18 that may be looked at while its config is chosen
REPORTED = 101  # its first seed of the published table


class Runner:
    """Trains cells, several side by side, until it is asked to stop; merges what has finished.

    Args:
        out: the CSV of the curves.
    """

    def __init__(self, out: Path, root: Path) -> None:
        self.out, self.root = out, root
        self.children: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Let every run save itself, and begin no other."""
        self.stopped = True
        for child in list(self.children):
            child.send_signal(signal.SIGTERM)
        say(f"{signal.Signals(number).name}: every run saves itself; the same command goes on")

    def make(self, cell: Cell) -> bool:
        """Train a run from where it stands, and merge its rows; whether they are there then.

        What goes wrong with one run is told, and does not keep others from being made.
        """
        try:
            return self._make(cell)
        except (OSError, ValueError) as error:
            say(f"{cell.name}: {error}; the same command goes on from here")
            return False

    def _make(self, cell: Cell) -> bool:
        if self.stopped:
            return False
        if cell.running:
            pid = next((entry["pid"] for entry in reversed(journal(self.root)) if entry["run"] == cell.name), "unknown")
            say(f"{cell.name}: another process trains it (its number was {pid}): wait for it, or end it by SIGTERM")
            return False
        if not cell.finished:
            ended = self.train(cell)
            if not cell.finished:
                if not self.stopped:
                    say(f"{cell.name}: FAILED with exit status {ended}, see {_log(cell)}")
                return False
        self.merge(cell)
        return True

    def train(self, cell: Cell) -> int:
        """The exit status of `worldmodel train` for what is left of a run.

        Raises:
            ValueError: if the code has changed since the command was given.
        """
        if (commit := commit_of_code()) != cell.commit:
            raise ValueError(f"the code is at commit {commit[:8]} now, and this run is of {cell.commit[:8]}")
        command = [sys.executable, "-m", "worldmodel", "train"]
        if cell.begun:
            event = "goes on"
            command += ["--resume", str(cell.folder)]
        else:
            lost = any(entry["run"] == cell.name for entry in journal(self.root))
            event = "begins again: its folder is lost" if lost else "begins"
            command += [cell.curve.config, "--seed", str(cell.seed), "--run", str(cell.folder), *cell.curve.overrides]
        with _log(cell).open("a") as log:
            # In a session of its own: Ctrl-C reaches it once, by `stop`.
            child = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        self.children.add(child)
        if self.stopped:  # while it was begun
            child.send_signal(signal.SIGTERM)
        while not cell.begun and child.poll() is None:
            time.sleep(0.1)
        if cell.begun:  # a run without a folder cannot be lost
            self.tell(cell, event, child.pid)
        status = child.wait()
        self.children.discard(child)
        if cell.begun:
            end = "is trained" if cell.finished else "was stopped" if self.stopped else f"failed ({status})"
            self.tell(cell, end, child.pid)
        return status

    def merge(self, cell: Cell) -> None:
        """The final rows last, since they say that a run is done."""
        learning_rows.merge(self.out, cell.rows(("eval",)))
        learning_rows.merge(learning_rows.final_file(self.out), cell.rows(("milestone", "final")))
        say(f"{cell.name}: done, and its rows are in {self.out}")

    def tell(self, cell: Cell, event: str, pid: int) -> None:
        """A line for the journal, and one for the person."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = json.dumps({"time": now, "run": cell.name, "event": event, "pid": pid})
        with (self.root / JOURNAL).open("a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            cut_off = file.read(1) not in (b"", b"\n")  # the last line, when the disk was full
            file.write(b"\n" * cut_off + line.encode() + b"\n")
        say(f"{cell.name}: {event}")


def say(line: str) -> None:
    """Tell the person, where anybody still reads."""
    with suppress(OSError):
        print(line, flush=True)


def _log(cell: Cell) -> Path:
    return cell.root / f"{cell.name}.log"


def status(cells: Sequence[Cell], out: Path, root: Path) -> Iterator[str]:
    """One line per run: done, running, stopped, failed, lost, or missing."""
    done = learning_rows.runs(learning_rows.read(learning_rows.final_file(out)))
    last = {entry["run"]: entry["event"] for entry in journal(root)}
    counts = {"done": 0, "running": 0, "missing": 0}
    for cell in cells:
        seen = cell.metrics()[-1:] if cell.begun else []
        at = f" at step {int(seen[0]['global_step']):,} of {cell.config.training.steps:,}" if seen else ""
        if cell.key in done:
            kind, text = "done", "done: " + ", ".join(_score(row) for row in done[cell.key])
        elif cell.running:
            kind, text = "running", f"running{at}"
        elif cell.begun:
            kind, text = "missing", f"stopped{at}; last: {last.get(cell.name, 'unknown')}"
        else:
            kind, text = "missing", "lost: begun, and its folder is gone" if cell.name in last else "missing"
        counts[kind] += 1
        yield f"{cell.curve.task} {cell.curve.variant} {cell.seed}: {text}"
    others = len(done.keys() - {cell.key for cell in cells})
    yield f"{', '.join(f'{count} {kind}' for kind, count in counts.items())}; {others} other run(s) in {out}"


def _score(row: Row) -> str:
    return f"{float(row['return']):.0f} at {int(float(row['frames'])):,} frames ({float(row['seconds']):,.0f} s)"


def summarise(cells: Iterable[Cell], out: Path) -> Iterator[str]:
    """One line per seed: when it was first solved, the worst evaluation after it should stay, how it ended."""
    curves = learning_rows.runs(learning_rows.read(out))
    finals = learning_rows.runs(learning_rows.read(learning_rows.final_file(out)))
    head = None
    for cell in cells:
        curve = cell.curve
        if curve.solved is None:
            continue
        if curve != head:
            head, (since, bar) = curve, curve.stays
            yield f"\n{curve.task} {curve.variant}: solved at {curve.solved:g}, stays at {bar:g} from step {since}"
            yield "seed  first solved  worst since  final return  seconds"
        if cell.key not in finals:
            yield f"{cell.seed:>4}  unfinished"
            continue
        points = [(int(row["env_steps"]), float(row["return"])) for row in curves.get(cell.key, [])]
        first = next((str(step) for step, value in points if value >= curve.solved), "never")
        worst = min((value for step, value in points if step >= since), default=float("nan"))
        end = finals[cell.key][-1]
        ended = f"{float(end['return']):>12.4g}  {float(end['seconds']):>7.0f}"
        yield f"{cell.seed:>4}  {first:>12}  {worst:>11.4g}  {ended}"


def check_seeds(suite: str, seeds: range, frozen: str, commit: str) -> None:
    """Keep the reported seeds of control18 from being seen before its config is frozen.

    Raises:
        ValueError: for seeds that are neither for development nor for the table, and for those of the table without
            the commit at which the config was frozen.
    """
    if suite != "control18" or all(seed in DEVELOPMENT for seed in seeds):
        return
    if min(seeds) < REPORTED:
        raise ValueError(
            f"control18 is developed on seeds {DEVELOPMENT[0]}-{DEVELOPMENT[-1]} and reported on seeds from {REPORTED} "
            f"on: {seeds[0]}-{seeds[-1]} are neither"
        )
    if len(frozen) < 7 or not commit.startswith(frozen):
        raise ValueError(
            f"seeds from {REPORTED} on are looked at once, when the config is frozen: --frozen names that commit, and "
            f"this is {commit[:8]}"
        )


def seed_range(text: str) -> range:
    """ "FIRST-LAST", both included, or one."""
    first, _, last = text.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    if not seeds:
        raise argparse.ArgumentTypeError(f"the first seed is above the last: {text}")
    return seeds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument(
        "--seeds", type=seed_range, default=range(1, 6), help="training seeds FIRST-LAST, or one (default: 1-5)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each (default: 1)")
    parser.add_argument("--only", default="", help="curves whose 'task variant' contains this")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the run folders go")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to merge rows into")
    parser.add_argument("--at", metavar="COMMIT", help="run from a checkout of this commit, made under --runs")
    parser.add_argument("--frozen", default="", metavar="COMMIT", help="of the config of control18's reported seeds")
    parser.add_argument("--status", action="store_true", help="show what is done, running and missing, and stop")
    return parser.parse_args()


def check_place(suite: str, root: Path) -> None:
    """Keep the runs of control18, which take weeks, from what happens to a working tree.

    Raises:
        ValueError: if they would lie inside it.
    """
    if suite == "control18" and ROOT in (root, *root.parents):
        raise ValueError(f"control18 runs for weeks: choose a folder outside of {ROOT} with --runs, and --at COMMIT")


def again_at(commit: str, options: argparse.Namespace, root: Path, out: Path) -> NoReturn:
    """The same command, by the code of a commit."""
    place = checkout(commit, root)
    given = [("--seeds", f"{options.seeds[0]}-{options.seeds[-1]}"), ("--jobs", options.jobs)]
    given += [("--only", options.only), ("--runs", root), ("--out", out), ("--frozen", options.frozen)]
    flags = [f"{name}={value}" for name, value in given] + ["--status"] * options.status
    script = str(place / "benchmarks" / Path(__file__).name)
    if not Path(script).is_file():
        raise ValueError(f"commit {commit} has no {Path(__file__).name} yet: choose a later one")
    os.execve(sys.executable, [sys.executable, script, options.suite, *flags], {**os.environ, "PYTHONPATH": str(place)})


def main() -> int:
    options = arguments()
    root, out = options.runs.expanduser().resolve(), options.out.expanduser().resolve()
    check_place(options.suite, root)
    for folder in (root, out.parent):
        check_writable(folder)
    root.mkdir(parents=True, exist_ok=True)
    if options.at:
        again_at(options.at, options, root, out)
    commit = commit_of_code()
    check_seeds(options.suite, options.seeds, options.frozen, commit)
    curves = [curve for curve in SUITES[options.suite] if options.only in f"{curve.task} {curve.variant}"]
    if not curves:
        there = ", ".join(f"'{curve.task} {curve.variant}'" for curve in SUITES[options.suite])
        raise ValueError(f"--only {options.only} chooses nothing of {there}")
    cells = [
        Cell(curve, seed, commit, root, load_config(ROOT / curve.config, curve.overrides, seed=seed))
        for curve in curves
        for seed in options.seeds
    ]
    if options.status:
        print("\n".join(status(cells, out, root)))
        return 0
    runner = Runner(out, root)
    for number in STOPS:
        signal.signal(number, runner.stop)
    learning_rows.read(out)  # what is damaged there is told before anything is trained
    done = learning_rows.runs(learning_rows.read(learning_rows.final_file(out)))
    todo = [cell for cell in cells if cell.key not in done]
    say(f"{len(cells) - len(todo)} of {len(cells)} runs are in {out} already")
    with ThreadPoolExecutor(options.jobs) as pool:
        made = list(pool.map(runner.make, todo))
    say("\n".join(summarise(cells, out)))
    return int(not all(made))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))
