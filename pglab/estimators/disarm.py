"""DisARM, also known as U2G: the antithetic estimator without ARM's continuous noise."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Bernoulli, Distribution
from pglab.estimators.arm import AntitheticPair
from pglab.estimators.base import Draw, Signal, State, register_estimator


@register_estimator("disarm")
class DisARM(AntitheticPair):
    """(f(z) - f(z')) (z - z') sigmoid(|phi|) / 2 at the logits phi (Dong, Mnih & Tucker 2020, eq. 7; Yin, Ho, Yan, Qian &
    Zhou 2020).

    z' = 1[u < p] is the antithetic twin of the draw z = 1[u > 1 - p]. It is ARM's expectation given the pair: where a
    factor's two values differ, u is uniform beyond max(p, 1 - p), so u - 1/2 has the mean +-sigmoid(|phi|) / 2; where they
    agree, the factor gets 0.
    """

    paper = "Dong et al. 2020; Yin et al. 2020"

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert isinstance(distribution, Bernoulli)
        with torch.no_grad():
            _, twin, difference = self.pair(distribution, draw, signal)
            estimate = difference * (draw.action - twin) * (0.5 * torch.sigmoid(distribution.logits.abs()))
        return (distribution.logits * estimate).sum(-1)
