"""Problems small enough for every estimator's mean and variance to be known exactly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import integrate
from spine import hermite, make, noise_of

from pglab.baselines import Batch, LeaveOneOut
from pglab.distributions import Bernoulli, Categorical, Gaussian
from pglab.errors import PglabError
from pglab.estimators import (
    Draw,
    GumbelSoftmax,
    Pathwise,
    ScoreFunction,
    Signal,
    StraightThroughGumbelSoftmax,
)
from pglab.gradients import cotangents, surrogate

# One Bernoulli with probability theta, f = (b - t)^2, gradient at the logit: theta (1 - theta) (1 - 2 t).
# (t, theta): the published values, four digits.
TOYS = {
    (0.499, 0.1): {"reinforce": 5.6611e-3, "mean_f": 2.304e-7, "loo2": 1.476e-7, "loo4": 6.30e-8},
    (0.45, 0.5): {"reinforce": 1.5939e-2, "mean_f": 0.0, "loo2": 6.25e-4, "loo4": 1.042e-4},
}
RELAXED = {  # (t, theta, temperature): mean, variance
    (0.499, 0.1, 1.0): (-4.214e-2, 2.068e-3),
    (0.499, 0.1, 0.1): (-7.007e-3, 3.015e-2),
    (0.45, 0.5, 1.0): (1.667e-2, 4.818e-3),
    (0.45, 0.5, 0.1): (2.480e-2, 8.619e-2),
}
CASES = pytest.mark.parametrize(("t", "theta"), list(TOYS))


def gradient(t: float, theta: float) -> float:
    return theta * (1 - theta) * (1 - 2 * t)


def bernoulli(theta: float, *rows: int) -> Bernoulli:
    return Bernoulli(torch.full((*rows, 1), math.log(theta / (1 - theta)), dtype=torch.float64))


def moments(theta: float, estimate, k: int = 1) -> tuple[float, float]:
    """Mean and variance over all 2^k joint outcomes of `estimate([k, 1] actions)`."""
    first = second = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=k):
        p = math.prod(theta if b else 1 - theta for b in bits)
        g = estimate(torch.tensor(bits, dtype=torch.float64)[:, None])
        first, second = first + p * g, second + p * g * g
    return first, second - first**2


@CASES
@pytest.mark.parametrize("name", ["reinforce", "mean_f"])
def test_reinforce_and_its_mean_baseline(t, theta, name):
    mean_f = theta * (1 - t) ** 2 + (1 - theta) * t**2
    baseline = torch.full((1,), mean_f, dtype=torch.float64) if name == "mean_f" else None

    def estimate(action: torch.Tensor) -> float:
        signal = Signal(value=(action[:, 0] - t) ** 2, baseline=baseline)
        (g,), _ = cotangents(ScoreFunction(), bernoulli(theta, 1), Draw(action), signal)
        return float(g)

    mean, variance = moments(theta, estimate)
    assert mean == pytest.approx(gradient(t, theta), rel=1e-10)
    assert variance == pytest.approx(TOYS[t, theta][name], rel=5e-4, abs=1e-15)


@CASES
@pytest.mark.parametrize("k", [2, 4])
def test_leave_one_out_of_k_samples(t, theta, k):
    baseline = LeaveOneOut()

    def estimate(action: torch.Tensor) -> float:
        value = ((action - t) ** 2).view(1, 1, k)
        batch = Batch(
            torch.zeros(1, 1, k, 1), value, torch.ones(1, 1, k, dtype=torch.bool), torch.zeros(1, 1, k).long()
        )
        b = baseline.predict(baseline.initial(1, "cpu"), batch)
        (g,), _ = cotangents(
            ScoreFunction(), bernoulli(theta, 1, 1, k), Draw(action.view(1, 1, k, 1)), Signal(value, b)
        )
        return float(g.mean())

    mean, variance = moments(theta, estimate, k)
    assert mean == pytest.approx(gradient(t, theta), rel=1e-9)
    assert variance == pytest.approx(TOYS[t, theta][f"loo{k}"], rel=1e-3)


def over_uniforms(estimator, t: float, theta: float, tau: float, n: int = 400_000) -> tuple[float, float]:
    """Mean and variance of a relaxed estimator over a midpoint rule in u."""
    u = ((torch.arange(n).double() + 0.5) / n)[:, None]
    d = bernoulli(theta, n)
    (g,), _ = cotangents(
        estimator, d, Draw(d.sample(u), u), Signal(critic=lambda b: (b[..., 0] - t) ** 2), {"temperature": tau}
    )
    return float(g.mean()), float(g.var(unbiased=False))


def integrals(integrand, theta: float, tau: float) -> tuple[float, float]:
    """Mean and variance over a logistic variable by scipy; `integrand(b, s)` of the hard and the relaxed draw."""
    logit = math.log(theta / (1 - theta))

    def moment(power: int) -> float:
        def f(x: float) -> float:
            z = logit + x
            s = 1 / (1 + math.exp(-z / tau))
            return integrand(float(z > 0), s) ** power * math.exp(-x) / (1 + math.exp(-x)) ** 2

        parts = [-40, -logit - 5 * tau, -logit, -logit + 5 * tau, 40]
        return sum(integrate.quad(f, a, b, epsabs=1e-13, limit=400)[0] for a, b in itertools.pairwise(parts))

    return moment(1), moment(2) - moment(1) ** 2


@pytest.mark.parametrize(("t", "theta", "tau"), list(RELAXED))
def test_gumbel_softmax_has_the_known_bias_and_variance(t, theta, tau):
    mean, variance = over_uniforms(GumbelSoftmax(), t, theta, tau)
    assert (mean, variance) == pytest.approx(RELAXED[t, theta, tau], rel=1e-3)
    by_scipy = integrals(lambda _, s: 2 * (s - t) * s * (1 - s) / tau, theta, tau)
    assert (mean, variance) == pytest.approx(by_scipy, rel=1e-6)


@pytest.mark.parametrize(("t", "theta", "tau"), list(RELAXED))
def test_straight_through_gumbel_softmax_takes_fs_slope_at_the_hard_draw(t, theta, tau):
    found = over_uniforms(StraightThroughGumbelSoftmax(), t, theta, tau)
    assert found == pytest.approx(integrals(lambda b, s: 2 * (b - t) * s * (1 - s) / tau, theta, tau), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
@pytest.mark.parametrize("tau", [3.0, 1.0, 0.1])
def test_straight_through_shows_f_exactly_the_hard_draw(dtype, family, tau):
    d = make(family, (50_000,))
    d = type(d)(d.logits.to(dtype))
    noise = (
        noise_of(d.noise_kind, tuple(d.noise_shape))
        .to(dtype)
        .clamp(1e-7, None if family == "categorical" else 1 - 1e-7)
    )
    action, seen = d.sample(noise), []

    def critic(a: torch.Tensor) -> torch.Tensor:
        seen.append(a.detach())
        return a.flatten(1).sum(-1)

    surrogate(StraightThroughGumbelSoftmax(), d, Draw(action, noise), Signal(critic=critic), {"temperature": tau})
    assert torch.equal(seen[0], action)


def test_straight_through_jacobian_by_hand_for_three_categories():
    logits, tau = torch.tensor([[[0.3, -0.2, 0.9]]], dtype=torch.float64), 0.7
    noise, c = (
        torch.tensor([[[0.4, 1.1, 2.0]]], dtype=torch.float64),
        torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),
    )
    d = Categorical(logits)
    signal = Signal(critic=lambda a: ((a @ c) ** 2).sum(-1))
    (g,), _ = cotangents(StraightThroughGumbelSoftmax(), d, Draw(d.sample(noise), noise), signal, {"temperature": tau})
    z = (logits - noise.log()) / tau
    y = (z.exp() / z.exp().sum())[0, 0]
    slope = 2 * (d.sample(noise)[0, 0] @ c) * c
    torch.testing.assert_close(g[0, 0], (torch.diag(y) - torch.outer(y, y)) @ slope / tau)


def test_every_member_has_its_own_temperature():
    d = make("categorical", (2, 3, 4))
    noise = noise_of("exponential", (2, 3, 4, 2, 3))
    draw, signal = Draw(d.sample(noise), noise), Signal(critic=lambda a: a.square().flatten(-2).sum(-1))
    taus = [0.3, 1.0, 2.0]
    (found,), _ = cotangents(
        GumbelSoftmax(), d, draw, signal, {"temperature": torch.tensor(taus, dtype=torch.float64)[:, None]}
    )
    for p, tau in enumerate(taus):
        (alone,), _ = cotangents(GumbelSoftmax(), d, draw, signal, {"temperature": tau})
        torch.testing.assert_close(found[:, p], alone[:, p])


@pytest.mark.parametrize("temperature", [0, -1.0, {"kind": "linear", "start": 1.0, "end": 0.0}])
def test_temperatures_of_0_or_below_are_refused(temperature):
    with pytest.raises(ValueError, match="above 0"):
        GumbelSoftmax(temperature=temperature)


@pytest.mark.parametrize("estimator", [GumbelSoftmax(), StraightThroughGumbelSoftmax()], ids=lambda e: e.name)
def test_relaxed_estimators_say_that_they_need_the_noise(estimator):
    d = make("categorical", (4,))
    signal = Signal(critic=lambda a: a.flatten(-2).sum(-1))
    with pytest.raises(PglabError, match="noise"):
        cotangents(estimator, d, Draw(d.mode()), signal, {"temperature": 1.0})


def test_pathwise_says_that_it_needs_the_noise():
    d = make("gaussian", (4,))
    with pytest.raises(PglabError, match="noise"):
        cotangents(Pathwise(), d, Draw(d.mean), Signal(critic=lambda a: a.sum(-1)))


# z ~ N(m, s^2), f = z^2, gradient at the mean 2 m.
SQUARES = pytest.mark.parametrize(("m", "s"), [(0.5, 1.0), (1.0, 0.1), (-2.0, 3.0), (0.3, 1e-3)])


def gaussian_moments(estimator, m: float, s: float, baseline: float | None = None) -> tuple[float, float]:
    x, w = hermite(40)
    d = Gaussian(torch.full((40, 1), m, dtype=torch.float64), torch.full((40, 1), math.log(s), dtype=torch.float64))
    z = d.sample(x[:, None])
    b = None if baseline is None else torch.full((40,), baseline, dtype=torch.float64)
    signal = Signal(value=z[:, 0] ** 2, baseline=b, critic=lambda a: a[..., 0] ** 2)
    (g, _), _ = cotangents(estimator, d, Draw(z, x[:, None]), signal)
    mean = float(w @ g[:, 0])
    return mean, float(w @ (g[:, 0] - mean) ** 2)


@SQUARES
def test_square_of_a_normal_score_function(m, s):
    mean, variance = gaussian_moments(ScoreFunction(), m, s)
    assert mean == pytest.approx(2 * m, rel=1e-8)
    assert variance == pytest.approx(15 * s**2 + 14 * m**2 + m**4 / s**2, rel=1e-8)


@SQUARES
def test_square_of_a_normal_with_mean_and_with_optimal_baseline(m, s):
    mean, variance = gaussian_moments(ScoreFunction(), m, s, baseline=m**2 + s**2)
    assert mean == pytest.approx(2 * m, rel=1e-8)
    assert variance == pytest.approx(10 * s**2 + 8 * m**2, rel=1e-6)
    _, optimal = gaussian_moments(ScoreFunction(), m, s, baseline=m**2 + 3 * s**2)
    assert optimal == pytest.approx(6 * s**2 + 8 * m**2, rel=1e-6)


@SQUARES
def test_square_of_a_normal_pathwise(m, s):
    mean, variance = gaussian_moments(Pathwise(), m, s)
    assert mean == pytest.approx(2 * m, rel=1e-10)
    assert variance == pytest.approx(4 * s**2, rel=1e-8)


def test_pathwise_is_the_noisier_one_for_a_fast_cosine():
    """Lower variance of reparameterization is no law: f = cos(k z), k = 10, z ~ N(0.3, 1)."""
    n, k = 200_001, 10.0
    x = torch.linspace(-8, 8, n, dtype=torch.float64)
    w = torch.exp(-0.5 * x * x)
    w = w / w.sum()
    d = Gaussian(torch.full((n, 1), 0.3, dtype=torch.float64), torch.zeros(n, 1).double())
    z = d.sample(x[:, None])
    signal = Signal(value=torch.cos(k * z[:, 0]), critic=lambda a: torch.cos(k * a[..., 0]))
    second = []
    for estimator in (ScoreFunction(), Pathwise()):
        (g, _), _ = cotangents(estimator, d, Draw(z, x[:, None]), signal)
        assert float(w @ g[:, 0]) == pytest.approx(-k * math.sin(k * 0.3) * math.exp(-(k**2) / 2), abs=1e-8)
        second.append(float(w @ g[:, 0] ** 2))
    assert second == pytest.approx([0.5, k**2 / 2], rel=1e-6)
