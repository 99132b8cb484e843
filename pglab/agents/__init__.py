"""Agents: on-policy and actor-critic, one set of estimators; evolution and bptt, which are estimators of their own."""

from collections.abc import Callable

from pglab.agents.actor_critic import ActorCriticAgent
from pglab.agents.base import Agent
from pglab.agents.bptt import BpttAgent
from pglab.agents.evolution import EvolutionAgent
from pglab.agents.on_policy import OnPolicyAgent
from pglab.config import Config
from pglab.environments.contract import EnvironmentSpec
from pglab.population import Population

__all__ = ["ActorCriticAgent", "Agent", "BpttAgent", "EvolutionAgent", "OnPolicyAgent", "make_agent"]

CLASSES: dict[str, Callable[[Config, EnvironmentSpec, Population, int], Agent]] = {
    "on_policy": OnPolicyAgent,
    "actor_critic": ActorCriticAgent,
    "evolution": EvolutionAgent,
    "bptt": BpttAgent,
}


def make_agent(config: Config, spec: EnvironmentSpec, population: Population, num_envs: int) -> Agent:
    """The agent that a config names."""
    return CLASSES[config.agent.name](config, spec, population, num_envs)
