"""Choose actions from latent states. May import worldmodel, never envs: an agent cannot tell a dream from the world."""

from agents.actor_critic import ActorCritic, ActorCriticConfig
from agents.agent import Agent, AgentState
from agents.behaviour import Behaviour, Decision
from agents.build import BehaviourConfig, build_behaviour
from agents.exploration import ExplorationConfig, Plan2Explore
from agents.planner import Planner, PlannerConfig
from agents.random import RandomBehaviour

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
