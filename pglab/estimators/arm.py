"""The augment-REINFORCE-merge estimator for binary factors."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Bernoulli, Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, noise_of, register_estimator
from pglab.estimators.outcomes import values_at


class AntitheticPair(Estimator):
    """What ARM and DisARM share: the draw and its antithetic twin, made of the same uniforms."""

    needs = frozenset({"critic"})
    kinds = frozenset({"binary"})
    unbiased = True
    evaluations = "2"
    uses_noise = True

    def width(self, distribution: Distribution) -> int:
        return 2

    def pair(self, distribution: Bernoulli, draw: Draw, signal: Signal) -> tuple[Tensor, Tensor, Tensor]:
        """The uniforms, the twin 1[u < p] of the draw 1[u > 1 - p], both `[*rows, D]`, and f(draw) - f(twin)
        `[*rows, 1]`."""
        assert signal.critic is not None
        u = noise_of(draw, self.name)
        # With logit(1 - u) = -logit(u): 1 - u would be rounded.
        twin = (distribution.logits > torch.logit(u)).to(draw.action.dtype)
        values = values_at(distribution, signal.critic, torch.stack([draw.action, twin]))  # [2, *rows]
        return u, twin, (values[0] - values[1]).unsqueeze(-1)


@register_estimator("arm")
class ARM(AntitheticPair):
    """(f(1[u > sigmoid(-phi)]) - f(1[u < sigmoid(phi)])) (u - 1/2) at the logits phi (Yin & Zhou 2019, theorem 1).

    u is the draw's own noise, so the first of the two is the draw. All D factors are turned at once: two evaluations of f
    serve every factor. DisARM is its expectation given the pair, with never more variance.
    """

    paper = "Yin & Zhou 2019"

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert isinstance(distribution, Bernoulli)
        with torch.no_grad():
            u, _, difference = self.pair(distribution, draw, signal)
            estimate = difference * (u - 0.5)
        return (distribution.logits * estimate).sum(-1)
