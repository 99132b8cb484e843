"""What a set of independent estimates says of their variance."""

from __future__ import annotations

from torch import Tensor


def trace(g: Tensor) -> tuple[float, float]:
    """The trace of the covariance of estimates `[S, ...]`, and its standard error."""
    g = g.double().flatten(1)
    squares = (g - g.mean(0)).square().sum(1) * (len(g) / (len(g) - 1))  # [S]
    return float(squares.mean()), float(squares.std() / len(g) ** 0.5)


def best_coefficient(g: Tensor, control: Tensor) -> float:
    """The number c with the least trace of the covariance of g - c control, both `[S, ...]`."""
    g, control = (x.double().flatten(1) for x in (g, control))
    control = control - control.mean(0)
    return float(((g - g.mean(0)) * control).sum() / control.square().sum())
