"""Learning curves of a suite of tasks over several seeds, as CSV files that anyone can make again.

    python benchmarks/learning.py classic --seeds 11-15 --jobs 2 --out results/classic.csv
    python benchmarks/learning.py control18 --seeds 1 --out results/control18.csv --runs ~/runs --at 1a2b3c4
    python benchmarks/learning.py control18 --seeds 1 --out results/control18.csv --runs ~/runs --at 1a2b3c4 --status

Every curve is one ordinary `worldmodel train` with a fixed config; only the seed differs. A run belongs to the commit
and the config it was begun with: its folder is named after them, and its rows say both. The rows of a finished run are
merged into the CSV at once, those of its final evaluation and of milestones into NAME_final.csv; rows of other runs
stay as they are (learning_rows.py). A run whose rows are there is not made again.

The same command goes on where it was stopped. Ctrl-C and SIGTERM let every run save itself first. `--at COMMIT` runs
from a checkout of that commit under --runs, so that work in this folder changes nothing; `--status` shows what is done,
running and missing, and starts nothing.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import learning_rows
from learning_rows import Key, Row
from learning_suites import SUITES, Curve

import training
from training.config import Config, load_config
from training.folder import CONFIG, METRICS
from training.schema import dump_yaml, to_mapping
from worldmodel.disk import LOCK, locked

ROOT = Path(__file__).resolve().parent.parent
CODE = ("worldmodel", "envs", "agents", "training", "configs", "benchmarks/learning*.py")
"""What decides the rows of a run."""
JOURNAL = "journal.jsonl"  # in the folder of the runs: which were begun, went on, ended
DEVELOPMENT = range(1, 4)  # seeds of control18 that may be looked at while its config is chosen
REPORTED = 101  # its first seed of the published table


def digest(config: Config) -> str:
    """Twelve hexadecimal digits that tell configs apart; the seed and what is logged do not count."""
    mapping = {name: part for name, part in to_mapping(config).items() if name not in ("seed", "logger")}
    return hashlib.sha256(dump_yaml(mapping).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Cell:
    """One run of a suite: a curve with a seed, by the code of one commit."""

    curve: Curve
    seed: int
    commit: str
    root: Path  # of the folders of runs
    config: Config = field(repr=False, compare=False)

    @property
    def key(self) -> Key:
        return Key(self.curve.task, self.curve.variant, self.seed, self.commit, digest(self.config))

    @property
    def name(self) -> str:
        key = self.key
        return f"{key.task}-{key.variant}-{key.seed}-{key.commit[:8]}-{key.config}"

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def begun(self) -> bool:
        return (self.folder / CONFIG).is_file()

    @property
    def running(self) -> bool:
        """Whether a process trains it now."""
        if not self.begun:
            return False
        try:
            os.close(locked(self.folder / LOCK, ""))
        except ValueError:
            return True
        return False

    def metrics(self) -> list[dict[str, float]]:
        """The whole lines of the run's metrics."""
        file = self.folder / METRICS
        lines = file.read_text().splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    @property
    def finished(self) -> bool:
        return any("final/mean_reward" in line for line in self.metrics())

    def rows(self, kinds: Sequence[str]) -> list[Row]:
        """The evaluations of these kinds ("eval", "milestone", "final"), as rows of a CSV."""
        return [
            dict(
                zip(
                    learning_rows.COLUMNS,
                    map(str, [*self.key[:3], *_evaluation(line, kind), *self.key[3:], self.config.training.threads]),
                    strict=True,
                )
            )
            for line in self.metrics()
            for kind in kinds
            if f"{kind}/mean_reward" in line
        ]


def _evaluation(line: dict[str, float], kind: str) -> tuple[int, int, float, float]:
    """(env_steps, frames, return, seconds of training without evaluation) of a line of metrics."""
    found = line[f"{kind}/mean_reward"]
    seconds = round(line["seconds"] - line["time/evaluation_seconds"], 3)
    return int(line["global_step"]), int(line["time/frames"]), float("nan") if found is None else found, seconds


def final_file(out: Path) -> Path:
    """Where final evaluations and milestones go, beside the curves."""
    return out.with_name(f"{out.stem}_final.csv")


