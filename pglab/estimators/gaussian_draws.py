"""What estimators for Gaussians have in common; for a SquashedGaussian all of it is of the variable before tanh."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw


def standardised(distribution: Distribution, draw: Draw) -> Tensor:
    """(z - mean) / std of the draw, `[*rows, D]`, a constant: its noise where it is known, which is not rounded away when
    std is tiny."""
    if draw.noise is not None:
        return draw.noise
    return distribution.noise_given(draw.action, draw.action).detach()


def with_gradient(distribution: Distribution, gradients: Sequence[Tensor], value: Tensor) -> Tensor:
    """`value` `[*rows]`, with the given gradients (constants, `[*rows, *event]` each, in the order of `parameters`) at the
    distribution's parameters."""
    total = value.detach()
    for name, gradient in zip(distribution.parameters, gradients, strict=True):
        parameter = getattr(distribution, name)
        moved = (parameter - parameter.detach()) * gradient.detach()
        total = total + moved.flatten(-distribution.event_ndim).sum(-1)
    return total
