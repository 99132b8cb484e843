"""REBAR: the critic at a relaxed draw as control variate, corrected by its value given the discrete draw."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Signal, State, noise_of, over_event, register_estimator
from pglab.estimators.conditional import perturbed, perturbed_again, perturbed_given, relaxed
from pglab.estimators.control_variates import asked, over_rows, scored
from pglab.estimators.gumbel_softmax import positive_temperature
from pglab.estimators.learned import Learned, Views
from pglab.noise import Noise
from pglab.schedules import Schedule, Swept

BOUND = math.log(100.0)
"""A learned temperature stays within a factor of 100 of its option."""


class RelaxedControl(Learned):
    """(f(z) - b - c(zeta~)) s + grad c(zeta) - grad c(zeta~), for a function c of relaxed draws at a temperature.

    zeta makes the relaxed draw with the noise of z itself; zeta~ is drawn given z, and both gradients go through all they
    depend on, zeta~'s conditional noise included: only then is E[c(zeta~) s + grad c(zeta~)] = grad E[c(zeta)], and the
    estimate unbiased whatever c and the temperature are.
    """

    temperature: Swept = [Schedule(start=0.5)]
    """Temperature of the relaxation, above 0; what is learned of it multiplies this."""
    coupled: bool = False
    """Make zeta~ from the noise of z (common random numbers: zeta~ = zeta in value, not in gradient) rather than from
    noise of its own."""

    kinds = frozenset({"discrete", "binary"})
    unbiased = True
    scheduled = ("temperature",)
    uses_noise = True
    uses_baseline = True

    def model_post_init(self, context: object) -> None:
        positive_temperature(self.temperature)

    def extra_noise(self, kind: str, event: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {} if self.coupled else {"conditional": (kind, event)}

    def width(self, distribution: Distribution) -> int:
        return 2

    @abstractmethod
    def control(
        self, views: Views, relaxations: Tensor, distribution: Distribution, signal: Signal, state: State
    ) -> Tensor:
        """c at relaxed draws `[2, *rows, *event]`, `[2, *rows]`."""

    def views(self, state: State, distribution: Distribution, signal: Signal) -> Views:
        """What is learned by name; nothing where nothing is."""
        return self.learned(state, distribution, signal) if "learned" in state else {}

    def relaxations(self, views: Views, distribution: Distribution, draw: Draw, state: State) -> Tensor:
        """The draws' relaxations, unconditional and given the action, `[2, *rows, *event]`."""
        noise = noise_of(draw, self.name)
        if self.coupled:
            given = perturbed_again(distribution, draw.action, noise)
        else:
            given = perturbed_given(distribution, draw.action, draw.extra["conditional"])
        both = torch.stack([perturbed(distribution, noise), given])
        temperature = over_event(state["temperature"], distribution)
        if views:
            factor = over_rows(views["log_temperature"].exp())
            temperature = temperature * over_event(factor, distribution)
        return relaxed(distribution, both, temperature)

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        views = self.views(state, distribution, signal)
        both = self.relaxations(views, distribution, draw, state)
        free, given = self.control(views, both, distribution, signal, state)
        return scored(distribution, draw, signal, given) + free - given

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        found, info = super().update(state, distribution, draw, signal, weight)
        log_temperature = self.learned({**state, **found}, distribution, signal)["log_temperature"]  # a view
        log_temperature.clamp_(-BOUND, BOUND)
        return found, info | {"estimator/temperature_factor": log_temperature.squeeze(1).exp()}


@register_estimator("rebar")
class REBAR(RelaxedControl):
    """(f(z) - b - eta Q(z~)) s + eta (grad Q(z~') - grad Q(z~)), z~' and z~ relaxed draws, the latter given z (Tucker et
    al. 2017, section 3).

    Q is the critic, f itself on a plain objective; it is evaluated at relaxed actions. With `learn`, eta and the
    temperature move so that the estimate's variance falls (their section 3.2).
    """

    eta: float = 1.0
    """Coefficient of the control variate; what is learned is added to it."""
    learn: bool = True
    """Learn eta and the temperature by minimising the variance; else they stay at their options."""

    needs = frozenset({"value", "critic_gradient", "critic_relaxed"})
    evaluations = "3, two of them relaxed with gradients"
    paper = "Tucker et al. 2017, section 3"

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return self.learn

    def start(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Tensor]:
        zero = torch.zeros(len(noise), 1, device=noise.device)
        return {"log_temperature": zero, "eta": zero}

    def shapes(self, event: tuple[int, ...], observation_size: int) -> dict[str, tuple[int, ...]]:
        return {"log_temperature": (1,), "eta": (1,)}

    def initial(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Any]:
        return super().initial(noise, event, observation_size) if self.learn else {}

    def control(
        self, views: Views, relaxations: Tensor, distribution: Distribution, signal: Signal, state: State
    ) -> Tensor:
        assert signal.critic is not None
        value = asked(signal.critic, relaxations, distribution)
        return value * (self.eta + over_rows(views["eta"]) if views else self.eta)

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if not self.learn:
            return {}, {}
        found, info = super().update(state, distribution, draw, signal, weight)
        eta = self.eta + self.learned({**state, **found}, distribution, signal)["eta"]
        return found, info | {"estimator/eta": eta.squeeze(1)}
