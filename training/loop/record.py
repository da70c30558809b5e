"""What a run shows and writes while it trains: messages, and rows of metrics."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from worldmodel.training.logging.logger import Averages, Logger
from worldmodel.training.logging.progress import Progress
from worldmodel.training.loop.trainer import Trainer

RECENT = 100  # episodes in the running mean of returns, as in Stable-Baselines3


class Record:
    """The messages and the rows of metrics of a run. Call :meth:`open` before it trains."""

    logger: Logger
    progress: Progress

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.averages = Averages()  # of what updates measured since the last row
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)  # (return, length) of the last episodes
        self.shown: dict[str, float] = {}  # beside the progress bar
        self.logged: Mapping[str, Any] | None = None  # the position of the logger of this run, if it had one before
        self.began = time.monotonic()

    def open(self, logger: Logger, progress: Progress) -> None:
        """Write to this logger and show this progress from now on."""
        self.logger, self.progress = logger, progress
        self.began = time.monotonic() - (self.logged["seconds"] if self.logged else 0.0)

    @property
    def steps(self) -> int:
        """Environment steps of this run so far."""
        return self.trainer.envs.steps

    def note(self, line: str) -> None:
        """Show a line without the number of steps."""
        self.progress.note(line)

    def note_now(self, line: str) -> None:
        """Show a line after the number of steps."""
        self.progress.note(f"{self.steps:>7} steps: {line}")

    def note_step(self) -> None:
        """Take up the episodes that ended in the last step of the environments, and show what failed in it."""
        collector = self.trainer.collector
        self.recent.extend((episode.total_reward, episode.length) for episode in collector.ended)
        for failure in collector.failures:
            self.note_now(failure)
        self.warn()

    def warn(self) -> None:
        """Show warnings of the values that were recorded."""
        for line in self.trainer.normalization.pop_warnings():
            self.note_now(f"warning: {line}")

    def update_progress(self) -> None:
        """Show the number of steps."""
        self.progress.update(self.steps, **self.shown)

    def write(self, metrics: Mapping[str, float]) -> None:
        """Write a row: these metrics, and those of the last episodes, of time and of the replay."""
        trainer, row = self.trainer, dict(metrics)
        if self.recent:
            returns, lengths = zip(*self.recent, strict=True)
            row |= {"rollout/ep_rew_mean": float(np.mean(returns)), "rollout/ep_len_mean": float(np.mean(lengths))}
        if trainer.collector.unsound:
            row["rollout/unsound_decisions"] = trainer.collector.unsound
        if trainer.envs.faults:
            row["rollout/env_faults"] = trainer.envs.faults
        row["time/fps"] = self.steps / (time.monotonic() - self.began)
        row["time/frames"] = trainer.envs.frames
        row["replay/steps"] = len(trainer.run.replay)
        row["world_model/lr"] = trainer.updater.learner.lr
        self.write_row(row)
        names = {"return": "rollout/ep_rew_mean", "elbo": "world_model/elbo"}
        self.shown |= {name: row[key] for name, key in names.items() if key in row}

    def write_row(self, row: Mapping[str, float]) -> None:
        """Write these metrics at the number of steps that the run was trained for in all."""
        self.logger.log(dict(row), self.trainer.run.env_steps)

    def state(self) -> dict[str, Any]:
        """Return what the next rows depend on."""
        return {
            "sums": self.averages.sums,
            "counts": dict(self.averages.counts),
            "recent": list(self.recent),
            "shown": self.shown,
            "logged": self.logger.position(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.averages.sums, self.averages.counts = state["sums"], Counter(state["counts"])
        self.recent.extend((total, length) for total, length in state["recent"])
        self.shown, self.logged = state["shown"], state["logged"]
