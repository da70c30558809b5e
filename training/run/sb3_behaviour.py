"""Build the behaviour of a run whose policy is learned by an algorithm of Stable-Baselines3 in imagination."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor

from worldmodel.agents.exploration.ensemble import Disagreement
from worldmodel.agents.sb3.behaviour import SB3Behaviour
from worldmodel.envs import ImaginedVectorEnv, ReplayedStarts
from worldmodel.envs.imagined.sb3 import ImaginedVecEnv
from worldmodel.model import WorldModel
from worldmodel.replay.replay import SequenceReplay
from worldmodel.specs import ActionSpec
from worldmodel.training.config.config import Config


def build_sb3_behaviour(
    config: Config, model: WorldModel, replay: SequenceReplay, action_space: spaces.Space[Any], action_spec: ActionSpec
) -> SB3Behaviour:
    """Build a behaviour that learns from imagined episodes, which begin from recorded states in the replay.

    Raises:
        ValueError: if the algorithm is not installed, or does not accept its settings or these actions.
    """
    chosen, device = config.behaviour.sb3, config.training.device
    ensemble = Disagreement(chosen.ensemble, model.feature_size, action_spec).to(device) if chosen.penalty else None

    def penalty(feature: Tensor, control: Tensor) -> Tensor:
        assert ensemble is not None
        return chosen.penalty * ensemble.spread(feature, control)

    begin = ReplayedStarts(model, replay, config.replay.window)
    price = None if ensemble is None else penalty
    envs = ImaginedVectorEnv(model, action_space, begin, chosen.envs, chosen.horizon, penalty=price)
    steps = imagined_steps(config, config.training.steps)
    return SB3Behaviour(chosen, action_spec, VecMonitor(ImaginedVecEnv(envs)), steps, config.seed, device, ensemble)


def imagined_steps(config: Config, steps: int, prefilled: bool = False) -> int:
    """Return the number of imagined steps of all rounds of the algorithm in `steps` environment steps.

    Unless `prefilled`, the first environment steps only fill the replay, and the pretraining follows them.
    """
    training, sb3 = config.training, config.behaviour.sb3
    paying = max(steps - (0 if prefilled else training.prefill), 0)
    updates = int(paying * config.updates_per_step)
    pretrained = 0 if prefilled else training.pretrain // sb3.every
    return (updates // sb3.every + pretrained) * sb3.steps
