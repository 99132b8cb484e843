"""Estimators that average over the noise given the draw: exactly, by quadrature, for a Bernoulli variable, and against
rejection for more categories."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate
from spine import assert_mean, noise_of, normal, repeated

from pglab.distributions import Bernoulli, Categorical
from pglab.estimators import (
    Draw,
    Estimator,
    GumbelRao,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    Signal,
    StraightThroughGumbelSoftmax,
)
from pglab.gradients import cotangents

F64 = torch.float64
CASES = pytest.mark.parametrize(
    ("t", "theta", "tau"), [(0.499, 0.1, 1.0), (0.45, 0.5, 1.0), (0.45, 0.5, 0.5), (0.2, 0.8, 2.0)]
)


# -- one Bernoulli variable with f = (b - t)^2, everything by quadrature


def given(theta: float, tau: float, b: int, power: int) -> float:
    """E[(sigmoid'(z / tau) / tau)^power | b], z logistic at logit(theta) given that its sign is b's. By scipy."""
    logit = math.log(theta / (1 - theta))

    def integrand(z: float) -> float:
        s = 1 / (1 + math.exp(-z / tau))
        density = 1 / (2 + math.exp(z - logit) + math.exp(logit - z))
        return (s * (1 - s) / tau) ** power * density

    ends = (0, 5 * tau, 60) if b else (-60, -5 * tau, 0)
    total = sum(integrate.quad(integrand, a, c, epsabs=1e-14, limit=400)[0] for a, c in itertools.pairwise(ends))
    return total / (theta if b else 1 - theta)


def smooth_rule(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Legendre on (0, 1) after v = x^3 (10 - 15 x + 6 x^2): the integrands go like powers of v and 1 - v."""
    x, w = np.polynomial.legendre.leggauss(n)
    x, w = (x + 1) / 2, w / 2
    return torch.from_numpy(x**3 * (10 - 15 * x + 6 * x**2)), torch.from_numpy(w * 30 * x**2 * (1 - x) ** 2)


def moments(estimator: Estimator, t: float, theta: float, tau: float, draws: int) -> tuple[float, float, float, float]:
    """Mean, variance, and the variance's two parts (mean within a draw, and between draws), over b and a product rule
    for the noise of its `draws` conditional draws."""
    nodes, w = smooth_rule({1: 200, 2: 60, 3: 40}[draws])
    v = torch.cartesian_prod(*[nodes] * draws).reshape(-1, draws, 1)  # [M, S, 1]
    weights = torch.cartesian_prod(*[w] * draws).reshape(-1, draws).prod(-1)
    d = Bernoulli(torch.full((len(v), 1), math.log(theta / (1 - theta)), dtype=F64))
    means, seconds = [], []
    for b in (0.0, 1.0):
        draw = Draw(torch.full_like(d.logits, b), None, {"conditional": v})
        signal = Signal(critic=lambda z: (z[..., 0] - t) ** 2)
        (g,), _ = cotangents(estimator, d, draw, signal, {"temperature": tau})
        means.append(float(weights @ g[:, 0]))
        seconds.append(float(weights @ g[:, 0].square()))
    p = (1 - theta, theta)
    mean = sum(q * m for q, m in zip(p, means, strict=True))
    within = sum(q * (s - m * m) for q, m, s in zip(p, means, seconds, strict=True))
    between = sum(q * (m - mean) ** 2 for q, m in zip(p, means, strict=True))
    return mean, within + between, within, between


def parts(theta: float, tau: float, t: float, at: Callable[[int], float], scale: float) -> tuple[list[float], float]:
    """Conditional means of scale x (sigmoid'/tau) x f'(b) given b = 0 and 1 under the probabilities `at(b)`, and the
    mean of its conditional variance."""
    slopes = [2 * (b - t) * scale for b in (0, 1)]
    first = [given(at(b), tau, b, 1) for b in (0, 1)]
    second = [given(at(b), tau, b, 2) for b in (0, 1)]
    within = sum(
        p * s * s * (two - one * one) for p, s, one, two in zip((1 - theta, theta), slopes, first, second, strict=True)
    )
    return [s * one for s, one in zip(slopes, first, strict=True)], within


def mean_and_variance(theta: float, values: list[float]) -> tuple[float, float]:
    mean = (1 - theta) * values[0] + theta * values[1]
    return mean, (1 - theta) * (values[0] - mean) ** 2 + theta * (values[1] - mean) ** 2


@CASES
def test_its_mean_is_that_of_straight_through_gumbel_softmax(t, theta, tau):
    n = 400_000
    u = ((torch.arange(n).double() + 0.5) / n)[:, None]
    d = Bernoulli(torch.full((n, 1), math.log(theta / (1 - theta)), dtype=F64))
    signal = Signal(critic=lambda z: (z[..., 0] - t) ** 2)
    (g,), _ = cotangents(StraightThroughGumbelSoftmax(), d, Draw(d.sample(u), u), signal, {"temperature": tau})
    mean, variance, *_ = moments(GumbelRao(samples=1), t, theta, tau, 1)
    assert (mean, variance) == pytest.approx((float(g.mean()), float(g.var(unbiased=False))), rel=2e-5)
    more, less, *_ = moments(GumbelRao(samples=2), t, theta, tau, 2)
    assert more == pytest.approx(mean, rel=1e-9)
    assert less < variance


@CASES
@pytest.mark.parametrize("k", [1, 2, 3])
def test_proposition_3(t, theta, tau, k):
    """var(GR-MC_K) = E[var(ST-GS | D)] / K + var(E[ST-GS | D]), the right side by scipy."""
    values, within = parts(theta, tau, t, lambda b: theta, 1.0)
    mean, between = mean_and_variance(theta, values)
    found = moments(GumbelRao(samples=k), t, theta, tau, k)
    assert found == pytest.approx((mean, within / k + between, within / k, between), rel=1e-7, abs=1e-12)


def midpoint(theta: float) -> Callable[[int], float]:
    """pi_D for b."""
    return lambda b: (theta + b) / 2


def half_straight_through(theta: float, t: float) -> list[float]:
    return [0.5 * theta * (1 - theta) * 2 * (b - t) for b in (0, 1)]


@CASES
@pytest.mark.parametrize("k", [1, 2])
def test_reinmax_rao_by_scipy(t, theta, tau, k):
    """2 E[J_tau | D] at the midpoint's logit, less half of straight-through at the logit."""
    rao, within = parts(theta, tau, t, midpoint(theta), 2.0)
    values = [a - b for a, b in zip(rao, half_straight_through(theta, t), strict=True)]
    mean, between = mean_and_variance(theta, values)
    found = moments(ReinMaxRao(samples=k), t, theta, tau, k)
    assert found == pytest.approx((mean, within / k + between, within / k, between), rel=1e-7, abs=1e-12)


@CASES
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("c", [0.5, -2.0])
def test_the_correction_of_reinmax_cv_has_mean_0_and_adds_its_variance(t, theta, tau, samples, c):
    """ReinMax is a function of the draw, and the correction has mean 0 given the draw: nothing can be saved."""
    found = moments(ReinMaxCV(samples=samples, coefficient=c), t, theta, tau, samples + 1)
    plain, variance, within, _ = moments(ReinMax(), t, theta, 1.0, 1)
    assert within == pytest.approx(0, abs=1e-15)
    assert plain == pytest.approx(theta * (1 - theta) * (1 - 2 * t), rel=1e-10)  # f is quadratic
    _, noise = parts(theta, tau, t, midpoint(theta), 1.0)
    added = c * c * (1 + 1 / samples) * noise
    assert found == pytest.approx((plain, variance + added, added, variance), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("estimator", [GumbelRao(samples=1), ReinMaxRao(samples=1), ReinMaxCV(samples=1)])
@pytest.mark.parametrize("b", [0, 1])
def test_two_categories_are_a_bernoulli_variable(estimator, b):
    """Two exponentials matter through their ratio only, v / (1 - v) for a drawn 1 and its inverse for a 0."""
    n = 500
    wide = isinstance(estimator, ReinMaxCV)
    v = noise_of("uniform", (n, 2 if wide else 1, 1), 4)
    logits, c = normal(n, 1, key=1) * 2, torch.tensor([0.3, -1.1], dtype=F64)
    binary, pair = Bernoulli(logits), Categorical(torch.stack([torch.zeros_like(logits), logits], -1))
    winner, loser = torch.ones_like(v), v / (1 - v) if b else (1 - v) / v
    e = torch.stack([loser, winner] if b else [winner, loser], -1)
    z = torch.full_like(logits, b)

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x @ c[:1]) + x.square() @ c[1:]

    (g,), _ = cotangents(estimator, binary, Draw(z, None, {"conditional": v}), Signal(critic=f), {"temperature": 0.6})
    draw = Draw(torch.stack([1 - z, z], -1), None, {"conditional": e})
    (h,), _ = cotangents(estimator, pair, draw, Signal(critic=lambda x: f(x[..., 1])), {"temperature": 0.6})
    torch.testing.assert_close(h[..., 1], g, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(h[..., 0], -g, rtol=1e-9, atol=1e-12)


# -- three categories, sampled

ONE = Categorical(torch.tensor([[0.3, -0.9, 1.1], [0.0, 0.7, -1.2]], dtype=F64))


def critic(z: torch.Tensor) -> torch.Tensor:
    c = normal(2, 3, key=8)
    return torch.sin((z * c).flatten(-2).sum(-1)) + (z[..., 0, :] * z[..., 1, :]).sum(-1)


def many(n: int, estimator: Estimator, key: int = 1) -> Draw:
    noise = noise_of("exponential", (n, 2, 3), key)
    (size,) = [shape for _, shape in estimator.extra_noise("exponential", (2, 3)).values()]
    return Draw(repeated(ONE, n).sample(noise), noise, {"conditional": noise_of("exponential", (n, *size), key + 1)})


def estimate(estimator: Estimator, draw: Draw, tau: float) -> torch.Tensor:
    d = repeated(ONE, len(draw.action))
    return cotangents(estimator, d, draw, Signal(critic=critic), {"temperature": tau})[0][0]


@pytest.mark.statistical
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_three_categories_have_the_mean_of_st_gs_and_less_variance(tau):
    few = GumbelRao(samples=3)
    draw = many(60_000, few)
    rao, plain = estimate(few, draw, tau), estimate(StraightThroughGumbelSoftmax(), draw, tau)
    assert_mean(rao - plain, torch.zeros(2, 3, dtype=F64), resolution=0.02)
    assert bool((rao.var(0) < plain.var(0)).all())


@pytest.mark.statistical
def test_proposition_3_for_three_categories():
    """With a, b single conditional draws and g_4 the mean of four more: E g_4^2 = E a^2 / 4 + 3/4 E a b."""
    draw = many(60_000, GumbelRao(samples=6))
    noise = draw.extra["conditional"]
    a, b = (
        estimate(GumbelRao(samples=1), Draw(draw.action, None, {"conditional": noise[:, i : i + 1]}), 0.5)
        for i in (0, 1)
    )
    four = estimate(GumbelRao(samples=4), Draw(draw.action, None, {"conditional": noise[:, 2:]}), 0.5)
    assert_mean(four.square() - a.square() / 4 - 0.75 * a * b, torch.zeros(2, 3, dtype=F64), resolution=0.01)


@pytest.mark.statistical
def test_reinmax_rao_for_three_categories_against_rejection():
    """Its first term's mean given each draw: the Jacobian at theta_D + G averaged over those G that make the draw."""
    n, tau, one = 150_000, 0.6, Categorical(ONE.logits[:1])
    p = one.probs()[0]
    slope = torch.tensor([0.4, -1.0, 0.7], dtype=F64)
    for drawn in range(3):
        z = torch.eye(3, dtype=F64)[drawn]
        theta = ((p + z) / 2).log()
        perturbed = theta - noise_of("exponential", (n, 3), 40 + drawn).log()
        y = torch.softmax(perturbed[perturbed.argmax(-1) == drawn] / tau, -1)
        rejected = y * (slope - (y @ slope)[:, None]) / tau
        m = len(rejected)
        assert m > n / 2
        d = repeated(one, m)
        draw = Draw(z.expand(m, 1, 3), None, {"conditional": noise_of("exponential", (m, 1, 1, 3), 50 + drawn)})
        signal = Signal(critic=lambda x: (x @ slope).sum(-1))
        (g,), _ = cotangents(ReinMaxRao(samples=1), d, draw, signal, {"temperature": tau})
        half = 0.5 * p * (slope - p @ slope)
        assert_mean((g[:, 0] + half) / 2 - rejected, torch.zeros(3, dtype=F64), resolution=0.02)