def commit_of_code() -> str:
    """The commit of the checkout that this file lies in.

    Raises:
        ValueError: if it is no checkout, or other code than its own is imported, or the code is not what was
            committed: rows could not say what made them.
    """
    imported = Path(training.__file__).resolve().parent.parent
    if imported != ROOT:
        raise ValueError(
            f"the code of {imported} would run instead of that of {ROOT}: install that one (pip install -e .)"
        )
    try:
        changed = _git(ROOT, "status", "--porcelain", "--", *CODE)
        commit = _git(ROOT, "rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{ROOT} is no git checkout, and rows name the commit that made them: clone it") from error
    if changed:
        files = ", ".join(line.split(maxsplit=1)[1] for line in changed.splitlines())
        raise ValueError(f"not committed: {files}. Rows name the commit that made them: commit first, or use --at HEAD")
    return commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def checkout(commit: str, root: Path) -> Path:
    """A clone of this repository at a commit, under the folder of the runs; made once.

    Raises:
        ValueError: if there is no such commit.
    """
    try:
        whole = _git(ROOT, "rev-parse", "--verify", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise ValueError(f"--at {commit}: {error.stderr.strip()}") from error
    folder = root / "checkouts" / whole
    if not folder.is_dir():
        partial = folder.with_suffix(f".{os.getpid()}")
        _git(ROOT, "clone", "--quiet", "--no-checkout", str(ROOT), str(partial))
        _git(partial, "checkout", "--quiet", "--detach", whole)
        try:
            partial.rename(folder)
        except OSError:  # another command made it in the meantime
            shutil.rmtree(partial)
    return folder


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
        print(f"{signal.Signals(number).name}: every run saves itself; the same command goes on", flush=True)
        for child in self.children:
            child.send_signal(signal.SIGTERM)

    def make(self, cell: Cell) -> bool:
        """Train a run from where it stands, and merge its rows; whether they are there then."""
        if self.stopped:
            return False
        if cell.running:
            print(f"{cell.name}: another process trains it", flush=True)
            return False
        if not cell.finished:
            ended = self.train(cell)
            if not cell.finished:
                if not self.stopped:
                    print(f"{cell.name}: FAILED with exit status {ended}, see {_log(cell)}", flush=True)
                return False
        self.merge(cell)
        return True

    def train(self, cell: Cell) -> int:
        """The exit status of `worldmodel train` for what is left of a run."""
        command = [sys.executable, "-m", "worldmodel", "train"]
        if cell.begun:
            self.tell(cell, "goes on")
            command += ["--resume", str(cell.folder)]
        else:
            lost = any(entry["run"] == cell.name for entry in journal(self.root))
            self.tell(cell, "begins again: its folder is lost" if lost else "begins")
            command += [cell.curve.config, "--seed", str(cell.seed), "--run", str(cell.folder), *cell.curve.overrides]
        with _log(cell).open("a") as log:
            # In a session of its own: Ctrl-C reaches it once, by `stop`.
            child = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
            self.children.add(child)
            if self.stopped:  # while it was begun
                child.send_signal(signal.SIGTERM)
            status = child.wait()
        self.children.discard(child)
        self.tell(cell, "is trained" if cell.finished else "was stopped" if self.stopped else f"failed ({status})")
        return status

    def merge(self, cell: Cell) -> None:
        """The final rows last, since they say that a run is done."""
        learning_rows.merge(self.out, cell.rows(("eval",)))
        learning_rows.merge(final_file(self.out), cell.rows(("milestone", "final")))
        print(f"{cell.name}: done, and its rows are in {self.out}", flush=True)

    def tell(self, cell: Cell, event: str) -> None:
        """A line for the person, and one for the journal."""
        print(f"{cell.name}: {event}", flush=True)
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "run": cell.name, "event": event})
        with (self.root / JOURNAL).open("a") as file:
            file.write(line + "\n")


def _log(cell: Cell) -> Path:
    return cell.root / f"{cell.name}.log"


def journal(root: Path) -> list[dict[str, str]]:
    """What happened to the runs under a folder, the oldest first; a line that was cut off is left out."""
    file = root / JOURNAL
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def status(cells: Sequence[Cell], out: Path, root: Path) -> Iterator[str]:
    """One line per run: done, running, stopped, failed, lost, or missing."""
    done = learning_rows.runs(learning_rows.read(final_file(out)))
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
    finals = learning_rows.runs(learning_rows.read(final_file(out)))
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
        points = [(int(row["env_steps"]), float(row["return"])) for row in curves[cell.key]]
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
    return range(int(first), int(last or first) + 1)


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


def main() -> int:
    options = arguments()
    root, out = options.runs.expanduser().resolve(), options.out.expanduser().resolve()
    root.mkdir(parents=True, exist_ok=True)
    if options.at:
        place = checkout(options.at, root)
        given = [("--seeds", f"{options.seeds[0]}-{options.seeds[-1]}"), ("--jobs", options.jobs)]
        given += [("--only", options.only), ("--runs", root), ("--out", out), ("--frozen", options.frozen)]
        flags = [f"{name}={value}" for name, value in given] + ["--status"] * options.status
        script = str(place / "benchmarks" / Path(__file__).name)
        os.execve(
            sys.executable, [sys.executable, script, options.suite, *flags], {**os.environ, "PYTHONPATH": str(place)}
        )
    commit = commit_of_code()
    check_seeds(options.suite, options.seeds, options.frozen, commit)
    cells = [
        Cell(curve, seed, commit, root, load_config(ROOT / curve.config, curve.overrides, seed=seed))
        for curve in SUITES[options.suite]
        if options.only in f"{curve.task} {curve.variant}"
        for seed in options.seeds
    ]
    if options.status:
        print("\n".join(status(cells, out, root)))
        return 0
    runner = Runner(out, root)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.stop)
    done = learning_rows.runs(learning_rows.read(final_file(out)))
    todo = [cell for cell in cells if cell.key not in done]
    print(f"{len(cells) - len(todo)} of {len(cells)} runs are in {out} already", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        made = list(pool.map(runner.make, todo))
    print("\n".join(summarise(cells, out)))
    return int(not all(made))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))
