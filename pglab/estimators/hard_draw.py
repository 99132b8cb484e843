"""What straight-through estimators share: f's slope at a discrete draw, times a Jacobian that stands in for the draw's.

A softmax over K scores and a sigmoid of one are the same thing here: a Bernoulli with logit l is a Categorical with the
logits (0, l), and its slope is the difference of the two categories' slopes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pglab.distributions import Bernoulli, Categorical, Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, leading, over_event
from pglab.estimators.conditional import perturbed_given
from pglab.estimators.control_variates import expansion, inner
from pglab.estimators.gumbel_softmax import positive_temperature
from pglab.schedules import Schedule, Swept

Discrete = Categorical | Bernoulli


class HardDraw(Estimator):
    """f's slope at a discrete draw D, pushed through a Jacobian that is chosen: the estimate is J^T f'(D).

    f is evaluated once, at a vertex, so any differentiable critic of one-hot actions will do. The estimate is made of
    constants, and the surrogate is f(D) plus the function that is 0 here and has the estimate as its gradient.
    """

    needs = frozenset({"critic_gradient"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = False
    evaluations = "1, with its gradient"

    def at(self, distribution: Discrete, draw: Draw, state: State) -> Tensor:
        """The vertex at which f is differentiated, `[*rows, *event]`."""
        return draw.action

    @abstractmethod
    def cotangent(self, distribution: Discrete, draw: Draw, slope: Tensor, state: State) -> Tensor:
        """J^T slope, `[*rows, *event]`: the estimate at the logits. Called where nothing is differentiated."""

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        assert isinstance(distribution, Discrete)
        value, slope = expansion(signal.critic, self.at(distribution, draw, state), distribution)
        with torch.no_grad():
            estimate = self.cotangent(distribution, draw, slope, state)
        still = distribution.logits - distribution.logits.detach()
        return value + inner(estimate, still, distribution)


class TemperedHardDraw(HardDraw):
    """One whose Jacobian has a temperature."""

    temperature: Swept = [Schedule(start=1.0)]
    """Temperature of the Jacobian, above 0: a number, a schedule, or a list of them to sweep."""

    scheduled = ("temperature",)

    def model_post_init(self, context: object) -> None:
        positive_temperature(self.temperature)

    def tau(self, distribution: Distribution, state: State) -> Tensor | float:
        """The current temperature, shaped to broadcast against `[*rows, *event]`."""
        return over_event(state["temperature"], distribution)


def scores_of(distribution: Discrete, factor: Tensor | float = 1.0) -> Tensor:
    """Scores whose softmax is that of factor x logits, `[*rows, *event]`: log-probabilities where there are categories,
    very negative finite numbers where masked."""
    if isinstance(distribution, Bernoulli):
        return distribution.logits * factor
    return replace(distribution, logits=distribution.logits * factor).log_probs()


def through_softmax(distribution: Discrete, scores: Tensor, slope: Tensor) -> Tensor:
    """J(q) slope, `[..., *event]`, where q = softmax(scores) and J(q) = diag(q) - q q^T; q (1 - q) slope for a sigmoid.

    Slopes count from the likeliest category's, which changes nothing in exact arithmetic: next to a vertex everything
    else in that category's entry would cancel.
    """
    if isinstance(distribution, Bernoulli):
        return torch.sigmoid(scores) * torch.sigmoid(-scores) * slope
    q = torch.softmax(scores, dim=-1)
    relative = slope - slope.expand_as(q).gather(-1, scores.argmax(-1, keepdim=True))
    return q * (relative - (q * relative).sum(-1, keepdim=True))


def conditional_jacobians(
    distribution: Discrete, scores: Tensor, draw: Draw, slope: Tensor, temperature: Tensor | float
) -> Tensor:
    """J_tau slope at S perturbed scores, `[S, *rows, *event]`, J_tau the Jacobian of softmax(. / tau).

    The noise is draw.extra["conditional"], made to give the draw under the probabilities softmax(scores), whatever the
    policy's are. The mean over it is the Gumbel-Rao estimator's.
    """
    fresh = leading(draw.extra["conditional"], distribution)
    z = perturbed_given(replace(distribution, logits=scores), draw.action, fresh)
    return through_softmax(distribution, z / temperature, slope) / temperature


def midpoint(distribution: Discrete, action: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Scores of pi_D = (pi_tau + D) / 2, half-way from softmax(logits / tau) to the drawn vertex, `[*rows, *event]`."""
    scores = scores_of(distribution, 1 / temperature)
    if isinstance(distribution, Bernoulli):
        sign = 2 * action - 1
        return sign * (torch.log1p(torch.sigmoid(sign * scores)) + F.softplus(sign * scores))
    return torch.where(action > 0.5, torch.log1p(scores.exp()), scores)  # both less log 2, which no softmax sees
