"""The config of the data of a fit: its file, its observations and controls, and how it is divided into parts."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

MINARI = "minari:"  # begins the name of a Minari dataset
DATA_PARTS = ("train", "validation", "test")


@dataclass
class SplitConfig:
    """The share of the file that each part gets. The share of a part with its own source is ignored."""

    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0  # for assigning sequences to parts; a single sequence is cut into blocks of time in this order

    def __post_init__(self) -> None:
        for part in DATA_PARTS:
            if not (math.isfinite(getattr(self, part)) and getattr(self, part) >= 0):
                raise ValueError(f"{part} is {getattr(self, part)}. It is a share and must be at least 0.")
        if self.train == 0:
            raise ValueError("train is 0. The training data needs a share above 0.")


@dataclass
class SourceConfig:
    """The source of a part that is read from its own file. Fields that are left out are those of the training data."""

    file: str | None = None
    observations: list[str] | None = None
    controls: list[str] | None = None


@dataclass
class DataConfig:
    """Recorded sequences: a CSV or .npz file, a run folder, or minari:DATASET_ID."""

    file: str | None = None  # the argument DATA of the command line
    observations: list[str] | None = None  # columns of a CSV or arrays of an .npz; in a recording, null: all keys
    controls: list[str] | None = None  # columns or arrays; null: none, or the actions of a recording
    # Where a new sequence begins in a CSV.
    # A column: wherever its value changes. If its value rises in every row, like a time: wherever it falls.
    # false: all rows are one sequence.
    # null: at blank lines and repeated headers. It is an error if a column seems to separate several recordings.
    sequence: str | bool | None = None
    delay: int = 1  # 1: the control in row t leads to row t + 1; 0: it leads to row t. Recordings ignore this
    rewards: bool = False  # also model recorded rewards and terminations
    window: int | None = 32  # time steps of a training window; null: whole sequences, padded
    drop_short: bool = False  # drop training sequences that are shorter than the window
    split: SplitConfig = field(default_factory=SplitConfig)
    validation: str | SourceConfig | None = None  # a file, or other columns, instead of a share
    test: str | SourceConfig | None = None

    def __post_init__(self) -> None:
        if self.delay not in (0, 1):
            raise ValueError(f"delay is {self.delay}. It must be 0 or 1.")
        if self.sequence is True:
            raise ValueError("sequence is true. It must be the name of a column, or false for a single sequence.")
        if self.window is not None and self.window < 2:
            raise ValueError(f"window is {self.window}. It must be at least 2, or null for whole sequences.")
        observed, controls = self.observations or [], self.controls or []
        for names in (observed, controls):
            if len(set(names)) < len(names):
                raise ValueError(f"A column is named twice: {', '.join(names)}. Name each column once.")
        if self.delay == 0 and (both := sorted(set(observed) & set(controls))):
            raise ValueError(
                f"With delay 0, {', '.join(both)} would be both an observation and the control that leads to it. "
                "Remove it from one of the two lists, or set delay to 1."
            )
        if self.validation is None and self.split.validation == 0:
            raise ValueError(
                "There is no validation data, which decides when to stop. Set split.validation to a share above 0, or "
                "validation to a file."
            )

    def source(self, part: str) -> "DataConfig":
        """Return the config that reads a part with its own source."""
        own = getattr(self, part)
        own = SourceConfig(own) if isinstance(own, str) else own
        given: dict[str, Any] = {key: value for key, value in vars(own).items() if value is not None}
        return replace(self, **given)
