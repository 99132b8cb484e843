"""Beta against scipy, torch.distributions, quadrature and numerical derivatives of the incomplete beta function."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from spine import assert_law, make, noise_of
from torch.distributions import Beta as Reference

import pglab
from pglab.distributions import Beta
from pglab.distributions.beta import slopes
from pglab.errors import PglabError
from pglab.lab.oracles import jacobi_scores

PARAMETERS = pytest.mark.parametrize(
    ("a", "b"), [(1.7, 2.3), (0.3, 0.4), (5.0, 2.0), (1.0, 1.0), (20.0, 30.0), (1.0, 9.0), (0.1, 50.0), (3e4, 2e4)]
)
LEVELS = np.array([1e-6, 1e-3, 0.05, 0.3, 0.5, 0.7, 0.95, 0.999, 1 - 1e-6])


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def numerical_slopes(a: float, b: float, z: np.ndarray) -> list[np.ndarray]:
    """-(dF/dtheta) / p by five-point differences of scipy's incomplete beta function, of the smaller tail."""
    p = np.exp((a - 1) * np.log(z) + (b - 1) * np.log1p(-z) - special.betaln(a, b))

    def slope(f, theta: float) -> np.ndarray:
        h = 1e-3 * theta
        return (8 * (f(theta + h) - f(theta - h)) - (f(theta + 2 * h) - f(theta - 2 * h))) / (12 * h)

    lower = special.betainc(a, b, z) < 0.5
    found = []
    for below, above, theta in [
        (lambda x: special.betainc(x, b, z), lambda x: special.betaincc(x, b, z), a),
        (lambda x: special.betainc(a, x, z), lambda x: special.betaincc(a, x, z), b),
    ]:
        found.append(np.where(lower, -slope(below, theta), slope(above, theta)) / p)
    return found


@PARAMETERS
def test_implicit_slopes_equal_numerical_derivatives_of_the_cdf(a, b):
    z = special.betaincinv(a, b, LEVELS)
    z = z[(z > 1e-200) & (z < 1 - 1e-10)]
    assert len(z) >= 4
    found = slopes(torch.from_numpy(z), column(a).expand(len(z)), column(b).expand(len(z)))
    loose = max(a, b) > 40  # five-point differences with steps of 1e-3 theta are rough there
    for x, exact in zip(found, numerical_slopes(a, b, z), strict=True):
        np.testing.assert_allclose(x.numpy(), exact, rtol=2e-2 if max(a, b) > 1e3 else 1e-4 if loose else 2e-8)


@PARAMETERS
def test_slopes_have_the_mean_of_the_means_derivatives(a, b):
    """E[dz/dtheta] = d E[z] / dtheta, by quadrature over the noise."""
    u, w = np.polynomial.legendre.leggauss(60)
    t = np.pi / 2 * np.sinh(4.0 * u)  # a tanh-sinh rule: the ends' slopes are singular
    level = special.expit(2 * t)
    weight = w * 4.0 * np.pi * np.cosh(4.0 * u) * level * special.expit(-2 * t)
    z = special.betaincinv(a, b, level)
    keep = (z > 1e-300) & (z < 1)
    z, weight = z[keep], weight[keep]
    found = slopes(torch.from_numpy(z), column(a).expand(len(z)), column(b).expand(len(z)))
    exact = [b / (a + b) ** 2, -a / (a + b) ** 2]
    assert [float(x.numpy() @ weight) for x in found] == pytest.approx(exact, rel=1e-5)


def test_slopes_by_hand_where_the_quantile_is_a_power():
    """Beta(a, 1): z = u^(1/a), dz/da = -z log z / a; Beta(1, b): 1 - z = (1 - u)^(1/b)."""
    z = column(0.02, 0.3, 0.9)
    for a in (0.4, 1.0, 7.0):
        theta, one = column(a).expand(3), torch.ones(3).double()
        torch.testing.assert_close(slopes(z, theta, one)[0], -z * z.log() / a, rtol=1e-10, atol=0)
        torch.testing.assert_close(slopes(z, one, theta)[1], (1 - z) * torch.log1p(-z) / a, rtol=1e-9, atol=0)


@pytest.mark.parametrize("rows", [(), (40_000,)])
def test_slopes_keep_shapes_beyond_one_chunk(rows):
    d = make("beta", rows)
    z = d.sample(noise_of("uniform", (*rows, 2)))
    a, b = slopes(z, d.alpha, d.beta)
    assert a.shape == b.shape == z.shape
    assert bool(((a > 0) & (b < 0)).all())
    if rows:
        last = slopes(z[-1], d.alpha[-1], d.beta[-1])
        torch.testing.assert_close((a[-1], b[-1]), last)


