"""Puts the rooms together: the loop, the log, evaluation, checkpoints, the command line. Nothing imports it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from worldmodel.shadow import ensure_ours

ensure_ours("envs", "agents", "training")

if TYPE_CHECKING:
    from training.algorithm import WorldModelAgent
    from training.fit_run import FitRun
    from training.fitting import fit
    from training.run import Run
    from training.start import train

_HOMES = {
    "train": "training.start",
    "Run": "training.run",
    "fit": "training.fitting",
    "FitRun": "training.fit_run",
    "WorldModelAgent": "training.algorithm",
}

__all__ = ["FitRun", "Run", "WorldModelAgent", "fit", "train"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when they are used: the command line answers `--help` without them."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'training' has no attribute '{name}'")
