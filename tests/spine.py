"""Shared by the tests of distributions, estimators and gradients: toys, exact answers and statistical checks.

Every statistical check uses fixed seeds and one Bonferroni correction: a correct code base would fail any of them, over
all choices of seeds, with probability below `FALSE_ALARM`, as long as there are at most `COMPARISONS` of them.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pglab.distributions import Bernoulli, Beta, Categorical, Distribution, Gaussian, SquashedGaussian
from pglab.estimators import ESTIMATORS, Draw, Estimator, Signal
from pglab.noise import Noise
from pglab.trees import as_dtype

FALSE_ALARM = 1e-6
COMPARISONS = 5000
LEVEL = FALSE_ALARM / COMPARISONS
QUANTILE = float(stats.norm.isf(LEVEL / 2))

FAMILIES = {
    "categorical": "discrete",
    "bernoulli": "binary",
    "gaussian": "continuous",
    "squashed_gaussian": "continuous",
    "beta": "continuous",
}
CLASSES: dict[str, type[Distribution]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "squashed_gaussian": SquashedGaussian,
    "beta": Beta,
}


def pairs(*names: str) -> list[tuple[str, str]]:
    """Every (registered estimator, family that it serves)."""
    return [(n, f) for n in names or ESTIMATORS.names() for f, cls in CLASSES.items() if ESTIMATORS.get(n).serves(cls)]


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(0, spawn_key=key))


def normal(*shape: int, key: int = 0) -> Tensor:
    return torch.from_numpy(generator(key).standard_normal(shape))


def noise_of(kind: str, shape: tuple[int, ...], key: int = 0) -> Tensor:
    """Noise of a kind in float64, from numpy."""
    g = generator(99, key)
    draw = {"exponential": g.standard_exponential, "uniform": g.random, "normal": g.standard_normal}[kind]
    return torch.from_numpy(draw(shape))


def make(
    family: str, rows: tuple[int, ...], d: int = 2, k: int = 3, key: int = 0, masked: bool = False
) -> Distribution:
    """A distribution with random parameters in float64; `masked` rules out some categories, never all."""
    if family == "categorical":
        mask = None
        if masked:
            mask = torch.from_numpy(generator(7, key).random((*rows, d, k)) < 0.6)
            mask[..., 0] = True
        return Categorical(normal(*rows, d, k, key=key), mask)
    if family == "bernoulli":
        return Bernoulli(normal(*rows, d, key=key))
    if family == "beta":
        return Beta(
            torch.exp(0.3 * normal(*rows, d, key=key) + 0.5), torch.exp(0.3 * normal(*rows, d, key=key + 1) + 0.7)
        )
    cls = Gaussian if family == "gaussian" else SquashedGaussian
    return cls(normal(*rows, d, key=key), 0.3 * normal(*rows, d, key=key + 1) - 0.5)


def with_parameters(distribution: Distribution, parameters: list[Tensor]) -> Distribution:
    return dataclasses.replace(distribution, **dict(zip(distribution.parameters, parameters, strict=True)))


class Quadratic:
    """f(a) = c.a + (w.a)^2 with coefficients of its own for every row; `[*lead, *rows, *event]` to `[*lead, *rows]`."""

    def __init__(self, distribution: Distribution, key: int = 50) -> None:
        shape = tuple(distribution.noise_shape)
        self.c, self.w, self.axes = normal(*shape, key=key), normal(*shape, key=key + 1), -distribution.event_ndim

    def __call__(self, action: Tensor) -> Tensor:
        return (self.c * action).flatten(self.axes).sum(-1) + (self.w * action).flatten(self.axes).sum(-1).square()


def case(
    name: str, family: str, rows: tuple[int, ...], key: int = 0, **options: object
) -> tuple[Estimator, Distribution, Draw, Signal, dict]:
    """An estimator with a distribution, a draw, a full signal and its state."""
    estimator = ESTIMATORS.get(name)(**options)
    distribution = make(family, rows, key=key)
    noise = noise_of(distribution.noise_kind, tuple(distribution.noise_shape), key)
    extra = {
        n: noise_of(kind, (*rows, *shape), 1000 + i)
        for i, (n, (kind, shape)) in enumerate(
            sorted(estimator.extra_noise(distribution.noise_kind, event_of(distribution)).items())
        )
    }
    draw = Draw(distribution.sample(noise), noise, extra)
    critic = Quadratic(distribution)
    signal = Signal(
        value=critic(distribution.executed(draw.action)),
        baseline=normal(*rows, key=key + 7) if estimator.uses_baseline else None,
        critic=critic,
    )
    learned = estimator.initial(Noise.of_seeds(range(rows[1] if len(rows) == 3 else 1)), event_of(distribution), 0)
    starts = {field: getattr(estimator, field)[0].start for field in estimator.scheduled}
    state = {
        field: torch.full((rows[1], 1), x, dtype=torch.float64) if len(rows) == 3 else x for field, x in starts.items()
    }
    return estimator, distribution, draw, signal, state | as_dtype(learned, torch.float64)


def event_of(distribution: Distribution) -> tuple[int, ...]:
    return tuple(distribution.noise_shape[len(distribution.batch_shape) :])


def hermite(n: int = 60) -> tuple[Tensor, Tensor]:
    """Nodes and weights that integrate against a standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(x), torch.from_numpy(w / math.sqrt(2 * math.pi))


def repeated(distribution: Distribution, n: int) -> Distribution:
    """The parameters of a distribution without rows, as n rows."""
    parameters = [getattr(distribution, p).expand(n, *getattr(distribution, p).shape) for p in distribution.parameters]
    return with_parameters(distribution, parameters)


def assert_mean(samples: Tensor, exact: Tensor, resolution: float) -> None:
    """The mean over axis 0 agrees with `exact` at every coordinate; an error of `resolution` would have been seen."""
    n = len(samples)
    error = samples.std(0) / math.sqrt(n)
    assert float(error.max()) * QUANTILE < resolution, f"no power: {float(error.max()) * QUANTILE:.3g}"
    off = (samples.mean(0) - exact).abs()
    assert bool((off <= QUANTILE * error + 1e-10).all()), f"off by {(off / error).max():.1f} standard errors"


def assert_law(sample: Tensor, cdf: str) -> None:
    """A sample of one variable has a scipy law (Kolmogorov-Smirnov)."""
    assert len(sample) >= 20_000
    assert stats.kstest(sample.numpy(), cdf).pvalue > LEVEL


def assert_same_law(a: Tensor, b: Tensor) -> None:
    """Two samples of one variable have the same law (Kolmogorov-Smirnov)."""
    assert min(len(a), len(b)) >= 3_000
    assert stats.ks_2samp(a.numpy(), b.numpy(), method="asymp").pvalue > LEVEL