def test_rsample_carries_the_slopes():
    d, leaves = make("beta", (50,)).cut()
    z = d.rsample(noise_of("uniform", (50, 2)))
    weight = noise_of("normal", (50, 2))
    found = torch.autograd.grad((z * weight).sum(), leaves)
    for g, s in zip(found, slopes(z, d.alpha, d.beta), strict=True):
        torch.testing.assert_close(g, weight * s)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 5.0)])
def test_log_prob_and_entropy_are_those_of_the_executed_action(low, high):
    d = make("beta", (6,), 2)
    d = Beta(d.alpha, d.beta, low, high)
    z = d.sample(noise_of("uniform", (6, 2)))
    scale = {"loc": low, "scale": high - low}
    law = stats.beta(d.alpha.numpy(), d.beta.numpy(), **scale)
    np.testing.assert_allclose(d.log_prob(z).numpy(), law.logpdf(d.executed(z).numpy()), rtol=1e-9)
    np.testing.assert_allclose(d.entropy().numpy(), law.entropy(), rtol=1e-9)
    np.testing.assert_allclose(d.executed(z).numpy(), law.ppf(noise_of("uniform", (6, 2)).numpy()), rtol=1e-9)


def test_score_and_entropy_gradient_equal_torchs():
    d, leaves = make("beta", (9,), 2).cut()
    reference = Reference(*leaves)
    z = d.sample(noise_of("uniform", (9, 2)))
    for ours, theirs in ((d.log_prob(z), reference.log_prob(z)), (d.entropy(), reference.entropy())):
        found, exact = torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(theirs.sum(), leaves)
        torch.testing.assert_close(found, exact)


@pytest.mark.statistical
@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1.7, 4.0), (30.0, 2.0)])
def test_draws_have_their_law(a, b):
    n = 50_000
    d = Beta(column(a).expand(n, 1), column(b).expand(n, 1))
    z = d.sample(noise_of("uniform", (n, 1)))[:, 0]
    assert_law(torch.from_numpy(stats.beta(a, b).cdf(z.numpy())), "uniform")


def test_noise_given_is_the_noise():
    d = make("beta", (2000,))
    u = noise_of("uniform", (2000, 2))
    torch.testing.assert_close(d.noise_given(d.sample(u), torch.zeros(2000, 2)), u)


def test_noise_given_is_differentiable_in_the_parameters_and_the_action():
    d, (a, b) = make("beta", (20,)).cut()
    z = d.sample(noise_of("uniform", (20, 2))).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y, v: Beta(x, y).noise_given(v, torch.zeros(20, 2)), (a, b, z), eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_mode_is_where_the_density_is_largest(low):
    a, b = column(2.0, 5.0, 1.5, 1.0, 0.5, 3.0, 0.5, 0.7, 1.0), column(3.0, 1.5, 1.5, 1.0, 2.0, 0.5, 0.7, 0.5, 2.0)
    d = Beta(a, b, low, 1.0)
    mode, grid = d.mode(), torch.linspace(1e-12, 1 - 1e-12, 100_001, dtype=torch.float64)
    density = Beta(a.unsqueeze(-1), b.unsqueeze(-1), low, 1.0).log_prob(grid)  # [9, 100_001]
    best = grid[density.argmax(-1)]
    best[3] = 0.5  # of the uniform
    torch.testing.assert_close(mode, best, rtol=0, atol=2e-5)
    assert bool(((mode > 0) & (mode < 1)).all())


def test_the_modes_gradient_is_finite_everywhere():
    d, leaves = Beta(column(2.0, 1.0, 0.5, 1.0, 3.0), column(3.0, 1.0, 0.5, 2.0, 0.5)).cut()
    found = torch.autograd.grad(d.mode().sum(), leaves)
    torch.testing.assert_close(found[0], column((3 - 1) / 9, 0, 0, 0, 0))
    torch.testing.assert_close(found[1], column(-1 / 9, 0, 0, 0, 0))


