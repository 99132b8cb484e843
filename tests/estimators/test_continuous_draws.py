"""Implicit, antithetic, measure-valued and delta-method estimators: means and variances by quadrature, all of it exact.

Gaussians: Gauss-Hermite over the noise. What has a kink at noise 0 (the sign of the double-sided Maxwell variable), and
Weibull variables, are integrated over half-lines by Gauss-Legendre.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from spine import event_of, hermite, make, noise_of, normal, repeated

import pglab
from pglab.config import Config
from pglab.distributions import Bernoulli, Beta, Categorical, Distribution, Gaussian, SquashedGaussian
from pglab.errors import PglabError
from pglab.estimators import (
    ESTIMATORS,
    Antithetic,
    DeltaMethod,
    DeltaMethodPathwise,
    Draw,
    Estimator,
    Implicit,
    MeasureValued,
    Pathwise,
    ScoreFunction,
    Signal,
)
from pglab.estimators.delta_method import Delta
from pglab.gradients import cotangents
from pglab.lab.oracles import exact_gradient
from pglab.noise import Noise
from pglab.training import Trainer
from pglab.trees import as_dtype

EXACT = {"rtol": 1e-10, "atol": 1e-10}
MEAN, LOG_STD = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([-0.5, 0.2], dtype=torch.float64)
GAUSSIANS = pytest.mark.parametrize("family", [Gaussian, SquashedGaussian])


def polynomial(z: torch.Tensor) -> torch.Tensor:
    """Of two factors, with products and odd powers."""
    x, y = z[..., 0], z[..., 1]
    return x**4 - 2 * x**3 * y + x * y**2 + 3 * y**3 - x * y + 0.5 * x + 2


def quadratic(z: torch.Tensor) -> torch.Tensor:
    x, y = z[..., 0], z[..., 1]
    return 1.5 * x**2 - 2 * x * y + 0.3 * y**2 + x - 3 * y + 5


def smooth(z: torch.Tensor) -> torch.Tensor:
    return torch.sin(2 * z[..., 0] + z[..., 1]) + z[..., 1].square()


def half_normal(n: int = 80, end: float = 13.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights against a standard normal, each half-line apart."""
    x, w = np.polynomial.legendre.leggauss(n)
    x, w = end * (x + 1) / 2, end * w / 2
    w = w * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return torch.from_numpy(np.concatenate([-x, x])), torch.from_numpy(np.concatenate([w, w]))


