"""Everything a fit to recorded sequences can be told, and the defaults."""

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
    """How long is learned, and how it is checked."""

    updates: int = 5_000  # at most
    batch_size: int = 32  # windows per update, or about as many whole sequences of similar length
    evaluate_every: int = 250  # updates between two looks at the validation data
    patience: int = 8  # looks without a better bound before it stops; 0: it never does
    samples: int = 0  # per sequence, of the importance-sampled log-likelihood in the final table; 0: none
    threads: int = 1  # of torch
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.updates, self.batch_size, self.evaluate_every, self.threads) < 1:
            raise ValueError("updates, batch_size, evaluate_every and threads must be at least 1")
        if min(self.patience, self.samples) < 0:
            raise ValueError(f"patience and samples must be at least 0: {self.patience}, {self.samples}")
        at_most(self, threads=THREADS)


@dataclass
class FitConfig:
    """One fit of a model to recorded sequences."""

    seed: int = 0  # of weights, windows and noise; `data.split.seed` is apart, so that seeds share their split
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    fit: UpdatesConfig = field(default_factory=UpdatesConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0: {self.seed}")
        if self.model.images == "redundancy":
            raise ValueError(
                "model.images: redundancy is for `worldmodel train`: a fit keeps the weights with the best bound, of "
                "which images without a decoder are no part; set model.images to reconstruction"
            )


def load_fit_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), **values: Any) -> FitConfig:
    """As :func:`worldmodel.training.config.config.load_config`, of a fit."""
    return resolve(FitConfig, source, overrides, **values)


def renamed(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved config under the names of now: `learner.final_lr_ratio` was one of `fit` once."""
    fit, learner = saved.get("fit"), saved.get("learner")
    if not isinstance(fit, Mapping) or "final_lr_ratio" not in fit or not isinstance(learner, Mapping):
        return saved
    others = {name: value for name, value in fit.items() if name != "final_lr_ratio"}
    return {**saved, "fit": others, "learner": {"final_lr_ratio": fit["final_lr_ratio"], **learner}}
