"""The Rao-Blackwellized straight-through Gumbel-Softmax estimator."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from pglab.estimators.base import Draw, State, register_estimator
from pglab.estimators.hard_draw import Discrete, TemperedHardDraw, conditional_jacobians, scores_of


@register_estimator("gumbel_rao")
class GumbelRao(TemperedHardDraw):
    """mean_k J_tau(logits + G^k)^T f'(D), with K draws of the Gumbels given D: the straight-through Gumbel-Softmax
    estimator averaged over the noise that makes the same draw (GR-MC_K; Paulus, Maddison & Krause 2021).

    Its mean is that of `straight_through_gumbel_softmax` at the same temperature, and its variance is
    E[var(ST-GS | D)] / K + var(E[ST-GS | D]) (Proposition 3): the same for K = 1, less for more. f is still evaluated
    once. The conditional noise depends on the logits and must not be differentiated: the mean would be another one.
    """

    samples: Annotated[int, Field(ge=1)] = 10
    """Draws of the Gumbels given D, the paper's K."""

    bias = "that of straight_through_gumbel_softmax"
    paper = "Paulus, Maddison & Krause 2021"
    same_mean_as = "straight_through_gumbel_softmax"

    def extra_noise(self, kind: str, event: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"conditional": (kind, (self.samples, *event))}

    def cotangent(self, distribution: Discrete, draw: Draw, slope: Tensor, state: State) -> Tensor:
        tau = self.tau(distribution, state)
        return conditional_jacobians(distribution, scores_of(distribution), draw, slope, tau).mean(0)
