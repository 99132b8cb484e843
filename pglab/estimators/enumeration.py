"""The exact sum over all actions."""

from __future__ import annotations

from torch import Tensor

from pglab.distributions import Distribution
from pglab.errors import PglabError
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator


@register_estimator("enumeration")
class Enumeration(Estimator):
    """sum_z f(z) grad p(z): the all-action gradient, without variance given the state (Sutton et al. 2001; expected
    policy gradients, Ciosek & Whiteson 2018)."""

    needs = frozenset({"critic"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = True
    evaluations = "all joint actions"
    paper = "Sutton et al. 2001; Ciosek & Whiteson 2018"

    def width(self, distribution: Distribution) -> int:
        return len(distribution.enumerate())

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        values, log_prob = enumerated(distribution, signal.critic)
        return (values.detach() * log_prob.exp()).sum(0)


def enumerated(distribution: Distribution, critic) -> tuple[Tensor, Tensor]:
    """f and the log-probability of every joint action, `[M, *rows]` each."""
    outcomes = distribution.enumerate()  # [M, *event]
    rows = distribution.batch_shape
    shaped = outcomes.reshape(len(outcomes), *([1] * len(rows)), *outcomes.shape[1:])  # [M, 1.., *event]
    values = critic(shaped.expand(-1, *rows, *outcomes.shape[1:]))  # [M, *rows]
    log_prob = distribution.log_prob(shaped).sum(-1)
    if values.shape != log_prob.shape:
        raise PglabError(
            f"The critic gave shape {list(values.shape)} for all joint actions at once; {list(log_prob.shape)} is wanted."
        )
    return values, log_prob
