"""Rows laid out by column, and sums over rows of equal time.

Letters: T time, P population, N environments (columns).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pglab.baselines.base import Batch


def by_columns(x: Tensor) -> Tensor:
    """Rows `[T, P, N]` as `[P, T*N]`."""
    return x.transpose(0, 1).flatten(1)


def by_rows(x: Tensor, rows: torch.Size) -> Tensor:
    """`[P, T*N]` back on rows `[T, P, N]`."""
    t, p, n = rows
    return x.view(p, t, n).transpose(0, 1)


def sums(x: Tensor, at: Tensor, size: int) -> Tensor:
    """Sums of `x` `[P, R]` over equal indices `at` `[P, R]`, `[P, size]`."""
    return x.new_zeros(len(x), size).scatter_add_(1, at, x)


def fit(x: Tensor, size: int) -> Tensor:
    """`[P, t]` cut or padded with 0 to `[P, size]`."""
    return F.pad(x, (0, size - x.shape[1])) if x.shape[1] < size else x[:, :size]


def comparable(batch: Batch) -> Tensor:
    """What rows of one member are compared at, `[P, T*N]` below T: in whole episodes the step of the episode, in step-wise
    collection the step of the block."""
    steps = len(batch.value)
    if batch.whole_episodes:
        # Rows past an environment's last episode may be numbered beyond the block; they count for nothing.
        return by_columns(batch.time.clamp(max=steps - 1))
    time = torch.arange(steps, device=batch.value.device)[:, None, None].expand_as(batch.time)
    return by_columns(time)


def of_episode(batch: Batch, steps: int, least: int = 0) -> tuple[Tensor, int]:
    """Every row's step in its episode, `[P, T*N]`, and how many of them there can be: at least `least`, at most `steps`, the
    last of which stands for all that follow."""
    size = min(steps, len(batch.value)) if batch.whole_episodes else steps
    size = max(size, least)
    return by_columns(batch.time.clamp(max=size - 1)), size


def running(total: Tensor, new: Tensor, seen: Tensor, decay: float) -> Tensor:
    """A decayed sum that stands still where nothing new was `seen`."""
    return torch.where(seen, decay * total + new, total)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is 0 or too small to divide by."""
    seen = b > torch.finfo(b.dtype).tiny
    return torch.where(seen, a / torch.where(seen, b, 1.0), 0.0)