def weibull(n: int = 80, end: float = 13.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes of an exponential E and weights, so that sqrt(2 E), of density w exp(-w^2 / 2), is integrated smoothly."""
    x, w = np.polynomial.legendre.leggauss(n)
    x, w = end * (x + 1) / 2, end * w / 2
    return torch.from_numpy(x * x / 2), torch.from_numpy(w * x * np.exp(-x * x / 2))


def product(*rules: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A product rule: nodes `[B, len(rules)]`, weights `[B]`."""
    nodes = torch.cartesian_prod(*[x for x, _ in rules])
    weights = torch.cartesian_prod(*[w for _, w in rules])
    return (nodes, weights.prod(-1)) if len(rules) > 1 else (nodes[:, None], weights)


def signal_of(d: Distribution, action: torch.Tensor, f, baseline: float | None = None) -> Signal:
    b = None if baseline is None else torch.full(d.batch_shape, baseline, dtype=torch.float64)
    return Signal(value=f(d.executed(action)), baseline=b, critic=f)


def moments(estimator: Estimator, one: Distribution, f, nodes, weights, extra=None, baseline=None, state=None):
    """Mean and variance of every parameter's estimate over noise `nodes` `[B, D]`."""
    d = repeated(one, len(nodes))
    action = d.sample(nodes)
    draw = Draw(action, nodes, extra or {})
    found, _ = cotangents(estimator, d, draw, signal_of(d, action, f, baseline), state)
    means = [weights @ g for g in found]
    return means, [weights @ (g - m).square() for g, m in zip(found, means, strict=True)]


def assert_exact(found: list[torch.Tensor], exact: dict[str, torch.Tensor], **tolerance: float) -> None:
    for g, right in zip(found, exact.values(), strict=True):
        torch.testing.assert_close(g, right, **(EXACT | tolerance))


# -- f = z^2 with z ~ N(m, s^2): every variance is known

SQUARES = pytest.mark.parametrize(("m", "s"), [(0.5, 1.0), (1.0, 0.1), (-2.0, 3.0), (0.3, 1e-3)])


def square(z: torch.Tensor) -> torch.Tensor:
    return z[..., 0].square()


def of_square(m: float, s: float) -> Gaussian:
    return Gaussian(torch.tensor([m], dtype=torch.float64), torch.tensor([math.log(s)], dtype=torch.float64))


@SQUARES
@pytest.mark.parametrize(
    ("estimator", "variance"),
    [
        (ScoreFunction(), lambda m, s: 15 * s**2 + 14 * m**2 + m**4 / s**2),
        (Antithetic(), lambda m, s: 8 * m**2),
        (Implicit(), lambda m, s: 4 * s**2),
        (DeltaMethod(), lambda m, s: 0.0),
        (DeltaMethodPathwise(), lambda m, s: 0.0),
    ],
    ids=["score_function", "antithetic", "implicit", "delta_method", "delta_method of pathwise"],
)
def test_variance_at_the_mean_of_a_square(estimator, variance, m, s):
    (mean, _), (found, _) = moments(estimator, of_square(m, s), square, *product(hermite(40)))
    assert float(mean) == pytest.approx(2 * m, rel=1e-7)
    assert float(found) == pytest.approx(variance(m, s), rel=1e-6, abs=1e-9)


@SQUARES
def test_coupled_measure_valued_variance_at_the_mean_of_a_square(m, s):
    (exponential, weights), eps = weibull(), 0.3
    nodes = torch.full((len(weights), 1), eps, dtype=torch.float64)
    extra = {"weibull": exponential[:, None]}
    (mean, _), (found, _) = moments(MeasureValued(), of_square(m, s), square, nodes, weights, extra)
    assert float(mean) == pytest.approx(2 * m, rel=1e-7)
    assert float(found) == pytest.approx((16 / math.pi - 4) * m**2, rel=1e-6, abs=1e-9)


@SQUARES
def test_variances_at_log_std_of_a_square(m, s):
    """Mean 2 s^2, whose square is subtracted.

    Antithetic: (m^2 + s^2 x^2)(x^2 - 1), with moments 2, 10 and 78 of (x^2 - 1)^2 times 1, x^2 and x^4.
    Measure-valued: f(M) - f(N) = 2 m s (M - N) + s^2 (M^2 - N^2), and M^2 - N^2 = W^2.
    """
    _, (_, antithetic) = moments(Antithetic(), of_square(m, s), square, *product(hermite(40)))
    by_hand = (78 - 4) * s**4 + 20 * m**2 * s**2 + 2 * m**4
    assert float(antithetic) == pytest.approx(by_hand, rel=1e-8)
    _, (_, optimal) = moments(Antithetic(), of_square(m, s), square, *product(hermite(40)), baseline=m**2 + 5 * s**2)
    assert float(optimal) == pytest.approx((28 - 4) * s**4, rel=1e-5)
    nodes, weights = product(half_normal(), weibull())
    extra = {"weibull": nodes[:, 1:]}
    (_, mean), (_, found) = moments(MeasureValued(), of_square(m, s), square, nodes[:, :1], weights, extra)
    assert float(mean) == pytest.approx(2 * s**2, rel=1e-8)
    # E (M - N)^2 = 3 + 1 - 2 E |M N|, and E |M N| = E M^2 E U = 3 / 2; W^2 = 2 E; the product is odd.
    assert float(found) == pytest.approx(4 * m**2 * s**2 + (8 - 4) * s**4, rel=1e-7)


def test_the_maxwell_noise_has_its_law_and_its_ratio_to_the_normal_is_uniform():
    n = 100_000
    eps, exponential = noise_of("normal", (n, 1)), noise_of("exponential", (n, 1), 1)
    seen = []

    def critic(z: torch.Tensor) -> torch.Tensor:
        seen.append(z)
        return z[..., 0]

    d = Gaussian(torch.zeros(n, 1).double(), torch.zeros(n, 1).double())
    cotangents(MeasureValued(), d, Draw(eps, eps, {"weibull": exponential}), Signal(critic=critic))
    up, down, maxwell, here = seen[0][..., 0]
    torch.testing.assert_close(up, -down)
    assert torch.equal(here, eps[:, 0])
    assert stats.kstest(up.numpy(), stats.weibull_min(2, scale=math.sqrt(2)).cdf).pvalue > 1e-9
    assert stats.kstest(maxwell.abs().numpy(), stats.maxwell.cdf).pvalue > 1e-9
    assert stats.kstest((here / maxwell).numpy(), "uniform").pvalue > 1e-9


# -- means, all parameters

HERMITE_ESTIMATORS = [
    Antithetic(),
    Implicit(),
    DeltaMethod(),
    DeltaMethod(hessian="diagonal"),
    DeltaMethodPathwise(),
    DeltaMethodPathwise(hessian="diagonal"),
]


def label(estimator: Estimator) -> str:
    return " ".join(str(x) for x in estimator.describe().values())


@pytest.mark.parametrize("estimator", HERMITE_ESTIMATORS, ids=label)
@pytest.mark.parametrize("baseline", [None, 1.3])
def test_gaussian_means_by_gauss_hermite(estimator, baseline):
    one = Gaussian(MEAN, LOG_STD)
    found, _ = moments(estimator, one, polynomial, *product(hermite(20), hermite(20)), baseline=baseline)
    assert_exact(found, exact_gradient(one, polynomial))


@pytest.mark.parametrize("estimator", HERMITE_ESTIMATORS, ids=label)
def test_squashed_gaussian_means_by_gauss_hermite(estimator):
    one = SquashedGaussian(MEAN, LOG_STD - 0.7)
    found, _ = moments(estimator, one, polynomial, *product(hermite(120), hermite(120)))
    assert_exact(found, exact_gradient(one, polynomial), rtol=1e-6, atol=1e-6)


@GAUSSIANS
@pytest.mark.parametrize("f", [polynomial, smooth])
def test_measure_valued_means_one_factor_at_a_time(family, f):
    """The other factor's noise is on Gauss-Hermite nodes, the one that is replaced on half-lines with a Weibull's."""
    one = family(MEAN, LOG_STD - 0.5)
    exact = exact_gradient(one, f)
    for factor in (0, 1):
        nodes, weights = product(half_normal(32, 10.0), weibull(32, 10.0), hermite(40))
        eps = nodes[:, [0, 2]] if factor == 0 else nodes[:, [2, 0]]
        extra = {"weibull": nodes[:, [1]].expand(-1, 2)}
        found, _ = moments(MeasureValued(), one, f, eps, weights, extra)
        for g, right in zip(found, exact.values(), strict=True):
            assert float(g[factor]) == pytest.approx(float(right[factor]), rel=1e-6, abs=1e-6)


def test_antithetic_with_a_baseline_per_factor_uses_each_ones_own():
    d = Gaussian(MEAN.expand(3, 2), LOG_STD.expand(3, 2))
    eps, b = normal(3, 2), normal(3, 2, key=1)
    action = d.sample(eps)
    found, _ = cotangents(Antithetic(), d, Draw(action, eps), Signal(baseline=b, critic=polynomial))
    plus, minus = polynomial(d.mean + d.log_std.exp() * eps), polynomial(d.mean - d.log_std.exp() * eps)
    torch.testing.assert_close(found[0], ((plus - minus) / 2)[:, None] * eps / d.log_std.exp())
    torch.testing.assert_close(found[1], (((plus + minus) / 2)[:, None] - b) * (eps**2 - 1))


@GAUSSIANS
@pytest.mark.parametrize("name", ["antithetic", "measure_valued", "delta_method", "delta_method_pathwise", "implicit"])
def test_noise_that_is_not_known_is_found_from_the_action(family, name):
    d = family(normal(6, 2), 0.3 * normal(6, 2, key=1))
    eps = normal(6, 2, key=2)
    estimator, action = ESTIMATORS.get(name)(), d.sample(eps)
    extra = {key: noise_of(kind, (6, *shape)) for key, (kind, shape) in estimator.extra_noise("normal", (2,)).items()}
    signal = signal_of(d, action, smooth)
    known, _ = cotangents(estimator, d, Draw(action, eps, extra), signal)
    found, _ = cotangents(estimator, d, Draw(action, None, extra), signal)
    torch.testing.assert_close(known, found)


# -- implicit


@GAUSSIANS
def test_implicit_is_pathwise_where_the_path_is_explicit(family):
    d = family(normal(9, 2), 0.3 * normal(9, 2, key=1))
    eps = normal(9, 2, key=2)
    draw, signal = Draw(d.sample(eps), eps), Signal(critic=smooth)
    a, b = (cotangents(e, d, draw, signal)[0] for e in (Implicit(), Pathwise()))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("estimator", [Implicit(), Pathwise()], ids=label)
def test_betas_path_is_the_numerical_derivative_of_f_at_the_quantile(estimator):
    """Five-point differences in alpha and beta of f(quantile(u)), by scipy alone."""
    a, b = np.array([[1.4, 2.5], [0.8, 6.0]]), np.array([[2.2, 0.8], [1.0, 3.0]])
    u = noise_of("uniform", (2, 2)).numpy()
    d = Beta(torch.from_numpy(a), torch.from_numpy(b), -1.0, 1.0)
    draw = Draw(d.sample(torch.from_numpy(u)), torch.from_numpy(u))
    found, _ = cotangents(estimator, d, draw, Signal(critic=smooth))

    def f(alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
        return smooth(torch.from_numpy(2 * special.betaincinv(alpha, beta, u) - 1)).numpy()

    for g, (da, db) in zip(found, ((1, 0), (0, 1)), strict=True):
        for factor in (0, 1):
            step = 1e-3 * np.eye(2)[factor]

            def moved(k: int, step=step, da=da, db=db) -> np.ndarray:
                return f(a + k * da * step, b + k * db * step)

            slope = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / 12e-3
            np.testing.assert_allclose(g[:, factor], slope, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("a", "b"), [(1.4, 2.5), (0.6, 0.8), (8.0, 3.0)])
@pytest.mark.parametrize("name", ["implicit", "pathwise", "score_function"])
def test_beta_means_equal_the_exact_gradient(name, a, b):
    """Over the noise by the tanh-sinh rule: scores and slopes are singular at the ends."""
    t = np.linspace(-3.4, 3.4, 241)
    x = np.pi * np.sinh(t)
    u, w = special.expit(x), np.pi * np.cosh(t) * special.expit(x) * special.expit(-x) * (t[1] - t[0])
    inside = 1 - u > 1e-13
    u, w = torch.from_numpy(u[inside])[:, None], torch.from_numpy(w[inside])
    one = Beta(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64))

    def f(z: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * z[..., 0]) + z[..., 0] ** 2

    found, _ = moments(ESTIMATORS.get(name)(), one, f, u, w)
    assert_exact(found, exact_gradient(one, f), rtol=1e-6, atol=1e-8)


def test_implicit_takes_actions_drawn_by_another_policy():
    d, other = make("beta", (7,)), make("beta", (7,), key=30)
    action = other.sample(noise_of("uniform", (7, 2)))
    found, _ = cotangents(Implicit(), d, Draw(action), Signal(critic=smooth))
    exact, _ = cotangents(Pathwise(), d, Draw(action, d.noise_given(action, action)), Signal(critic=smooth))
    torch.testing.assert_close(found, exact)


# -- measure-valued, discrete


def joint(p: torch.Tensor, values) -> torch.Tensor:
    """sum over joint outcomes of products of `p` `[D, K]` times the table `values`."""
    outcomes = itertools.product(range(p.shape[1]), repeat=len(p))
    return sum(torch.stack([p[d, i] for d, i in enumerate(z)]).prod() * values[z] for z in outcomes)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_bernoulli_measure_valued_by_enumeration_and_without_variance_for_one_factor(d):
    one = make("bernoulli", (), d)
    table = normal(*[2] * d, key=5)

    def f(z: torch.Tensor) -> torch.Tensor:
        return table[tuple(z.long().movedim(-1, 0))]

    outcomes = one.enumerate()
    rows, p = repeated(one, len(outcomes)), one.log_prob(outcomes).sum(-1).exp()
    (found,), value = cotangents(MeasureValued(), rows, Draw(outcomes), Signal(critic=f))
    logits = one.logits.clone().requires_grad_()
    probabilities = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)
    (exact,) = torch.autograd.grad(joint(probabilities, table), logits)
    torch.testing.assert_close(p @ found, exact, **EXACT)
    torch.testing.assert_close(value, f(outcomes))
    if d == 1:
        torch.testing.assert_close(found, exact.expand(2, 1), **EXACT)


