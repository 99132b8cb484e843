"""Measure-valued (weak) derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pglab.distributions import Bernoulli, Categorical, Distribution, Gaussian
from pglab.estimators.base import Critic, Draw, Estimator, Signal, State, noise_of, register_estimator
from pglab.estimators.gaussian_draws import standardised, with_gradient
from pglab.estimators.outcomes import values_at


@register_estimator("measure_valued")
class MeasureValued(Estimator):
    """c (f(z+) - f(z-)) for every parameter: dp = c (p+ - p-) dtheta as a difference of two densities (Pflug 1996; Mohamed,
    Rosca, Figurnov & Mnih 2020, section 6 and table 1). One factor's draw is replaced, the others are the draw's.

    Gaussian mean: c = 1 / (std sqrt(2 pi)), z+- = mean +- std W with the same W, Weibull(sqrt 2, 2).
    Gaussian log_std: c = 1, p+ the double-sided Maxwell distribution, p- the Gaussian itself. z- is the draw, and z+ has
        the noise sign(eps) sqrt(eps^2 + W^2), which is double-sided Maxwell when eps is normal: the pair shares its sign
        and most of its size, as in the coupling of Heidergott, Vazquez-Abad & Volk-Makarewicz (2008), and f(z-) serves all
        factors.
    Bernoulli logit: c = p (1 - p), z+- = 1 and 0.
    Categorical logit k: c = p_k (1 - p_k), z+ = k and z- a category other than k, the one that the draw's own noise makes
        among the others (the runner-up where k was drawn). Masked categories have c = 0.

    All f are the critic's, and need not be differentiable. With a very small std the pair for the mean is one number in
    floating point, and the estimate 0.
    """

    needs = frozenset({"critic"})
    kinds = frozenset({"discrete", "binary", "continuous"})
    families = (Gaussian, Bernoulli, Categorical)
    unbiased = True
    evaluations = "3 D + 1 continuous, D + 1 binary, D K discrete"
    paper = "Mohamed et al. 2020, section 6"
    uses_noise = True

    def extra_noise(self, kind: str, event: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"weibull": ("exponential", event)} if kind == "normal" else {}

    def width(self, distribution: Distribution) -> int:
        event = math.prod(distribution.noise_shape[len(distribution.batch_shape) :])
        return 3 * event + 1 if isinstance(distribution, Gaussian) else event + 1

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        if isinstance(distribution, Gaussian):
            return _gaussian(distribution, draw, signal.critic)
        if isinstance(distribution, Bernoulli):
            return _bernoulli(distribution, draw, signal.critic)
        assert isinstance(distribution, Categorical)
        return _categorical(distribution, noise_of(draw, self.name), draw.action, signal.critic)


def replaced(z: Tensor, factor: Tensor, event_ndim: int = 1) -> Tensor:
    """Draws `z` `[*rows, D, ...]` with one factor at a time taken from `factor` `[*lead, *rows, D, ...]`:
    `[D, *lead, *rows, D, ...]`."""
    d = z.shape[-event_ndim]
    chosen = torch.eye(d, dtype=torch.bool, device=z.device)
    ones = [1] * (factor.ndim - event_ndim)
    return torch.where(chosen.reshape(d, *ones, d, *([1] * (event_ndim - 1))), factor, z)


def _gaussian(distribution: Gaussian, draw: Draw, critic: Critic) -> Tensor:
    z, mean = draw.action, distribution.mean.detach()
    std, eps, exponential = distribution.log_std.detach().exp(), standardised(distribution, draw), draw.extra["weibull"]
    step = std * torch.sqrt(2 * exponential)
    maxwell = torch.copysign(torch.sqrt(eps * eps + 2 * exponential), eps)
    parts = torch.stack([mean + step, mean - step, mean + std * maxwell])  # [3, *rows, D]
    at = torch.cat([replaced(z, parts).flatten(0, 1), z.unsqueeze(0)])  # [3 D + 1, *rows, D]
    values = values_at(distribution, critic, at)
    here = values[-1]
    up, down, wide = values[:-1].unflatten(0, (-1, 3)).movedim(0, -1).unbind(0)  # [*rows, D] each
    by_mean = (up - down) / (math.sqrt(2 * math.pi) * std)
    return with_gradient(distribution, [by_mean, wide - here.unsqueeze(-1)], here)


def _bernoulli(distribution: Bernoulli, draw: Draw, critic: Critic) -> Tensor:
    z, logits = draw.action, distribution.logits.detach()
    values = values_at(distribution, critic, torch.cat([replaced(z, 1 - z), z.unsqueeze(0)]))  # [D + 1, *rows]
    here, flipped = values[-1], values[:-1].movedim(0, -1)
    difference = (here.unsqueeze(-1) - flipped) * (2 * z - 1)  # f(1) - f(0)
    return with_gradient(distribution, [torch.sigmoid(logits) * torch.sigmoid(-logits) * difference], here)


def _categorical(distribution: Categorical, noise: Tensor, z: Tensor, critic: Critic) -> Tensor:
    frozen, k = distribution.detach(), z.shape[-1]
    every = torch.eye(k, dtype=z.dtype, device=z.device)
    every = every.reshape(k, *([1] * (z.ndim - 1)), k).expand(k, *z.shape)
    values = values_at(distribution, critic, replaced(z, every, 2).flatten(0, 1)).unflatten(0, (-1, k))  # [D, K, *rows]
    values = values.movedim((0, 1), (-2, -1))  # [*rows, D, K]
    here = (values[..., 0, :] * z[..., 0, :]).sum(-1)
    if k == 1:
        return with_gradient(distribution, [torch.zeros_like(z)], here)
    p = frozen.probs()
    values = torch.where(p > 0, values, 0.0)  # whatever f is where nothing can be drawn
    first, second = (
        (noise.log() - frozen.log_probs()).topk(2, -1, largest=False).indices.split(1, -1)
    )  # [*rows, D, 1] each
    drawn = torch.zeros_like(p).scatter_(-1, first, 1.0) > 0
    other = torch.where(drawn, values.gather(-1, second), values.gather(-1, first))
    # 1 - p, of the likeliest category as the sum of the others: the difference would be rounded to 0.
    likeliest = torch.zeros_like(p).scatter_(-1, p.argmax(-1, keepdim=True), 1.0) > 0
    rest = torch.where(likeliest, torch.where(likeliest, 0.0, p).sum(-1, keepdim=True), 1 - p)
    return with_gradient(distribution, [p * rest * (values - other)], here)
