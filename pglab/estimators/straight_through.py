"""The straight-through estimator."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pglab.distributions import Bernoulli
from pglab.estimators.base import Draw, State, register_estimator
from pglab.estimators.hard_draw import Discrete, HardDraw, scores_of, through_softmax


@register_estimator("straight_through")
class StraightThrough(HardDraw):
    """J(pi)^T f'(D): f's slope at the draw times the derivative of the draw's mean pi, as if the draw were its mean
    (Bengio, Leonard & Courville 2013).

    With J the softmax's (sigmoid's) Jacobian the mean is exact where f is linear in every factor: the first order of an
    expansion of the true gradient (Liu et al. 2023). `identity`, the paper's other variant, passes the slope on as it
    is and is no more than a direction.
    """

    jacobian: Literal["softmax", "identity"] = "softmax"
    """Derivative of the draw's mean (softmax), or none (identity; what would shift all logits alike is left out)."""

    bias = "exact for f linear in every factor; the Jacobian 'identity' has no such case"
    paper = "Bengio, Leonard & Courville 2013"

    def cotangent(self, distribution: Discrete, draw: Draw, slope: Tensor, state: State) -> Tensor:
        if self.jacobian == "softmax":
            return through_softmax(distribution, scores_of(distribution), slope)
        if isinstance(distribution, Bernoulli):
            return slope
        if distribution.mask is None:
            return slope - slope.mean(-1, keepdim=True)
        allowed = distribution.mask.to(slope.dtype)
        return allowed * (slope - (slope * allowed).sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True))
