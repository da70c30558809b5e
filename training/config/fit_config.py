"""The config of a fit to recorded sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldmodel.learning.learner import LearnerConfig
from worldmodel.learning.objective import ObjectiveConfig
from worldmodel.model import ModelConfig
from worldmodel.training.config.config import resolve
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.logging.logger import LoggerConfig
from worldmodel.validation import THREADS, at_most


@dataclass
class UpdatesConfig:
    """The length of the fit, and how it is validated."""

    updates: int = 5_000  # maximum number
    batch_size: int = 32  # windows per update; of whole sequences, about as many, of similar length
    evaluate_every: int = 250  # updates between two validations
    patience: int = 8  # validations without a better bound before the fit stops; 0: it never stops early
    samples: int = 0  # per sequence, for the importance-sampled log-likelihood in the final table; 0: leave it out
    threads: int = 1  # of torch
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.updates, self.batch_size, self.evaluate_every, self.threads) < 1:
            raise ValueError("updates, batch_size, evaluate_every and threads must be at least 1.")
        if min(self.patience, self.samples) < 0:
            raise ValueError(f"patience is {self.patience} and samples is {self.samples}. Both must be at least 0.")
        at_most(self, threads=THREADS)


@dataclass
class FitConfig:
    """The config of one fit of a model to recorded sequences."""

    seed: int = 0  # for weights, windows and noise; the split has its own seed, data.split.seed
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    fit: UpdatesConfig = field(default_factory=UpdatesConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}. It must be at least 0.")
        if self.model.images == "redundancy":
            raise ValueError(
                "model.images: redundancy works only with `worldmodel train`. A fit keeps the weights with the best "
                "bound, and without a decoder the bound ignores images. Set model.images to reconstruction."
            )


def load_fit_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), **values: Any) -> FitConfig:
    """Build the config of a fit; see :func:`worldmodel.training.config.config.load_config`."""
    return resolve(FitConfig, source, overrides, **values)


def renamed(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a saved config with its current key names: `learner.final_lr_ratio` was `fit.final_lr_ratio` before."""
    fit, learner = saved.get("fit"), saved.get("learner")
    if not isinstance(fit, Mapping) or "final_lr_ratio" not in fit or not isinstance(learner, Mapping):
        return saved
    others = {name: value for name, value in fit.items() if name != "final_lr_ratio"}
    return {**saved, "fit": others, "learner": {"final_lr_ratio": fit["final_lr_ratio"], **learner}}
