"""The straight-through Gumbel-Softmax estimator with a temperature for each direction."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pglab.distributions import Bernoulli
from pglab.estimators.base import Draw, State, noise_of, over_event, register_estimator
from pglab.estimators.gumbel_softmax import positive_temperature
from pglab.estimators.hard_draw import Discrete, HardDraw, scores_of, through_softmax
from pglab.schedules import Schedule, Swept


@register_estimator("decoupled_straight_through_gumbel_softmax")
class DecoupledStraightThroughGumbelSoftmax(HardDraw):
    """Forward one_hot(argmax(logits / tau_f + G)), backward softmax(logits / tau_b + G), the same Gumbels in both
    (decoupled ST-GS; Shah, Yan, Mozer & Liu 2024, algorithm 1).

    These temperatures divide the logits and not the noise, unlike Jang et al.'s: tau_f says how random the forward draw
    is (if it divided the noise too, the draw would not depend on it). The policy's own draw is that of tau_f = 1; at
    any other, f's slope is taken at a draw remade from the same noise, which follows softmax(logits / tau_f). Where
    both are 1 this is `straight_through_gumbel_softmax` at temperature 1; where both are tau it is that of the logits /
    tau.
    """

    forward_temperature: Swept = [Schedule(start=1.0)]
    """Temperature of the draw at which f is differentiated, above 0: a number, a schedule, or a list of them."""
    backward_temperature: Swept = [Schedule(start=1.0)]
    """Temperature of the relaxation whose Jacobian is taken, above 0: a number, a schedule, or a list of them."""

    bias = "the Jacobian is the relaxation's; off forward_temperature 1, f's slope is taken at another policy's draws"
    paper = "Shah, Yan, Mozer & Liu 2024"
    scheduled = ("forward_temperature", "backward_temperature")
    uses_noise = True

    def model_post_init(self, context: object) -> None:
        positive_temperature(self.forward_temperature)
        positive_temperature(self.backward_temperature)

    def at(self, distribution: Discrete, draw: Draw, state: State) -> Tensor:
        tau = over_event(state["forward_temperature"], distribution)
        return replace(distribution, logits=distribution.logits / tau).sample(noise_of(draw, self.name))

    def cotangent(self, distribution: Discrete, draw: Draw, slope: Tensor, state: State) -> Tensor:
        tau, noise = over_event(state["backward_temperature"], distribution), noise_of(draw, self.name)
        gumbels = torch.logit(noise) if isinstance(distribution, Bernoulli) else -noise.log()
        moved = replace(distribution, logits=distribution.logits / tau + gumbels)
        return through_softmax(distribution, scores_of(moved), slope) / tau