def categorical_mean(d: Categorical, f) -> torch.Tensor:
    """The mean over the order in which one factor's perturbed categories come (which is all that matters), the other
    factors over their categories: D = 2, exactly."""
    p, k = d.probs(), d.logits.shape[-1]
    total = torch.zeros_like(p)
    eye = torch.eye(k, dtype=torch.float64)
    for factor in (0, 1):
        for order in itertools.permutations(range(k)):
            left, weight = 1.0, torch.ones(()).double()
            for i in order:  # without replacement: Plackett-Luce
                weight = weight * p[factor, i] / max(left, 1e-300) if left > 1e-12 else weight
                left = left - float(p[factor, i])
            if float(weight) == 0:
                continue
            noise = torch.empty(k, dtype=torch.float64)
            for place, i in enumerate(order):
                noise[i] = 10.0 ** (place - 3) * p[factor, i].clamp_min(1e-12)
            for j in range(k):
                if float(p[1 - factor, j]) == 0:
                    continue
                action, drawn = torch.zeros(1, 2, k).double(), torch.ones(1, 2, k).double()
                action[0, factor], action[0, 1 - factor] = eye[order[0]], eye[j]
                drawn[0, factor] = noise
                (g,), _ = cotangents(MeasureValued(), repeated(d, 1), Draw(action, drawn), Signal(critic=f))
                total[factor] += weight * p[1 - factor, j] * g[0, factor]
    return total


