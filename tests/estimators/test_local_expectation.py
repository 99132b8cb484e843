"""Local expectation gradients: exact by enumeration of the drawn actions, and the score function's expectation over each
factor."""

from __future__ import annotations

import math

import pytest
import torch
from spine import make, noise_of, normal, repeated
from test_unbiased import DISCRETE_CASES, every_action, exact_discrete, table_critic

from pglab.distributions import Bernoulli, Categorical
from pglab.estimators import Draw, ScoreFunction, Signal
from pglab.estimators.local_expectation import LocalExpectation
from pglab.gradients import cotangents

EXACT = {"rtol": 1e-10, "atol": 1e-12}


@DISCRETE_CASES
def test_the_mean_over_all_actions_is_the_exact_gradient(family, d, k, masked):
    one = make(family, (), d, k, masked=masked)
    f, values = table_critic(one)
    rows, outcomes, p = every_action(one)
    (g,), _ = cotangents(LocalExpectation(), rows, Draw(outcomes), Signal(critic=f))
    possible = p > 0
    torch.testing.assert_close(
        torch.einsum("m,m...->...", p[possible], g[possible]), exact_discrete(one, values), **EXACT
    )
    if d == 1:
        torch.testing.assert_close(g[possible], exact_discrete(one, values).expand_as(g[possible]), **EXACT)


@pytest.mark.parametrize(("family", "d", "k"), [("categorical", 4, 3), ("categorical", 2, 10), ("categorical", 2, 1)])
def test_more_factors(family, d, k):
    one = make(family, (), d, k)
    f, values = table_critic(one)
    rows, outcomes, p = every_action(one)
    (g,), _ = cotangents(LocalExpectation(), rows, Draw(outcomes), Signal(critic=f))
    torch.testing.assert_close(torch.einsum("m,m...->...", p, g), exact_discrete(one, values), **EXACT)
    assert k > 1 or torch.equal(g, torch.zeros_like(g))


@pytest.mark.parametrize(("family", "d", "k"), [("categorical", 2, 3), ("bernoulli", 4, 2)])
def test_it_is_the_score_functions_expectation_over_each_factor_given_the_others(family, d, k):
    one = make(family, (), d, k)
    f, _ = table_critic(one)
    rows, outcomes, _ = every_action(one)
    (local,), _ = cotangents(LocalExpectation(), rows, Draw(outcomes), Signal(critic=f))
    (score,), _ = cotangents(ScoreFunction(), rows, Draw(outcomes), Signal(value=f(outcomes)))
    p = rows.log_prob(outcomes).exp()  # [M, D]
    for factor in range(d):
        # All actions that share the other factors are K rows apart in the enumeration, in steps of K^(D - 1 - factor).
        step = k ** (d - 1 - factor)
        index = torch.arange(k**d).view(-1, k, step).transpose(1, 2).reshape(-1, k)
        given = torch.einsum("gk,gk...->g...", p[index, factor], score[index, factor])
        for place in range(k):
            torch.testing.assert_close(local[index[:, place], factor], given, **EXACT)


def test_a_sum_over_factors_leaves_no_variance():
    one = make("categorical", (), 3, 4)
    c = normal(3, 4)
    rows, outcomes, _ = every_action(one)
    (g,), _ = cotangents(LocalExpectation(), rows, Draw(outcomes), Signal(critic=lambda a: (a * c).sum((-2, -1))))
    torch.testing.assert_close(g, g[:1].expand_as(g), **EXACT)
    p = one.probs()
    torch.testing.assert_close(g[0], p * (c - (p * c).sum(-1, keepdim=True)), **EXACT)


@pytest.mark.parametrize(
    ("family", "d", "k", "count"), [("categorical", 3, 4, 10), ("bernoulli", 5, 2, 6), ("categorical", 2, 1, 1)]
)
def test_the_number_of_evaluations(family, d, k, count):
    one = make(family, (7,), d, k)
    seen = []

    def critic(a: torch.Tensor) -> torch.Tensor:
        seen.append(len(a))
        return a.flatten(2).sum(-1)

    cotangents(LocalExpectation(), one, Draw(one.mode()), Signal(critic=critic))
    assert seen == [count]
    assert LocalExpectation().width(one) == count


def test_by_hand_for_two_bits():
    """p = (0.8, 0.3), f(z) = z0 + 2 z0 z1, drawn (1, 0): the differences are f(1,0) - f(0,0) = 1, f(1,1) - f(1,0) = 2."""
    d = Bernoulli(torch.logit(torch.tensor([[0.8, 0.3]], dtype=torch.float64)))
    draw = Draw(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    (g,), _ = cotangents(LocalExpectation(), d, draw, Signal(critic=lambda a: a[..., 0] * (1 + 2 * a[..., 1])))
    torch.testing.assert_close(g, torch.tensor([[0.8 * 0.2 * 1, 0.3 * 0.7 * 2]], dtype=torch.float64))


def test_what_f_is_at_masked_categories_does_not_matter():
    d = make("categorical", (200,), 2, 4, masked=True)
    c = torch.where(d.mask, normal(200, 2, 4), torch.nan)
    draw = Draw(d.sample(noise_of("exponential", (200, 2, 4))))

    def critic(c: torch.Tensor):
        return lambda a: torch.where(a > 0.5, c, 0.0).sum((-2, -1))

    (g,), _ = cotangents(LocalExpectation(), d, draw, Signal(critic=critic(c)))
    (clean,), _ = cotangents(LocalExpectation(), d, draw, Signal(critic=critic(c.nan_to_num(3.0))))
    assert torch.equal(g, clean)
    assert bool((g[~d.mask] == 0).all())


@pytest.mark.parametrize(("family", "k"), [("categorical", 2), ("categorical", 1000), ("bernoulli", 2)])
def test_float32_with_extreme_logits(family, k):
    """To 1e-3 of the gradient's norm, although a gradient of 1e-20 stands beside values of 100: only differences enter."""
    n, d = (400, 2) if k == 2 else (6, 1)
    shape = (n, d) if family == "bernoulli" else (n, d, k)
    logits = normal(*shape).sign() * torch.linspace(0, 50, n).double().view(n, *([1] * (len(shape) - 1)))
    kind = "uniform" if family == "bernoulli" else "exponential"
    noise = noise_of(kind, shape).float().clamp(2**-24, None if family == "categorical" else 1 - 2**-24)
    c, found = normal(*shape[1:]), []
    for dtype in (torch.float32, torch.float64):
        one = (Bernoulli if family == "bernoulli" else Categorical)(logits.to(dtype))
        draw = Draw(one.sample(noise.to(dtype)))
        signal = Signal(critic=lambda a: (100 + (a.double() * c).flatten(1 - len(shape)).sum(-1) ** 2).to(a.dtype))
        (g,), value = cotangents(LocalExpectation(), one, draw, signal)
        assert bool(torch.isfinite(value).all())
        found.append(g.double())
    a, b = (g.flatten(1) for g in found)
    assert bool(torch.isfinite(a).all())
    norm = b.norm(dim=1)
    big = norm > 1e-30
    assert int(big.sum()) > n // 3
    assert float(((a - b).norm(dim=1) / norm)[big].max()) < 1e-3 + 100 * 2**-24 * math.sqrt(k)


def test_repeated_rows_agree_with_one():
    one = make("categorical", (), 2, 3)
    f, _ = table_critic(one)
    rows = repeated(one, 5)
    action = one.mode().expand(5, 2, 3)
    (g,), _ = cotangents(LocalExpectation(), rows, Draw(action), Signal(critic=f))
    assert torch.equal(g, g[:1].expand_as(g))
