"""The score-function estimator (REINFORCE)."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator


@register_estimator("score_function")
class ScoreFunction(Estimator):
    """(f(z) - b) grad log p(z), any f (Williams 1992, eq. 4-6).

    With a per-factor baseline `[*rows, D]` each factor's score has its own: sum_d (f - b_d) grad log p_d.
    With behaviour log-probabilities the row is weighted by the ratio p(z) / behaviour(z), plain importance sampling;
    its gradient is ratio * score, the same thing at ratio 1.
    """

    needs = frozenset({"value"})
    kinds = frozenset({"discrete", "binary", "continuous"})
    unbiased = True
    evaluations = "1"
    paper = "Williams 1992"
    uses_baseline = True
    linear = True
    reweights = True

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.value is not None
        log_prob = distribution.log_prob(draw.action, draw.noise)  # [*rows, D]
        value, baseline = signal.value, signal.baseline
        if signal.behaviour_log_prob is not None:
            ratio = torch.exp((log_prob.sum(-1) - signal.behaviour_log_prob).detach())  # [*rows]
            log_prob = log_prob * ratio.unsqueeze(-1)
        if baseline is not None and baseline.ndim == log_prob.ndim:
            return (log_prob * (value.unsqueeze(-1) - baseline)).sum(-1)
        return log_prob.sum(-1) * (value if baseline is None else value - baseline)
