"""The mean of every unbiased estimator's cotangent is the exact gradient of E[f].

Discrete: the estimate is averaged over all actions with their probabilities, exactly. Continuous: over Gauss-Hermite
nodes, exact for the polynomials used. The exact gradient comes from plain autograd on softmax, sigmoid or closed forms.
One statistical test per estimator and family then goes the way of training, from noise to action to cotangent.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from spine import (
    assert_mean,
    event_of,
    hermite,
    make,
    noise_of,
    normal,
    pairs,
    repeated,
)

from pglab.distributions import Bernoulli, Beta, Categorical, Distribution, Gaussian, SquashedGaussian
from pglab.estimators import ESTIMATORS, Draw, Enumeration, Pathwise, ScoreFunction, Signal
from pglab.gradients import cotangents
from pglab.noise import Noise
from pglab.trees import as_dtype

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def table_critic(distribution: Distribution, key: int = 3):
    """f that is any table over the joint outcomes (one-hot inputs), extended multilinearly."""
    outcomes = distribution.enumerate()
    values = normal(len(outcomes), key=key)

    def f(action: torch.Tensor) -> torch.Tensor:
        a = action if isinstance(distribution, Categorical) else torch.stack([1 - action, action], -1)
        o = outcomes if isinstance(distribution, Categorical) else torch.stack([1 - outcomes, outcomes], -1)
        weights = torch.stack([(a * row).sum(-1).prod(-1) for row in o], -1)
        return weights @ values

    return f, values


def exact_discrete(distribution: Distribution, values: torch.Tensor) -> torch.Tensor:
    """The gradient at the logits of sum_z p(z) f(z), written out with products of softmaxes or sigmoids."""
    logits = distribution.logits.detach().clone().requires_grad_()
    if isinstance(distribution, Categorical):
        x = logits if distribution.mask is None else logits.masked_fill(~distribution.mask, -torch.inf)
        p = torch.softmax(x, -1)
    else:
        p = torch.stack([1 - torch.sigmoid(logits), torch.sigmoid(logits)], -1)
    joint = [
        torch.stack([p[d, i] for d, i in enumerate(z)]).prod()
        for z in itertools.product(range(p.shape[-1]), repeat=len(p))
    ]
    return torch.autograd.grad((torch.stack(joint) * values).sum(), logits)[0]


def every_action(distribution: Distribution):
    """The distribution with one row per joint outcome, the outcomes, and their probabilities."""
    outcomes = distribution.enumerate()
    rows = repeated(distribution, len(outcomes))
    return rows, outcomes, distribution.log_prob(outcomes).sum(-1).exp()


DISCRETE = [("categorical", d, k, m) for d, k in [(1, 2), (1, 3), (1, 10), (2, 2), (2, 3)] for m in (False, True)]
DISCRETE += [("bernoulli", d, 2, False) for d in (1, 2, 4)]
DISCRETE_CASES = pytest.mark.parametrize(("family", "d", "k", "masked"), DISCRETE)


@DISCRETE_CASES
@pytest.mark.parametrize("baseline", ["none", "constant", "per factor"])
def test_score_function_over_all_actions(family, d, k, masked, baseline):
    one = make(family, (), d, k, masked=masked)
    f, values = table_critic(one)
    rows, outcomes, p = every_action(one)
    b = {"none": None, "constant": torch.full((len(p),), 0.7), "per factor": normal(d, key=9).expand(len(p), d)}[
        baseline
    ]
    (found,), _ = cotangents(ScoreFunction(), rows, Draw(outcomes), Signal(value=f(outcomes), baseline=b))
    torch.testing.assert_close(torch.einsum("m,m...->...", p, found), exact_discrete(one, values), **EXACT)


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_a_factors_baseline_may_read_the_other_factors_but_not_its_own(family):
    one = make(family, (), 2, 3)
    f, values = table_critic(one)
    rows, outcomes, p = every_action(one)
    code = outcomes.flatten(1)[:, : outcomes[0].numel() // 2] @ normal(outcomes[0].numel() // 2)  # of factor 0
    other = outcomes.flatten(1)[:, outcomes[0].numel() // 2 :] @ normal(outcomes[0].numel() // 2, key=1)  # of factor 1
    signal = Signal(value=f(outcomes), baseline=torch.stack([other, code], -1))
    (found,), _ = cotangents(ScoreFunction(), rows, Draw(outcomes), signal)
    torch.testing.assert_close(torch.einsum("m,m...->...", p, found), exact_discrete(one, values), **EXACT)
    swapped = Signal(value=f(outcomes), baseline=torch.stack([code, other], -1))
    (wrong,), _ = cotangents(ScoreFunction(), rows, Draw(outcomes), swapped)
    assert not torch.allclose(torch.einsum("m,m...->...", p, wrong), exact_discrete(one, values), atol=1e-3)


@DISCRETE_CASES
def test_enumeration_is_exact_without_variance(family, d, k, masked):
    one = make(family, (), d, k, masked=masked)
    f, values = table_critic(one)
    rows = repeated(one, 3)
    action = rows.sample(noise_of(rows.noise_kind, tuple(rows.noise_shape)))
    (found,), value = cotangents(Enumeration(), rows, Draw(action), Signal(critic=f))
    torch.testing.assert_close(found, exact_discrete(one, values).expand_as(found), **EXACT)
    torch.testing.assert_close(value, (values * one.log_prob(one.enumerate()).sum(-1).exp()).sum().expand(3), **EXACT)


@DISCRETE_CASES
def test_importance_weighted_score_function_over_all_of_the_behaviours_actions(family, d, k, masked):
    one, behaviour = make(family, (), d, k, masked=masked), make(family, (), d, k, masked=masked, key=30)
    if masked:
        behaviour = Categorical(behaviour.logits, one.mask)
    f, values = table_critic(one)
    rows, outcomes, _ = every_action(one)
    log_p = behaviour.log_prob(outcomes).sum(-1)
    signal = Signal(value=f(outcomes), baseline=torch.full_like(log_p, 0.4), behaviour_log_prob=log_p)
    (found,), _ = cotangents(ScoreFunction(), rows, Draw(outcomes), signal)
    torch.testing.assert_close(torch.einsum("m,m...->...", log_p.exp(), found), exact_discrete(one, values), **EXACT)


def test_at_ratio_1_the_importance_weight_changes_nothing():
    d = make("categorical", (50,))
    action = d.sample(noise_of("exponential", (50, 2, 3)))
    plain = Signal(value=normal(50), baseline=normal(50, key=1))
    weighted = Signal(value=plain.value, baseline=plain.baseline, behaviour_log_prob=d.log_prob(action).sum(-1))
    a, b = (cotangents(ScoreFunction(), d, Draw(action), s)[0][0] for s in (plain, weighted))
    torch.testing.assert_close(a, b)


def test_score_function_by_hand_for_one_categorical_row():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    d = Categorical(p.log()[None, None])
    action = torch.tensor([[[0.0, 1.0, 0.0]]], dtype=torch.float64)
    signal = Signal(
        value=torch.tensor([5.0], dtype=torch.float64),
        baseline=torch.tensor([2.0], dtype=torch.float64),
        behaviour_log_prob=torch.tensor([0.6], dtype=torch.float64).log(),
    )
    (found,), _ = cotangents(ScoreFunction(), d, Draw(action), signal)
    torch.testing.assert_close(
        found[0, 0], (0.3 / 0.6) * (5 - 2) * (torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64) - p)
    )


# E[f] for f = sum_d z_d^2 + z_0 z_1 and independent normals: sum (m^2 + s^2) + m_0 m_1.
MEAN, LOG_STD = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([-0.5, 0.2], dtype=torch.float64)
GAUSSIAN_GRADIENT = [2 * MEAN + MEAN.flip(0), 2 * (2 * LOG_STD).exp()]


def polynomial(z: torch.Tensor) -> torch.Tensor:
    return z.square().sum(-1) + z[..., 0] * z[..., 1]


def grid(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """A product rule over two normals: nodes `[n, 2]` and weights."""
    x, w = hermite(n)
    return torch.cartesian_prod(x, x), torch.outer(w, w).flatten()


@pytest.mark.parametrize("estimator", [ScoreFunction(), Pathwise()], ids=lambda e: e.name)
@pytest.mark.parametrize("baseline", [None, 1.3])
def test_gaussian_by_gauss_hermite(estimator, baseline):
    nodes, weights = grid()
    d = repeated(Gaussian(MEAN, LOG_STD), len(nodes))
    action = d.sample(nodes)
    b = None if baseline is None else torch.full((len(nodes),), baseline, dtype=torch.float64)
    found, _ = cotangents(
        estimator, d, Draw(action, nodes), Signal(value=polynomial(action), baseline=b, critic=polynomial)
    )
    for grad, exact in zip(found, GAUSSIAN_GRADIENT, strict=True):
        torch.testing.assert_close(weights @ grad, exact, **EXACT)


def test_importance_weighted_gaussian_by_gauss_hermite():
    nodes, weights = grid()
    behaviour = repeated(Gaussian(MEAN + 0.2, LOG_STD + 0.1), len(nodes))
    action = behaviour.sample(nodes)
    d = repeated(Gaussian(MEAN, LOG_STD), len(nodes))
    signal = Signal(value=polynomial(action), behaviour_log_prob=behaviour.log_prob(action, nodes).sum(-1))
    found, _ = cotangents(ScoreFunction(), d, Draw(action), signal)
    for grad, exact in zip(found, GAUSSIAN_GRADIENT, strict=True):
        torch.testing.assert_close(weights @ grad, exact, rtol=1e-6, atol=1e-6)


def squashed_gradient(mean: torch.Tensor, log_std: torch.Tensor, f) -> list[torch.Tensor]:
    """By central differences of a trapezoid rule over the pre-squash density: nothing of pglab's in it."""
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)

    def expectation(m: float, s: float) -> float:
        u = m + torch.exp(torch.tensor(s, dtype=torch.float64)) * z
        return float(torch.trapezoid(f(torch.tanh(u)) * torch.exp(-0.5 * z * z), z) / (2 * torch.pi) ** 0.5)

    h, pairs_ = 1e-4, list(zip(mean.tolist(), log_std.tolist(), strict=True))
    by_mean = [(expectation(m + h, s) - expectation(m - h, s)) / (2 * h) for m, s in pairs_]
    by_std = [(expectation(m, s + h) - expectation(m, s - h)) / (2 * h) for m, s in pairs_]
    return [torch.tensor(by_mean, dtype=torch.float64), torch.tensor(by_std, dtype=torch.float64)]


