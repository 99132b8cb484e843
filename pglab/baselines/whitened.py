"""Values whitened over the whole batch."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline


@register_baseline("whitened")
class Whitened(Baseline):
    """(value - mean) / (std + eps) over all of a member's valid rows, the usual normalisation of a batch's returns.

    The mean contains the sample: of R independent rows it leaves a factor (R - 1)/R of the gradient, exactly. The std
    makes the step's size independent of the reward's scale, not its noise smaller, and depends on the sample too. Without
    `std` it is the batch mean as a baseline. (`agent.normalize_advantages` does the same to what another baseline left.)
    """

    std: bool = True
    """Whether to divide by the standard deviation (with R - 1)."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the standard deviation."""

    couples_rows = True
    scales = True
    unbiased = False
    bias = "mean and std contain the sample"

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        return self._mean(batch).unsqueeze(1).expand_as(batch.value)

    def scale(self, state: BaselineState, batch: Batch) -> Tensor:
        if not self.std:
            return torch.ones_like(batch.value)
        off = torch.where(batch.valid, batch.value - self._mean(batch).unsqueeze(1), 0.0)
        variance = off.square().sum((0, 2)) / (batch.valid.sum((0, 2)) - 1).clamp_min(1)  # [P]
        return (variance.sqrt() + self.eps).unsqueeze(1).expand_as(batch.value)

    def _mean(self, batch: Batch) -> Tensor:
        total = torch.where(batch.valid, batch.value, 0.0).sum((0, 2))
        return total / batch.valid.sum((0, 2)).clamp_min(1)  # [P]
