"""Agents: on-policy and actor-critic, one set of estimators."""

from pglab.agents.actor_critic import ActorCriticAgent
from pglab.agents.base import Agent
from pglab.agents.on_policy import OnPolicyAgent

__all__ = ["ActorCriticAgent", "Agent", "OnPolicyAgent"]
