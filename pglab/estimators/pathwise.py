"""The pathwise (reparameterization) estimator for continuous draws."""

from __future__ import annotations

from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, noise_of, register_estimator


@register_estimator("pathwise")
class Pathwise(Estimator):
    """grad f(g_theta(eps)) (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014; SVG(0) of Heess et al. 2015).

    With `at_mode` the gradient is taken at the distribution's mode instead of a draw: the deterministic policy gradient
    (Silver et al. 2014, eq. 9; DDPG), which is biased for E[f] in general. For a Gaussian it is exact at the
    mean where f is at most quadratic in the action, and at log_std where f is affine; for a Beta not even then.
    """

    at_mode: bool = False
    """Differentiate f at the mode rather than at the draw (DDPG)."""

    needs = frozenset({"critic_gradient"})
    kinds = frozenset({"continuous"})
    unbiased = True
    bias = "with at_mode: the gradient of f at the mode, not of E[f]"
    evaluations = "1, with its gradient"
    paper = "Kingma & Welling 2014; Heess et al. 2015"
    uses_noise = True

    @property
    def declared_bias(self) -> str:
        return self.bias if self.at_mode else ""

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        if self.at_mode:
            return signal.critic(distribution.executed(distribution.mode()))
        return signal.critic(distribution.executed(distribution.rsample(noise_of(draw, self.name))))