def of_each(y: torch.Tensor) -> torch.Tensor:
    return y.square() + 0.5 * y


@pytest.mark.parametrize("estimator", [ScoreFunction(), Pathwise()], ids=lambda e: e.name)
def test_squashed_gaussian_by_quadrature(estimator):
    nodes, weights = grid(150)
    mean, log_std = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([-0.8, -0.6], dtype=torch.float64)
    d = repeated(SquashedGaussian(mean, log_std), len(nodes))
    action = d.sample(nodes)

    def critic(y: torch.Tensor) -> torch.Tensor:
        return of_each(y).sum(-1)

    found, _ = cotangents(estimator, d, Draw(action, nodes), Signal(value=critic(torch.tanh(action)), critic=critic))
    for grad, exact in zip(found, squashed_gradient(mean, log_std, of_each), strict=True):
        torch.testing.assert_close(weights @ grad, exact, rtol=1e-6, atol=1e-6)


BETA = torch.tensor([[1.4, 2.5], [2.2, 0.8]], dtype=torch.float64)


def beta_gradient() -> list[torch.Tensor]:
    """Of E[polynomial] by autograd through the moments, E z = a / (a + b) and E z^2 = E z (a + 1) / (a + b + 1)."""
    a, b = (x.clone().requires_grad_() for x in BETA)
    first = a / (a + b)
    value = (first * (a + 1) / (a + b + 1)).sum() + first[0] * first[1]
    return list(torch.autograd.grad(value, [a, b]))


