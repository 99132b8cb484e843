"""LAX: a learned function of the action as control variate, for continuous actions."""

from __future__ import annotations

from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Signal, State, register_estimator
from pglab.estimators.control_variates import LearnedFunction, scored
from pglab.estimators.learned import Views


class ContinuousControl(LearnedFunction):
    """(f(a) - b - c(a)) s + grad c(a(eps)), c a learned function of the action and the state: the score function for what
    c leaves over and the pathwise estimate for c. f may be a black box."""

    needs = frozenset({"value"})
    kinds = frozenset({"continuous"})
    unbiased = True
    evaluations = "1"
    uses_baseline = True

    def features(self, event: tuple[int, ...]) -> int:
        return event[0]

    def control(self, views: Views, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        """c at the draw, `[*rows]`, with the gradient of the parameters. It sees the executed action."""
        action = distribution.executed(distribution.at_its_noise(draw.action))
        return self.function(views, action, distribution, signal, state)

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        c = self.control(self.learned(state, distribution, signal), distribution, draw, signal, state)
        return scored(distribution, draw, signal, c) + c


@register_estimator("lax")
class LAX(ContinuousControl):
    """(f(a) - b - c(a)) s + grad c(a(eps)) (Grathwohl et al. 2018, section 3.1). c moves so that the variance of each row's
    estimate falls."""

    paper = "Grathwohl et al. 2018, section 3.1"
