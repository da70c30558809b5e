"""Build the behaviour that a config selects."""

from dataclasses import dataclass, field
from typing import Literal

from worldmodel.agents.actor_critic.actor_critic import ActorCritic, ActorCriticConfig
from worldmodel.agents.exploration.exploration import ExplorationConfig, Plan2Explore
from worldmodel.agents.planning.planner import Planner, PlannerConfig
from worldmodel.agents.sb3.config import SB3Config
from worldmodel.specs import ActionSpec


@dataclass
class BehaviourConfig:
    """How actions are chosen. Each behaviour has its own section."""

    name: Literal["actor_critic", "planner", "plan2explore", "sb3"] = "actor_critic"
    actor_critic: ActorCriticConfig = field(default_factory=ActorCriticConfig)  # also for guides and explorers
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)  # for plan2explore
    sb3: SB3Config = field(default_factory=SB3Config)  # for an algorithm of Stable-Baselines3

    def __post_init__(self) -> None:
        planned, learned = self.planner.discount, self.actor_critic.discount
        if self.name == "planner" and self.planner.terminal_value and planned != learned:
            raise ValueError(
                f"planner.discount is {planned}, but actor_critic.discount, which the terminal value uses, is "
                f"{learned}. Make them equal"
            )


Trained = ActorCritic | Planner | Plan2Explore


def build_behaviour(config: BehaviourConfig, feature_size: int, action_spec: ActionSpec) -> Trained:
    """Build the behaviour for a world model with `feature_size` features.

    The behaviour "sb3" needs an imagined environment to learn in, and so is built by the training package.

    Raises:
        ValueError: if the config does not fit the action space.
    """
    if config.name == "actor_critic":
        return ActorCritic(config.actor_critic, feature_size, action_spec)
    if config.name == "plan2explore":
        return Plan2Explore(config.exploration, config.actor_critic, feature_size, action_spec)
    assert config.name == "planner", config.name
    guide = ActorCritic(config.actor_critic, feature_size, action_spec) if config.planner.guided else None
    return Planner(config.planner, action_spec, guide)
