"""Collecting experience in masked blocks of fixed shape.

Letters: T time, P population, N environments (columns), O observation, D factors, K categories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.environments.contract import Environment, Reset
from pglab.errors import PglabError
from pglab.noise import Counter, Noise, Purpose

Act = Callable[[Tensor, Tensor | None], Distribution]
"""Raw observations `[P, N, O]` and action mask to the policy's distribution."""

Event = tuple[str, tuple[int, ...]]
"""Kind and shape of the noise that makes one action."""


@dataclass(frozen=True)
class Rollout:
    """A block of experience. Rows that are not `valid` have reward 0 and finite contents, and weigh nothing.

    Tensors are views of memory in which the member comes first, so that laying rows out for a network copies nothing.
    """

    obs: Tensor  # [T, P, N, O] raw
    action: Tensor  # [T, P, N, *event]
    noise: Tensor  # [T, P, N, *event]: what made the action
    reward: Tensor  # [T, P, N]
    terminated: Tensor  # [T, P, N] bool
    ended: Tensor  # [T, P, N] bool: terminated or truncated
    final_obs: Tensor  # [T, P, N, O]: where each transition led, before any reset
    valid: Tensor  # [T, P, N] bool
    time: Tensor  # [T, P, N] int64: step in the episode
    action_mask: Tensor | None = None  # [T, P, N, D, K] bool

    def __len__(self) -> int:
        return len(self.reward)

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Rollout:
        """Every tensor changed by `change(name, tensor)`; an absent action mask stays absent."""
        named = {f.name: getattr(self, f.name) for f in fields(Rollout)}
        changed: Any = {name: None if x is None else change(name, x) for name, x in named.items()}
        return Rollout(**changed)

    @staticmethod
    def after_another(parts: list[Rollout]) -> Rollout:
        """Blocks of the same environments, joined in time."""
        if len(parts) == 1:
            return parts[0]
        return parts[0].map(
            lambda name, _: torch.cat([getattr(p, name).transpose(0, 1) for p in parts], 1).transpose(0, 1)
        )

    @staticmethod
    def beside(parts: list[Rollout]) -> Rollout:
        """Several rollouts as columns of one, padded in time with rows that are not valid."""
        steps = max(len(p) for p in parts)

        def padded(name: str, x: Tensor) -> Tensor:
            missing = steps - len(x)
            # Contents are repeated, not zeroed: they stay finite and masks stay non-empty.
            filling = torch.zeros_like(x[-1:]) if name in ("reward", "valid") else x[-1:]
            return torch.cat([x, filling.expand(missing, *x.shape[1:])]) if missing else x

        def joined(name: str, _: Tensor) -> Tensor:
            return torch.cat([padded(name, getattr(p, name)).transpose(0, 1) for p in parts], dim=2).transpose(0, 1)

        return parts[0] if len(parts) == 1 else parts[0].map(joined)


@dataclass
class Position:
    """Where each environment stands between two blocks."""

    obs: Tensor  # [P, N, O]
    time: Tensor  # [P, N] int64
    action_mask: Tensor | None  # [P, N, D, K]

    @classmethod
    def start(cls, reset: Reset) -> Position:
        return cls(
            reset.obs, torch.zeros(reset.obs.shape[:2], dtype=torch.int64, device=reset.obs.device), reset.action_mask
        )


def block_noise(
    env: Environment, noise: Noise, counter: Counter, steps: int, event: Event
) -> tuple[Tensor, Tensor | None]:
    """The noise of a block: the actions' `[T, P, N, *event]`, and the resets' where the environment wants it."""
    (kind, shape), size = event, env.spec.reset_noise_size
    actions = noise.of_kind(kind, Purpose.ACTION, counter, (steps, env.num_envs, *shape), axis=1)
    resets = noise.uniform(Purpose.RESET, (*counter, 1), (steps, env.num_envs, size), axis=1) if size else None
    return actions, resets


