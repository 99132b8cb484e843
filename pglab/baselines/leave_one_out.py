"""The mean of the other environments' values at the same time step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline


@register_baseline("leave_one_out")
class LeaveOneOut(Baseline):
    """At each time step, the mean over the other environments that are still alive (Salimans & Knowles 2014; Kool, van
    Hoof & Welling 2019, eq. 8).

    With no other survivor, an earlier batch's mean at that time step, or 0 when no earlier batch reached it. Unbiased:
    environments are independent given the policy. In step-wise collection the same index in the block is compared,
    whose episodes are at different steps: unbiased too, only less correlated.
    """

    couples_rows = True
    paper = "Salimans & Knowles 2014; Kool et al. 2019"

    def initial(self, members: int, device: Any) -> BaselineState:
        return {"by_time": torch.zeros(members, 0, device=device)}  # [P, longest T seen]

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        steps = len(batch.value)
        alive = batch.valid.to(batch.value.dtype)
        values = batch.value * alive
        others = alive.sum(-1, keepdim=True) - alive  # [T, P, N]
        mean = (values.sum(-1, keepdim=True) - values) / others.clamp_min(1)
        earlier = _fit(state["by_time"], steps).T.unsqueeze(-1)  # [T, P, 1]
        return torch.where(others > 0, mean, earlier)

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, dict[str, Tensor]]:
        steps = max(len(batch.value), state["by_time"].shape[1])
        alive = batch.valid.sum(-1).T  # [P, T]
        mean = (batch.value * batch.valid).sum(-1).T / alive.clamp_min(1)
        now, seen = _fit(mean, steps), _fit(alive, steps)
        return {"by_time": torch.where(seen > 0, now, _fit(state["by_time"], steps))}, {}


def _fit(x: Tensor, steps: int) -> Tensor:
    """`[P, t]` cut or padded with 0 to `[P, steps]`."""
    return F.pad(x, (0, steps - x.shape[1])) if x.shape[1] < steps else x[:, :steps]
