"""A linear-quadratic regulator with Gaussian noise: a control task whose policy gradients are known in closed form.

Letters: S state variables, A action dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.base import TorchVectorEnv
from pglab_envs.one_step import count, number


@dataclass(frozen=True)
class System:
    """What a preset stands for, as nested tuples of numbers."""

    A: tuple[tuple[float, ...], ...]  # [S, S]
    B: tuple[tuple[float, ...], ...]  # [S, A]
    Q: tuple[tuple[float, ...], ...]  # [S, S]
    R: tuple[tuple[float, ...], ...]  # [A, A]
    mean: tuple[float, ...]  # [S] of the initial state
    horizon: int
    noise: float  # standard deviation of w
    start_noise: float  # standard deviation of the initial state


DT = 0.05  # s per step of the point mass
PRESETS: dict[str, System] = {
    # Eigenvalues 0.85 +- 0.13i: without control a state is halved in some five steps.
    "stable": System(
        A=((0.9, 0.2), (-0.1, 0.8)),
        B=((0.0,), (0.5,)),
        Q=((1.0, 0.0), (0.0, 1.0)),
        R=((0.1,),),
        mean=(1.0, -1.0),
        horizon=20,
        noise=0.1,
        start_noise=0.5,
    ),
    # Position (m) and velocity (m/s) in the plane, the action a force (N) on 1 kg.
    "point_mass": System(
        A=((1.0, 0.0, DT, 0.0), (0.0, 1.0, 0.0, DT), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        B=((0.0, 0.0), (0.0, 0.0), (DT, 0.0), (0.0, DT)),
        Q=((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        R=((0.01, 0.0), (0.0, 0.01)),
        mean=(3.0, 4.0, 0.5, -0.5),
        horizon=100,
        noise=math.sqrt(1e-5),
        start_noise=math.sqrt(1e-5),
    ),
}


class LQR(TorchVectorEnv):
    """s' = A s + B a + w with reward -(s' Q s + a' R a), to be driven to 0 within a fixed number of steps.

    w and the initial state are normal with independent components: w with standard deviation `noise` about 0, the
    initial state with `start_noise` about `mean`. The observation is the state. Actions are unbounded, for Gaussian
    policies; nothing is clipped. Episodes never terminate; the time limit is the horizon, and there is no terminal cost.

    `transition` is linear and the reward quadratic, so both may be differentiated. `pglab.lab.exact_control.lqr_gradient`
    has the exact policy gradient of linear-Gaussian policies.

    The matrices and the mean are attributes in float64: `A` `[S, S]`, `B` `[S, A]`, `Q` `[S, S]`, `R` `[A, A]`, `mean`
    `[S]`.

    Presets:
        stable: two states and one action; stable without control, all matrices well conditioned; horizon 20.
        point_mass: a mass of 1 kg in the plane, S = 4 and A = 2, steps of 0.05 s, Q = I, R = 0.01 I; horizon 100. The
            paper has discount 0.99 and normal actions of standard deviation 0.01 that do not depend on the state.

    Args:
        num_envs: N.
        preset: `stable` or `point_mass`.
        horizon: steps in an episode; None for the preset's.
        noise: standard deviation of w, 0 for none; None for the preset's.
        start_noise: standard deviation of the initial state, 0 for none; None for the preset's.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source of `point_mass`: Tucker et al. (2018), "The mirage of action-dependent baselines in reinforcement learning",
    section 3.1 and its published code, in which the covariance of w and of the initial state is 1e-5 I.
    """

    id = "pglab/LQR-v0"
    max_episode_steps = PRESETS["stable"].horizon
    differentiable = True
    terminates = False
    options = ("preset", "horizon", "noise", "start_noise")

    def __init__(
        self,
        num_envs: int = 1,
        preset: str = "stable",
        horizon: int | None = None,
        noise: float | None = None,
        start_noise: float | None = None,
        **vector: Any,
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        system = PRESETS[preset]
        self.max_episode_steps = system.horizon if horizon is None else count("horizon", horizon)
        self.noise = deviation("noise", system.noise if noise is None else noise)
        self.start_noise = deviation("start_noise", system.start_noise if start_noise is None else start_noise)
        self.state_size = self.observation_size = size = len(system.mean)
        self.reset_noise_size = size if self.start_noise else 0
        self.step_noise_size = size if self.noise else 0
        self.single_observation_space = spaces.Box(-np.inf, np.inf, shape=(size,), dtype=np.float32)
        self.single_action_space = spaces.Box(-np.inf, np.inf, shape=(len(system.R),), dtype=np.float32)
        super().__init__(num_envs, **vector)
        self.A, self.B, self.Q, self.R, self.mean = (
            torch.tensor(x, dtype=torch.float64, device=self.device)
            for x in (system.A, system.B, system.Q, system.R, system.mean)
        )

    def observe(self, state: Tensor) -> Tensor:
        """The state `[..., S]` itself, not a copy."""
        return state

    def state_of(self, observation: Tensor) -> Tensor:
        """The observation is the state."""
        return observation

    def initial_state(self, noise: Tensor) -> Tensor:
        """Normal about `mean`, `[..., S]`, from `noise` `[..., S]` uniform on [0, 1), `[..., 0]` without `start_noise`."""
        mean = self.mean.to(noise)
        if not self.start_noise:
            return mean.expand(*noise.shape[:-1], -1)
        return mean + self.start_noise * normal(noise)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One step.

        Args:
            state: `[..., S]`.
            action: `[..., A]`, not clipped.
            noise: `[..., S]` uniform on [0, 1), of which w is made; None without `noise`.

        Returns:
            The next state `[..., S]`, the reward `[...]` of the state acted in, and `[...]` bool, whether the episode
            terminated (never).
        """
        next_state = state @ self.A.to(state).mT + action @ self.B.to(state).mT  # [..., S]
        if noise is not None:
            next_state = next_state + self.noise * normal(noise).to(state)
        cost = ((state @ self.Q.to(state)) * state).sum(-1) + ((action @ self.R.to(state)) * action).sum(-1)  # [...]
        return next_state, -cost, torch.zeros_like(cost, dtype=torch.bool)


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers of uniforms on [0, 1), by the normal quantile; a uniform of 0 is taken for the smallest step
    above it, so that all are finite."""
    return torch.special.ndtri(uniform.clamp_min(torch.finfo(uniform.dtype).eps / 2))


def deviation(name: str, value: Any) -> float:
    """`value` if it is a finite number that is not negative. ValueError otherwise."""
    if (found := number(name, value)) < 0:
        raise ValueError(f"{name} must not be negative, got {value!r}")
    return found
