"""The one contract that every environment meets, whatever it is made of.

Letters: P population, N environments per member, O observation, D action dimensions (factors), K categories.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pglab.noise import Counter, Noise

Tree = dict[str, Any]


@dataclass(frozen=True)
class ActionSpec:
    """What an action is. The encoding is what policies draw and critics read:

    - `discrete`: one-hot `[..., D, K]` float, K the largest of `sizes`; shorter factors are padded and masked;
    - `binary`: `[..., D]` of 0. and 1.;
    - `continuous`: `[..., D]`; where the space is bounded, in units in which the box is [-1, 1].
    """

    kind: Literal["discrete", "binary", "continuous"]
    sizes: tuple[int, ...]  # categories of each factor (2 for binary, 1 for continuous)
    shape: tuple[int, ...] = ()  # the shape of one action in the gymnasium space
    start: tuple[int, ...] = ()  # discrete: the first index of each factor
    low: np.ndarray | None = None  # continuous: bounds, flattened [D]; None when unbounded
    high: np.ndarray | None = None
    dtype: str = "float32"  # numpy's name of the gymnasium space's dtype

    @property
    def factors(self) -> int:
        """D, the number of action dimensions."""
        return len(self.sizes)

    @property
    def categories(self) -> int:
        """K, the largest number of categories of a factor (discrete)."""
        return max(self.sizes)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one encoded action: (D, K) or (D,)."""
        return (self.factors, self.categories) if self.kind == "discrete" else (self.factors,)

    @property
    def bounded(self) -> bool:
        return self.low is not None

    def padding_mask(self) -> Tensor | None:
        """`[D, K]` bool, True where a category exists; None when no factor is padded."""
        if self.kind != "discrete" or len(set(self.sizes)) == 1:
            return None
        return torch.arange(self.categories)[None, :] < torch.tensor(self.sizes)[:, None]


@dataclass(frozen=True)
class EnvironmentSpec:
    """What agents need to know of an environment before the first step."""

    id: str
    observation_size: int  # O, after encoding
    action: ActionSpec
    max_episode_steps: int | None
    resume: Literal["exact", "replay", "restart"]
    description: str  # one line for the log: backend, vectorization, how bounded actions are treated
    # Torch-native: uniforms per environment that `step` wants, those of the episode that may begin with it followed by
    # those of the transition itself; 0 where it wants none. `reset` draws its own.
    reset_noise_size: int = 0
    has_action_mask: bool = False
    cut_by_limit_only: bool = False  # episodes are truncated at max_episode_steps, and nowhere else
    differentiable: bool = False  # torch-native, and next state and reward have useful derivatives in the action
    terminates: bool = True  # when episodes terminate depends on what is done in them


class Reset(NamedTuple):
    obs: Tensor  # [P, N, O] float32
    action_mask: Tensor | None  # [P, N, D, K] bool, True where allowed


class Resumed(NamedTuple):
    obs: Tensor  # [P, N, O] float32: what the policy sees next
    action_mask: Tensor | None  # [P, N, D, K] bool
    lost: Tensor  # [P, N] bool: episodes that could not be gone on with and have begun again


class Step(NamedTuple):
    """One transition of every environment."""

    obs: Tensor  # [P, N, O] float32: what the policy sees next, after any reset
    reward: Tensor  # [P, N] float32
    terminated: Tensor  # [P, N] bool: the episode ended in a terminal state
    truncated: Tensor  # [P, N] bool: it was cut by a limit; bootstrap with V(final_obs)
    final_obs: Tensor  # [P, N, O]: where this transition led, before any reset (equals obs if the episode goes on)
    valid: Tensor  # [P, N] bool: False where the environment only reset itself in this step (NEXT_STEP autoreset)
    action_mask: Tensor | None  # [P, N, D, K] bool, for `obs`
    ended: Tensor  # [P, N] bool: terminated or truncated


class Environment(ABC):
    """P x N environments, stepped together; ended ones reset themselves.

    `reset` starts all of them afresh from noise alone, so an episode never depends on what was played before it.
    """

    spec: EnvironmentSpec
    num_members: int  # P
    num_envs: int  # N
    device: torch.device

    @abstractmethod
    def reset(self, noise: Noise, counter: Counter) -> Reset:
        """Start every environment anew; a function of (noise.members, counter)."""

    @abstractmethod
    def step(self, action: Tensor, reset_noise: Tensor | None = None) -> Step:
        """Step with encoded actions `[P, N, *event]`; `reset_noise` `[P, N, reset_noise_size]` if spec asks for it."""

    def starts(self, reset_noise: Tensor) -> Tensor:
        """What `advance` wants of `reset_noise` `[T, P, N, reset_noise_size]`, for all steps of a block at once."""
        return reset_noise

    def advance(self, action: Tensor, start: Tensor | None = None) -> Step:
        """`step` with one row of `starts` in place of the noise."""
        return self.step(action, start)

    @abstractmethod
    def reset_where(self, mask: Tensor, noise: Noise, counter: Counter) -> Reset:
        """Start anew where `mask` `[P, N]` is True; returns what the policy sees in all environments."""

    @abstractmethod
    def get_state(self) -> Tree:
        """A tree of tensors, numbers and strings from which `set_state` goes on (see `spec.resume`)."""

    @abstractmethod
    def set_state(self, state: Tree) -> Resumed:
        """Go on from `get_state`'s tree. Where `spec.resume` is `restart`, episodes under way are begun again."""

    def close(self) -> None:  # noqa: B027
        """Release what the environment holds (worker processes)."""
