"""The estimator of deep autoregressive networks: f expanded at the draw as its own baseline."""

from __future__ import annotations

from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator
from pglab.estimators.control_variates import expansion


@register_estimator("darn")
class DARN(Estimator):
    """sum_d s_d f'_d(z) (z_d - 1/2) (Gregor et al. 2014): REINFORCE with the baseline f(z) + f'(z)(1/2 - z).

    The baseline depends on z, hence the bias: f's difference between z_d = 0 and 1 is replaced by the mean of the two
    slopes, which is exact where f is a quadratic in each z_d. The expansion is at 1/2: with the probability in its place
    not even quadratics are exact.
    """

    needs = frozenset({"critic_gradient"})
    kinds = frozenset({"binary"})
    unbiased = False
    bias = "unless f is quadratic in each variable"
    evaluations = "1, with its gradient"
    paper = "Gregor et al. 2014"

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        _, slope = expansion(signal.critic, draw.action, distribution)
        log_prob = distribution.log_prob(draw.action)  # [*rows, D]
        return (log_prob * slope * (draw.action - 0.5)).sum(-1)
