"""Replay: the last transitions of every member, each packed into one row so that a minibatch is one gather.

Letters: P population, C capacity, F packed width, B minibatch, O observation, E flattened action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """Rows of a minibatch or of a rollout, `[P, B, ...]`."""

    obs: Tensor  # [P, B, O] raw
    action: Tensor  # [P, B, E] flattened, as environment and critic see it
    reward: Tensor  # [P, B]
    terminated: Tensor  # [P, B] 1. where there is no future
    final_obs: Tensor  # [P, B, O] raw
    valid: Tensor  # [P, B] 1. where the row exists
    action_mask: Tensor | None = None  # [P, B, E] 1. where allowed, at obs
    next_mask: Tensor | None = None  # [P, B, E], at final_obs


class Replay:
    """A ring of `capacity` transitions per member. `count` is how many were ever added (per member)."""

    def __init__(
        self, members: int, capacity: int, observation: int, action: int, masked: bool, device: torch.device
    ) -> None:
        self.widths = [observation, action, 1, 1, observation, 1] + ([action, action] if masked else [])
        self.capacity = capacity
        self.data = torch.zeros(members, capacity, sum(self.widths), device=device)  # [P, C, F]
        self._offset = torch.arange(members, device=device).unsqueeze(1) * capacity  # [P, 1]
        self._count = 0
        self._place = torch.zeros((), dtype=torch.int64, device=device)  # `count`, where operations can read it

    @property
    def count(self) -> int:
        """How many transitions were ever added per member. To set it says that the newest lie where they belong."""
        return self._count

    @count.setter
    def count(self, count: int) -> None:
        self._count = count
        self._place.fill_(count)

    @property
    def size(self) -> int:
        """Transitions held per member."""
        return min(self.count, self.capacity)

    def add(self, rows: Transitions) -> None:
        """Append `[P, n, ...]`, overwriting the oldest."""
        self.append(self.pack(rows))

    def pack(self, rows: Transitions) -> Tensor:
        """Rows `[P, n, ...]` as the replay holds them, `[P, n, F]`."""
        parts = [rows.obs, rows.action, rows.reward.unsqueeze(-1), rows.terminated.unsqueeze(-1)]
        parts += [rows.final_obs, rows.valid.unsqueeze(-1)]
        if rows.action_mask is not None and rows.next_mask is not None:
            parts += [rows.action_mask, rows.next_mask]
        return torch.cat([x.to(self.data.dtype) for x in parts], dim=-1)

    def append(self, packed: Tensor) -> None:
        """Append packed rows `[P, n, F]`, overwriting the oldest."""
        self.put(packed)
        self.have_put(packed.shape[1])

    def put(self, packed: Tensor) -> None:
        """What `append` does to tensors, to be followed by `have_put`: operations that may be repeated without Python."""
        n = packed.shape[1]
        kept = min(n, self.capacity)
        index = (torch.arange(n - kept, n, device=packed.device) + self._place) % self.capacity
        self.data.index_copy_(1, index, packed[:, n - kept :])
        self._place += n

    def have_put(self, n: int) -> None:
        """`put` was done with `n` rows."""
        self._count += n

    def write(self, packed: Tensor, at: int) -> None:
        """Put packed rows `[P, n <= capacity, F]` where the rows number `at`, `at + 1`, ... belong."""
        first = at % self.capacity
        fits = min(self.capacity - first, packed.shape[1])
        self.data[:, first : first + fits] = packed[:, :fits]
        self.data[:, : packed.shape[1] - fits] = packed[:, fits:]

    def rows(self, start: int, stop: int) -> Tensor:
        """Packed rows number start..stop-1 (of all ever added), `[P, n, F]`, a copy."""
        index = torch.arange(start, stop, device=self.data.device) % self.capacity
        return self.data[:, index]

    def sample(self, u: Tensor, newest: int | None = None) -> Transitions:
        """The transitions that uniforms `u` `[P, B]` on (0, 1) pick: from all held, or from the `newest` ones."""
        n = self._place.clamp(max=self.capacity if newest is None else min(newest, self.capacity))
        back = torch.minimum((u * n).long(), n - 1)  # [P, B]: 0 is the newest
        row = (self._place - 1 - back) % self.capacity
        found = self.data.view(-1, self.data.shape[-1])[row + self._offset]  # [P, B, F]
        obs, action, reward, terminated, final_obs, valid, *masks = found.split(self.widths, dim=-1)
        return Transitions(
            obs,
            action,
            reward.squeeze(-1),
            terminated.squeeze(-1),
            final_obs,
            valid.squeeze(-1),
            *(masks or (None, None)),
        )

    def state(self) -> dict[str, Any]:
        """What the checkpoint's tree holds; the rows are stored beside it in append-only segments."""
        return {"count": self.count}