@pytest.mark.parametrize("masked", [False, True])
def test_categorical_measure_valued_by_enumeration_of_the_orders(masked):
    mask = torch.tensor([[True, True, False], [True, True, True]]) if masked else None
    one = Categorical(normal(2, 3), mask)
    table = normal(3, 3, key=5)

    def f(z: torch.Tensor) -> torch.Tensor:
        return torch.einsum("...i,ij,...j->...", z[..., 0, :], table, z[..., 1, :])

    logits = one.logits.clone().requires_grad_()
    x = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
    (exact,) = torch.autograd.grad(joint(torch.softmax(x, -1), table), logits)
    torch.testing.assert_close(categorical_mean(one, f), exact, rtol=1e-9, atol=1e-9)


def test_categorical_measure_valued_by_hand():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    d = Categorical(p.log()[None, None])
    noise = torch.tensor([[[1.0, 0.3, 0.5]]], dtype=torch.float64)  # E / p: 2, 1, 2.5: the second, then the first
    f = torch.tensor([7.0, -1.0, 4.0], dtype=torch.float64)
    (found,), _ = cotangents(MeasureValued(), d, Draw(d.sample(noise), noise), Signal(critic=lambda a: (a @ f)[..., 0]))
    exact = [0.25 * (7 - -1), 0.21 * (-1 - 7), 0.16 * (4 - -1)]
    torch.testing.assert_close(found[0, 0], torch.tensor(exact, dtype=torch.float64))


