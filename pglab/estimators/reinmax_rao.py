"""ReinMax with Gumbel-Rao terms, in its place or beside it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from pglab.estimators.base import Draw, State, register_estimator
from pglab.estimators.hard_draw import (
    Discrete,
    TemperedHardDraw,
    conditional_jacobians,
    midpoint,
    scores_of,
    through_softmax,
)
from pglab.estimators.reinmax import reinmax_cotangent


@register_estimator("reinmax_rao")
class ReinMaxRao(TemperedHardDraw):
    """2 GR_tau(theta_D)^T f'(D) - 1/2 J(pi)^T f'(D): ReinMax with its first term, straight-through at theta_D =
    log((pi + D) / 2), replaced by Gumbel-Rao there (Wang & Bui 2026, eq. 17).

    GR_tau(theta_D) = mean_k J_tau(theta_D + G^k), the Gumbels drawn given that theta_D + G makes D. The second term
    stays at the logits, as in ReinMax, where eq. 17 prints theta_D. The replacement has another mean, so the exactness
    for quadratics is lost.
    """

    samples: Annotated[int, Field(ge=1)] = 10
    """Draws of the Gumbels given D."""

    bias = "Gumbel-Rao's Jacobian stands in for ReinMax's"
    paper = "Wang & Bui 2026"

    def extra_noise(self, kind: str, event: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"conditional": (kind, (self.samples, *event))}

    def cotangent(self, distribution: Discrete, draw: Draw, slope: Tensor, state: State) -> Tensor:
        scores = midpoint(distribution, draw.action)
        rao = conditional_jacobians(distribution, scores, draw, slope, self.tau(distribution, state)).mean(0)
        return 2 * rao - 0.5 * through_softmax(distribution, scores_of(distribution), slope)


@register_estimator("reinmax_cv")
class ReinMaxCV(TemperedHardDraw):
    """ReinMax + c (GR_tau - STGS_tau)(theta_D)^T f'(D), theta_D = log((pi + D) / 2) (Wang & Bui 2026, eq. 18, with the
    factor 2 of ReinMax's first term, which is missing there).

    The straight-through Gumbel-Softmax term has one draw of the Gumbels given that theta_D + G makes D, the Gumbel-Rao
    term `samples` more of them. Then the correction has mean 0 given D, the mean is ReinMax's, and, because ReinMax is
    a function of D, the correction is uncorrelated with it: the variance is ReinMax's plus c^2 (1 + 1 / samples)
    E[var(STGS | D)], never less. With noise of another law (that of the draw itself, say) the correction would have a
    mean of its own, and add bias.
    """

    samples: Annotated[int, Field(ge=1)] = 10
    """Draws of the Gumbels given D, for the Gumbel-Rao term."""
    coefficient: float = 0.5
    """The correction's coefficient c."""

    bias = "that of reinmax at temperature 1: exact for f quadratic in every factor"
    paper = "Wang & Bui 2026"
    same_mean_as = "reinmax"

    def extra_noise(self, kind: str, event: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"conditional": (kind, (1 + self.samples, *event))}

    def cotangent(self, distribution: Discrete, draw: Draw, slope: Tensor, state: State) -> Tensor:
        tau = self.tau(distribution, state)
        each = conditional_jacobians(distribution, midpoint(distribution, draw.action), draw, slope, tau)
        return reinmax_cotangent(distribution, draw, slope, 1.0) + self.coefficient * (each[1:].mean(0) - each[0])
