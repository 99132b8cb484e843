"""Pendulum swing-up, as in gymnasium's Pendulum-v1."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.base import TorchVectorEnv

GRAVITY = 10.0  # m/s^2
MASS = 1.0  # kg, of a uniform rod
LENGTH = 1.0  # m
TAU = 0.05  # s per step, semi-implicit Euler
MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m
START_ANGLE = math.pi  # rad; the angle starts uniformly within +-START_ANGLE
START_SPEED = 1.0  # rad/s, likewise

_HIGH = np.array([1.0, 1.0, MAX_SPEED], dtype=np.float32)


class Pendulum(TorchVectorEnv):
    """A rod hanging from a joint, to be swung up and held upright with a torque too weak to lift it directly.

    The state is the angle (rad, 0 upright, not wrapped) and its velocity (rad/s, within +-8). The observation is the
    angle's cosine and sine, and the velocity. The action `[..., 1]` is a torque in N m, clipped to +-2. The reward is
    -(angle^2 + 0.1 velocity^2 + 0.001 torque^2) of the state acted in, the angle wrapped to [-pi, pi). Episodes never
    terminate; they are cut after 200 steps.

    `transition` may be differentiated in state and action; the derivative is zero where torque or velocity is clipped,
    and the reward has a kink where the rod hangs straight down.

    Source: gymnasium's `classic_control/pendulum.py`.
    """

    id = "pglab/Pendulum-v1"
    max_episode_steps = 200
    state_size = 2
    reset_noise_size = 2
    observation_size = 3
    differentiable = True
    terminates = False
    single_observation_space = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
    single_action_space = spaces.Box(-MAX_TORQUE, MAX_TORQUE, shape=(1,), dtype=np.float32)

    @staticmethod
    def observe(state: Tensor) -> Tensor:
        """`[..., 3]`: cosine and sine of the angle, velocity (rad/s), from the state `[..., 2]`."""
        theta, theta_dot = state.unbind(-1)  # [...]
        return torch.stack((theta.cos(), theta.sin(), theta_dot), -1)  # [..., 3]

    @staticmethod
    def state_of(observation: Tensor) -> Tensor:
        """The angle (rad, in (-pi, pi]) and the velocity: whole turns make no difference."""
        cos, sin, velocity = observation.unbind(-1)
        return torch.stack((torch.atan2(sin, cos), velocity), -1)  # [..., 2]

    @staticmethod
    def initial_state(noise: Tensor) -> Tensor:
        """Angle uniform on [-pi, pi), velocity on [-1, 1), from `noise` `[..., 2]` uniform on [0, 1)."""
        theta, theta_dot = noise.unbind(-1)  # [...]
        return torch.stack(
            (theta * (2 * START_ANGLE) - START_ANGLE, theta_dot * (2 * START_SPEED) - START_SPEED), -1
        )  # [..., 2]

    @staticmethod
    def transition(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of 0.05 s.

        Args:
            state: `[..., 2]`.
            action: `[..., 1]`, torque in N m, clipped to +-2.

        Returns:
            The next state `[..., 2]`, the reward `[...]`, and `[...]` bool, whether the episode terminated (never).
        """
        theta, theta_dot = state.unbind(-1)  # [...]
        torque = action.squeeze(-1).clamp(-MAX_TORQUE, MAX_TORQUE)  # [...]
        wrapped = (theta + math.pi).remainder(2 * math.pi) - math.pi
        # Fused operations keep the count low: where the batch is small, an operation costs its launch.
        cost = torch.addcmul(wrapped * wrapped, theta_dot, theta_dot, value=0.1)
        cost = torch.addcmul(cost, torque, torque, value=0.001)
        gravity = theta.sin() * (3 * GRAVITY / (2 * LENGTH))
        theta_acc = torch.add(gravity, torque, alpha=3 / (MASS * LENGTH**2))
        next_theta_dot = torch.add(theta_dot, theta_acc, alpha=TAU).clamp(-MAX_SPEED, MAX_SPEED)
        next_theta = torch.add(theta, next_theta_dot, alpha=TAU)  # semi-implicit: with the new velocity
        next_state = torch.stack((next_theta, next_theta_dot), -1)  # [..., 2]
        return next_state, -cost, torch.zeros_like(cost, dtype=torch.bool)
