"""The critic's mean over actions."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline
from pglab.estimators.enumeration import enumerated


@register_baseline("critic_mean")
class CriticMean(Baseline):
    """E_a[Q(s, a)] under the current policy: enumerated for discrete actions; for continuous ones Q at the mode,
    for Gaussians its first-order value. A function of the state alone, so unbiased."""

    needs = frozenset({"critic", "distribution"})
    paper = "Sutton et al. 2000"

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        assert batch.critic is not None
        assert batch.distribution is not None
        with torch.no_grad():
            if batch.distribution.kind == "continuous":
                return batch.critic(batch.distribution.executed(batch.distribution.mode()))
            values, log_prob = enumerated(batch.distribution, batch.critic)
            return (values * log_prob.exp()).sum(0)
