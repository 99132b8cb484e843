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
from pglab.environments.contract import Environment, Reset, Step
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
    with torch.inference_mode():
        starts = None if reset_noise is None else env.starts(reset_noise)
        rows, masks, obs, mask = steps(
            act, present, env.advance, position.obs, position.action_mask, action_noise, starts
        )
    # Stacked outside of inference mode: the copies are ordinary tensors, which a backward pass may save.
    columns = [_stacked(column) for column in zip(*rows, strict=True)]
    rollout, time = assembled(columns, action_noise, position.time, _stacked(masks) if masks else None)
    return rollout, Position(obs.clone(), time, None if mask is None else mask.clone())


def steps(
    act: Act,
    present: Callable[[Tensor], Tensor],
    advance: Callable[[Tensor, Tensor | None], Step],
    obs: Tensor,
    mask: Tensor | None,
    noise: Tensor,
    starts: Tensor | None,
) -> tuple[list[tuple[Tensor, ...]], list[Tensor], Tensor, Tensor | None]:
    """The loop of every rollout: draw with a row of `noise` `[T, P, N, *event]`, advance with a row of `starts`.

    Returns each step's columns (see `assembled`) and masks, and what the policy sees next.
    """
    rows: list[tuple[Tensor, ...]] = []
    masks = []
    for drawn, start in zip(noise, repeat(None) if starts is None else starts, strict=False):
        distribution = act(obs, mask)
        action = distribution.sample(drawn)
        step = advance(present(distribution.executed(action)), start)
        rows.append((obs, action, step.reward, step.terminated, step.ended, step.final_obs, step.valid))
        if mask is not None:
            masks.append(mask)
        obs, mask = step.obs, step.action_mask
    return rows, masks, obs, mask


def assembled(
    columns: Sequence[Tensor], action_noise: Tensor, time: Tensor, masks: Tensor | None
) -> tuple[Rollout, Tensor]:
    """A rollout of its columns `[T, P, N, ...]` (observation, action, reward, terminated, ended, final observation,
    valid), and each environment's step in its episode afterwards; `time` `[P, N]` is that of the first row."""
    obs, action, reward, terminated, ended, final, valid = columns
    reward = torch.where(valid, reward, 0.0)
    numbers, after = step_numbers(time, ended, valid)
    return Rollout(obs, action, action_noise, reward, terminated, ended, final, valid, numbers, masks), after


def _stacked(column: Sequence[Tensor]) -> Tensor:
    """`[P, ...]` of every step to `[T, P, ...]`, the member first in memory; what never changes is not copied."""
    if column[0] is column[-1]:
        return column[0].clone().expand(len(column), *column[0].shape)
    return torch.stack(tuple(column), 1).transpose(0, 1)