@functools.cache
def many_draws(family: str, n: int):
    """The problem of a family, its draws on n rows and their noise: the same for every estimator."""
    if family == "beta":
        one, f = Beta(*BETA), polynomial
        exact = beta_gradient()
    elif family in ("gaussian", "squashed_gaussian"):
        log_std = torch.tensor([-0.8, -0.6], dtype=torch.float64)
        one = (Gaussian if family == "gaussian" else SquashedGaussian)(MEAN, log_std)
        if family == "gaussian":
            f, exact = polynomial, [GAUSSIAN_GRADIENT[0], 2 * (2 * one.log_std).exp()]
        else:
            f, exact = (lambda y: of_each(y).sum(-1)), squashed_gradient(one.mean, one.log_std, of_each)
    else:
        one = make(family, ())
        f, values = table_critic(one)
        exact = [exact_discrete(one, values)]
    d = repeated(one, n)
    noise = noise_of(d.noise_kind, tuple(d.noise_shape), 8)
    return f, exact, d, noise, d.sample(noise)


@pytest.mark.statistical
@pytest.mark.parametrize(("name", "family"), [(n, f) for n, f in pairs() if ESTIMATORS.get(n).unbiased])
def test_from_noise_to_cotangent_as_in_training(name, family):
    """Every registered estimator that declares itself unbiased, with a baseline where it takes one, at its defaults."""
    n = 200_000
    estimator = ESTIMATORS.get(name)()
    f, exact, d, noise, action = many_draws(family, n)
    extra = {
        key: noise_of(kind, (n, *shape), 100 + i)
        for i, (key, (kind, shape)) in enumerate(sorted(estimator.extra_noise(d.noise_kind, event_of(d)).items()))
    }
    value = f(d.executed(action))
    baseline = torch.full((n,), 0.3, dtype=torch.float64) if estimator.uses_baseline else None
    learned = as_dtype(estimator.initial(Noise.of_seeds([0]), event_of(d), 0), torch.float64)
    state = {field: getattr(estimator, field)[0].start for field in estimator.scheduled} | learned
    found, _ = cotangents(estimator, d, Draw(action, noise, extra), Signal(value, baseline, f), state)
    for grad, right in zip(found, exact, strict=True):
        assert_mean(grad, right, resolution=0.1)


