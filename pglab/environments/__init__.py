"""Environments under one contract: gymnasium's through an adapter, and torch-native ones."""

from pglab.environments.contract import ActionSpec, Environment, EnvironmentSpec, Reset, Step
from pglab.environments.factory import make_environment

__all__ = ["ActionSpec", "Environment", "EnvironmentSpec", "Reset", "Step", "make_environment"]
