"""The logger of a run. Each call writes one line to `metrics.jsonl` and one row to Weights & Biases.

The code that trains keeps every metric as a tensor, so that an update never waits for the device. Only the logger reads
the values. Both records have `global_step`, in environment steps, as their axis.

The rows on Weights & Biases have the same numbers as the lines. When a run is resumed, only the missing rows are
uploaded.
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

REPOSITORY = Path(__file__).resolve().parents[2]  # the root of the repository, if the package runs from a checkout
MEDIA_FOLDER = "media"  # holds the videos and figures of a run

Metrics = Mapping[str, Tensor | float]
"""Scalars by name: tensors of one element, floats or ints."""


@dataclass
class LoggerConfig:
    """The record on Weights & Biases, in addition to `metrics.jsonl`."""

    wandb: Mode = "auto"  # auto: online if an API key is found
    project: str = "worldmodel"  # on Weights & Biases
    name: str | None = None  # of the run on Weights & Biases; by default the name of its folder
    tags: list[str] = field(default_factory=list)


def numbers(metrics: Metrics) -> dict[str, float]:
    """Read all metrics. The tensors of each device are transferred together; other libraries may use other devices.

    Raises:
        ValueError: if a tensor holds more than one element.
    """
    tensors = {name: _scalar(name, value) for name, value in metrics.items() if isinstance(value, Tensor)}
    read: dict[str, float] = {}
    for device in {value.device for value in tensors.values()}:
        there = {name: value for name, value in tensors.items() if value.device == device}
        read |= dict(zip(there, torch.stack(list(there.values())).tolist(), strict=True))
    plain = {**metrics, **read}  # in the order of `metrics`
    return {name: value if isinstance(value, int) else float(value) for name, value in plain.items()}


def _scalar(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ValueError(f"The metric '{name}' has shape {tuple(value.shape)}. Reduce it to a scalar first.")
    return value.detach().float().reshape(())


class Averages:
    """Means of metrics over many updates. The sums stay on their device until :meth:`pop` reads them."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: Counter[str] = Counter()

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one update. A metric is averaged over the updates that have it."""
        for name, value in metrics.items():
            # Adding to 0.0 copies the value: a captured update overwrites the tensors of its last metrics.
            self.sums[name] = self.sums.get(name, 0.0) + (value.detach() if isinstance(value, Tensor) else value)
        self.counts.update(metrics.keys())

    def pop(self) -> dict[str, float]:
        """Return the means since the last call, `{}` if there was no update."""
        means = {name: total / self.counts[name] for name, total in numbers(self.sums).items()}
        self.sums, self.counts = {}, Counter()
        return means


class Logger:
    """A logger that writes the metrics of one run.

    Args:
        run_dir: the folder of the run, where `metrics.jsonl` and `wandb/` are written.
        run_config: the resolved config of the whole run, including its seed, to store on Weights & Biases.
        say: prints a line for the user.
        since: the :meth:`position` of an earlier logger of this run. Everything it wrote after that is discarded.
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
        self.row = 0  # the number of the next row on Weights & Biases
        self.arrived = arrived(self.run, run_dir) if self.run is not None and since else 0  # rows already there
        self.name = self.run.id if self.run is not None else since["wandb"] if since else None  # its id, never changed
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
        """Return how far the records have been written to the disk, for `since` of a later logger."""
        self.lines.flush()
        return {"bytes": self.lines.written, "seconds": time.monotonic() - self.began, "wandb": self.name}

    def films(self, paths: Iterable[Path], step: int) -> None:
        """Upload WebM videos to Weights & Biases as `media/NAME`, at `step` environment steps."""
        if self.run is None:
            return
        import wandb

        shown = {f"media/{path.stem}": wandb.Video(str(path), format="webm") for path in paths}
        self._give({**shown, "global_step": step}, max(self.row - 1, 0))  # add to the previous row

    def _give_again(self, run_dir: Path) -> None:
        """Send Weights & Biases the existing lines that it lacks, and the videos of these lines."""
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
        """Send the next row to Weights & Biases."""
        self._give(row, self.row)
        self.row += 1

    def _give(self, row: Mapping[str, Any], number: int) -> None:
        """Send a row, or more metrics of it, unless it is already there. After a failure nothing more is sent.

        Weights & Biases uploads a row when the next one arrives, or at the end.
        """
        if self.run is None or number < self.arrived:
            return
        try:
            self.run.log(dict(row), step=number)
        except Exception as error:  # a failure of Weights & Biases must not stop the run
            self._gone(error)

    def _gone(self, error: Exception) -> None:
        self.say(f"Weights & Biases: switched off ({first_line(error)}). metrics.jsonl has all metrics.")
        self.run = None

    def close(self) -> None:
        """Finish both records. Do not call :meth:`log` afterwards."""
        self.lines.close()
        if self.run is None:
            return
        try:
            finish_wandb(self.run, self.say)
        except Exception as error:
            self._gone(error)


def parsed(line: str) -> dict[str, Any]:
    """Parse a line of metrics.jsonl. Return `{}` if the line is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def provenance() -> dict[str, str | None]:
    """Return the version of the package, and the commit if it runs from a repository."""
    try:
        installed = version("worldmodel")
    except PackageNotFoundError:
        installed = None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"version": installed, "commit": commit}


def films_of(folder: Path, steps: int) -> Path:
    """Return the folder of the videos that a run made after `steps` environment steps."""
    return folder / MEDIA_FOLDER / f"{steps:07d}"
