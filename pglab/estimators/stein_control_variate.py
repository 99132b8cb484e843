"""Action-dependent control variates by Stein's identity."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Signal, State, register_estimator
from pglab.estimators.control_variates import advantage
from pglab.estimators.lax import ContinuousControl


@register_estimator("stein_control_variate")
class SteinControlVariate(ContinuousControl):
    """(Q - b - phi(s, a)) s + grad_a phi(s, a) da/dtheta, phi learned (Liu, Feng, Mao, Zhou, Peng & Liu 2018, section 3).

    Stein's identity E[phi s] = E[grad_a phi da/dtheta] makes the correction, whatever phi is. In form this is LAX; the
    authors fit phi to the values (`fit`), or to the smallest variance.
    """

    objective: Literal["fit", "variance"] = "fit"
    """What phi minimises: its squared error to the value (less the baseline), or the variance of the estimate."""

    paper = "Liu et al. 2018, section 3"

    def loss(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        if self.objective == "variance":
            return super().loss(distribution, draw, signal, state)
        views = self.learned(state, distribution, signal)
        error = advantage(signal) - self.control(views, distribution, draw, signal, state)
        return self.relative(error.square(), state)
