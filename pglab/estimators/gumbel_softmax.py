"""The Gumbel-Softmax (concrete) relaxation."""

from __future__ import annotations

from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, noise_of, over_event, register_estimator
from pglab.schedules import Schedule, Swept


def positive_temperature(schedules: list[Schedule]) -> list[Schedule]:
    """Refuse temperatures that are 0 or below: the relaxation divides by them."""
    for schedule in schedules:
        if schedule.start <= 0 or (schedule.end is not None and schedule.end <= 0):
            raise ValueError(f"temperature must stay above 0, not {schedule.start} to {schedule.end}")
    return schedules


class Relaxed(Estimator):
    """Shared by the estimators that differentiate f through the relaxed draw."""

    temperature: Swept = [Schedule(start=1.0)]
    """Temperature of the relaxation, above 0: a number, a schedule, or a list of them to sweep."""

    kinds = frozenset({"discrete", "binary"})
    unbiased = False
    scheduled = ("temperature",)
    uses_noise = True
    evaluations = "1, with its gradient"

    def model_post_init(self, context: object) -> None:
        positive_temperature(self.temperature)

    def relaxed(self, distribution: Distribution, draw: Draw, state: State) -> Tensor:
        """The relaxed draw that shares its noise with `draw.action`, `[*rows, *event]`."""
        return distribution.relax(noise_of(draw, self.name), over_event(state["temperature"], distribution))


@register_estimator("gumbel_softmax")
class GumbelSoftmax(Relaxed):
    """grad f(softmax((logits + G) / temperature)) (Jang, Gu & Poole 2017, eq. 2; Maddison, Mnih & Teh 2017, eq. 10).

    The logits are used as they are. The bias falls and the variance grows as the temperature goes to 0.
    """

    needs = frozenset({"critic_gradient", "critic_relaxed"})
    bias = "f is evaluated at relaxed draws; vanishes with the temperature"
    paper = "Jang et al. 2017; Maddison et al. 2017"

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        return signal.critic(self.relaxed(distribution, draw, state))


@register_estimator("straight_through_gumbel_softmax")
class StraightThroughGumbelSoftmax(Relaxed):
    """f's gradient at the discrete draw, pushed through the relaxation's Jacobian (Jang et al. 2017, section 2.2).

    Forward the one-hot draw, backward the Gumbel-Softmax sample made of the same noise.
    """

    needs = frozenset({"critic_gradient"})
    bias = "the Jacobian is the relaxation's, not the draw's"
    paper = "Jang et al. 2017"

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        soft = self.relaxed(distribution, draw, state)
        hard = (
            draw.action - soft
        ).detach() + soft  # the value is exactly draw.action: (1 - y) + y == 1 in floating point
        return signal.critic(hard)