def test_pathwise_at_the_mode_is_the_gradient_of_f_there():
    mean, log_std = normal(5, 2), normal(5, 2, key=1)
    noise = normal(5, 2, key=2)
    for cls, slope in ((Gaussian, 1.0), (SquashedGaussian, 1 - torch.tanh(mean).square())):
        d = cls(mean, log_std)
        at = mean if cls is Gaussian else torch.tanh(mean)
        found, _ = cotangents(Pathwise(at_mode=True), d, Draw(d.sample(noise)), Signal(critic=polynomial))
        torch.testing.assert_close(found[0], (2 * at + at.flip(-1)) * slope)
        assert torch.equal(found[1], torch.zeros(5, 2).double())


def test_bernoulli_and_two_category_gradients_agree():
    logits = normal(1, 1)
    f = torch.tensor([0.3, 2.0], dtype=torch.float64)
    b, c = Bernoulli(logits), Categorical(torch.stack([torch.zeros_like(logits), logits], -1))
    one = torch.ones(1, 1).double()
    (a,), _ = cotangents(Enumeration(), b, Draw(one), Signal(critic=lambda z: f[0] + (f[1] - f[0]) * z.sum(-1)))
    (e,), _ = cotangents(
        Enumeration(), c, Draw(torch.stack([1 - one, one], -1)), Signal(critic=lambda z: (z @ f).sum(-1))
    )
    torch.testing.assert_close(e[..., 1], a)
    torch.testing.assert_close(e[..., 0], -a)