def test_measure_valued_is_finite_where_f_is_not_on_impossible_categories():
    mask = torch.tensor([[True, False, False], [True, True, False]])
    d = Categorical(normal(4, 2, 3), mask)
    noise = noise_of("exponential", (4, 2, 3))

    def f(a: torch.Tensor) -> torch.Tensor:
        return torch.where((a * ~mask).sum((-1, -2)) > 0, torch.nan, a[..., 0].sum(-1))

    (found,), _ = cotangents(MeasureValued(), d, Draw(d.sample(noise), noise), Signal(critic=f))
    assert bool(torch.isfinite(found).all())
    assert bool((found[:, ~mask] == 0).all())
    assert bool((found[:, 0] == 0).all())  # one category is left
    assert bool((found[:, 1, :2] != 0).all())


# -- delta method

DELTA: dict[str, type[Delta]] = {"score_function": DeltaMethod, "pathwise": DeltaMethodPathwise}


@pytest.mark.parametrize("of", ["score_function", "pathwise"])
@pytest.mark.parametrize("coefficient", ["one", "learned"])
def test_delta_method_has_no_variance_on_a_quadratic(of, coefficient):
    one = Gaussian(MEAN, LOG_STD)
    nodes, weights = product(hermite(12), hermite(12))
    estimator = DELTA[of](coefficient=coefficient)
    state = trained(estimator, one, quadratic, 3) if coefficient == "learned" else None
    means, variances = moments(estimator, one, quadratic, nodes, weights, state=state)
    assert_exact(means, exact_gradient(one, quadratic))
    if coefficient == "one":
        assert all(float(v.max()) < 1e-20 for v in variances)


