"""The objectives that `pglab check` holds methods to: small ones, whose exact gradient is found by summing or integrating.

One and several dimensions, flat and peaked, K = 2 and K = 10, masked categories, factors that share one parameter. Every
f here is a polynomial or otherwise smooth, so it is defined off the vertices too, where relaxed draws go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pglab.distributions import Bernoulli, Beta, Categorical, Distribution, Gaussian, SquashedGaussian
from pglab.objectives import Objective


@dataclass(frozen=True)
class Case:
    """E[f(z)] under a distribution without rows."""

    name: str
    distribution: Distribution
    f: Objective
    shared: bool = False
    """Whether all factors share one parameter, whose gradient is the sum of theirs."""


def numbers(*shape: int, phase: float = 0.0) -> Tensor:
    """Fixed numbers in (-1, 1) without a pattern."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(1.7 * count * count + 2.3 * count + 1 + phase).reshape(shape)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def table(values: Tensor) -> Objective:
    """f of D one-hot variables by a table `[K] * D` of its values, linear in each variable."""

    def f(z: Tensor) -> Tensor:
        found = values.expand(len(z), *values.shape)
        for one in z.unbind(-2):
            found = torch.einsum("bk,bk...->b...", one, found)
        return found

    return f


def parity(z: Tensor) -> Tensor:
    """1 where the two bits differ."""
    a, b = z.unbind(-1)
    return a + b - 2 * a * b


def quadratic(linear: Tensor, direction: Tensor) -> Objective:
    """linear . z + (direction . z)^2 over all entries of z."""

    def f(z: Tensor) -> Tensor:
        flat = z.flatten(1)
        return flat @ linear.flatten() + (flat @ direction.flatten()).square()

    return f


def cubic(linear: Tensor, direction: Tensor) -> Objective:
    """linear . z + (direction . z)^3 over all entries of z."""

    def f(z: Tensor) -> Tensor:
        flat = z.flatten(1)
        return flat @ linear.flatten() + (flat @ direction.flatten()) ** 3

    return f


def wave(direction: Tensor) -> Objective:
    return lambda z: torch.sin(2 * (z.flatten(1) @ direction.flatten()))


def distances(targets: Tensor) -> Objective:
    return lambda z: (z - targets).square().sum(-1)


def _categorical() -> list[Case]:
    log = torch.log
    mask = torch.tensor([[True, True, False, True], [False, True, True, False]])
    same = vector(0.6, -0.2, -0.9).expand(2, 3)
    return [
        Case("2 categories", Categorical(vector(0.3, -0.4)[None]), cubic(vector(1.0, 0.2), vector(0.9, -0.6))),
        Case(
            "10 categories",
            Categorical(0.3 * numbers(1, 10)),
            cubic(numbers(1, 10, phase=1.0), numbers(1, 10, phase=3.0)),
        ),
        Case(
            "peaked, 4 categories", Categorical(log(vector(0.94, 0.03, 0.02, 0.01))[None]), table(vector(0.2, 1, -2, 3))
        ),
        Case("2 factors", Categorical(numbers(2, 3)), table(numbers(3, 3, phase=3.5))),
        Case(
            "3 factors, f a wave",
            Categorical(0.5 * numbers(3, 2)),
            wave(numbers(3, 2, phase=2.5)),
        ),
        Case("masked categories", Categorical(numbers(2, 4, phase=0.7), mask), table(numbers(4, 4, phase=3.0))),
        Case("2 factors, one parameter", Categorical(same), table(numbers(3, 3, phase=4.0)), shared=True),
    ]


