"""A car in a valley, as in gymnasium's MountainCar-v0."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.base import TorchVectorEnv

GRAVITY = 0.0025  # position per step^2
FORCE = 0.001  # likewise
X_MIN, X_MAX = -1.2, 0.6
MAX_SPEED = 0.07  # position per step
GOAL = 0.5
GOAL_SPEED = 0.0  # to be reached with at least this velocity
START_LOW, START_HIGH = -0.6, -0.4  # the position starts uniformly within; the velocity is 0

_LOW = np.array([X_MIN, -MAX_SPEED], dtype=np.float32)
_HIGH = np.array([X_MAX, MAX_SPEED], dtype=np.float32)


class MountainCar(TorchVectorEnv):
    """A car too weak to drive straight out of its valley: it has to gain speed on the opposite slope.

    The state is also the observation: position (within [-1.2, 0.6], the valley's floor at -pi/6) and velocity (within
    +-0.07 per step). The car is pushed left (0), not (1), or right (2). At the left end a wall stops it. Every step is
    rewarded with -1, the last one too. The episode terminates when the position reaches 0.5 and the velocity is not
    negative, and is cut after 200 steps.

    `transition` may be differentiated in the state; the derivative is zero where position or velocity is clipped. Force
    comes from an index and the reward is a constant: `differentiable` is False.

    Sources: Moore (1990), "Efficient memory-based learning for robot control"; constants and integration from
    gymnasium's `classic_control/mountain_car.py`.
    """

    id = "pglab/MountainCar-v0"
    max_episode_steps = 200
    state_size = 2
    reset_noise_size = 1
    observation_size = 2
    differentiable = False
    single_observation_space = spaces.Box(_LOW, _HIGH, dtype=np.float32)
    single_action_space = spaces.Discrete(3)

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
            action: `[...]` int64, 0, 1 or 2 (not checked).

        Returns:
            The next state `[..., 2]`, the reward `[...]` (-1), and `[...]` bool, whether the episode terminated.
        """
        x, x_dot = state.unbind(-1)  # [...]
        pushed = torch.add(x_dot, action - 1, alpha=FORCE)
        next_x, next_x_dot = roll(x, pushed)
        terminated = (next_x >= GOAL) & (next_x_dot >= GOAL_SPEED)
        return torch.stack((next_x, next_x_dot), -1), torch.full_like(next_x, -1.0), terminated


def roll(x: Tensor, pushed: Tensor) -> tuple[Tensor, Tensor]:
    """Position and velocity a step later, all `[...]`, from the position and the velocity that the motor made."""
    x_dot = torch.add(pushed, (x * 3).cos(), alpha=-GRAVITY).clamp(-MAX_SPEED, MAX_SPEED)
    moved = x + x_dot  # semi-implicit Euler: with the new velocity
    # The wall on the left takes the velocity; there is none on the right, where only the position stops.
    return moved.clamp(X_MIN, X_MAX), torch.where(moved > X_MIN, x_dot, x_dot.relu())
