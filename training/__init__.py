"""Puts the rooms together: the loop, the log, evaluation, checkpoints, the command line. Nothing imports it."""

from typing import TYPE_CHECKING, Any

from worldmodel.shadow import ensure_ours

ensure_ours("envs", "agents", "training")

if TYPE_CHECKING:
    from training.loop import train
    from training.run import Run

__all__ = ["Run", "train"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when they are used: the command line answers `--help` without them."""
    if name == "train":
        from training.loop import train

        return train
    if name == "Run":
        from training.run import Run

        return Run
    raise AttributeError(f"module 'training' has no attribute '{name}'")
