"""Cart-pole balancing, as in gymnasium's CartPole-v1."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.base import TorchVectorEnv

GRAVITY = 9.8  # m/s^2
POLE_MASS = 0.1  # kg
TOTAL_MASS = 1.0 + POLE_MASS  # kg, with the cart
HALF_LENGTH = 0.5  # m, from the joint to the pole's centre of mass
POLE_MOMENT = POLE_MASS * HALF_LENGTH  # kg m
FORCE = 10  # N
TAU = 0.02  # s per step, explicit Euler
X_LIMIT = 2.4  # m
ANGLE_LIMIT = 12 * 2 * math.pi / 360  # rad
START = 0.05  # every variable starts uniformly within [-START, START]

_HIGH = np.array([2 * X_LIMIT, np.inf, 2 * ANGLE_LIMIT, np.inf], dtype=np.float32)


class CartPole(TorchVectorEnv):
    """A pole on a cart, to be kept upright by pushing the cart left (0) or right (1) with 10 N.

    The state is also the observation: cart position (m), cart velocity (m/s), pole angle (rad, 0 upright), its velocity
    (rad/s). Every step is rewarded with 1, the last one too. The episode terminates when the cart leaves +-2.4 m or the
    pole +-12 degrees, and is cut after 500 steps.

    `transition` may be differentiated in the state. Force comes from an index and the reward is a constant, so that no
    gradient of the return reaches an action: `differentiable` is False.

    Sources: Barto, Sutton & Anderson (1983), "Neuronlike adaptive elements that can solve difficult learning control
    problems"; equations without friction from Florian (2007), "Correct equations for the dynamics of the cart-pole
    system"; constants and integration from gymnasium's `classic_control/cartpole.py`.
    """

    id = "pglab/CartPole-v1"
    max_episode_steps = 500
    state_size = 4
    reset_noise_size = 4
    observation_size = 4
    differentiable = False
    single_observation_space = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
    single_action_space = spaces.Discrete(2)

    @staticmethod
    def observe(state: Tensor) -> Tensor:
        """The state `[..., 4]` itself, not a copy."""
        return state

    @staticmethod
    def state_of(observation: Tensor) -> Tensor:
        """The observation is the state."""
        return observation

    @staticmethod
    def initial_state(noise: Tensor) -> Tensor:
        """Uniform on [-0.05, 0.05) in every variable, from `noise` `[..., 4]` uniform on [0, 1)."""
        return noise * (2 * START) - START  # [..., 4]

    @staticmethod
    def transition(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of 0.02 s.

        Args:
            state: `[..., 4]`.
            action: `[...]` int64, 0 or 1 (not checked).

        Returns:
            The next state `[..., 4]`, the reward `[...]` (ones), and `[...]` bool, whether the episode terminated.
        """
        _, x_dot, theta, theta_dot = state.unbind(-1)  # [...]
        sin, cos = theta.sin(), theta.cos()
        # Where the batch is small an operation costs its launch, so there are as few as possible: equations are
        # multiplied by the total mass, and divided by it where the state moves.
        force = action * (2 * FORCE) - FORCE  # integers, so that the state alone sets the precision of what follows
        push = torch.addcmul(force, theta_dot * theta_dot, sin, value=POLE_MOMENT)
        inertia = torch.rsub(cos * cos, HALF_LENGTH * 4 / 3 * TOTAL_MASS, alpha=HALF_LENGTH * POLE_MASS)
        theta_acc = torch.addcmul(sin * (GRAVITY * TOTAL_MASS), cos, push, value=-1).div_(inertia)
        x_acc = torch.addcmul(push, theta_acc, cos, value=-POLE_MOMENT).mul_(1 / TOTAL_MASS)
        # Explicit Euler: the positions move with the old velocities.
        rate = torch.stack((x_dot, x_acc, theta_dot, theta_acc), -1)  # [..., 4]
        next_state = torch.add(state, rate, alpha=TAU)  # [..., 4]
        x, _, theta, _ = next_state.abs().unbind(-1)
        return next_state, torch.ones_like(push), (x > X_LIMIT) | (theta > ANGLE_LIMIT)
