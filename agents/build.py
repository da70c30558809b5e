"""The behaviour that a config names."""

from dataclasses import dataclass, field
from typing import Literal

from worldmodel.agents.actor_critic.actor_critic import ActorCritic, ActorCriticConfig
from worldmodel.agents.exploration.exploration import ExplorationConfig, Plan2Explore
from worldmodel.agents.planning.planner import Planner, PlannerConfig
from worldmodel.agents.sb3.config import SB3Config
from worldmodel.specs import ActionSpec


@dataclass
class BehaviourConfig:
    """How actions are chosen; see the section of that name."""

    name: Literal["actor_critic", "planner", "plan2explore", "sb3"] = "actor_critic"
    actor_critic: ActorCriticConfig = field(default_factory=ActorCriticConfig)  # of guides and explorers, too
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)  # of plan2explore
    sb3: SB3Config = field(default_factory=SB3Config)  # an algorithm of Stable-Baselines3

    def __post_init__(self) -> None:
        planned, learned = self.planner.discount, self.actor_critic.discount
        if self.name == "planner" and self.planner.terminal_value and planned != learned:
            raise ValueError(f"planner.discount {planned} is not that of the terminal value, {learned}: make them one")


Trained = ActorCritic | Planner | Plan2Explore


def build_behaviour(config: BehaviourConfig, feature_size: int, action_spec: ActionSpec) -> Trained:
    """For a world model of F features; where it is sb3, `training.dream` builds it, which has a dream to learn in.

    Raises:
        ValueError: if the config does not fit the actions.
    """
    if config.name == "actor_critic":
        return ActorCritic(config.actor_critic, feature_size, action_spec)
    if config.name == "plan2explore":
        return Plan2Explore(config.exploration, config.actor_critic, feature_size, action_spec)
    assert config.name == "planner", config.name
    guide = ActorCritic(config.actor_critic, feature_size, action_spec) if config.planner.guided else None
    return Planner(config.planner, action_spec, guide)
