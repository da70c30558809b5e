"""Choose actions from latent states. May import worldmodel, never envs: an agent cannot tell a dream from the world."""

from agents.actor_critic import ActorCritic, ActorCriticConfig
from agents.agent import Agent, AgentState, Behaviour
from agents.random import RandomBehaviour

__all__ = ["ActorCritic", "ActorCriticConfig", "Agent", "AgentState", "Behaviour", "RandomBehaviour"]
