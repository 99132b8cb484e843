"""A car in a valley whose force is a number, as in gymnasium's MountainCarContinuous-v0."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.base import TorchVectorEnv
from pglab_envs.mountain_car import GOAL_SPEED, MAX_SPEED, START_HIGH, START_LOW, X_MAX, X_MIN, roll

POWER = 0.0015  # position per step^2, of a force of 1
MAX_FORCE = 1.0
GOAL = 0.45
BONUS = 100  # for reaching the goal
COST = 0.1  # of a force of 1

_LOW = np.array([X_MIN, -MAX_SPEED], dtype=np.float32)
_HIGH = np.array([X_MAX, MAX_SPEED], dtype=np.float32)


class MountainCarContinuous(TorchVectorEnv):
    """`MountainCar` with a force to choose, a cost for it, and a bonus at the goal.

    The state is also the observation: position (within [-1.2, 0.6]) and velocity (within +-0.07 per step). The action
    `[..., 1]` is a force, clipped to +-1. At the left end a wall stops the car. The reward is -0.1 action^2, of the
    action as it was before clipping, and 100 more in the step that reaches the goal: position 0.45, with a velocity
    that is not negative. There the episode terminates; it is cut after 999 steps.

    `transition` may be differentiated in state and action; the derivative of the next state is zero where force,
    velocity or position is clipped, and the bonus has none: of the reward, a derivative sees the cost alone.

    Gymnasium rounds the state to single precision after every step, in whatever precision the step was computed; here
    it keeps the precision that it came in.

    Source: gymnasium's `classic_control/continuous_mountain_car.py`.
    """

    id = "pglab/MountainCarContinuous-v0"
    max_episode_steps = 999
    state_size = 2
    reset_noise_size = 1
    observation_size = 2
    differentiable = True
    single_observation_space = spaces.Box(_LOW, _HIGH, dtype=np.float32)
    single_action_space = spaces.Box(-MAX_FORCE, MAX_FORCE, shape=(1,), dtype=np.float32)

    @staticmethod
    def observe(state: Tensor) -> Tensor:
        """The state `[..., 2]` itself, not a copy."""
        return state

    @staticmethod
    def state_of(observation: Tensor) -> Tensor:
        """The observation is the state."""
        return observation

    @staticmethod
    def initial_state(noise: Tensor) -> Tensor:
        """Position uniform on [-0.6, -0.4), velocity 0, from `noise` `[..., 1]` uniform on [0, 1)."""
        return torch.nn.functional.pad(noise * (START_HIGH - START_LOW) + START_LOW, (0, 1))  # [..., 2]

    @staticmethod
    def transition(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step.

        Args:
            state: `[..., 2]`.
            action: `[..., 1]`, a force, clipped to +-1 (its cost is not).

        Returns:
            The next state `[..., 2]`, the reward `[...]`, and `[...]` bool, whether the episode terminated.
        """
        x, x_dot = state.unbind(-1)  # [...]
        force = action.squeeze(-1)  # [...]
        pushed = torch.add(x_dot, force.clamp(-MAX_FORCE, MAX_FORCE), alpha=POWER)
        next_x, next_x_dot = roll(x, pushed)
        terminated = (next_x >= GOAL) & (next_x_dot >= GOAL_SPEED)
        # The bonus is an integer, so that the action alone sets the precision.
        reward = torch.addcmul(terminated * BONUS, force, force, value=-COST)
        return torch.stack((next_x, next_x_dot), -1), reward, terminated
