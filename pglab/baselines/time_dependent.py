"""The mean value at each step of an episode."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline
from pglab.baselines.by_time import by_columns, by_rows, fit, of_episode, ratio, running, sums


@register_baseline("time_dependent")
class TimeDependent(Baseline):
    """b_t, the mean value of the rows at step t of their episodes (Greensmith, Bartlett & Baxter 2004).

    Divided by the number of episodes alive at t, not by the number of episodes: dead steps count as no step, where their
    zeros would pull b_t down and leave variance behind. The mean is over past batches, decayed, where step t has been
    reached, and 0 where it never was; or, with `leave_one_out`, over the batch's other columns, the past's where none of
    them reached t. Unbiased both ways: columns are independent given the policy, and the step of the episode is known
    before the action.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past against each batch that reaches the step, in [0, 1)."""
    steps: Annotated[int, Field(ge=1)] = 1000
    """Steps of an episode that are told apart; later ones share the last."""
    leave_one_out: bool = False
    """Whether to take the mean over the other columns of this batch."""

    needs = frozenset({"time"})
    adapts = True
    paper = "Greensmith, Bartlett & Baxter 2004"

    @property
    def couples(self) -> bool:
        return self.leave_one_out

    def initial(self, members: int, device: Any) -> BaselineState:
        return {name: torch.zeros(members, 0, device=device) for name in ("total", "count")}  # [P, steps seen]

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        at, size = of_episode(batch, self.steps, state["total"].shape[1])
        past = fit(ratio(state["total"], state["count"]), size).gather(1, at)  # [P, T*N]
        if not self.leave_one_out:
            return by_rows(past, batch.value.shape)
        n = batch.value.shape[2]
        column = torch.arange(n, device=at.device).repeat(len(batch.value))  # [T*N]
        total, count = (self._others(x, at, column, size, n) for x in self._rows(batch))
        return by_rows(torch.where(count > 0, total / count.clamp_min(1), past), batch.value.shape)

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, dict[str, Tensor]]:
        at, size = of_episode(batch, self.steps, state["total"].shape[1])
        total, count = (sums(x, at, size) for x in self._rows(batch))
        moved = {
            name: running(fit(state[name], size), new, count > 0, self.decay)
            for name, new in (("total", total), ("count", count))
        }
        return moved, {}

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Values, 0 where there is none, and whether there is one, `[P, T*N]`."""
        alive = by_columns(batch.valid.to(batch.value.dtype))
        return by_columns(batch.value) * alive, alive

    def _others(self, x: Tensor, at: Tensor, column: Tensor, size: int, columns: int) -> Tensor:
        """Each row's sum over the rows of the other columns at its time, `[P, T*N]`."""
        own = sums(x, at + column * size, size * columns).view(len(x), columns, size)
        return (own.sum(1, keepdim=True) - own).flatten(1).gather(1, at + column * size)
