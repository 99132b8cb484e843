"""Double control variates: leave-one-out with a linear control variate made of the other samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Signal, State, joint, register_estimator
from pglab.estimators.control_variates import expansion, inner, over_rows
from pglab.estimators.learned import Learned
from pglab.estimators.muprop import probabilities
from pglab.estimators.outcomes import further_draws
from pglab.noise import Noise


class SeveralSamples(Learned):
    """What the estimators share that draw several samples for one estimate: the draw and further ones like it."""

    samples: Annotated[int, Field(ge=2)] = 2
    """Samples of one estimate, the draw among them."""

    needs = frozenset({"critic", "critic_gradient"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = True
    evaluations = "samples, with their gradients"

    def extra_noise(self, kind: str, event: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"samples": (kind, (self.samples - 1, *event))}

    def width(self, distribution: Distribution) -> int:
        return self.samples

    def drawn(self, distribution: Distribution, draw: Draw) -> Tensor:
        """All samples, `[S, *rows, *event]`."""
        return torch.cat([draw.action.unsqueeze(0), further_draws(distribution, draw.extra["samples"])])


@register_estimator("double_cv")
class DoubleCV(SeveralSamples):
    """1/S sum_k (F_k - mean_{j != k} F_j) grad log p(x_k) + alpha grad mean_k(a_k . E[x]), with F_k = f(x_k) - alpha a_k . (x_k - E[x])
    and a_k the mean of f's gradients at the other samples (Titsias & Shi 2022).

    The leave-one-out estimator for what a linear model of f leaves over, and the exact gradient of the model. The model of
    x_k is made of the other samples, so x_k - E[x] has mean 0 given it, and the estimate is unbiased for any alpha; for f
    linear in x and alpha = 1 it has no variance left, while for a curved f, whose slopes at the vertices are not those
    between them, alpha = 1 can be far worse than leave-one-out. alpha moves so that the variance falls. x is the joint
    action, one-hot or 0 and 1; f is differentiated at the drawn actions only.
    """

    alpha: float = 0.0
    """Coefficient of the linear model before any batch; at 0 the estimate is the leave-one-out one."""

    paper = "Titsias & Shi 2022"

    def start(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> Mapping[str, Tensor]:
        return {"alpha": torch.full((len(noise), 1), self.alpha, device=noise.device)}

    def shapes(self, event: tuple[int, ...], observation_size: int) -> Mapping[str, tuple[int, ...]]:
        return {"alpha": (1,)}

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        alpha = over_rows(self.learned(state, distribution, signal)["alpha"])
        x, mean = self.drawn(distribution, draw), probabilities(distribution)
        value, slope = expansion(signal.critic, x, distribution)  # [S, *rows], [S, *rows, *event]
        others = (slope.sum(0) - slope) / (len(x) - 1)
        left = value - alpha * inner(others, x - mean.detach(), distribution)
        gain = (left - left.mean(0)) / (len(x) - 1)  # 1/S (F_k - mean of the others)
        return (gain * joint(distribution.log_prob(x))).sum(0) + alpha * inner(slope.mean(0), mean, distribution)

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        found, info = super().update(state, distribution, draw, signal, weight)
        return found, info | {"estimator/alpha": found["learned"].squeeze(1)}
