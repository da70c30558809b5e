"""Latent dynamics models p(x, z | u) learned from sequences. Knows no environment and no agent."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.imagination import rollout
    from worldmodel.model import ModelConfig, WorldModel
    from worldmodel.objective import ObjectiveConfig
    from worldmodel.replay import SequenceReplay
    from worldmodel.types import Arrival, Batch, Elbo, Inference, Prediction, Rollout

_HOMES = {
    "imagination": ("rollout",),
    "model": ("ModelConfig", "WorldModel"),
    "objective": ("ObjectiveConfig",),
    "replay": ("SequenceReplay",),
    "types": ("Arrival", "Batch", "Elbo", "Inference", "Prediction", "Rollout"),
}

__all__ = [
    "Arrival",
    "Batch",
    "Elbo",
    "Inference",
    "ModelConfig",
    "ObjectiveConfig",
    "Prediction",
    "Rollout",
    "SequenceReplay",
    "WorldModel",
    "rollout",
]


def __getattr__(name: str) -> Any:
    """Import torch only when something is used: the command line answers `--help` without it."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"worldmodel.{module}"), name)
    raise AttributeError(f"module 'worldmodel' has no attribute '{name}'")
