"""Policies: a population network whose output is a distribution over actions."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from pglab.distributions import Bernoulli, Beta, Categorical, Distribution, Gaussian, SquashedGaussian
from pglab.distributions.beta import on_interval
from pglab.environments.contract import ActionSpec
from pglab.errors import PglabError
from pglab.networks import MLP, Activation, Parameters, Recorded, by_member, by_row
from pglab.noise import Noise
from pglab.registry import Strict

FAMILIES = {
    "discrete": ("categorical", "bernoulli"),
    "binary": ("bernoulli",),
    "continuous": ("gaussian", "squashed_gaussian", "beta"),
}
"""Families that fit a kind of action."""
CLASSES: dict[str, type[Distribution]] = {
    "bernoulli": Bernoulli,
    "beta": Beta,
    "categorical": Categorical,
    "gaussian": Gaussian,
    "squashed_gaussian": SquashedGaussian,
}
BOUNDED = ("squashed_gaussian", "beta")
"""Families whose executed actions stay in (-1, 1), which environments map to their bounds."""


class PolicyConfig(Strict):
    """The policy network and the distribution it parameterizes."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    """Sizes of the hidden layers."""
    activation: Activation = "tanh"
    """tanh, relu, elu or silu."""
    distribution: Literal["auto", "categorical", "bernoulli", "gaussian", "squashed_gaussian", "beta"] = "auto"
    """auto: categorical for Discrete and MultiDiscrete, bernoulli for MultiBinary, and for Box gaussian on-policy
    (actions clipped to the bounds by the environment's adapter) but squashed_gaussian in the actor-critic agent.
    bernoulli also serves Discrete(2), and beta a bounded Box: its parameters are 1 + softplus of the network's outputs."""
    log_std: float = 0.0
    """Initial log standard deviation (Gaussian families)."""
    state_dependent_std: bool = False
    """Whether the network outputs log_std per state; else one learned vector per member."""
    learn_std: bool = True
    """Whether log_std is learned at all."""
    log_std_bounds: tuple[float, float] = (-20.0, 2.0)
    """log_std is clamped to these."""
    logit_bound: Annotated[float, Field(gt=0)] | None = None
    """c: logits are c * tanh(h / c), so that no action's probability vanishes; None leaves them unbounded."""
    mean_scale: float = 1.0
    """The network's mean output is multiplied by this (Gaussian families)."""
    output_gain: float = 0.01
    """Gain of the last layer's initial weights: near 0 starts near the uniform (or zero-mean) policy."""

    @field_validator("log_std_bounds")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"log_std_bounds must be (low, high) with low below high, not {value}")
        return value


class Policy:
    """The policy of a population: pure functions of its `Parameters`."""

    def __init__(
        self, config: PolicyConfig, observation_size: int, action: ActionSpec, default_continuous: str
    ) -> None:
        self.config, self.action = config, action
        family = config.distribution
        if family == "auto":
            family = {"discrete": "categorical", "binary": "bernoulli"}.get(action.kind, default_continuous)  # type: ignore[assignment]
        allowed = [f for f in FAMILIES[action.kind] if f != "bernoulli" or set(action.sizes) == {2}]
        if family not in allowed:
            raise PglabError(
                f"policy.distribution {family!r} does not fit {action.kind} actions with sizes {list(action.sizes)}: "
                f"choose {' or '.join(allowed)}."
            )
        if family in BOUNDED and not action.bounded:
            raise PglabError(f"policy.distribution {family!r} needs a bounded action space: choose gaussian.")
        self.family = family
        d = action.factors
        self.outputs = d * action.categories if family == "categorical" else d
        self.gaussian = family in ("gaussian", "squashed_gaussian")
        self.std_from_network = self.gaussian and config.state_dependent_std
        heads = 2 if self.std_from_network or family == "beta" else 1
        sizes = (observation_size, *config.hidden, self.outputs * heads)
        self.network = MLP(sizes, config.activation, config.output_gain, stream=0)
        self.padding = action.padding_mask()

    def initial(self, noise: Noise) -> Parameters:
        """Fresh parameters."""
        extra = {}
        if self.gaussian and not self.std_from_network:
            extra["log_std"] = np.full((1, self.action.factors), self.config.log_std)
        parameters = self.network.initial(noise, extra=extra)
        if self.padding is not None:
            self.padding = self.padding.to(noise.device)
        return parameters

    def distribution(
        self,
        parameters: Parameters,
        obs: Tensor,
        action_mask: Tensor | None = None,
        recorded: Recorded | None = None,
    ) -> Distribution:
        """The distribution at observations `[T, P, N, O]` or `[P, N, O]`, on the same rows; `action_mask` `[*rows, D, K]`.
        `recorded` is the network's pass over these observations, used where it still holds."""
        recorded = recorded if recorded is not None and recorded.holds(parameters) else None
        h = by_row(self.network(parameters.views, by_member(obs), recorded), obs.shape[:-1])  # [*rows, outputs]
        return self.parameterized(parameters.views, h, action_mask)

    def parameterized(self, views: dict[str, Tensor], h: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """The distribution that the network's output `h` `[*rows, outputs]` stands for."""
        d = self.action.factors
        if self.family == "categorical":
            logits = self._bounded(h).unflatten(-1, (d, self.action.categories))  # [*rows, D, K]
            mask = action_mask if action_mask is not None else self.padding
            return Categorical(logits, mask)
        if self.family == "bernoulli":
            return Bernoulli(self._bounded(h))
        if self.family == "beta":
            shape = 1 + F.softplus(h)
            return Beta(shape[..., :d], shape[..., d:], -1.0, 1.0)
        mean = h[..., :d] * self.config.mean_scale
        low, high = self.config.log_std_bounds
        if self.std_from_network:
            log_std = (h[..., d:] + self.config.log_std).clamp(low, high)
        else:
            raw = views["log_std"]  # [P, 1, D]
            log_std = raw.clamp(low, high).expand_as(mean)
        if not self.config.learn_std:
            log_std = log_std.detach()
        return (Gaussian if self.family == "gaussian" else SquashedGaussian)(mean, log_std)

    def _bounded(self, h: Tensor) -> Tensor:
        c = self.config.logit_bound
        return h if c is None else c * torch.tanh(h / c)

    def executed(self, action: Tensor) -> Tensor:
        """A drawn action as it is executed, whatever the state: tanh for the squashed family, 2 z - 1 for beta."""
        if self.family == "beta":
            return on_interval(action, -1.0, 1.0)
        return torch.tanh(action) if self.family == "squashed_gaussian" else action

    def present(self, executed: Tensor) -> Tensor:
        """An executed (or relaxed) action as environments and critics see it, `[*rows, *event of the space]`."""
        if self.family == "bernoulli" and self.action.kind == "discrete":
            return torch.stack([1 - executed, executed], dim=-1)  # [*rows, D, 2]
        return executed

    def describe(self) -> str:
        """One line for the log: the family, and how bounds are kept."""
        if self.family == "beta":
            return "beta, actions within the bounds"
        if not self.gaussian:
            return f"{self.family}, {self.action.factors} factor(s)"
        if not self.action.bounded:
            return f"{self.family}, unbounded actions"
        how = "squashed into the bounds by tanh" if self.family == "squashed_gaussian" else "clipped to the bounds"
        return f"{self.family}, actions {how}"
