"""MuProp: the critic's first-order expansion at the mean as control variate."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Bernoulli, Categorical, Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator
from pglab.estimators.control_variates import expansion, inner, scored


def probabilities(distribution: Distribution) -> Tensor:
    """E[z], `[*rows, *event]`: the probability of every category, or of 1."""
    if isinstance(distribution, Categorical):
        return distribution.probs()
    assert isinstance(distribution, Bernoulli)
    return torch.sigmoid(distribution.logits)


@register_estimator("muprop")
class MuProp(Estimator):
    """(f(z) - b - Q(m) - Q'(m)(z - m)) s + Q'(m) dm, with m = E[z] (Gu, Levine, Sutskever & Mnih 2016).

    Q is the critic, f itself on a plain objective; it is expanded at the vector of probabilities, and needs to be
    differentiable there. Unbiased whatever Q is. Where Q is far from linear between the vertices, the variance can be
    larger than REINFORCE's. Continuous actions: `q_prop`.
    """

    needs = frozenset({"value", "critic_gradient", "critic_relaxed"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = True
    evaluations = "2, one with its gradient"
    paper = "Gu et al. 2016 (MuProp)"
    uses_baseline = True

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        mean = probabilities(distribution)
        value, slope = expansion(signal.critic, mean, distribution)
        linear = value + inner(slope, draw.action - mean.detach(), distribution)
        return scored(distribution, draw, signal, linear) + inner(slope, mean, distribution)
