"""The score function at mirrored draws of a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Distribution, Gaussian
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator
from pglab.estimators.gaussian_draws import standardised, with_gradient
from pglab.estimators.outcomes import values_at


@register_estimator("antithetic")
class Antithetic(Estimator):
    """(g(eps) + g(-eps)) / 2 with g the score-function estimate at z = mean + std eps (Hammersley & Morton 1956; the
    mirrored sampling of evolution strategies, Salimans et al. 2017, section 2).

    At the mean it is (f(z+) - f(z-)) eps / (2 std), which no baseline can change; at log_std
    ((f(z+) + f(z-)) / 2 - b) (eps^2 - 1), where one can. Both evaluations are the critic's. As std goes to 0 the difference
    of the two is lost in rounding before the estimate is.
    """

    needs = frozenset({"critic"})
    kinds = frozenset({"continuous"})
    families = (Gaussian,)
    unbiased = True
    evaluations = "2"
    paper = "Hammersley & Morton 1956; Salimans et al. 2017"
    uses_baseline = True

    def width(self, distribution: Distribution) -> int:
        return 2

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert isinstance(distribution, Gaussian)
        assert signal.critic is not None
        eps = standardised(distribution, draw)
        std = distribution.log_std.detach().exp()
        mirrored = distribution.mean.detach() - std * eps
        both = torch.stack([draw.action, mirrored])  # [2, *rows, D]
        up, down = values_at(distribution, signal.critic, both)  # [*rows] each
        middle, b = (up + down) / 2, signal.baseline
        per_factor = b is not None and b.ndim == eps.ndim
        left = middle if b is None or per_factor else middle - b
        left = left.unsqueeze(-1) - b if per_factor else left.unsqueeze(-1)
        by_mean = ((up - down) / 2).unsqueeze(-1) * eps / std
        return with_gradient(distribution, [by_mean, left * (eps * eps - 1)], middle)
