"""The mean of the other environments' values at the same time step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline


@register_baseline("leave_one_out")
class LeaveOneOut(Baseline):
    """At each time step, the mean over the other episodes that are still alive (Salimans & Knowles 2014; Kool, van Hoof &
    Welling 2019, eq. 8).

    With no other survivor, an earlier batch's mean at that time step, or 0 when no earlier batch reached it. Unbiased:
    episodes are independent given the policy. In step-wise collection the other environments at the same index of the
    block are compared, whose episodes are at different steps: unbiased too, only less correlated. (Their steps of the same
    number would not do: where the block stops depends on how long the episodes before it lasted.)
    """

    couples_rows = True
    paper = "Salimans & Knowles 2014; Kool et al. 2019"

    def initial(self, members: int, device: Any) -> BaselineState:
        return {"by_time": torch.zeros(members, 0, device=device)}  # [P, longest time seen]

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        values, alive, at = _laid_out(batch)
        total, count = _by_time(values, at, len(batch.value)), _by_time(alive, at, len(batch.value))
        others = count.gather(1, at) - alive  # [P, T*N]
        mean = (total.gather(1, at) - values) / others.clamp_min(1)
        earlier = _fit(state["by_time"], total.shape[1]).gather(1, at)
        p, (t, _, n) = len(values), batch.value.shape
        return torch.where(others > 0, mean, earlier).view(p, t, n).transpose(0, 1)

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, dict[str, Tensor]]:
        values, alive, at = _laid_out(batch)
        count = _by_time(alive, at, len(batch.value))
        mean = _by_time(values, at, len(batch.value)) / count.clamp_min(1)
        steps = max(mean.shape[1], state["by_time"].shape[1])
        now, seen = _fit(mean, steps), _fit(count, steps)
        return {"by_time": torch.where(seen > 0, now, _fit(state["by_time"], steps))}, {}


def _laid_out(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Values (0 where not valid), whether there is one, and the time it is compared at, `[P, T*N]` each."""
    steps = len(batch.value)
    alive = batch.valid.to(batch.value.dtype)
    if batch.whole_episodes:
        # Rows past an environment's last episode may be numbered beyond the block; they count for nothing.
        time = batch.time.clamp(max=steps - 1)
    else:
        time = torch.arange(steps, device=alive.device)[:, None, None].expand_as(batch.time)
    values, alive, at = ((x.transpose(0, 1).flatten(1)) for x in (batch.value * alive, alive, time))
    return values, alive, at


def _by_time(x: Tensor, at: Tensor, steps: int) -> Tensor:
    """Sums of `x` `[P, T*N]` over equal times `at`, `[P, steps]`."""
    return x.new_zeros(len(x), steps).scatter_add_(1, at, x)


def _fit(x: Tensor, steps: int) -> Tensor:
    """`[P, t]` cut or padded with 0 to `[P, steps]`."""
    return F.pad(x, (0, steps - x.shape[1])) if x.shape[1] < steps else x[:, :steps]