def step_numbers(time: Tensor, ended: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's step in its episode, `[T, P, N]` int64, and the next step's, `[P, N]`; `time` `[P, N]` is the first row's.
    A row that is not valid, because it only reset the environment, is no step of the new episode."""
    steps = len(valid)
    if steps == 1:
        within = torch.where(ended[0], 0, time + valid[0])
        return time.unsqueeze(0), within
    if valid.stride(0) == 0:  # no row ever only resets
        numbers = torch.arange(1, steps + 1, device=valid.device, dtype=time.dtype)
        done = numbers[:, None, None] * valid[0]
    else:
        done = valid.cumsum(0, dtype=time.dtype)  # [T, P, N]: steps made in the block up to and including this row
    # How many had been made when the newest episode began, -1 where it began before the block.
    began = torch.where(ended, done, -1).cummax(0).values
    within = torch.where(began >= 0, done - began, done + time)  # of the row that follows
    return torch.cat([time.unsqueeze(0), within[:-1]]), within[-1]


def whole_episodes(
    env: Environment,
    play: Callable[[Position, Tensor, Tensor | None], tuple[Rollout, Position]],
    noise: Noise,
    counter: Counter,
    block_steps: int,
    event: Event,
    episodes: int = 1,
    own: bool = False,
) -> Rollout:
    """`episodes` whole episodes in every column, started afresh, one after another.

    A member's environments take its N x `episodes` episodes from one queue: whichever is free begins the next, and all that
    were begun are played to their end. So they are the first to *begin*, never "the first to finish", which would favour
    short ones: whether an episode counts is settled before its first step, and they are independent given the policy.
    Afterwards episode k lies in column k % N, whichever environment played it, so that columns are independent too, each
    with as many episodes. With `own`, for columns that act differently, an environment plays its own column's.

    `play` plays a block (see `block`); whether anyone still has an episode to finish is read once per block. Rows after a
    column's last episode are not valid. Noise is drawn per block, and a member's queue is its own, so its episodes do not
    depend on how long the others' last.
    """
    limit, n = env.spec.max_episode_steps, env.num_envs
    # Each environment has ended at least j episodes after j times the limit, so all have ended after `most` steps.
    most = None if limit is None else limit * episodes
    position = Position.start(env.reset(noise, (*counter, 0)))
    device = position.obs.device
    number = torch.arange(n, device=device).expand(len(position.obs), n)  # [P, N]: of the episode under way
    begun = torch.full((len(number), 1), n, device=device)
    parts: list[Rollout] = []
    numbers: list[Tensor] = []
    played = 0
    while most is None or played < most + episodes:
        steps = block_steps if most is None or most <= played else min(block_steps, most - played)
        drawn = block_noise(env, noise, (*counter, 1, len(parts)), steps, event)
        part, position = play(position, *drawn)
        ends = part.ended & part.valid  # [T, P, N]
        if own:
            after = number + n * ends.cumsum(0)
        else:
            order = ends.transpose(0, 1).flatten(1).cumsum(1)  # [P, T*N]: how many have ended, row by row
            follows = (begun + order - 1).view(-1, steps, n).transpose(0, 1)  # [T, P, N]
            after = torch.maximum(torch.where(ends, follows, -1).cummax(0).values, number)
            begun = begun + order[:, -1:]
        numbers.append(torch.cat([number.unsqueeze(0), after[:-1]]))
        number = after[-1]
        parts.append(replace(part, valid=part.valid & (numbers[-1] < n * episodes)))
        played += steps
        if not bool((number < n * episodes).any()):
            break
        if limit is None and played > 1_000_000 * episodes:
            raise PglabError(
                f"{env.spec.id}: an episode has lasted over 1,000,000 steps and the environment has no time limit: "
                "set env.max_episode_steps, or collect by steps."
            )
    whole = Rollout.after_another(parts)
    if own or episodes == 1:
        longest = int(whole.valid.any(2).any(1).nonzero().max()) + 1  # rows past the last episode say nothing
        whole = whole.map(lambda _, x: x[:longest])
    else:
        whole = _in_columns(whole, torch.cat(numbers), episodes)
    return replace(whole, reward=torch.where(whole.valid, whole.reward, 0.0))


def _in_columns(rollout: Rollout, number: Tensor, episodes: int) -> Rollout:
    """The valid rows of a rollout with those of episode k, by their `number` `[T, P, N]`, in column k % N, where they follow
    those of episode k - N."""
    steps, members, n = number.shape
    number, valid, time = (x.transpose(0, 1).flatten(1) for x in (number, rollout.valid, rollout.time))  # [P, T*N]
    number = number.clamp(max=n * episodes - 1)
    length = number.new_zeros(members, n * episodes).scatter_add_(1, number, valid.long())
    ends = length.view(members, episodes, n).cumsum(1)
    longest = int(ends[:, -1].max())
    first = ends.flatten(1) - length  # [P, N * episodes]: the row that an episode begins at
    nowhere = longest * n
    place = torch.where(valid, (first.gather(1, number) + time) * n + number % n, nowhere)
    source = torch.arange(members * steps * n, device=number.device).view(members, -1)
    held = valid.new_zeros(members, nowhere + 1).scatter_(1, place, valid)[:, :-1]
    index = source[:, :1].repeat(1, nowhere + 1).scatter_(1, place, source)[:, :-1].flatten()

    def moved(_: str, x: Tensor) -> Tensor:
        rows = x.transpose(0, 1).reshape(members * steps * n, *x.shape[3:]).index_select(0, index)
        return rows.view(members, longest, n, *x.shape[3:]).transpose(0, 1)

    return replace(rollout.map(moved), valid=held.view(members, longest, n).transpose(0, 1))


def episode_sums(rollout: Rollout, running: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Undiscounted returns of the episodes that ended in this block.

    `running` `[P, N]` is the return so far of the episodes under way. Returns the sum of finished returns, of finished
    lengths and the number of finished episodes, `[P]` each, and the new `running`.
    """
    done = rollout.ended & rollout.valid  # [T, P, N]
    rows = torch.arange(1, len(rollout) + 1, device=done.device, dtype=torch.int32)[:, None, None]
    last = (rows * done).amax(0)  # [P, N]: rows up to the last end
    finished = rollout.reward * (rows <= last)
    any_end = last > 0
    total = finished.sum((0, 2)) + (running * any_end).sum(1)
    length = ((rollout.time + 1) * done).sum((0, 2)).to(total.dtype)
    running = running * ~any_end + (rollout.reward - finished).sum(0)
    return total, length, done.sum((0, 2)).to(total.dtype), running
