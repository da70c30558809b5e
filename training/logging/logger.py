"""Where metrics become numbers: one line of `metrics.jsonl` and one Weights & Biases row per call.

Below the logger every metric is a tensor, so that an update never waits for the device; here, and only here,
they are read. Both records carry `global_step`, in environment steps, as their axis.

The rows on Weights & Biases are numbered as the lines are: of a run that goes on it gets those that it lacks, and none
that it has.
"""

import json
import math
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.training.logging.lines import Lines, json_safe
from worldmodel.training.logging.wandb_run import Mode, arrived, finish_wandb, first_line, remove_old, start_wandb

HOME = Path(__file__).resolve().parents[2]  # of the repository, where this is a checkout
MEDIA = "media"  # where films and figures lie in a run folder

Metrics = Mapping[str, Tensor | float]
"""Scalars by name: tensors of one element, floats or ints."""


@dataclass
class LoggerConfig:
    """Which record is kept beside `metrics.jsonl`, and what it is called there."""

    wandb: Mode = "auto"  # auto: online where a key is found
    project: str = "worldmodel"  # on Weights & Biases
    name: str | None = None  # of the run there; by default the name of its folder
    tags: list[str] = field(default_factory=list)


def numbers(metrics: Metrics) -> dict[str, float]:
    """Read every metric, all tensors of a device in one transfer: those of other libraries may lie elsewhere.

    Raises:
        ValueError: if a tensor holds more than one element.
    """
    tensors = {name: _scalar(name, value) for name, value in metrics.items() if isinstance(value, Tensor)}
    read: dict[str, float] = {}
    for device in {value.device for value in tensors.values()}:
        there = {name: value for name, value in tensors.items() if value.device == device}
        read |= dict(zip(there, torch.stack(list(there.values())).tolist(), strict=True))
    plain = {**metrics, **read}  # in the order they were given
    return {name: value if isinstance(value, int) else float(value) for name, value in plain.items()}


def _scalar(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ValueError(f"metric '{name}' has shape {tuple(value.shape)}: reduce it to a scalar first")
    return value.detach().float().reshape(())


class Averages:
    """Means of metrics over many updates, summed where they are: reading them is left to :meth:`pop`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: Counter[str] = Counter()

    def add(self, metrics: Metrics) -> None:
        """Add one update's metrics. An update may leave some out; each name is averaged over those that had it."""
        for name, value in metrics.items():
            # `+ 0.0` copies: a captured update writes its next metrics over the tensors of the last.
            self.sums[name] = self.sums.get(name, 0.0) + (value.detach() if isinstance(value, Tensor) else value)
        self.counts.update(metrics.keys())

    def pop(self) -> dict[str, float]:
        """The means since the last call; `{}` if there was no update."""
        means = {name: total / self.counts[name] for name, total in numbers(self.sums).items()}
        self.sums, self.counts = {}, Counter()
        return means


class Logger:
    """Writes the metrics of one run.

    Args:
        run_dir: the run's folder, which gets `metrics.jsonl` and `wandb/`.
        run_config: the resolved config of the whole run, seed included, to be found with it on Weights & Biases.
        say: prints a line for the user.
        since: what another logger of this run gave as :meth:`position`: what it wrote after that is forgotten.
    """

    def __init__(
        self,
        run_dir: Path,
        config: LoggerConfig,
        run_config: Mapping[str, Any],
        say: Callable[[str], None] = print,
        since: Mapping[str, Any] | None = None,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic() - (since["seconds"] if since else 0)
        self.say = say
        self.lines = Lines(run_dir / "metrics.jsonl", since["bytes"] if since else None, say)
        self.run = start_wandb(
            run_dir,
            config.wandb,
            say,
            since["wandb"] if since else None,
            project=config.project,
            name=config.name or run_dir.resolve().name,
            tags=config.tags,
            config={**run_config, **provenance()},
        )
        self.row = 0  # number of the next row there
        self.arrived = arrived(self.run, run_dir) if self.run is not None and since else 0  # rows that are there
        self.name = self.run.id if self.run is not None else since["wandb"] if since else None  # there, for good
        if self.run is not None and since:
            self._give_again(run_dir)

    def log(self, metrics: Metrics, step: int) -> None:
        """Record `metrics` at `step` environment steps."""
        row = {"global_step": step, **numbers(metrics)}
        seconds = round(time.monotonic() - self.began, 3)
        line = {"global_step": step, "seconds": seconds, **json_safe(row)}
        self.lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._online(row)

    def position(self) -> dict[str, Any]:
        """Where both records stand, on the disk."""
        self.lines.flush()
        return {"bytes": self.lines.written, "seconds": time.monotonic() - self.began, "wandb": self.name}

    def films(self, paths: Iterable[Path], step: int) -> None:
        """Show WebM films on Weights & Biases, from where they lie; as `media/NAME`, at `step` environment steps."""
        if self.run is None:
            return
        import wandb

        shown = {f"media/{path.stem}": wandb.Video(str(path), format="webm") for path in paths}
        self._give({**shown, "global_step": step}, max(self.row - 1, 0))  # with the row before

    def _give_again(self, run_dir: Path) -> None:
        """Give Weights & Biases what it lacks of the lines that are there, and the films made meanwhile."""
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(parsed, lines) if "global_step" in row]
        for row, after in zip(rows, [*rows[1:], {}], strict=True):
            known = {name: math.nan if value is None else value for name, value in row.items() if name != "seconds"}
            self._online(known)
            films = sorted(films_of(run_dir, row["global_step"]).glob("*.webm"))
            if films and after.get("global_step") != row["global_step"]:
                self.films(films, row["global_step"])
        if self.run is not None:
            remove_old(run_dir, self.run.id)

    def _online(self, row: Mapping[str, Any]) -> None:
        """Give the next row to Weights & Biases."""
        self._give(row, self.row)
        self.row += 1

    def _give(self, row: Mapping[str, Any], number: int) -> None:
        """A row, or more of it, unless it is there; the first time that it fails is the last.

        It goes there when the next one comes, or at the end.
        """
        if self.run is None or number < self.arrived:
            return
        try:
            self.run.log(dict(row), step=number)
        except Exception as error:  # whatever has become of it: the run goes on
            self._gone(error)

    def _gone(self, error: Exception) -> None:
        self.say(f"Weights & Biases: off from here ({first_line(error)}); metrics.jsonl has everything")
        self.run = None

    def close(self) -> None:
        """Finish both records; further calls of :meth:`log` are errors."""
        self.lines.close()
        if self.run is None:
            return
        try:
            finish_wandb(self.run, self.say)
        except Exception as error:
            self._gone(error)


def parsed(line: str) -> dict[str, Any]:
    """A line of metrics.jsonl; nothing where somebody has damaged it."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def provenance() -> dict[str, str | None]:
    """Which code runs: the package's version, and the commit of the repository it lies in, if any."""
    try:
        installed = version("worldmodel")
    except PackageNotFoundError:
        installed = None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(
            command, cwd=HOME, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"version": installed, "commit": commit}


def films_of(folder: Path, steps: int) -> Path:
    """Where the films of a run lie that were made after so many environment steps."""
    return folder / MEDIA / f"{steps:07d}"