def block(
    env: Environment,
    act: Act,
    present: Callable[[Tensor], Tensor],
    position: Position,
    action_noise: Tensor,
    reset_noise: Tensor | None,
) -> tuple[Rollout, Position]:
    """One step per row of `action_noise` `[T, P, N, *event]` from `position`; ended episodes are followed by new ones.

    `reset_noise` `[T, P, N, reset_noise_size]` where the environment wants it. Returns the rollout and where it stopped.
    """
    obs, mask = position.obs, position.action_mask
    rows: list[tuple[Tensor, ...]] = []
    masks = []
    with torch.inference_mode():
        starts = repeat(None) if reset_noise is None else env.starts(reset_noise)
        for noise, start in zip(action_noise, starts, strict=False):
            distribution = act(obs, mask)
            action = distribution.sample(noise)
            step = env.advance(present(distribution.executed(action)), start)
            rows.append((obs, action, step.reward, step.terminated, step.ended, step.final_obs, step.valid))
            if mask is not None:
                masks.append(mask)
            obs, mask = step.obs, step.action_mask
    # Stacked outside of inference mode: the copies are ordinary tensors, which a backward pass may save.
    o, action, reward, terminated, ended, final, valid = (_stacked(column) for column in zip(*rows, strict=True))
    reward = torch.where(valid, reward, 0.0)
    time, later = step_numbers(position.time, ended, valid)
    rollout = Rollout(
        o, action, action_noise, reward, terminated, ended, final, valid, time, _stacked(masks) if masks else None
    )
    return rollout, Position(obs.clone(), later, None if mask is None else mask.clone())


def _stacked(column: Sequence[Tensor]) -> Tensor:
    """`[P, ...]` of every step to `[T, P, ...]`, the member first in memory; what never changes is not copied."""
    if column[0] is column[-1]:
        return column[0].clone().expand(len(column), *column[0].shape)
    return torch.stack(tuple(column), 1).transpose(0, 1)


def step_numbers(time: Tensor, ended: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's step in its episode, `[T, P, N]` int64, and the next step's, `[P, N]`; `time` `[P, N]` is the first row's.
    A row that is not valid, because it only reset the environment, is no step of the new episode."""
    done = valid.cumsum(0)  # [T, P, N]: steps made in the block up to and including this row
    # How many had been made when the newest episode began, -1 where it began before the block.
    began = torch.where(ended, done, -1).cummax(0).values
    within = torch.where(began >= 0, done - began, done + time)  # of the row that follows
    return torch.cat([time.unsqueeze(0), within[:-1]]), within[-1]


def whole_episodes(
    env: Environment,
    act: Act,
    present: Callable[[Tensor], Tensor],
    noise: Noise,
    counter: Counter,
    block_steps: int,
    event: Event,
) -> Rollout:
    """One whole episode of every environment, started afresh: exactly one each, never "the first to finish".

    Played in blocks; whether anyone is alive is read once per block. Rows after an episode's end are not valid. Noise is
    drawn per block, so a member's episodes do not depend on how long the others' last.
    """
    limit = env.spec.max_episode_steps
    position = Position.start(env.reset(noise, (*counter, 0)))
    alive = torch.ones(position.obs.shape[:2], dtype=torch.bool, device=position.obs.device)
    parts: list[Rollout] = []
    played = 0
    while limit is None or played < limit + 1:
        steps = block_steps if limit is None else min(block_steps, limit - played) or block_steps
        drawn = block_noise(env, noise, (*counter, 1, len(parts)), steps, event)
        part, position = block(env, act, present, position, *drawn)
        survived = (~part.ended).cumprod(0).bool()  # [T, P, N]: no end up to and including t
        before = torch.cat([alive.unsqueeze(0), survived[:-1] & alive])  # [T, P, N]: still in its first episode
        part = replace(part, valid=part.valid & before)
        alive = survived[-1] & alive
        parts.append(part)
        played += steps
        if not bool(alive.any()):
            break
        if limit is None and played > 1_000_000:
            raise PglabError(
                f"{env.spec.id}: an episode has lasted over 1,000,000 steps and the environment has no time limit: "
                "set env.max_episode_steps, or collect by steps."
            )
    whole = Rollout.after_another(parts)
    longest = int(whole.valid.any(2).any(1).sum())  # rows past the longest episode say nothing
    whole = whole.map(lambda _, x: x[:longest])
    return replace(whole, reward=torch.where(whole.valid, whole.reward, 0.0))


def episode_sums(rollout: Rollout, running: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Undiscounted returns of the episodes that ended in this block.

    `running` `[P, N]` is the return so far of the episodes under way. Returns the sum of finished returns, of finished
    lengths and the number of finished episodes, `[P]` each, and the new `running`.
    """
    done = rollout.ended & rollout.valid  # [T, P, N]
    ends = done.to(torch.int32)
    later = ends.sum(0) - ends.cumsum(0) + ends  # [T, P, N]: ends at or after this step
    finished = rollout.reward * (later > 0)
    any_end = later[0] > 0
    total = finished.sum((0, 2)) + (running * any_end).sum(1)
    length = ((rollout.time + 1) * done).sum((0, 2)).to(total.dtype)
    running = running * ~any_end + (rollout.reward - finished).sum(0)
    return total, length, ends.sum((0, 2)).to(total.dtype), running
