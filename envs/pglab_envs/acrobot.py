"""Acrobot swing-up, as in gymnasium's Acrobot-v1."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.base import TorchVectorEnv

GRAVITY = 9.8  # m/s^2
MASS = 1.0  # kg, of each link
LENGTH = 1.0  # m, likewise
CENTRE = 0.5  # m, from a link's upper joint to its centre of mass
MOMENT = 1.0  # kg m^2, of a link about its centre of mass
TAU = 0.2  # s per step, one step of fourth-order Runge-Kutta
MAX_SPEED_1 = 4 * math.pi  # rad/s
MAX_SPEED_2 = 9 * math.pi  # rad/s, relative to the first link
GOAL_HEIGHT = 1.0  # m above the fixed joint
START = 0.1  # every variable starts uniformly within [-START, START]

# The equations of motion in the links' angles to the vertical, A and B, where torque u drives the joint between them:
#     INERTIA_1 A'' + COUPLING cos(B - A) B'' = -u - WEIGHT_1 sin A + COUPLING sin(B - A) B'^2
#     COUPLING cos(B - A) A'' + INERTIA_2 B'' =  u - WEIGHT_2 sin B - COUPLING sin(B - A) A'^2
INERTIA_1 = MOMENT + MASS * CENTRE**2 + MASS * LENGTH**2  # kg m^2, with the second link's mass at the joint
INERTIA_2 = MOMENT + MASS * CENTRE**2  # kg m^2
COUPLING = MASS * LENGTH * CENTRE  # kg m^2
WEIGHT_1 = (MASS * CENTRE + MASS * LENGTH) * GRAVITY  # N m
WEIGHT_2 = MASS * CENTRE * GRAVITY  # N m

_HIGH = np.array([1.0, 1.0, 1.0, 1.0, MAX_SPEED_1, MAX_SPEED_2], dtype=np.float32)


class Acrobot(TorchVectorEnv):
    """Two links that hang from a fixed joint, to be swung up by a torque on the joint between them.

    The state is the first link's angle (rad, 0 hanging down), the second link's angle relative to the first, both
    wrapped to [-pi, pi], and their velocities (rad/s, within +-4 pi and +-9 pi). The observation is cosine and sine of
    the first angle, those of the second, and the velocities. The torque is -1 (0), 0 (1) or 1 N m (2). The episode
    terminates when the free end is more than 1 m above the fixed joint; that step is rewarded with 0, every other with
    -1. Episodes are cut after 500 steps.

    `transition` may be differentiated in the state; the derivative is zero where a velocity is clipped. Torque comes
    from an index and the reward has no derivative: `differentiable` is False.

    Gymnasium's dynamics in other coordinates: in the links' angles to the vertical the equations are short, and
    Runge-Kutta steps do not depend on the choice among linear coordinates.

    Sources: Sutton (1996), "Generalization in reinforcement learning: successful examples using sparse coarse coding";
    equations of Sutton & Barto's book (not of the 1996 paper, which lack a term), constants and integration from
    gymnasium's `classic_control/acrobot.py`.
    """

    id = "pglab/Acrobot-v1"
    max_episode_steps = 500
    state_size = 4
    reset_noise_size = 4
    observation_size = 6
    differentiable = False
    single_observation_space = spaces.Box(-_HIGH, _HIGH, dtype=np.float32)
    single_action_space = spaces.Discrete(3)

    @staticmethod
    def observe(state: Tensor) -> Tensor:
        """`[..., 6]`: cosine and sine of the first angle, of the second, velocities, from the state `[..., 4]`."""
        theta_1, theta_2, theta_dot_1, theta_dot_2 = state.unbind(-1)  # [...]
        return torch.stack(
            (theta_1.cos(), theta_1.sin(), theta_2.cos(), theta_2.sin(), theta_dot_1, theta_dot_2), -1
        )  # [..., 6]

    @staticmethod
    def state_of(observation: Tensor) -> Tensor:
        """The two angles (rad, in (-pi, pi]) and their velocities: whole turns make no difference."""
        cos1, sin1, cos2, sin2, velocity1, velocity2 = observation.unbind(-1)
        return torch.stack((torch.atan2(sin1, cos1), torch.atan2(sin2, cos2), velocity1, velocity2), -1)  # [..., 4]

    @staticmethod
    def initial_state(noise: Tensor) -> Tensor:
        """Uniform on [-0.1, 0.1) in every variable, from `noise` `[..., 4]` uniform on [0, 1).

        Rounded to single precision whatever the precision of `noise`, as gymnasium's are: double pendulums do not
        forgive small differences.
        """
        return (noise * (2 * START) - START).float().to(noise.dtype)  # [..., 4]

    @staticmethod
    def transition(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of 0.2 s.

        Args:
            state: `[..., 4]`.
            action: `[...]` int64, 0, 1 or 2 (not checked).

        Returns:
            The next state `[..., 4]`, the reward `[...]`, and `[...]` bool, whether the episode terminated.
        """
        a, bend, v, bend_dot = state.unbind(-1)  # [...]
        b, w = a + bend, v + bend_dot  # the second link's angle to the vertical, and its velocity
        torque = action.to(state.dtype) - 1

        # Classical Runge-Kutta. The slopes of the angles are the stages' velocities; slopes of the velocities are only
        # met inside the stages, which their weighted sum can be recovered from.
        rate_a, rate_b, det = _accelerations(a, b, bend, v, w, torque)
        v2, w2 = _accelerated(v, w, rate_a, rate_b, det, TAU / 2)
        a2, b2 = torch.add(a, v, alpha=TAU / 2), torch.add(b, w, alpha=TAU / 2)
        rate_a, rate_b, det = _accelerations(a2, b2, b2 - a2, v2, w2, torque)
        v3, w3 = _accelerated(v, w, rate_a, rate_b, det, TAU / 2)
        a3, b3 = torch.add(a, v2, alpha=TAU / 2), torch.add(b, w2, alpha=TAU / 2)
        rate_a, rate_b, det = _accelerations(a3, b3, b3 - a3, v3, w3, torque)
        v4, w4 = _accelerated(v, w, rate_a, rate_b, det, TAU)
        a4, b4 = torch.add(a, v3, alpha=TAU), torch.add(b, w3, alpha=TAU)
        rate_a, rate_b, det = _accelerations(a4, b4, b4 - a4, v4, w4, torque)

        sum_v = torch.add(v2, v3, alpha=2) + v4
        sum_w = torch.add(w2, w3, alpha=2) + w4
        next_a = torch.add(a, sum_v + v2 + v, alpha=TAU / 6)
        next_b = torch.add(b, sum_w + w2 + w, alpha=TAU / 6)
        # (v2 + 2 v3 + v4 - v) / 3 = v + TAU / 6 (k1 + 2 k2 + 2 k3), where k are the slopes; k4 is still missing
        next_v, next_w = _accelerated((sum_v - v) / 3, (sum_w - w) / 3, rate_a, rate_b, det, TAU / 6)
        next_state = torch.stack(
            (
                _wrapped(next_a),
                _wrapped(next_b - next_a),
                next_v.clamp(-MAX_SPEED_1, MAX_SPEED_1),
                (next_w - next_v).clamp(-MAX_SPEED_2, MAX_SPEED_2),
            ),
            -1,
        )  # [..., 4]
        # The free end's height is -LENGTH (cos A + cos B).
        terminated = next_a.cos() + next_b.cos() < -GOAL_HEIGHT / LENGTH
        return next_state, terminated.to(state.dtype) - 1, terminated


