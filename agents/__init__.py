"""Choose actions from latent states.

This package must not import `worldmodel.envs`: an agent works in the same way in imagined and in real environments.
"""

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
