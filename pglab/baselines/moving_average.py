"""An exponential moving average of past values."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline


@register_baseline("moving_average")
class MovingAverage(Baseline):
    """One number per member: the moving average of earlier batches' mean values (Williams 1992, section 4).

    Used first, updated after, so it never contains the sample that it multiplies. Before the first batch it is 0; the
    first batch sets it.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past, in [0, 1)."""

    adapts = True
    paper = "Williams 1992"

    def initial(self, members: int, device: Any) -> BaselineState:
        return {"mean": torch.zeros(members, device=device), "batches": torch.zeros(members, device=device)}

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        return state["mean"][:, None].expand_as(batch.value)

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, dict[str, Tensor]]:
        count = batch.valid.sum((0, 2))
        mean = (batch.value * batch.valid).sum((0, 2)) / count.clamp_min(1)  # [P]
        mean = torch.where(count > 0, mean, state["mean"])  # a member without valid rows stays where it is
        seen = torch.as_tensor(state["batches"], dtype=mean.dtype, device=mean.device).expand_as(
            mean
        )  # older checkpoints hold a number
        moved = torch.where(seen == 0, mean, torch.lerp(mean, state["mean"].to(mean.dtype), self.decay))
        return {"mean": moved, "batches": seen + 1}, {"baseline/moving_average": moved}
