"""Puts the rooms together: the loop, the log, evaluation, checkpoints, the command line. Nothing imports it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.training.algorithm.agent import WorldModelAgent
    from worldmodel.training.fitting.fit import fit
    from worldmodel.training.fitting.fit_run import FitRun
    from worldmodel.training.run.run import Run
    from worldmodel.training.start import train

_HOMES = {
    "train": "start",
    "Run": "run.run",
    "fit": "fitting.fit",
    "FitRun": "fitting.fit_run",
    "WorldModelAgent": "algorithm.agent",
}

__all__ = ["FitRun", "Run", "WorldModelAgent", "fit", "train"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when they are used: the command line answers `--help` without them."""
    if name in _HOMES:
        return getattr(import_module(f"worldmodel.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'training' has no attribute '{name}'")
