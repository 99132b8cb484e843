"""Finite Markov decision processes given by tables: the base class, a chain and a grid.

Letters: S states, A actions, J outcomes of an action in a state (the most that any has; shorter lists are padded).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.base import TorchVectorEnv
from pglab_envs.one_step import count, number


@dataclass(frozen=True)
class Tables:
    """A finite Markov decision process, as the outcomes of every action in every state. All on the CPU.

    Two outcomes may lead to the same state with different rewards. Outcomes of probability 0 are padding.

    Raises:
        ValueError: shapes that do not fit together, probabilities that are no distribution, a state that does not exist,
            a reward that is not finite.
    """

    probability: Tensor  # [S, A, J] float64
    next_state: Tensor  # [S, A, J] int64
    reward: Tensor  # [S, A, J] float64
    terminated: Tensor  # [S, A, J] bool: the episode ends with this outcome
    initial: Tensor  # [S] float64: probabilities of the first state

    def __post_init__(self) -> None:
        shape = self.probability.shape
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"probability must be [states, actions, outcomes], got {tuple(shape)}")
        for name, wanted in (("next_state", shape), ("reward", shape), ("terminated", shape), ("initial", shape[:1])):
            if (found := getattr(self, name).shape) != wanted:
                raise ValueError(f"{name} must be {tuple(wanted)}, as probability has it, got {tuple(found)}")
        for name in ("probability", "initial"):
            p = getattr(self, name)
            if not (bool((p >= 0).all()) and bool(((p.sum(-1) - 1).abs() < 1e-9).all())):
                raise ValueError(f"{name} must be at least 0 and sum to 1 over its last axis")
        if not bool(((self.next_state >= 0) & (self.next_state < shape[0])).all()):
            raise ValueError(f"next_state must lie in 0..{shape[0] - 1}")
        if not bool(self.reward.isfinite().all()):
            raise ValueError("reward must be finite")

    @classmethod
    def dense(cls, probability: Any, reward: Any, terminated: Any = None, initial: Any = None) -> Tables:
        """Tables by next state (J = S), of anything that numpy takes for an array.

        Args:
            probability: `[S, A, S]`.
            reward: `[S, A, S]`, or `[S, A]` where it does not depend on the next state.
            terminated: `[S, A, S]` bool, or `[S]` where it depends on the next state alone; None for nowhere.
            initial: `[S]`; None for state 0.

        Raises:
            ValueError: as the class.
        """
        p = torch.as_tensor(np.asarray(probability, dtype=np.float64))
        if p.ndim != 3 or p.shape[0] != p.shape[2]:
            raise ValueError(f"probability must be [states, actions, states], got {tuple(p.shape)}")
        states = torch.arange(len(p))
        r = torch.as_tensor(np.asarray(reward, dtype=np.float64))
        ends = torch.as_tensor(np.asarray(np.zeros(len(p)) if terminated is None else terminated, dtype=np.bool_))
        first = states == 0 if initial is None else torch.as_tensor(np.asarray(initial, dtype=np.float64))
        return cls(
            p,
            states.expand(p.shape),
            r.unsqueeze(-1).expand(p.shape) if r.shape == p.shape[:2] else r,
            ends.expand(p.shape) if ends.shape == p.shape[:1] else ends,
            first.double(),
        )

    @property
    def states(self) -> int:
        """S."""
        return self.probability.shape[0]

    @property
    def actions(self) -> int:
        """A."""
        return self.probability.shape[1]

    def transition_probability(self) -> Tensor:
        """Of each next state, `[S, A, S]` float64, whether the episode ends there or not."""
        found = self.probability.new_zeros(self.states, self.actions, self.states)
        return found.scatter_add(2, self.next_state, self.probability)

    def expected_reward(self) -> Tensor:
        """Of each action in each state, `[S, A]` float64."""
        return (self.probability * self.reward).sum(-1)


class TabularEnv(TorchVectorEnv):
    """A finite Markov decision process.

    The state `[..., 1]` is the index of a state as a number; the observation `[..., S]` is its one-hot, so that a policy
    without hidden layers has logits of its own for every state. One uniform picks the first state, and one in every step
    the outcome: the first whose cumulative probability is above it. `tables` holds the process, and
    `pglab.lab.exact_control.tabular_gradient` has the exact policy gradient.

    A subclass sets `id`, and `options` where it has arguments; it makes its tables and hands them on.

    Args:
        num_envs: N.
        tables: the process.
        horizon: the time limit in steps.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.
    """

    id = "pglab/Tabular-v0"
    state_size = 1
    reset_noise_size = 1
    step_noise_size = 1
    differentiable = False

    def __init__(self, num_envs: int, tables: Tables, horizon: int, **vector: Any) -> None:
        self.max_episode_steps = count("horizon", horizon)
        self.tables = tables
        self.observation_size = tables.states
        self.single_observation_space = spaces.Box(0.0, 1.0, shape=(tables.states,), dtype=np.float32)
        self.single_action_space = spaces.Discrete(tables.actions)
        super().__init__(num_envs, **vector)
        self._outcomes = tables.probability.shape[-1]  # J
        self._cumulative = cumulative(tables.probability).flatten(0, 1).to(self.device)  # [S * A, J]
        self._initial = cumulative(tables.initial).to(self.device)  # [S]
        self._next, self._reward, self._terminated = (
            x.flatten().to(self.device) for x in (tables.next_state, tables.reward, tables.terminated)
        )  # [S * A * J]
        self._indices = torch.arange(tables.states, device=self.device)  # [S]

    def observe(self, state: Tensor) -> Tensor:
        """The one-hot `[..., S]` of the state `[..., 1]`."""
        return (state == self._indices).to(state.dtype)

    def state_of(self, observation: Tensor) -> Tensor:
        """The index `[..., 1]` of the 1."""
        return observation.argmax(-1, keepdim=True).to(observation.dtype)

    def initial_state(self, noise: Tensor) -> Tensor:
        """A state `[..., 1]` from `noise` `[..., 1]` uniform on [0, 1)."""
        return torch.searchsorted(self._initial, noise.double().contiguous(), right=True).to(noise.dtype)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One step.

        Args:
            state: `[..., 1]`.
            action: `[...]` int64 below A (not checked).
            noise: `[..., 1]` uniform on [0, 1), of any precision.

        Returns:
            The next state `[..., 1]`, the reward `[...]`, and `[...]` bool, whether the episode terminated.
        """
        assert noise is not None
        row = state.squeeze(-1).long() * self.tables.actions + action  # [...]
        # Compared in float64, whatever the noise: that of gymnasium's interface picks what gymnasium would pick.
        outcome = (noise >= self._cumulative[row]).sum(-1)
        cell = row * self._outcomes + outcome
        return self._next[cell].unsqueeze(-1).to(state), self._reward[cell].to(state), self._terminated[cell]


