"""The mean of the other environments' values at the same time step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline
from pglab.baselines.by_time import by_columns, by_rows, comparable, fit, sums


@register_baseline("leave_one_out")
class LeaveOneOut(Baseline):
    """At each time step, the mean over the other episodes that are still alive (Salimans & Knowles 2014; Kool, van Hoof &
    Welling 2019, eq. 8).

    With no other survivor, an earlier batch's mean at that time step, or 0 when no earlier batch reached it. Unbiased:
    episodes are independent given the policy. In step-wise collection the other environments at the same index of the
    block are compared, whose episodes are at different steps: unbiased too, only less correlated. (All rows of the same step of
    an episode would not do: a column's own are among them, and how many it has depends on what it did before.
    `time_dependent` with `leave_one_out` compares them without the own column.)
    """

    couples_rows = True
    paper = "Salimans & Knowles 2014; Kool et al. 2019"

    def initial(self, members: int, device: Any) -> BaselineState:
        return {"by_time": torch.zeros(members, 0, device=device)}  # [P, longest time seen]

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        values, alive, at = self._rows(batch)
        total, count = sums(values, at, len(batch.value)), sums(alive, at, len(batch.value))
        others = count.gather(1, at) - alive  # [P, T*N]
        mean = (total.gather(1, at) - values) / others.clamp_min(1)
        earlier = fit(state["by_time"], total.shape[1]).gather(1, at)
        return by_rows(torch.where(others > 0, mean, earlier), batch.value.shape)

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, dict[str, Tensor]]:
        values, alive, at = self._rows(batch)
        count = sums(alive, at, len(batch.value))
        mean = sums(values, at, len(batch.value)) / count.clamp_min(1)
        steps = max(mean.shape[1], state["by_time"].shape[1])
        now, seen = fit(mean, steps), fit(count, steps)
        return {"by_time": torch.where(seen > 0, now, fit(state["by_time"], steps))}, {}

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Values (0 where not valid), whether there is one, and the time it is compared at, `[P, T*N]` each."""
        alive = by_columns(batch.valid.to(batch.value.dtype))
        return by_columns(batch.value) * alive, alive, comparable(batch)
