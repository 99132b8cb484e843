"""Collecting experience in masked blocks of fixed shape.

Letters: T time, P population, N environments (columns), O observation, D factors, K categories.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
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
    """A block of experience. Rows that are not `valid` have reward 0 and finite contents, and weigh nothing."""

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
        return parts[0].map(lambda name, _: torch.cat([getattr(p, name) for p in parts]))

    @staticmethod
    def beside(parts: list[Rollout]) -> Rollout:
        """Several rollouts as columns of one, padded in time with rows that are not valid."""
        steps = max(len(p) for p in parts)

        def padded(name: str, x: Tensor) -> Tensor:
            missing = steps - len(x)
            # Contents are repeated, not zeroed: they stay finite and masks stay non-empty.
            filling = torch.zeros_like(x[-1:]) if name in ("reward", "valid") else x[-1:]
            return torch.cat([x, filling.expand(missing, *x.shape[1:])]) if missing else x

        return parts[0].map(lambda name, _: torch.cat([padded(name, getattr(p, name)) for p in parts], dim=2))


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
    obs, time, mask = position.obs, position.time, position.action_mask
    rows: list[tuple[Tensor, ...]] = []
    masks = []
    with torch.inference_mode():
        for t in range(len(action_noise)):
            distribution = act(obs, mask)
            action = distribution.sample(action_noise[t])
            step = env.step(present(distribution.executed(action)), None if reset_noise is None else reset_noise[t])
            ended = step.terminated | step.truncated
            rows.append((obs, action, step.reward, step.terminated, ended, step.final_obs, step.valid, time))
            if mask is not None:
                masks.append(mask)
            obs, mask = step.obs, step.action_mask
            # A row that only reset itself is no step of the new episode.
            time = (time + step.valid) * ~ended
    # Stacked outside of inference mode: the copies are ordinary tensors, which a backward pass may save.
    o, a, reward, terminated, ended_all, final, valid, times = (
        torch.stack(column) for column in zip(*rows, strict=True)
    )
    reward = torch.where(valid, reward, 0.0)
    rollout = Rollout(
        o, a, action_noise, reward, terminated, ended_all, final, valid, times, torch.stack(masks) if masks else None
    )
    return rollout, Position(obs.clone(), time.clone(), None if mask is None else mask.clone())


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
    total = torch.zeros(running.shape[0], device=running.device)
    length, count = torch.zeros_like(total), torch.zeros_like(total)
    for t in range(len(rollout)):
        running = running + rollout.reward[t]
        done = rollout.ended[t] & rollout.valid[t]
        total = total + (running * done).sum(1)
        length = length + ((rollout.time[t] + 1) * done).sum(1)
        count = count + done.sum(1)
        running = running * ~done
    return total, length, count, running
