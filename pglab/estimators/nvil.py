"""Neural variational inference and learning: a learned input-dependent baseline with a running mean."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Signal, State, register_estimator
from pglab.estimators.control_variates import LearnedFunction, mean_of, no_mean, over_rows, scored, with_batch
from pglab.noise import Noise


@register_estimator("nvil")
class NVIL(LearnedFunction):
    """(f(z) - C(x) - c) s, with C a learned function of the state and c a running mean (Mnih & Gregor 2014, section 2.3).

    C is fitted to f - c by least squares. With `normalize_variance` the estimate is divided by max(1, sd), sd the running
    standard deviation of f - C: that adapts the step size, and is biased by exactly this factor. Everything subtracted
    or divided by comes from earlier batches; the paper lets c and sd contain the current one.
    """

    normalize_variance: bool = False
    """Divide by max(1, running standard deviation of f - C(x))."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """Weight of the past in the running mean and variance, in [0, 1)."""

    needs = frozenset({"value"})
    kinds = frozenset({"discrete", "binary", "continuous"})
    unbiased = True
    bias = "with normalize_variance: scaled by 1/max(1, sd)"
    evaluations = "1"
    paper = "Mnih & Gregor 2014, section 2.3"
    fit_updates = 500

    @property
    def declared_bias(self) -> str:
        return self.bias if self.normalize_variance else ""

    def features(self, event: tuple[int, ...]) -> int:
        return 0

    def initial(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Any]:
        centre = no_mean(len(noise), noise.device, ("mean", "variance"))
        return super().initial(noise, event, observation_size) | {"centre": centre}

    def centred(self, distribution: Distribution, signal: Signal, state: State) -> tuple[Tensor, Tensor]:
        """f - C, and f - C - c, `[*rows]` each."""
        assert signal.value is not None
        left = signal.value - self.function(
            self.learned(state, distribution, signal), None, distribution, signal, state
        )
        return left, left - over_rows(mean_of(state["centre"], "mean"))

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        _, value = self.centred(distribution, signal, state)
        if self.normalize_variance:
            value = value / over_rows(mean_of(state["centre"], "variance").sqrt().clamp_min(1.0))
        return scored(distribution, draw, Signal(value=value), torch.zeros_like(value))

    def loss(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        _, error = self.centred(distribution, signal, state)
        return self.relative(error.square(), state)

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        with torch.no_grad():
            left, _ = self.centred(distribution, signal, state)
            left = torch.where(weight > 0, left, 0.0)
            batch = with_batch(state["centre"], weight, 0.0, mean=left)
            spread = (left - over_rows(mean_of(batch, "mean"))).square()
            centre = with_batch(state["centre"], weight, self.decay, mean=left, variance=spread)
        found, info = super().update(state, distribution, draw, signal, weight)
        return found | {"centre": centre}, info | {"estimator/mean": mean_of(centre, "mean").squeeze(1)}
