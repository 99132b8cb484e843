"""ReinMax, the second-order straight-through estimator."""

from __future__ import annotations

from torch import Tensor

from pglab.estimators.base import Draw, State, register_estimator
from pglab.estimators.hard_draw import Discrete, TemperedHardDraw, midpoint, scores_of, through_softmax
from pglab.schedules import Schedule, Swept


def reinmax_cotangent(distribution: Discrete, draw: Draw, slope: Tensor, temperature: Tensor | float) -> Tensor:
    """2 J(pi_D)^T slope - 1/2 J(pi)^T slope, `[*rows, *event]`."""
    second = through_softmax(distribution, midpoint(distribution, draw.action, temperature), slope)
    return 2 * second - 0.5 * through_softmax(distribution, scores_of(distribution), slope)


@register_estimator("reinmax")
class ReinMax(TemperedHardDraw):
    """2 J(pi_D)^T f'(D) - 1/2 J(pi)^T f'(D), pi_D = (softmax(logits / tau) + D) / 2: Heun's method where
    straight-through is Euler's (Liu, Dong, Liu, Yu & Gao 2023).

    At temperature 1 the mean is exact where f is quadratic in every factor for any values of the others. The variance
    is usually above straight-through's. The temperature (the authors': 1 and above) moves pi_D alone, and J carries no
    factor 1 / tau.
    """

    temperature: Swept = [Schedule(start=1.0)]
    """Temperature of pi_D, at least 1: a number, a schedule, or a list of them to sweep."""

    bias = "at temperature 1 exact for f quadratic in every factor"
    paper = "Liu et al. 2023"

    def model_post_init(self, context: object) -> None:
        for schedule in self.temperature:
            if schedule.bounds[0] < 1:
                raise ValueError(f"temperature must stay at 1 or above, not {schedule.start} to {schedule.end}")

    def cotangent(self, distribution: Discrete, draw: Draw, slope: Tensor, state: State) -> Tensor:
        return reinmax_cotangent(distribution, draw, slope, self.tau(distribution, state))
