"""The gapped straight-through estimator."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pglab.distributions import Bernoulli
from pglab.estimators.base import Draw, State, register_estimator
from pglab.estimators.hard_draw import Discrete, TemperedHardDraw, scores_of, through_softmax


@register_estimator("gapped_straight_through")
class GappedStraightThrough(TemperedHardDraw):
    """J_tau(logits + m1 - m2)^T f'(D): instead of noise, two constant moves after which the drawn category leads the
    others by a gap (GST; Fan, Chi, Rudnicky & Ramadge 2022).

    m1 lifts the drawn logit to the largest one, m2 lowers every other to at most the largest less the gap. Without
    noise of its own, its variance is D's alone.
    """

    gap: Literal["p"] | Annotated[float, Field(ge=0)] = 1.0
    """By how much the drawn logit leads, at least; `p`: -log(1 - p_D) / p_D, the mean lead of Gumbels that draw D."""

    bias = "the Jacobian is that of moved logits, not the draw's"
    paper = "Fan, Chi, Rudnicky & Ramadge 2022"

    def cotangent(self, distribution: Discrete, draw: Draw, slope: Tensor, state: State) -> Tensor:
        tau = self.tau(distribution, state)
        return through_softmax(distribution, self.moved(distribution, draw.action) / tau, slope) / tau

    def moved(self, distribution: Discrete, action: Tensor) -> Tensor:
        """Scores in which the drawn category leads by the gap, `[*rows, *event]`."""
        scores = scores_of(distribution)
        if isinstance(distribution, Bernoulli):
            sign = 2 * action - 1
            gap = self._gap(F.logsigmoid(sign * scores), F.logsigmoid(-sign * scores))
            return sign * (sign * scores).clamp_min(gap)
        drawn = (scores * action).sum(-1, keepdim=True)
        others = torch.where(action > 0.5, -torch.inf, scores).logsumexp(-1, keepdim=True)
        top = scores.amax(-1, keepdim=True)
        return torch.where(action > 0.5, top, torch.minimum(scores, top - self._gap(drawn, others)))

    def _gap(self, log_p: Tensor, log_rest: Tensor) -> Tensor:
        """The gap, from the logs of the drawn category's probability and of all others' together."""
        if self.gap != "p":
            return torch.full_like(log_p, self.gap)
        p = log_p.exp().clamp_min(torch.finfo(log_p.dtype).tiny)
        return torch.where(p < 0.5, -torch.log1p(-p), -log_rest) / p  # each exact where the other cancels