def trained(estimator: Delta, one: Distribution, f, updates: int) -> dict:
    """Its state after batches that are exact rules over the noise: what is learned is the exact optimum."""
    nodes, weights = product(hermite(60), hermite(60))
    d = repeated(one, len(nodes))
    action = d.sample(nodes)
    state = as_dtype(estimator.initial(Noise.of_seeds([0]), event_of(d), 0), torch.float64)
    for _ in range(updates):
        state, _ = estimator.update(state, d, Draw(action, nodes), signal_of(d, action, f), weights)
    return state


@GAUSSIANS
@pytest.mark.parametrize("of", ["score_function", "pathwise"])
def test_the_learned_coefficient_is_the_one_of_least_variance(family, of):
    one, rule = family(MEAN, LOG_STD - 0.3), product(hermite(60), hermite(60))
    estimator = DELTA[of](coefficient="learned")
    state = trained(estimator, one, smooth, 3)
    _, (by_mean, by_log_std) = moments(estimator, one, smooth, *rule, state=state)
    best = [float(b) for b in estimator.learned(state)]
    for change in (-0.05, 0.05):
        for i, (p, least) in enumerate((("mean", by_mean), ("log_std", by_log_std))):
            other = {"moments": dict(state["moments"])}
            other["moments"][f"product_{p}"] = state["moments"][f"product_{p}"] * (best[i] + change) / best[i]
            _, variances = moments(estimator, one, smooth, *rule, state=other)
            assert float(variances[i].sum()) > float(least.sum())
    _, plain = moments(ESTIMATORS.get(of)(), one, smooth, *rule)
    assert float(by_mean.sum()) < float(plain[0].sum())
    assert float(by_log_std.sum()) < float(plain[1].sum())


@pytest.mark.parametrize("of", ["score_function", "pathwise"])
@pytest.mark.parametrize("hessian", ["full", "diagonal"])
def test_the_control_variate_has_mean_zero_for_any_critic(of, hessian):
    one = Gaussian(MEAN, LOG_STD)
    nodes, weights = product(hermite(40), hermite(40))
    d = repeated(one, len(nodes))
    action = d.sample(nodes)
    _, controls, _ = DELTA[of](hessian=hessian).parts(d, Draw(action, nodes), signal_of(d, action, smooth))
    for c in controls:
        torch.testing.assert_close(weights @ c, torch.zeros(2).double(), **EXACT)
        assert float((weights @ c.square()).min()) > 1e-3


def test_values_that_are_not_the_critics_keep_their_own_mean():
    """As in training, where the value is a return and the critic is learned."""
    one = Gaussian(MEAN, LOG_STD)
    nodes, weights = product(hermite(40), hermite(40))
    d = repeated(one, len(nodes))
    action = d.sample(nodes)
    found, _ = cotangents(DeltaMethod(), d, Draw(action, nodes), Signal(value=polynomial(action), critic=smooth))
    assert_exact([weights @ g for g in found], exact_gradient(one, polynomial))


def test_the_expansions_derivatives_by_hand_before_tanh():
    d = SquashedGaussian(normal(3, 2), torch.zeros(3, 2).double())
    value, slope, curvature = DeltaMethod().taylor(d, lambda y: y[..., 0] ** 2 * y[..., 1])
    t = torch.tanh(d.mean)
    first, second = 1 - t * t, -2 * t * (1 - t * t)
    x, y = t[:, 0], t[:, 1]
    torch.testing.assert_close(value, x * x * y)
    torch.testing.assert_close(slope, torch.stack([2 * x * y * first[:, 0], x * x * first[:, 1]], -1))
    torch.testing.assert_close(curvature[:, 0, 0], 2 * y * first[:, 0] ** 2 + 2 * x * y * second[:, 0])
    torch.testing.assert_close(curvature[:, 1, 1], x * x * second[:, 1])
    torch.testing.assert_close(curvature[:, 0, 1], 2 * x * first[:, 0] * first[:, 1])
    torch.testing.assert_close(curvature[:, 1, 0], curvature[:, 0, 1])


