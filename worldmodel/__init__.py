"""Latent dynamics models p(x, z | u) learned from sequences. Knows no environment and no agent."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.episodes import add_episode
    from worldmodel.imagination import rollout
    from worldmodel.learner import Learner, LearnerConfig
    from worldmodel.model import ModelConfig, WorldModel
    from worldmodel.objective import ObjectiveConfig
    from worldmodel.replay import SequenceReplay
    from worldmodel.spaces import ActionSpec, ObservationSpec
    from worldmodel.types import Arrival, Batch, Elbo, Inference, Prediction, Rollout

_HOMES = {
    "episodes": ("add_episode",),
    "imagination": ("rollout",),
    "learner": ("Learner", "LearnerConfig"),
    "model": ("ModelConfig", "WorldModel"),
    "objective": ("ObjectiveConfig",),
    "replay": ("SequenceReplay",),
    "spaces": ("ActionSpec", "ObservationSpec"),
    "types": ("Arrival", "Batch", "Elbo", "Inference", "Prediction", "Rollout"),
}

__all__ = [
    "ActionSpec",
    "Arrival",
    "Batch",
    "Elbo",
    "Inference",
    "Learner",
    "LearnerConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "ObservationSpec",
    "Prediction",
    "Rollout",
    "SequenceReplay",
    "WorldModel",
    "add_episode",
    "rollout",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import torch only when something is used: the command line answers `--help` without it."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"worldmodel.{module}"), name)
    raise AttributeError(f"module 'worldmodel' has no attribute '{name}'")
