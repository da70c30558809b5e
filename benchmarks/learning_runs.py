"""One run of a suite: its folder, what it has logged, and the code that it is made by."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import learning_rows
from learning_rows import Key, Row
from learning_suites import Curve

from worldmodel import training
from worldmodel.replay.disk import LOCK, locked
from worldmodel.training.config.config import Config
from worldmodel.training.config.schema import dump_yaml, to_mapping
from worldmodel.training.run.folder import CONFIG_FILE, METRICS_FILE

ROOT = Path(__file__).resolve().parent.parent
CODE = ("worldmodel", "envs", "agents", "training", "configs", "benchmarks/learning*.py")
"""What decides the rows of a run."""
JOURNAL = "journal.jsonl"  # in the folder of the runs: which were begun, went on, ended


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
        return (self.folder / CONFIG_FILE).is_file()

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

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of the run's metrics."""
        return _lines(self.folder / METRICS_FILE)

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


def _evaluation(line: dict[str, Any], kind: str) -> tuple[int, int, float, float]:
    """(env_steps, frames, return, seconds of training without evaluation) of a line of metrics."""
    found = line[f"{kind}/mean_reward"]
    seconds = round(line["seconds"] - line["time/evaluation_seconds"], 3)
    return int(line["global_step"]), int(line["time/frames"]), float("nan") if found is None else found, seconds


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
        ValueError: if there is no such commit, or no room for it.
    """
    try:
        whole = _git(ROOT, "rev-parse", "--verify", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise ValueError(f"--at {commit}: {error.stderr.strip()}") from error
    folder = root / "checkouts" / whole
    if not folder.is_dir():
        partial = folder.with_suffix(f".{os.getpid()}")
        try:
            _git(ROOT, "clone", "--quiet", "--no-checkout", str(ROOT), str(partial))
            _git(partial, "checkout", "--quiet", "--detach", whole)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise ValueError(f"no checkout of {whole[:8]} under {root}: {error.stderr.strip()}") from error
        try:
            partial.rename(folder)
        except OSError:  # another command made it in the meantime
            shutil.rmtree(partial)
    return folder


def journal(root: Path) -> list[dict[str, Any]]:
    """What happened to the runs under a folder, the oldest first."""
    return _lines(root / JOURNAL)


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON; one that was cut off is left out."""
    found = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found
