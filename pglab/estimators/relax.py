"""RELAX: REBAR with a learned control variate, for black-box f."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Signal, State, register_estimator
from pglab.estimators.control_variates import LearnedFunction
from pglab.estimators.learned import Views
from pglab.estimators.rebar import RelaxedControl
from pglab.noise import Noise


@register_estimator("relax")
class RELAX(RelaxedControl, LearnedFunction):
    """(f(z) - b - c(z~)) s + grad c(z~') - grad c(z~), c a learned function of a relaxed draw and the state (Grathwohl et
    al. 2018, section 3.2).

    c and the temperature move so that the variance of each row's estimate falls. f is evaluated at z only. The relaxed
    draw given z, z~, comes from the exact conditional law (the authors' code for reinforcement learning draws the winning
    Gumbel by its own logit, which is biased).
    """

    needs = frozenset({"value"})
    evaluations = "1"
    paper = "Grathwohl et al. 2018, section 3.2"

    def features(self, event: tuple[int, ...]) -> int:
        return int(torch.Size(event).numel())

    def start(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Tensor]:
        zero = torch.zeros(len(noise), 1, device=noise.device)
        return {"log_temperature": zero, **super().start(noise, event, observation_size)}

    def shapes(self, event: tuple[int, ...], observation_size: int) -> dict[str, tuple[int, ...]]:
        return {"log_temperature": (1,), **super().shapes(event, observation_size)}

    def control(
        self, views: Views, relaxations: Tensor, distribution: Distribution, signal: Signal, state: State
    ) -> Tensor:
        # Binary variables in (-1, 1); one-hot ones as they are.
        x = 2 * relaxations - 1 if distribution.kind == "binary" else relaxations
        return self.function(views, x.flatten(-distribution.event_ndim), distribution, signal, state)
