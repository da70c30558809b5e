"""The dream that an algorithm of Stable-Baselines3 learns in, put together for a run."""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor

from agents.ensemble import Disagreement
from agents.sb3 import SB3Behaviour
from envs import ImaginedVectorEnv, ReplayedStarts
from envs.sb3 import ImaginedVecEnv
from training.config import Config
from worldmodel.model import WorldModel
from worldmodel.replay import SequenceReplay
from worldmodel.spaces import ActionSpec


def dreaming(
    config: Config, model: WorldModel, replay: SequenceReplay, action_space: spaces.Space[Any], action_spec: ActionSpec
) -> SB3Behaviour:
    """A behaviour that learns in imagined episodes, which begin from what the replay holds.

    Raises:
        ValueError: if the algorithm is not installed, or does not take its settings or these actions.
    """
    chosen, device = config.behaviour.sb3, config.training.device
    ensemble = None
    if chosen.penalty:
        ensemble = Disagreement(chosen.ensemble, model.feature_size, action_spec).to(device)

    def penalty(feature: Tensor, control: Tensor) -> Tensor:
        return torch.zeros(()) if ensemble is None else chosen.penalty * ensemble.spread(feature, control)

    begin = ReplayedStarts(model, replay, config.replay.window)
    envs = ImaginedVectorEnv(
        model, action_space, begin, chosen.envs, chosen.horizon, penalty=penalty if chosen.penalty else None
    )
    dream = VecMonitor(ImaginedVecEnv(envs))
    return SB3Behaviour(chosen, action_spec, dream, imagined_steps(config), config.seed, device, ensemble)


def imagined_steps(config: Config) -> int:
    """Of all rounds of a run."""
    training, replay = config.training, config.replay
    paid = max(training.steps - training.prefill, 0) * training.replay_ratio / (replay.batch_size * replay.window)
    return (training.pretrain + int(paid)) // config.behaviour.sb3.every * config.behaviour.sb3.steps