@pytest.mark.parametrize("of", ["score_function", "pathwise"])
def test_a_critic_without_curvature_is_expanded_to_first_order(of):
    d = Gaussian(normal(5, 2), normal(5, 2, key=1))
    eps = normal(5, 2, key=2)
    action = d.sample(eps)
    found, _ = cotangents(DELTA[of](), d, Draw(action, eps), signal_of(d, action, lambda z: 3 * z[..., 0] - z[..., 1]))
    torch.testing.assert_close(found[0], torch.tensor([[3.0, -1.0]]).double().expand(5, 2))
    torch.testing.assert_close(found[1], torch.zeros(5, 2).double())


def test_members_learn_coefficients_of_their_own():
    rows = (2, 3, 4)
    d = make("gaussian", rows)
    eps, weight = normal(*rows, 2, key=5), torch.full(rows, 1 / 8, dtype=torch.float64)
    estimator = DeltaMethod(coefficient="learned")
    action = d.sample(eps)
    signal = signal_of(d, action, smooth)
    start = as_dtype(estimator.initial(Noise.of_seeds([0, 1, 2]), (2,), 0), torch.float64)
    first, info = estimator.update(start, d, Draw(action, eps), signal, weight)
    assert {k: v.shape for k, v in info.items()} == {f"estimator/coefficient_{p}": (3,) for p in d.parameters}
    value = signal.value.clone()
    value[:, 1] += 3
    second, _ = estimator.update(start, d, Draw(action, eps), Signal(value, critic=smooth), weight)
    for a, b in zip(estimator.learned(first), estimator.learned(second), strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert bool((a[1] != b[1]).all())
    weight[:, 2] = 0  # rows that do not exist
    third, _ = estimator.update(first, d, Draw(action, eps), Signal(value, critic=smooth), weight)
    for a, b in zip(estimator.learned(first), estimator.learned(third), strict=True):
        torch.testing.assert_close(a[2], b[2])
        assert bool((a[1] != b[1]).all())


@pytest.mark.parametrize("agent", ["on_policy", "actor_critic"])
@pytest.mark.parametrize("name", ["delta_method", "delta_method_pathwise"])
def test_a_learned_critic_is_differentiated_twice(agent, name):
    more = {"replay": {"batch_size": 6, "warmup": 6}} if agent == "actor_critic" else {"steps": 8}
    config = {
        "env": {"id": "Pendulum-v1", "num_envs": 2},
        "agent": {"name": agent, "critic": {"activation": "tanh", "hidden": [8]}, **more},
        "policy": {"hidden": [4]},
        "estimator": {"name": name, "coefficient": "learned"},
        "seeds": 2,
    }
    trainer = Trainer(Config.read(config))
    for _ in range(8):
        metrics, _ = trainer.agent.update(trainer.env)
    assert bool(torch.isfinite(trainer.agent.policy_parameters.flat).all())
    assert metrics["estimator/coefficient_mean"].shape == (2,)
    assert bool((trainer.agent.estimator_learned["moments"]["square_log_std"] > 0).all())


# -- what is served, and extremes


@pytest.mark.parametrize("name", ["antithetic", "measure_valued", "delta_method", "delta_method_pathwise"])
def test_beta_is_refused_where_an_estimator_is_made_for_gaussians(name):
    d = make("beta", (3,))
    u = noise_of("uniform", (3, 2))
    with pytest.raises(PglabError, match=r"does not serve Beta.*Gaussian"):
        cotangents(ESTIMATORS.get(name)(), d, Draw(d.sample(u), u), Signal(torch.ones(3), critic=smooth))
    with pytest.raises(PglabError, match="implicit"):
        pglab.estimate_gradient(name, make("beta", ()), smooth, 3)
    config = {"env": {"id": "Pendulum-v1"}, "policy": {"distribution": "beta"}, "estimator": name}
    with pytest.raises(PglabError, match=r"does not serve .*Pendulum-v1's continuous actions as Beta.*Gaussian"):
        Trainer(Config.read(config))


def test_served_names_families_only_where_not_all_are():
    assert MeasureValued.served() == "binary, continuous (Gaussian, SquashedGaussian), discrete"
    assert ScoreFunction.served() == "binary, continuous, discrete"


@pytest.mark.parametrize("log_std", [-20.0, -3.0, 2.0])
@pytest.mark.parametrize("estimator", [*HERMITE_ESTIMATORS, MeasureValued()], ids=label)
@GAUSSIANS
def test_gaussian_extremes_are_finite_in_float32(family, estimator, log_std):
    for mean, size in itertools.product((-30.0, 0.1, 30.0), (-6.0, 0.0, 6.0)):
        d = family(torch.full((1, 2), mean), torch.full((1, 2), log_std))
        eps = torch.full((1, 2), size)
        draw = Draw(d.sample(eps), eps, {"weibull": torch.full((1, 2), 80.0)})
        found, value = cotangents(estimator, d, draw, signal_of32(d, draw.action))
        assert all(bool(torch.isfinite(g).all()) for g in [*found, value])


def signal_of32(d: Distribution, action: torch.Tensor) -> Signal:
    return Signal(value=smooth(d.executed(action)), critic=smooth)


@pytest.mark.parametrize("log_std", [-4.0, 0.0, 2.0])
@pytest.mark.parametrize("estimator", [*HERMITE_ESTIMATORS, MeasureValued()], ids=label)
def test_gaussian_estimates_in_float32_equal_float64s(estimator, log_std):
    eps, exponential = normal(50, 2).float(), noise_of("exponential", (50, 2)).float()
    found = []
    for dtype in (torch.float32, torch.float64):
        d = Gaussian(normal(50, 2, key=3).to(dtype), torch.full((50, 2), log_std, dtype=dtype))
        draw = Draw(d.sample(eps.to(dtype)), eps.to(dtype), {"weibull": exponential.to(dtype)})
        found.append(cotangents(estimator, d, draw, signal_of32(d, draw.action))[0])
    for x, exact in zip(*found, strict=True):
        assert float((x - exact).norm() / exact.norm().clamp_min(1e-3)) < 1e-3


@pytest.mark.parametrize("size", [1.0, 20.0, 50.0])
@pytest.mark.parametrize("cls", [Bernoulli, Categorical])
def test_discrete_measure_valued_in_float32_equals_float64s(cls, size):
    shape = (30, 2) if cls is Bernoulli else (30, 2, 4)
    logits = size * normal(*shape)
    noise = noise_of(cls.noise_kind, shape)
    weight, found = normal(*shape[1:], key=4), []
    for dtype in (torch.float32, torch.float64):
        d = cls(logits.to(dtype))

        def f(a: torch.Tensor, d=d, dtype=dtype) -> torch.Tensor:
            return torch.sin((a * weight.to(dtype)).flatten(-d.event_ndim).sum(-1))

        draw = Draw(cls(logits).sample(noise).to(dtype), noise.to(dtype))
        found.append(cotangents(MeasureValued(), d, draw, Signal(critic=f))[0][0])
    assert bool(torch.isfinite(found[0]).all())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-3
    large = found[1].abs() > 1e-30  # row by row: likely categories lose nothing to 1 - p
    rows = (found[0] - found[1])[large] / found[1][large]
    assert float(rows.abs().max()) < 1e-3


@pytest.mark.parametrize("k", [1, 1000])
def test_one_and_a_thousand_categories(k):
    logits = normal(3, 1, k)
    d, noise = Categorical(logits), noise_of("exponential", (3, 1, k))
    values = normal(k, key=9)
    (found,), value = cotangents(
        MeasureValued(), d, Draw(d.sample(noise), noise), Signal(critic=lambda a: (a @ values)[..., 0])
    )
    torch.testing.assert_close(value, (d.sample(noise) @ values)[..., 0])
    if k == 1:
        assert bool((found == 0).all())
        return
    winner = d.sample(noise)[:, 0].argmax(-1)
    p = d.probs()[:, 0]
    expected = p * (1 - p) * (values - values[winner][:, None])
    others = torch.ones(3, k, dtype=torch.bool).scatter_(1, winner[:, None], False)
    torch.testing.assert_close(found[:, 0][others], expected[others])
