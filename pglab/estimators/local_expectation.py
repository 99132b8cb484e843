"""Local expectation gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator
from pglab.estimators.outcomes import actions_at, indices, sizes, values_at


@register_estimator("local_expectation")
class LocalExpectation(Estimator):
    """sum_d sum_k f(z with factor d set to k) grad p_d(k), the other factors as drawn (Titsias & Lazaro-Gredilla 2015,
    section 3).

    Each factor's own randomness is summed out exactly; with one factor this is the exact gradient. f(z) is subtracted
    from every term, which changes nothing (a factor's probabilities sum to 1) but the rounding.
    """

    needs = frozenset({"critic"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = True
    evaluations = "1 + D (K - 1)"
    paper = "Titsias & Lazaro-Gredilla 2015"

    def width(self, distribution: Distribution) -> int:
        d, k = sizes(distribution)
        return 1 + d * (k - 1)

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        z, (d, k) = draw.action, sizes(distribution)
        # Every other category of each factor: the drawn one moved on by 1, 2, ... round the circle, [K - 1, *rows, *event].
        steps = torch.arange(1, k, device=z.device).unsqueeze(-1)
        others = actions_at(distribution, (indices(distribution, z).unsqueeze(-2) + steps) % k)
        one = torch.eye(d, dtype=torch.bool, device=z.device)  # [D, D]: which factor is set
        one = one.reshape(d, *([1] * len(distribution.batch_shape)), d, *([1] * (distribution.event_ndim - 1)))
        turned = torch.where(one, others.unsqueeze(1), z).flatten(0, 1)  # [(K - 1) * D, *rows, *event]
        values = values_at(distribution, signal.critic, torch.cat([z.unsqueeze(0), turned]))
        p = distribution.log_prob(others).exp()  # [K - 1, *rows, D]
        gain = (values[1:] - values[0]).unflatten(0, (k - 1, d)).movedim(1, -1)  # [K - 1, *rows, D]
        return (p * torch.where(p > 0, gain, 0.0)).sum((0, -1))  # whatever f is where it cannot be drawn
