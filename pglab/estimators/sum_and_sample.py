"""The Rao-Blackwellised score-function estimator: the most probable outcomes summed, one sample from the rest."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, joint, leading, register_estimator
from pglab.estimators.outcomes import categories, category_log_probs, most_probable, possible_actions, values_at


@register_estimator("sum_and_sample")
class SumAndSample(Estimator):
    """sum_{z in C} p(z) (f(z) - b) grad log p(z) + p(not C) (f(v) - b) grad log p(v), with C the k most probable outcomes
    and v drawn from the others (Liu, Regier, Tripuraneni, Jordan & McAuliffe 2019).

    Outcomes are joint ones, of all D factors together; the k best of K^D are found factor by factor. Where k reaches the
    number of outcomes it is the exact gradient. It gains where the distribution is peaked: p(not C) multiplies what is
    noisy; where it is flat over many outcomes it is hardly better than the score-function estimator.

    v has noise of its own: the draw is not used, so a baseline may be whatever a score-function estimator's may be.
    """

    k: Annotated[int, Field(ge=1)] = 4
    """Outcomes that are summed exactly."""

    needs = frozenset({"critic"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = True
    evaluations = "k + 1"
    paper = "Liu et al. 2019"
    uses_baseline = True

    def extra_noise(self, kind: str, event: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"rest": ("exponential", (event[0], self.k + 1, categories(event)))}

    def width(self, distribution: Distribution) -> int:
        return self.k + 1

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        with torch.no_grad():
            found = most_probable(category_log_probs(distribution), self.k, draw.extra["rest"])
            index, log_prob = found.index, found.log_prob
            if found.other is not None:
                index = torch.cat([index, found.other.unsqueeze(-2)], -2)  # [*rows, k + 1, D]
                log_prob = torch.cat([log_prob, found.rest.unsqueeze(-1)], -1)
            actions = possible_actions(distribution, index, log_prob)
            weight = leading(log_prob.exp(), distribution)  # [k + 1, *rows]
            values = values_at(distribution, signal.critic, actions)
        scores = distribution.log_prob(actions)  # [k + 1, *rows, D]
        baseline = signal.baseline
        if baseline is not None and baseline.ndim == scores.ndim - 1:  # one for every factor
            return (weight.unsqueeze(-1) * (values.unsqueeze(-1) - baseline) * scores).sum((0, -1))
        return (weight * (values if baseline is None else values - baseline) * joint(scores)).sum(0)
