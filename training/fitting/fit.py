"""Learning from recorded sequences, without an environment: `worldmodel fit CONFIG DATA`."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.kernels.memory import room_for_tensors
from worldmodel.learning.learner import Learner
from worldmodel.learning.objective import Metrics, annealed, model_loss
from worldmodel.training.config.config import to_mapping
from worldmodel.training.config.fit_config import FitConfig, load_fit_config
from worldmodel.training.data.dataset import Dataset, control_units
from worldmodel.training.data.dataset_io import read_parts
from worldmodel.training.fitting.fit_run import FitRun
from worldmodel.training.logging.logger import Averages, Logger
from worldmodel.training.logging.progress import Progress
from worldmodel.training.run.errors import diverged
from worldmodel.training.run.folder import begun, free_folder, unclaimed
from worldmodel.training.run.process import left_as_found
from worldmodel.types import Batch

ELBO = "world_model/elbo"


def fit(
    config: str | Path | Mapping[str, Any],
    data: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    run: str | Path | None = None,
    **values: Any,
) -> FitRun:
    """Fit a world model to recorded sequences, and score it on data it never saw.

    It leaves the process as it was: threads of torch, random states, filters of warnings and memory.

    Args:
        config: a YAML file, or a mapping, of differences from the defaults.
        data: what to learn from, see :func:`worldmodel.training.data.dataset_io.read`, by default the config's
        `data.file`; or more
            of the config's section `data`, as a mapping.
        overrides: `["--section.key", "value", ...]`, as on the command line.
        run: the folder to make; by default a free one under `runs/`, named after the config.
        values: `seed=1` or whole sections as mappings.
    Returns:
        The run with the weights that explained the validation data best. They are in its folder from when they were
        found, whatever ended it.
    Raises:
        ValueError: before anything is learned, for a config, data or a folder that cannot be used.
        FloatingPointError: if the loss is no longer finite.
    """
    if data is not None:
        values["data"] = data if isinstance(data, Mapping) else {"file": str(data)}
    resolved = load_fit_config(config, overrides, **values)
    name = Path(resolved.data.file or "fit").stem if isinstance(config, Mapping) else Path(config).stem
    folder = unclaimed(free_folder(name) if run is None else run)
    with left_as_found():
        torch.set_num_threads(resolved.fit.threads)
        return _fit(folder, resolved, name if run is None else None)


def _fit(folder: Path, resolved: FitConfig, name: str | None) -> FitRun:
    """See :func:`fit`; where another run claims the folder first, one named like it is taken, if it may be."""
    parts = read_parts(resolved.data)
    units = control_units(parts["train"])
    parts = {part: dataset.in_units(units) for part, dataset in parts.items()}
    made = FitRun(folder, resolved, parts["train"].obs_specs, units, parts["train"].control_offset)
    made.model.fit_units(parts["train"].everything(resolved.fit.device))
    begun(made, name)
    made.save_model()  # so that the folder can be loaded from now on, whatever stops it
    with room_for_tensors(), Progress(resolved.fit.updates, unit="updates") as progress:
        logger = Logger(made.folder, resolved.logger, to_mapping(resolved), progress.note)
        notes = dict.fromkeys(note for part in parts.values() for note in part.notes)
        for line in (f"{made.summary}; {described(parts)}", *notes, *made.decided):
            progress.note(line)
        try:
            fitting = Fitting(made, parts, logger, progress)
            fitting.run()
            made.finish(parts)
            logger.log({f"final/{part}": found["elbo"] for part, found in made.results.items()}, fitting.updates)
        except torch.linalg.LinAlgError as error:
            raise diverged(fitting.updates, "a covariance", "learner.lr") from error
        except ValueError as error:  # no mistake in what the user gave: that was found before
            raise RuntimeError("fitting stopped") from error
        finally:
            logger.close()
            progress.note(f"run saved in {made.folder}")
    return made


def described(parts: Mapping[str, Dataset]) -> str:
    """How much there is of each part, for a person."""
    return ", ".join(
        f"{part} {len(each)} x {each.lengths.sum() / len(each):,.0f} steps" for part, each in parts.items()
    )


class Fitting:
    """Updates of a model on recorded sequences, until the validation data is explained no better."""

    def __init__(self, fitted: FitRun, parts: Mapping[str, Dataset], logger: Logger, progress: Progress) -> None:
        self.fitted, self.parts, self.logger, self.progress = fitted, parts, logger, progress
        self.config = fitted.config
        loss = partial(model_loss, fitted.model, self.config.objective)
        self.learner = Learner(loss, fitted.model.parameters(), self.config.learner)
        self.rng = np.random.default_rng(self.config.seed)
        self.averages = Averages()
        self.updates = 0
        self.bound = self.config.objective.bound.upper()
        self.best, self.best_at = -math.inf, 0
        self.shown: dict[str, float] = {}

    def run(self) -> None:
        """All updates, or fewer where patience ends; the best weights are on disk from when they are found."""
        config = self.config.fit
        self.look()
        while self.updates < config.updates and not self.exhausted:
            self.averages.add(self.update())
            self.progress.update(self.updates, **self.shown)
            if self.updates % config.evaluate_every == 0 or self.updates == config.updates:
                self.look()
        ended = "patience ended" if self.updates < config.updates else "all updates done"
        best = f"best validation {self.bound} {self.best:.4f} at {self.best_at} updates"
        self.progress.note(f"{ended} at {self.updates}; {best}")

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` looks brought nothing better."""
        config = self.config.fit
        return bool(config.patience) and self.updates - self.best_at >= config.patience * config.evaluate_every

    def update(self) -> Metrics:
        """One update on a minibatch."""
        now = annealed(self.config.objective, self.updates, self.config.fit.device)
        (_, metrics), report = self.learner.update(self.minibatch(), now)
        self.updates += 1
        self.learner.progress = self.updates / self.config.fit.updates
        return metrics | {f"world_model/{name}": value for name, value in report.items()}

    def minibatch(self) -> Batch:
        """Random windows, or whole sequences of similar length, of the training data."""
        train, size, device = self.parts["train"], self.config.fit.batch_size, self.config.fit.device
        if self.config.data.window is not None:
            return train.windows(size, self.config.data.window, self.rng, device)
        return train.padded(train.alike(size, self.rng), device)

    def look(self) -> None:
        """Score the validation data, keep the weights if they are the best so far, and log."""
        metrics = self.averages.pop()
        found = self.fitted.score(self.parts["validation"])
        metrics |= {"validation/elbo": found.elbo, "validation/elbo_by_sequence": found.elbo_by_sequence}
        metrics |= {} if found.bound is None else {"validation/bound": found.bound}
        self.logger.log(metrics | {"world_model/lr": self.learner.lr}, self.updates)
        watched = ("world_model/loss", "validation/elbo", "validation/bound")
        broken = [name for name in watched if not math.isfinite(metrics.get(name, 0.0))]
        if broken:
            raise diverged(self.updates, ", ".join(broken), "learner.lr")
        if better := found.trained > self.best:
            self.fitted.save_model()
            self.best, self.best_at = found.trained, self.updates
        self.shown = {"elbo": metrics[ELBO]} if ELBO in metrics else {}
        self.shown["validation"] = found.trained
        self.progress.note(f"{self.updates:>7} updates: validation {self.bound} {found.trained:.4f}{' *' * better}")
