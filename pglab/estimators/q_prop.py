"""Q-Prop: the critic's first-order expansion at the policy's mean as control variate, for continuous actions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pglab.distributions import Beta, Distribution, Gaussian
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator
from pglab.estimators.control_variates import (
    MEMORY,
    advantage,
    expansion,
    inner,
    mean_of,
    no_mean,
    over_rows,
    scored,
    with_batch,
)
from pglab.noise import Noise


def mean_action(distribution: Distribution) -> Tensor:
    """E[a] of the drawn variable, `[*rows, D]`."""
    if isinstance(distribution, Beta):
        return distribution.alpha / (distribution.alpha + distribution.beta)
    assert isinstance(distribution, Gaussian)
    return distribution.mean


def deviation(distribution: Distribution, draw: Draw) -> Tensor:
    """a - E[a], `[*rows, D]`, a constant. From the noise where a Gaussian's is known: it is rounded away for a tiny std."""
    if isinstance(distribution, Gaussian) and draw.noise is not None:
        return distribution.log_std.detach().exp() * draw.noise
    return draw.action - mean_action(distribution).detach()


@register_estimator("q_prop")
class QProp(Estimator):
    """(f(a) - b - eta Q'(mu)(a - mu)) s + eta Q'(mu) dmu, mu the policy's mean (Gu, Lillicrap, Ghahramani, Turner & Levine
    2017, section 3).

    a and mu are the drawn variable and its mean (before tanh for a SquashedGaussian, and Q' is the slope there). Unbiased
    whatever Q is, as long as eta does not come from the sample that it multiplies: deciding it by the sign of that
    sample's own covariance is biased. Here it comes from running covariances of earlier batches, one eta per member, where
    the paper has one per state.
    """

    eta: Literal["constant", "conservative", "aggressive", "adaptive"] = "conservative"
    """constant: 1. With C = Cov(f - b, Q'(mu)(a - mu)) over earlier batches, conservative: 1 where C > 0, else 0;
    aggressive: the sign of C; adaptive: C over the variance of Q'(mu)(a - mu)."""

    needs = frozenset({"value", "critic_gradient"})
    kinds = frozenset({"continuous"})
    families = (Gaussian, Beta)
    unbiased = True
    evaluations = "2, one with its gradient"
    paper = "Gu et al. 2017 (Q-Prop), section 3"
    uses_baseline = True
    learns = True
    fit_updates = 64

    def initial(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Any]:
        if self.eta == "constant":
            return {}
        return {"moments": no_mean(len(noise), noise.device, ("value", "linear", "product", "square"))}

    def coefficient(self, state: State) -> Tensor:
        """eta, `[P, 1]`; 0 before any batch."""
        m = state["moments"]
        covariance = mean_of(m, "product") - mean_of(m, "value") * mean_of(m, "linear")
        if self.eta == "conservative":
            return (covariance > 0).to(covariance.dtype)
        if self.eta == "aggressive":
            return torch.sign(covariance)
        variance = mean_of(m, "square") - mean_of(m, "linear").square()
        return torch.where(variance > 0, covariance / variance.clamp_min(torch.finfo(variance.dtype).tiny), 0.0)

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        mean, slope, linear = self.linear_part(distribution, draw, signal)
        if self.eta == "constant":
            return scored(distribution, draw, signal, linear) + inner(slope, mean, distribution)
        eta = over_rows(self.coefficient(state))
        return scored(distribution, draw, signal, eta * linear) + eta * inner(slope, mean, distribution)

    def linear_part(self, distribution: Distribution, draw: Draw, signal: Signal) -> tuple[Tensor, Tensor, Tensor]:
        """mu, and the constants Q'(mu) and Q'(mu)(a - mu)."""
        assert signal.critic is not None
        mean = mean_action(distribution)
        _, slope = expansion(signal.critic, mean, distribution)
        return mean, slope, inner(slope, deviation(distribution, draw), distribution)

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self.eta == "constant":
            return {}, {}
        _, _, linear = self.linear_part(distribution, draw, signal)
        exists = weight > 0
        value, linear = torch.where(exists, advantage(signal), 0.0), torch.where(exists, linear, 0.0)
        moments = with_batch(
            state["moments"],
            weight,
            MEMORY,
            value=value,
            linear=linear,
            product=value * linear,
            square=linear.square(),
        )
        return {"moments": moments}, {"estimator/eta": self.coefficient({"moments": moments}).squeeze(1)}