def _accelerations(
    a: Tensor, b: Tensor, bend: Tensor, v: Tensor, w: Tensor, torque: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Accelerations of the links' angles to the vertical `a` and `b`, up to the factors that `_accelerated` knows.

    Args:
        a, b: `[...]`, the angles.
        bend: `[...]`, b - a.
        v, w: `[...]`, the velocities of a and b.
        torque: `[...]`, N m.

    Returns:
        Numerators `[...]` for a and b, and the denominator that they share, the determinant of the mass matrix.
    """
    sin, cos = bend.sin(), bend.cos()
    # Fused operations keep the count low: where the batch is small, an operation costs its launch.
    force_a = torch.addcmul(torch.add(torque, a.sin(), alpha=WEIGHT_1), sin * w, w, value=-COUPLING)  # sign reversed
    force_b = torch.addcmul(torch.add(torque, b.sin(), alpha=-WEIGHT_2), sin * v, v, value=-COUPLING)
    rate_a = torch.addcmul(force_a, cos, force_b, value=COUPLING / INERTIA_2)
    rate_b = torch.addcmul(force_b, cos, force_a, value=COUPLING / INERTIA_1)
    return rate_a, rate_b, torch.rsub(cos * cos, INERTIA_1 * INERTIA_2, alpha=COUPLING**2)


def _accelerated(
    v: Tensor, w: Tensor, rate_a: Tensor, rate_b: Tensor, det: Tensor, time: float
) -> tuple[Tensor, Tensor]:
    """The velocities `v` and `w` after `time` seconds of what `_accelerations` returned."""
    return (
        torch.addcdiv(v, rate_a, det, value=-INERTIA_2 * time),
        torch.addcdiv(w, rate_b, det, value=INERTIA_1 * time),
    )


def _wrapped(angle: Tensor) -> Tensor:
    """To [-pi, pi]; an angle that lies there already is left as it is, bit for bit."""
    return torch.add(angle, (angle * (1 / (2 * math.pi))).round(), alpha=-2 * math.pi)
