"""The straight-through estimator with a slope that grows."""

from __future__ import annotations

from torch import Tensor

from pglab.estimators.base import Draw, State, over_event, register_estimator
from pglab.estimators.hard_draw import Discrete, HardDraw, scores_of, through_softmax
from pglab.schedules import Schedule, Swept


@register_estimator("slope_annealed_straight_through")
class SlopeAnnealedStraightThrough(HardDraw):
    """a J(softmax(a logits))^T f'(D), the slope a growing with training: straight-through by way of sigmoid(a x), which
    turns into the step that is differentiated (Chung, Ahn & Bengio 2016).

    The paper's slope is min(5, 1 + 0.04 x epoch) of a hard sigmoid; here it is any schedule, of the softmax (sigmoid),
    and D is drawn from the policy itself, which the slope leaves alone. At a = 1 it is `straight_through`.
    """

    slope: Swept = [Schedule(kind="linear", start=1.0, end=5.0)]
    """The slope a, above 0: a number, a schedule, or a list of them to sweep."""

    bias = "at slope 1 exact for f linear in every factor; grows with the slope"
    paper = "Chung, Ahn & Bengio 2016"
    scheduled = ("slope",)

    def model_post_init(self, context: object) -> None:
        for schedule in self.slope:
            if schedule.bounds[0] <= 0:
                raise ValueError(f"slope must stay above 0, not {schedule.start} to {schedule.end}")

    def cotangent(self, distribution: Discrete, draw: Draw, slope: Tensor, state: State) -> Tensor:
        a = over_event(state["slope"], distribution)
        return a * through_softmax(distribution, scores_of(distribution, a), slope)
