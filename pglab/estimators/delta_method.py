"""The delta method: f's second-order Taylor expansion at the mean as control variate."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from pglab.distributions import Distribution, Gaussian
from pglab.estimators.base import Critic, Draw, Estimator, Signal, State, register_estimator
from pglab.estimators.control_variates import MEMORY, asked, expansion, mean_of, no_mean, over_rows, with_batch
from pglab.estimators.gaussian_draws import standardised, with_gradient
from pglab.noise import Noise


class Delta(Estimator):
    """g - coefficient c of an estimate g, with c its own form for the critic's expansion minus that form's mean.

    The expansion is of second order at the mean m, h(z) = Q(m) + Q'(m)(z - m) + (z - m) Q''(m) (z - m) / 2, and
    grad E[h] = (Q'(m), std^2 diag Q''(m)) at mean and log_std. z and m are the drawn variable and its mean: before tanh for
    a SquashedGaussian, and Q's derivatives are by it. Q'' comes from a second backward pass; a critic of relu layers has
    none, and h is linear then.
    """

    hessian: Literal["full", "diagonal"] = "full"
    """All of Q'', or its diagonal only."""
    coefficient: Literal["one", "learned"] = "one"
    """one: 1. learned: E[g c] / E[c^2] over earlier batches (0 before any), one for mean and one for log_std: the sample
    that it multiplies has no part in it, so nothing is biased."""

    kinds = frozenset({"continuous"})
    families = (Gaussian,)
    unbiased = True
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
        assert isinstance(distribution, Gaussian)
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

    @abstractmethod
    def parts(self, distribution: Gaussian, draw: Draw, signal: Signal) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """g and c at mean and log_std, `[*rows, D]` each, and f or Q at the draw: all of them constants."""

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
        assert isinstance(distribution, Gaussian)
        estimates, controls, _ = self.parts(distribution, draw, signal)
        rows = {}
        for p, g, c in zip(distribution.parameters, estimates, controls, strict=True):
            rows[f"product_{p}"] = (g * c).sum(-1)
            rows[f"square_{p}"] = (c * c).sum(-1)
        moments = with_batch(state["moments"], weight, MEMORY, **rows)
        names = [f"estimator/coefficient_{p}" for p in distribution.parameters]
        shown = [b.squeeze(1) for b in self.learned({"moments": moments})]
        return {"moments": moments}, dict(zip(names, shown, strict=True))


@register_estimator("delta_method")
class DeltaMethod(Delta):
    """f(z) s - coefficient (h(z) s - grad E[h]), s the score and h the critic's second-order expansion at the mean
    (Paisley, Blei & Jordan 2012, section 2.3).

    Without variance where f = Q is quadratic. The expansion's constant takes the place of a baseline. Unbiased for E[f]
    whatever the critic is.
    """

    needs = frozenset({"value", "critic_gradient"})
    evaluations = "1 + D, D of them with first and second derivatives"
    paper = "Paisley et al. 2012, section 2.3"

    def parts(self, distribution: Gaussian, draw: Draw, signal: Signal) -> tuple[list[Tensor], list[Tensor], Tensor]:
        assert signal.critic is not None
        assert signal.value is not None
        std, eps = distribution.log_std.detach().exp(), standardised(distribution, draw)
        value, slope, curvature = self.taylor(distribution, signal.critic)
        away = std * eps
        bend = (curvature * away.unsqueeze(-2)).sum(-1)  # Q'' (z - m), [*rows, D]
        h = (value + ((slope + bend / 2) * away).sum(-1)).unsqueeze(-1)
        scores = [eps / std, eps * eps - 1]
        means = [slope, curvature.diagonal(dim1=-2, dim2=-1) * std * std]
        controls = [h * s - mean for s, mean in zip(scores, means, strict=True)]
        return [signal.value.unsqueeze(-1) * s for s in scores], controls, signal.value


@register_estimator("delta_method_pathwise")
class DeltaMethodPathwise(Delta):
    """Q'(z) dz - coefficient (h'(z) dz - grad E[h]), h the critic's second-order expansion at the mean (Miller, Foti,
    D'Amour & Adams 2017, section 3).

    Without variance where Q is quadratic. Unbiased for E[Q], as `pathwise` is.
    """

    needs = frozenset({"critic_gradient"})
    evaluations = "1 + D with first derivatives, D of them with second ones"
    paper = "Miller et al. 2017, section 3"

    def parts(self, distribution: Gaussian, draw: Draw, signal: Signal) -> tuple[list[Tensor], list[Tensor], Tensor]:
        assert signal.critic is not None
        std = distribution.log_std.detach().exp()
        away = std * standardised(distribution, draw)
        _, slope, curvature = self.taylor(distribution, signal.critic)
        bend = (curvature * away.unsqueeze(-2)).sum(-1)  # Q'' (z - m), [*rows, D]
        at, there = expansion(signal.critic, draw.action, distribution)
        mean = curvature.diagonal(dim1=-2, dim2=-1) * std * std
        return [there, there * away], [bend, (slope + bend) * away - mean], at
