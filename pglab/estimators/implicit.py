"""Implicit reparameterization."""

from __future__ import annotations

from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator
from pglab.estimators.control_variates import asked


@register_estimator("implicit")
class Implicit(Estimator):
    """grad f(z) dz/dtheta with dz/dtheta = -(dS/dz)^-1 dS/dtheta, S(z) = eps the standardisation function (Figurnov,
    Mohamed & Mnih 2018, eq. 5): the CDF for Beta, (z - mean) / std for Gaussians.

    Where a family has an explicit path, that is the gradient of `pathwise`; but it is taken at the draw itself, so its
    noise need not be known. Noise that is inferred is rounded: for tiny standard deviations `pathwise` is more exact.
    """

    needs = frozenset({"critic_gradient"})
    kinds = frozenset({"continuous"})
    unbiased = True
    evaluations = "1, with its gradient"
    paper = "Figurnov et al. 2018"

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        return asked(signal.critic, distribution.at_its_noise(draw.action), distribution)