def _bernoulli() -> list[Case]:
    return [
        Case("1 bit", Bernoulli(vector(0.4)), lambda z: (z - 0.2).square().sum(-1)),
        Case("1 bit, peaked", Bernoulli(vector(-3.0)), lambda z: ((2 * z - 0.5) ** 3).sum(-1)),
        Case("2 bits, f their parity", Bernoulli(vector(0.5, -1.0)), parity),
        Case("4 bits, f a wave", Bernoulli(numbers(4)), wave(numbers(4, phase=3.5))),
        Case("3 bits, f their product", Bernoulli(vector(1.5, 2.0, 0.5)), lambda z: 2 * z.prod(-1)),
        Case("5 bits, peaked", Bernoulli(vector(2.5, -2.5, 2.0, -2.0, 3.0)), cubic(numbers(5), numbers(5, phase=1.5))),
        Case(
            "3 bits, one parameter",
            Bernoulli(torch.full((3,), -0.5).double()),
            distances(vector(0.9, 0.7, 0.2)),
            shared=True,
        ),
    ]


def _gaussian() -> list[Case]:
    return [
        Case("quadratic", Gaussian(vector(0.5), vector(-0.2)), lambda z: (z - 1.0).square().sum(-1)),
        Case("cubic", Gaussian(vector(0.4), vector(-0.4)), lambda z: (z**3 / 3 + z.square() - z).sum(-1)),
        Case("cosine", Gaussian(vector(0.3), vector(-0.5)), lambda z: torch.cos(2 * z).sum(-1)),
        Case("small standard deviation", Gaussian(vector(0.2), vector(-2.0)), lambda z: (z - 0.3).square().sum(-1)),
        Case("product", Gaussian(vector(0.6, -0.4), vector(-0.3, 0.1)), lambda z: z.prod(-1) + z[:, 0]),
        Case(
            "3 dimensions",
            Gaussian(vector(0.3, -0.5, 0.2), vector(-0.5, -0.2, -0.7)),
            quadratic(numbers(3), numbers(3, phase=1.0)),
        ),
        Case(
            "2 dimensions, one parameter",
            Gaussian(vector(0.5, 0.5), vector(-0.4, -0.4)),
            distances(vector(1.0, -0.3)),
            shared=True,
        ),
    ]


def _squashed_gaussian() -> list[Case]:
    return [
        Case("quadratic", SquashedGaussian(vector(0.4), vector(-0.6)), lambda y: (y - 0.8).square().sum(-1)),
        Case("cubic", SquashedGaussian(vector(-0.3), vector(-0.8)), lambda y: (y**3 - y).sum(-1)),
        Case("near the bound", SquashedGaussian(vector(1.5), vector(-0.7)), lambda y: y.square().sum(-1)),
        Case(
            "small standard deviation",
            SquashedGaussian(vector(0.2), vector(-2.0)),
            lambda y: (y - 0.4).square().sum(-1),
        ),
        Case("product", SquashedGaussian(vector(0.6, -0.4), vector(-0.6, -0.8)), lambda y: y.prod(-1) + y[:, 0]),
        Case(
            "2 dimensions, one parameter",
            SquashedGaussian(vector(0.5, 0.5), vector(-0.8, -0.8)),
            distances(vector(0.9, -0.3)),
            shared=True,
        ),
    ]


def _beta() -> list[Case]:
    return [
        Case("quadratic", Beta(vector(2.0), vector(3.0)), lambda z: 4 * (z - 0.8).square().sum(-1)),
        Case("flat", Beta(vector(1.2), vector(1.1)), lambda z: (2 * z**3 - z).sum(-1)),
        Case("small standard deviation", Beta(vector(30.0), vector(20.0)), lambda z: 20 * (z - 0.3).square().sum(-1)),
        Case("on (-1, 1)", Beta(vector(3.0), vector(2.0), -1.0, 1.0), lambda y: (y - 0.5).square().sum(-1)),
        Case("product", Beta(vector(2.0, 1.5), vector(1.5, 3.0)), lambda z: 3 * z.prod(-1) + z[:, 0]),
        Case(
            "2 dimensions, one parameter",
            Beta(vector(2.0, 2.0), vector(1.5, 1.5)),
            lambda z: z.sum(-1).square(),
            shared=True,
        ),
    ]


CASES: dict[type[Distribution], Callable[[], list[Case]]] = {
    Categorical: _categorical,
    Bernoulli: _bernoulli,
    Gaussian: _gaussian,
    SquashedGaussian: _squashed_gaussian,
    Beta: _beta,
}
"""Problems by family."""
