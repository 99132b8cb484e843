"""Values normalised within the group of rows at the same time step."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline
from pglab.baselines.by_time import by_columns, by_rows, comparable, sums


@register_baseline("group_normalised")
class GroupNormalised(Baseline):
    """(value - mean) / (std + eps) over a member's rows at the same time step (GRPO, Shao et al. 2024).

    The published group is the answers to one prompt; here it is the draws of one estimate, the episodes at one step, or
    in step-wise collection the columns at one step of the block, whose states differ. Biased twice: the mean contains
    the sample (a factor (N - 1)/N of the gradient), and the std weights each group by one over its own spread. With four
    draws of N(mu, 1) and f(x) = x the two make the gradient 0.691 instead of 1. Without `std` only the mean is
    subtracted, and the direction is unbiased where groups are equally large (Dr. GRPO, Liu et al. 2025).
    """

    std: bool = True
    """Whether to divide by the group's standard deviation (with N - 1)."""
    eps: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the standard deviation, so that a group of equal values gives about 0."""

    couples_rows = True
    scales = True
    unbiased = False
    bias = "the mean contains the sample; the std reweights groups"
    paper = "Shao et al. 2024"

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        return by_rows(self._mean(batch), batch.value.shape)

    def scale(self, state: BaselineState, batch: Batch) -> Tensor:
        if not self.std:
            return torch.ones_like(batch.value)
        off = by_columns(batch.value) - self._mean(batch)
        square, count = self._totals(batch, off.square())
        std = (square / (count - 1).clamp_min(1)).sqrt()  # [P, T*N]
        return torch.where(batch.valid, by_rows(std + self.eps, batch.value.shape), 1.0)

    def _mean(self, batch: Batch) -> Tensor:
        total, count = self._totals(batch, by_columns(batch.value))
        return total / count.clamp_min(1)  # [P, T*N]

    def _totals(self, batch: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's group's sum of `x` and number of rows, `[P, T*N]`."""
        at, alive = comparable(batch), by_columns(batch.valid.to(x.dtype))
        found = [sums(y, at, len(batch.value)).gather(1, at) for y in (x * alive, alive)]
        return found[0], found[1]
