"""Which file is learned from, what in it is observed and what controls, and how it is divided."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

MINARI = "minari:"  # begins the name of a source that Minari holds
PARTS = ("train", "validation", "test")


@dataclass
class SplitConfig:
    """Shares of the file given to each part; of no meaning for a part that has a source of its own."""

    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0  # of which sequence goes where; one sequence alone is cut into blocks of time, in this order

    def __post_init__(self) -> None:
        for part in PARTS:
            if not (math.isfinite(getattr(self, part)) and getattr(self, part) >= 0):
                raise ValueError(f"{part} is a share, at least 0: {getattr(self, part)}")
        if self.train == 0:
            raise ValueError("train must have a share above 0")


@dataclass
class SourceConfig:
    """A part read from somewhere of its own; what is left out is as for training."""

    file: str | None = None
    observations: list[str] | None = None
    controls: list[str] | None = None


@dataclass
class DataConfig:
    """Recorded sequences: a CSV or .npz file, a run folder, or minari:DATASET_ID."""

    file: str | None = None  # what the command line calls DATA
    observations: list[str] | None = None  # columns of a CSV, arrays of an .npz; of recordings: all keys, or these
    controls: list[str] | None = None  # columns or arrays; null: none, or the actions of a recording
    # Where the sequences of a CSV begin: a column, at every change of its value, or where it falls if it rises in every
    # row as a time does; false: all rows are one. null: one, or cut at blank lines and repeated headers, and an error
    # if a column looks as if it told several recordings apart.
    sequence: str | bool | None = None
    delay: int = 1  # 1: the control in row t leads to row t + 1, as usual; 0: it led to row t. Recordings are aligned
    rewards: bool = False  # explain recorded rewards and terminations too
    window: int | None = 32  # steps of a training window; null: whole sequences, padded
    drop_short: bool = False  # leave out training sequences shorter than the window
    split: SplitConfig = field(default_factory=SplitConfig)
    validation: str | SourceConfig | None = None  # a file, or other columns, instead of a share
    test: str | SourceConfig | None = None

    def __post_init__(self) -> None:
        if self.delay not in (0, 1):
            raise ValueError(f"delay is 0 or 1: {self.delay}")
        if self.sequence is True:
            raise ValueError("sequence is a column, or false for one sequence: true")
        if self.window is not None and self.window < 2:
            raise ValueError(f"window must be at least 2, or null for whole sequences: {self.window}")
        observed, controls = self.observations or [], self.controls or []
        for names in (observed, controls):
            if len(set(names)) < len(names):
                raise ValueError(f"a column is named twice: {', '.join(names)}")
        if self.delay == 0 and (both := sorted(set(observed) & set(controls))):
            raise ValueError(f"{', '.join(both)} would be told to the model as the control that leads to it")
        if self.validation is None and self.split.validation == 0:
            raise ValueError("validation decides when to stop: give split.validation a share, or validation a file")

    def source(self, part: str) -> "DataConfig":
        """This config as it reads a part that has a source of its own."""
        own = getattr(self, part)
        own = SourceConfig(own) if isinstance(own, str) else own
        given: dict[str, Any] = {key: value for key, value in vars(own).items() if value is not None}
        return replace(self, **given)
