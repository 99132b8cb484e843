"""The delta method: f's second-order Taylor expansion at the mean as control variate."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pglab.distributions import Distribution, Gaussian
from pglab.estimators.base import Critic, Draw, Estimator, Signal, State, register_estimator
from pglab.estimators.control_variates import MEMORY, asked, expansion, mean_of, no_mean, over_rows, with_batch
from pglab.estimators.gaussian_draws import standardised, with_gradient
from pglab.noise import Noise


@register_estimator("delta_method")
class DeltaMethod(Estimator):
    """g - coefficient (g_h - grad E[h]), with h the critic's expansion to second order at the mean m,
    h(z) = Q(m) + Q'(m)(z - m) + (z - m) Q''(m) (z - m) / 2, and grad E[h] = (Q'(m), std^2 diag Q''(m)) at mean and log_std.

    of score_function: g = f(z) s and g_h = h(z) s, s the score (Paisley, Blei & Jordan 2012, section 2.3).
    of pathwise: g = Q'(z) dz and g_h = h'(z) dz (Miller, Foti, D'Amour & Adams 2017, section 3).

    Without variance where f = Q is quadratic. z and m are the drawn variable and its mean: before tanh for a
    SquashedGaussian, and Q's derivatives are by it. h's constant takes the place of a baseline. A second backward pass
    gives Q''; a critic of relu layers has none, and then h is linear.
    """

    of: Literal["score_function", "pathwise"] = "score_function"
    """The estimator whose variance is reduced."""
    hessian: Literal["full", "diagonal"] = "full"
    """All of Q'', or its diagonal only."""
    coefficient: Literal["one", "learned"] = "one"
    """one: 1. learned: E[g c] / E[c^2], c = g_h - grad E[h], over earlier batches (0 before any), one for mean and one for
    log_std: the sample that it multiplies has no part in it, so nothing is biased."""

    needs = frozenset({"value", "critic_gradient"})
    kinds = frozenset({"continuous"})
    families = (Gaussian,)
    unbiased = True
    evaluations = "D (or 1 + D of score_function), with first and second derivatives"
    paper = "Paisley et al. 2012; Miller et al. 2017"
    learns = True
    fit_updates = 64

    def width(self, distribution: Distribution) -> int:
        return int(distribution.noise_shape[-1])

    def initial(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Any]:
        if self.coefficient == "one":
            return {}
        names = [f"{moment}_{p}" for p in Gaussian.parameters for moment in ("product", "square")]
        return {"moments": no_mean(len(noise), noise.device, tuple(names))}

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        estimates, controls, value = self.parts(distribution, draw, signal)
        coefficients = self.coefficients(state)
        found = [g - c * b for g, c, b in zip(estimates, controls, coefficients, strict=True)]
        return with_gradient(distribution, found, value)

    def coefficients(self, state: State) -> list[Any]:
        """For mean and log_std: numbers, or `[P, 1, 1]` for rows `[T, P, N]`."""
        if self.coefficient == "one":
            return [1.0, 1.0]
        return [over_rows(b).unsqueeze(-1) for b in self.learned(state)]

    def learned(self, state: State) -> list[Tensor]:
        """The learned coefficients of mean and log_std, `[P, 1]` each."""
        m, found = state["moments"], []
        for p in Gaussian.parameters:
            square = mean_of(m, f"square_{p}")
            tiny = torch.finfo(square.dtype).tiny
            found.append(torch.where(square > 0, mean_of(m, f"product_{p}") / square.clamp_min(tiny), 0.0))
        return found

    def parts(
        self, distribution: Distribution, draw: Draw, signal: Signal
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """g and c at mean and log_std, `[*rows, D]` each, and f or Q at the draw: all of them constants."""
        assert signal.critic is not None
        assert isinstance(distribution, Gaussian)
        std, eps = distribution.log_std.detach().exp(), standardised(distribution, draw)
        away = std * eps
        value, slope, curvature = self.taylor(distribution, signal.critic)
        bend = (curvature * away.unsqueeze(-2)).sum(-1)  # Q'' (z - m), [*rows, D]
        diagonal = curvature.diagonal(dim1=-2, dim2=-1) * std * std
        if self.of == "pathwise":
            at, there = expansion(signal.critic, draw.action, distribution)
            h = slope + bend
            return [there, there * away], [bend, h * away - diagonal], at
        assert signal.value is not None
        f = signal.value.unsqueeze(-1)
        taylor = (value + ((slope + bend / 2) * away).sum(-1)).unsqueeze(-1)
        scores = [eps / std, eps * eps - 1]
        means = [slope, diagonal]
        controls = [taylor * s - mean for s, mean in zip(scores, means, strict=True)]
        return [f * s for s in scores], controls, signal.value

    def taylor(self, distribution: Gaussian, critic: Critic) -> tuple[Tensor, Tensor, Tensor]:
        """Q `[*rows]`, Q' `[*rows, D]` and Q'' `[*rows, D, D]` at the mean, constants, from one backward pass over D copies
        and one through it."""
        mean = distribution.mean.detach()
        d = mean.shape[-1]
        with torch.enable_grad():
            points = mean.expand(d, *mean.shape).clone().requires_grad_()  # [D, *rows, D]
            value = asked(critic, points, distribution)
            (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
            own = slope.movedim(-1, 0).diagonal(dim1=0, dim2=1).sum()  # copy i gives its i-th slope
            second = None
            if own.requires_grad:
                (second,) = torch.autograd.grad(own, points, allow_unused=True)
        curvature = torch.zeros_like(points) if second is None else second  # [D, *rows, D]
        curvature = curvature.detach().movedim(0, -2)
        if self.hessian == "diagonal":
            curvature = torch.diag_embed(curvature.diagonal(dim1=-2, dim2=-1))
        return value[0].detach(), slope[0].detach(), curvature

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self.coefficient == "one":
            return {}, {}
        estimates, controls, _ = self.parts(distribution, draw, signal)
        rows = {}
        for p, g, c in zip(distribution.parameters, estimates, controls, strict=True):
            rows[f"product_{p}"] = (g * c).sum(-1)
            rows[f"square_{p}"] = (c * c).sum(-1)
        moments = with_batch(state["moments"], weight, MEMORY, **rows)
        names = [f"estimator/coefficient_{p}" for p in distribution.parameters]
        shown = [b.squeeze(1) for b in self.learned({"moments": moments})]
        return {"moments": moments}, dict(zip(names, shown, strict=True))
