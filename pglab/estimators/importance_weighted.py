"""The score function under importance weights."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator

LARGEST = 60.0
"""Log-ratios are cut here, so that a ratio times a value stays finite in float32."""


def ratios(log_prob: Tensor, signal: Signal) -> Tensor:
    """p(z) / behaviour(z) `[*rows]` of log-probabilities per factor `[*rows, D]`, a constant; 1 where the current policy
    drew the action."""
    joint = log_prob.detach().sum(-1)
    if signal.behaviour_log_prob is None:
        return torch.ones_like(joint)
    return torch.exp((joint - signal.behaviour_log_prob).clamp(max=LARGEST))


def advantages(log_prob: Tensor, signal: Signal) -> Tensor:
    """f - b against log-probabilities per factor: `[*rows, D]` where the baseline has one per factor, else `[*rows, 1]`."""
    assert signal.value is not None
    value, baseline = signal.value.unsqueeze(-1), signal.baseline
    if baseline is None:
        return value
    return value - (baseline if baseline.ndim == log_prob.ndim else baseline.unsqueeze(-1))


@register_estimator("importance_weighted")
class ImportanceWeighted(Estimator):
    """w (f(z) - b) grad log p(z) with weights made of the ratio rho = p(z) / behaviour(z), all of them constants.

    plain: w = rho: unbiased, and `score_function` at rho = 1.
    clipped: w = min(rho, clip) (truncated importance sampling, Ionides 2008; Espeholt et al. 2018): biased, with weights
        that no single row can dominate.
    self_normalised: w = rho / (mean of rho over the rows of the same member) (Hesterberg 1995; Owen 2013, section 9.2).
        Biased by a term of order 1 over the number of rows. A row's estimate then depends on the other rows of its batch,
        those that do not exist included, which are draws of the behaviour too: the unit of replication is the batch.

    Ratios are those of the action at its state, not of whole trajectories.
    """

    weights: Literal["plain", "clipped", "self_normalised"] = "plain"
    """How the ratios are made weights."""
    clip: Annotated[float, Field(gt=0)] = 10.0
    """For clipped: the largest weight."""

    needs = frozenset({"value"})
    kinds = frozenset({"discrete", "binary", "continuous"})
    unbiased = True
    bias = "clipped: of the weight above clip; self_normalised: of order 1 over the rows"
    evaluations = "1"
    paper = "Owen 2013, chapter 9; Ionides 2008"
    uses_baseline = True
    reweights = True

    @property
    def declared_bias(self) -> str:
        return {"plain": "", "clipped": "weights above clip are cut", "self_normalised": "of order 1 over the rows"}[
            self.weights
        ]

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        log_prob = distribution.log_prob(draw.action, draw.noise)  # [*rows, D]
        weight = ratios(log_prob, signal)
        if self.weights == "clipped":
            weight = weight.clamp(max=self.clip)
        elif self.weights == "self_normalised":
            weight = normalised(weight)
        return (log_prob * advantages(log_prob, signal)).sum(-1) * weight


def normalised(weight: Tensor) -> Tensor:
    """Weights `[..., P, N]` (or `[N]`) over their member's mean."""
    if weight.ndim < 2:
        return weight / weight.mean()
    others = [axis for axis in range(weight.ndim) if axis != weight.ndim - 2]
    return weight / weight.mean(others, keepdim=True)
