"""What estimators that learn have in common: one tensor of learned parameters per member, one loss per row, Adam."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State
from pglab.networks import MLP, by_member, by_row
from pglab.noise import Noise
from pglab.optimizers import OptimizerConfig

ADAM = OptimizerConfig()
Views = dict[str, Tensor]


class Learned(Estimator):
    """An estimator with parameters of its own, `state["learned"]` `[P, m]`, moved by Adam after each batch.

    By default they minimise the variance of the estimate itself: the squared norm of a row's cotangents, whose gradient is
    that of the variance because the mean does not depend on them (Tucker et al. 2017, section 3.2; Grathwohl et al. 2018,
    section 3). The distribution is cut at its parameters, so nothing of it reaches the policy.
    """

    estimator_learning_rate: Annotated[float, Field(ge=0)] = 1e-3
    """Adam's learning rate for what the estimator itself learns."""

    learns = True
    fit_updates = 1000

    @abstractmethod
    def start(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> Mapping[str, Tensor]:
        """What is learned before any batch: named tensors `[P, ...]`."""

    @abstractmethod
    def shapes(self, event: tuple[int, ...], observation_size: int) -> Mapping[str, tuple[int, ...]]:
        """The shapes of what `start` gives, in its order, without the member axis."""

    def initial(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Any]:
        flat = torch.cat([x.flatten(1) for x in self.start(noise, event, observation_size).values()], 1)  # [P, m]
        return {"learned": flat, "optimizer": ADAM.initial(flat)}

    def learned(self, state: State, distribution: Distribution, signal: Signal) -> Views:
        """What is learned by name, `[P, ...]` each, views that differentiate into `state["learned"]`."""
        flat = state["learned"]
        event = tuple(distribution.noise_shape[len(distribution.batch_shape) :])
        shapes = self.shapes(event, 0 if signal.obs is None else signal.obs.shape[-1])
        parts = flat.split([math.prod(s) for s in shapes.values()], dim=1)
        return {n: part.reshape(len(flat), *s) for (n, s), part in zip(shapes.items(), parts, strict=True)}

    def loss(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        """`[*rows]`: what is minimised; differentiable in `state["learned"]`."""
        leaf, parameters = distribution.cut()
        value = self.surrogate(leaf, draw, signal, state)
        found = torch.autograd.grad(value.sum(), parameters, create_graph=True, allow_unused=True)
        rows = len(distribution.batch_shape)
        squares = [g.square().flatten(rows).sum(-1) for g in found if g is not None]
        return torch.stack(squares).sum(0)

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        with torch.enable_grad():
            flat = state["learned"].detach().clone().requires_grad_()
            loss = self.loss(distribution.detach(), draw, signal, {**state, "learned": flat})
            (grad,) = torch.autograd.grad((loss * weight).sum(), flat)
        moved = flat.detach()
        optimizer = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state["optimizer"].items()}
        rate = torch.full_like(moved[:, :1], self.estimator_learning_rate)
        ADAM.step(moved, grad, optimizer, rate)
        return {"learned": moved, "optimizer": optimizer}, {}


def named(network: MLP, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """A network's shapes with a prefix to their names, for `Learned.shapes`."""
    return {prefix + name: shape for name, shape in network.shapes.items()}


def apply(network: MLP, views: Mapping[str, Tensor], x: Tensor, prefix: str = "") -> Tensor:
    """The network at inputs `[*lead, *rows, X]`, `[*lead, *rows, Y]`; may be differentiated any number of times.

    With one member, rows may have any shape; with more they are `[T, P, N]` (or `[P, N]`, then without leading axes).
    """
    own = {name: views[prefix + name] for name in network.layer_names}
    members = len(own["weight0"])
    if members == 1:
        return network(own, x.reshape(1, -1, x.shape[-1])).reshape(*x.shape[:-1], -1)
    if x.ndim <= 4:
        return by_row(network(own, by_member(x)), x.shape[:-1])
    *lead, t, p, n, k = x.shape
    y = network(own, by_member(x.reshape(-1, p, n, k)))  # leading axes and time together
    return by_row(y, torch.Size((math.prod(lead) * t, p, n))).reshape(*lead, t, p, n, -1)