@pytest.mark.parametrize("a", [0.02, 0.3, 1.0, 1.7, 60.0, 1e4])
@pytest.mark.parametrize("b", [0.02, 0.3, 1.0, 1.7, 60.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_draw_is_inside_and_everything_is_finite(a, b, dtype):
    step = torch.finfo(dtype).eps / 2
    u = torch.tensor([step, 1e-4, 0.5, 1 - 1e-4, 1 - step], dtype=dtype)
    d, leaves = Beta(torch.full((5,), a, dtype=dtype), torch.full((5,), b, dtype=dtype), -1.0, 1.0).cut()
    z = d.sample(u)
    assert z.dtype == dtype
    assert bool(((z > 0) & (z < 1)).all())
    for value in (d.log_prob(z), d.rsample(u), d.entropy(), d.mode(), d.noise_given(z, u), d.executed(d.rsample(u))):
        assert bool(torch.isfinite(value).all())
        if value.requires_grad:
            assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(value.sum(), leaves))


@pytest.mark.parametrize(("a", "b"), [(1.1, 1.1), (1.7, 2.3), (1.0, 30.0), (200.0, 100.0), (3000.0, 5000.0)])
def test_float32_scores_and_slopes_equal_float64s(a, b):
    u = noise_of("uniform", (2000,)).float().clamp(1e-7, 1 - 1e-7)
    found = []
    for dtype in (torch.float32, torch.float64):
        d, leaves = Beta(torch.full((2000,), a, dtype=dtype), torch.full((2000,), b, dtype=dtype)).cut()
        z = d.rsample(u.to(dtype))
        found.append([*torch.autograd.grad(d.log_prob(z).sum(), leaves), *torch.autograd.grad(z.sum(), leaves)])
    for x, exact in zip(*found, strict=True):
        assert float((x - exact).norm() / exact.norm()) < 1e-3


def test_values_that_are_no_parameters_are_refused_on_plain_objectives():
    for a, b in ((0.0, 1.0), (1.0, -2.0), (math.nan, 1.0)):
        with pytest.raises(PglabError, match="above 0"):
            pglab.estimate_gradient("score_function", Beta(column(a), column(b)), lambda z: z[:, 0], 3)


# -- the exact gradient


@PARAMETERS
@pytest.mark.parametrize("n", [8, 64])
def test_projected_scores_integrate_polynomials_exactly(a, b, n):
    """E z^k is a product of (a + j) / (a + b + j); its logarithmic derivatives are sums."""
    z, w, by_alpha, by_beta = jacobi_scores(a, b, n)
    for k in (1, 3, 6):
        j = np.arange(k)
        moment = np.prod((a + j) / (a + b + j))
        total = np.sum(1 / (a + b + j))
        assert float(w @ z**k) == pytest.approx(moment, rel=1e-9)
        assert float(w @ (by_alpha * z**k)) == pytest.approx(moment * (np.sum(1 / (a + j)) - total), rel=1e-8)
        assert float(w @ (by_beta * z**k)) == pytest.approx(-moment * total, rel=1e-8)


def test_exact_gradient_equals_scipys_quadrature():
    a, b = 1.4, 0.7

    def f(z):
        return np.exp(z) * np.cos(3 * z) + 1 / (1 + z)

    def integral(g, weight: str) -> float:
        return integrate.quad(g, 0, 1, weight=weight, wvar=(a - 1, b - 1))[0] / special.beta(a, b)

    d = pglab.Beta(column(a), column(b))
    found = pglab.exact_gradient(d, lambda z: (torch.exp(z) * torch.cos(3 * z) + 1 / (1 + z))[:, 0])
    for name, weight in (("alpha", "alg-loga"), ("beta", "alg-logb")):  # times log z, times log(1 - z)
        exact = integral(f, weight) - integral(f, "alg") * integral(lambda z: 1.0, weight)
        assert float(found[name]) == pytest.approx(exact, rel=1e-8)


def test_exact_gradient_of_three_dimensions_on_an_interval():
    """E[x0 x1 x2] with x = -1 + 3 z factorises."""
    a, b = column(1.2, 0.8, 3.0), column(2.0, 1.5, 0.6)
    found = pglab.exact_gradient(Beta(a, b, -1.0, 2.0), lambda x: x.prod(-1))
    mean = -1 + 3 * a / (a + b)
    others = mean.prod() / mean
    torch.testing.assert_close(found["alpha"], 3 * b / (a + b) ** 2 * others)
    torch.testing.assert_close(found["beta"], -3 * a / (a + b) ** 2 * others)


def test_exact_gradient_refuses_a_step():
    with pytest.raises(PglabError, match="not smooth"):
        pglab.exact_gradient(Beta(column(2.0), column(1.5)), lambda z: (z[:, 0] > 0.4).double())