def cumulative(probability: Tensor) -> Tensor:
    """Cumulative probabilities `[..., J]`, at least 1 from the last possible outcome on, however they are rounded: no
    number below 1 picks an outcome of probability 0."""
    later = probability.flip(-1).cumsum(-1).flip(-1) - probability  # [..., J]: of the outcomes after this one
    return torch.where(later <= 0, 1.0, probability.cumsum(-1))


class Chain(TabularEnv):
    """A row of states in which moving on pays nothing until its end, and going back pays at once.

    Action 0 moves one state on, or, in the last state, stays there with reward 10; action 1 goes back to the first state
    with reward 2. With probability `slip` the other action is carried out. Episodes start in the first state and never
    terminate.

    Args:
        num_envs: N.
        n: number of states, at least 2.
        slip: probability that the other action is carried out.
        horizon: the time limit in steps.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: Strens (2000), "A Bayesian framework for reinforcement learning", with n = 5 and slip = 0.2, there as one
    learner's life of 1000 steps.
    """

    id = "pglab/Chain-v0"
    max_episode_steps = 50
    terminates = False
    options = ("n", "slip", "horizon")

    def __init__(self, num_envs: int = 1, n: int = 5, slip: float = 0.2, horizon: int = 50, **vector: Any) -> None:
        n, slip = count("n", n, 2), fraction("slip", slip)
        on = torch.arange(1, n + 1).clamp_max(n - 1)  # [S]
        next_state = torch.stack((on, torch.zeros_like(on)), -1)  # [S, 2]: of what is carried out
        reward = torch.stack((10.0 * (torch.arange(n) == n - 1), torch.full((n,), 2.0)), -1).double()
        tables = Tables(
            torch.tensor([1 - slip, slip], dtype=torch.float64).expand(n, 2, 2),
            torch.stack((next_state, next_state.flip(-1)), 1),  # [S, A, J]: what was chosen, then the other
            torch.stack((reward, reward.flip(-1)), 1),
            torch.zeros(n, 2, 2, dtype=torch.bool),
            (torch.arange(n) == 0).double(),
        )
        super().__init__(num_envs, tables, horizon, **vector)


class GridWorld(TabularEnv):
    """A square grid to be crossed from one corner to the opposite one, at reward -1 a step.

    States are numbered row by row. Episodes start in the first and terminate on entering the last. Actions 0 to 3 move
    left, down, right, up; with probability `slip` the move is to one of the two sides of that direction, each as likely.
    Who would leave the grid stays.

    Args:
        num_envs: N.
        size: states along a side, at least 2.
        slip: probability of moving sideways.
        horizon: the time limit in steps.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Sources: Sutton & Barto (2018), "Reinforcement learning", example 4.1; slipping as in Russell & Norvig (2010),
    "Artificial intelligence", section 17.1.
    """

    id = "pglab/GridWorld-v0"
    max_episode_steps = 100
    options = ("size", "slip", "horizon")

    def __init__(self, num_envs: int = 1, size: int = 4, slip: float = 0.1, horizon: int = 100, **vector: Any) -> None:
        size, slip = count("size", size, 2), fraction("slip", slip)
        states = torch.arange(size * size)
        row, column = states // size, states % size
        moves = [
            (row + down).clamp(0, size - 1) * size + (column + right).clamp(0, size - 1)
            for down, right in ((0, -1), (1, 0), (0, 1), (-1, 0))
        ]
        next_state = torch.stack(
            [torch.stack((moves[a], moves[(a - 1) % 4], moves[(a + 1) % 4]), -1) for a in range(4)], 1
        )  # [S, A, 3]
        shape = next_state.shape
        tables = Tables(
            torch.tensor([1 - slip, slip / 2, slip / 2], dtype=torch.float64).expand(shape),
            next_state,
            torch.full(shape, -1.0, dtype=torch.float64),
            next_state == size * size - 1,
            (states == 0).double(),
        )
        super().__init__(num_envs, tables, horizon, **vector)


def fraction(name: str, value: Any) -> float:
    """`value` if it is a number of [0, 1]. ValueError otherwise."""
    if not 0 <= (found := number(name, value)) <= 1:
        raise ValueError(f"{name} must lie in 0..1, got {value!r}")
    return found
