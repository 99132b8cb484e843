"""What environments with one action an episode share, and how their arguments are read.

Letters: B actions, D action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.base import TorchVectorEnv


class OneStep(TorchVectorEnv):
    """An objective f as an environment: one action, whose reward is f of it, ends the episode.

    State and observation are the number 1, so that a network has an input and nothing to tell states apart by: the policy
    is one distribution, and the gradient of the expected return is that of E[f].

    A subclass defines `objective` and, where actions are not what `objective` takes, `reward`.
    """

    max_episode_steps = 1
    state_size = 1
    reset_noise_size = 0
    terminates = False  # by what is done
    own_end = True
    observation_size = 1
    single_observation_space = spaces.Box(0.0, 1.0, shape=(1,), dtype=np.float32)

    def objective(self, actions: Tensor) -> Tensor:
        """f, `[B]`, of actions `[B, *event]` as policies draw them (see the class), relaxed ones included."""
        raise NotImplementedError

    def reward(self, action: Tensor, state: Tensor) -> Tensor:
        """f, `[...]`, in the precision of the state `[..., 1]`, of actions as `transition` takes them."""
        return self.objective(action)

    def observe(self, state: Tensor) -> Tensor:
        """The state `[..., 1]` itself, not a copy."""
        return state

    def initial_state(self, noise: Tensor) -> Tensor:
        """Ones `[..., 1]`, whatever `noise` `[..., 0]`."""
        return noise.new_ones(*noise.shape[:-1], 1)

    def transition(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The state again, `[..., 1]`, the reward `[...]`, and that the episode terminated."""
        reward = self.reward(action, state)
        return state, reward, torch.ones_like(reward, dtype=torch.bool)


def count(name: str, value: Any, least: int = 1) -> int:
    """`value` if it is an integer of at least `least`. ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def number(name: str, value: Any) -> float:
    """`value` if it is a finite number. ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def numbers(name: str, value: Any, size: int | None = None) -> list[float]:
    """`value` if it is a list of finite numbers, `size` of them where that is given. ValueError otherwise."""
    wanted = "a list of finite numbers" if size is None else f"a list of {size} finite numbers"
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    found = [number(name, x) for x in value]
    if not found or (size is not None and len(found) != size):
        raise ValueError(f"{name} must be {wanted}, got {len(found)}")
    return found


def one_or_each(name: str, value: Any, size: int, device: torch.device) -> float | Tensor:
    """A number for all of `size` dimensions, or a list of one each as a float64 tensor `[size]`. ValueError otherwise."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return torch.tensor(numbers(name, value, size), dtype=torch.float64, device=device)
    return number(name, value)


def like(value: float | Tensor, other: Tensor) -> float | Tensor:
    """`value` in the precision and on the device of `other`."""
    return value.to(other) if isinstance(value, Tensor) else value


def sign_of(value: Any) -> int:
    """`value` if it is 1 or -1. ValueError otherwise."""
    if isinstance(value, bool) or value not in (1, -1):
        raise ValueError(f"sign must be 1 (the reward is f) or -1 (the reward is -f), got {value!r}")
    return int(value)
