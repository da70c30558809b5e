"""A world-model toolkit: learn latent dynamics p(x, z | u) from sequences, act in imagination.

What is named here is imported when it is first used, so that `import worldmodel` needs no torch. The names of
`worldmodel.training` are the one exception to the rule that nothing imports it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.imagination import rollout
    from worldmodel.learning.learner import Learner, LearnerConfig
    from worldmodel.learning.objective import ObjectiveConfig
    from worldmodel.model import ModelConfig, WorldModel
    from worldmodel.replay.episodes import add_episode
    from worldmodel.replay.replay import SequenceReplay
    from worldmodel.specs import ActionSpec, ObservationSpec
    from worldmodel.training import FitRun, Run, WorldModelAgent, fit, train
    from worldmodel.types import Batch, Elbo, Inference, Prediction, Rollout, TimeStep

_HOMES = {
    "imagination": ("rollout",),
    "learning.learner": ("Learner", "LearnerConfig"),
    "learning.objective": ("ObjectiveConfig",),
    "model": ("ModelConfig", "WorldModel"),
    "replay.episodes": ("add_episode",),
    "replay.replay": ("SequenceReplay",),
    "specs": ("ActionSpec", "ObservationSpec"),
    "training": ("FitRun", "Run", "WorldModelAgent", "fit", "train"),
    "types": ("TimeStep", "Batch", "Elbo", "Inference", "Prediction", "Rollout"),
}

__all__ = [
    "ActionSpec",
    "Batch",
    "Elbo",
    "FitRun",
    "Inference",
    "Learner",
    "LearnerConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "ObservationSpec",
    "Prediction",
    "Rollout",
    "Run",
    "SequenceReplay",
    "TimeStep",
    "WorldModel",
    "WorldModelAgent",
    "add_episode",
    "fit",
    "rollout",
    "train",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import what is named when it is first used."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"worldmodel.{module}"), name)
    raise AttributeError(f"module 'worldmodel' has no attribute '{name}'")
