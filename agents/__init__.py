"""Choose actions from latent states. May import worldmodel, never envs: an agent cannot tell a dream from the world."""

from worldmodel.agents.acting.behaviour import Behaviour, Decision
from worldmodel.agents.acting.random import RandomBehaviour
from worldmodel.agents.actor_critic.actor_critic import ActorCritic, ActorCriticConfig
from worldmodel.agents.agent import Agent, AgentState
from worldmodel.agents.build import BehaviourConfig, build_behaviour
from worldmodel.agents.exploration.exploration import ExplorationConfig, Plan2Explore
from worldmodel.agents.planning.planner import Planner, PlannerConfig

__all__ = [
    "ActorCritic",
    "ActorCriticConfig",
    "Agent",
    "AgentState",
    "Behaviour",
    "BehaviourConfig",
    "Decision",
    "ExplorationConfig",
    "Plan2Explore",
    "Planner",
    "PlannerConfig",
    "RandomBehaviour",
    "build_behaviour",
]
