"""Learn a model from recorded sequences, without an environment: `worldmodel fit CONFIG DATA`."""

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
from worldmodel.training.data.dataset import Dataset, control_normalizer
from worldmodel.training.data.dataset_io import read_parts
from worldmodel.training.fitting.fit_run import FitRun
from worldmodel.training.logging.logger import Averages, Logger
from worldmodel.training.logging.progress import Progress
from worldmodel.training.run.errors import diverged
from worldmodel.training.run.folder import begun, free_folder, unclaimed
from worldmodel.training.run.process import left_as_found
from worldmodel.types import Batch

ELBO_METRIC = "world_model/elbo"


def fit(
    config: str | Path | Mapping[str, Any],
    data: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    run: str | Path | None = None,
    **values: Any,
) -> FitRun:
    """Fit a world model to recorded sequences, and score it on data that it has not seen.

    The number of torch threads, the random states, the warning filters and the memory settings of the process are
    restored at the end.

    Args:
        config: a YAML file, or a mapping, of differences from the defaults.
        data: the data to learn from, see :func:`worldmodel.training.data.dataset_io.read`, by default `data.file` of
            the config; or a mapping with keys of the config's section `data`.
        overrides: `["--section.key", "value", ...]`, as on the command line.
        run: the folder to create; by default a free one under `runs/`, named after the config.
        values: `seed=1` or whole sections as mappings.
    Returns:
        The run with the weights that explained the validation data best. They are saved in its folder as soon as they
        are found.
    Raises:
        ValueError: if the config, the data or the folder cannot be used. It is raised before the first update.
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
    """Carry out a :func:`fit`.

    Args:
        name: the name from which another folder name is made if another run claims the folder first; None to fail.
    """
    parts = read_parts(resolved.data)
    normalizer = control_normalizer(parts["train"])
    parts = {part: dataset.normalized(normalizer) for part, dataset in parts.items()}
    made = FitRun(folder, resolved, parts["train"].obs_specs, normalizer, parts["train"].control_offset)
    made.model.fit_normalizers(parts["train"].everything(resolved.fit.device))
    begun(made, name)
    made.save_model()  # from now on the folder can be loaded, whatever stops the fit
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
        except ValueError as error:  # a bug, since mistakes of the user were found before
            raise RuntimeError("The fit stopped.") from error
        finally:
            logger.close()
            progress.note(f"run saved in {made.folder}")
    return made


def described(parts: Mapping[str, Dataset]) -> str:
    """Return a description of the parts: the number of sequences and their mean length."""
    return ", ".join(
        f"{part} {len(each)} x {each.lengths.sum() / len(each):,.0f} steps" for part, each in parts.items()
    )


class Fitting:
    """The updates of a model on recorded sequences, until its bound on the validation data stops improving."""

    def __init__(self, fitted: FitRun, parts: Mapping[str, Dataset], logger: Logger, progress: Progress) -> None:
        self.fitted, self.parts, self.logger, self.progress = fitted, parts, logger, progress
        self.config = fitted.config
        loss = partial(model_loss, fitted.model, self.config.objective)
        self.learner = Learner(loss, fitted.model.parameters(), self.config.learner, lambda *_: fitted.model.steps())
        self.rng = np.random.default_rng(self.config.seed)
        self.averages = Averages()
        self.updates = 0
        self.bound = self.config.objective.bound.upper()
        self.best, self.best_at = -math.inf, 0
        self.shown: dict[str, float] = {}

    def run(self) -> None:
        """Make all updates, or fewer if the patience ends. The best weights are saved as soon as they are found."""
        config = self.config.fit
        self.look()
        while self.updates < config.updates and not self.exhausted:
            self.averages.add(self.update())
            self.progress.update(self.updates, **self.shown)
            if self.updates % config.evaluate_every == 0 or self.updates == config.updates:
                self.look()
        ended = "The patience ended" if self.updates < config.updates else "All updates are done"
        best = f"The best validation {self.bound} is {self.best:.4f}, after {self.best_at} updates."
        self.progress.note(f"{ended}, after {self.updates} updates. {best}")

    @property
    def exhausted(self) -> bool:
        """Return whether none of the last `patience` validations improved the bound."""
        config = self.config.fit
        return bool(config.patience) and self.updates - self.best_at >= config.patience * config.evaluate_every

    def update(self) -> Metrics:
        """Make one update on a minibatch. Return its metrics."""
        now = annealed(self.config.objective, self.updates, self.config.fit.device)
        (_, metrics), report = self.learner.update(self.minibatch(), now)
        self.updates += 1
        self.learner.progress = self.updates / self.config.fit.updates
        return metrics | {f"world_model/{name}": value for name, value in report.items()}

    def minibatch(self) -> Batch:
        """Sample random windows, or whole sequences of similar length, from the training data."""
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
        self.shown = {"elbo": metrics[ELBO_METRIC]} if ELBO_METRIC in metrics else {}
        self.shown["validation"] = found.trained
        self.progress.note(f"{self.updates:>7} updates: validation {self.bound} {found.trained:.4f}{' *' * better}")
