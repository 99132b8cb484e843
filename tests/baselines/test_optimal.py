"""Optimal constants against closed forms, quadrature, enumeration and brute-force minimisation.

An exact expectation enters a batch as columns for all outcomes, each column's gradients times the square root of its
probability: then sums of products over columns are expectations.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from spine import hermite, normal

import pglab
from pglab.baselines import Batch, Optimal, OptimalPerParameter, OptimalPerTime, Scores
from pglab.distributions import Bernoulli, Categorical, Distribution, Gaussian
from pglab.estimators import Draw, ScoreFunction, Signal
from pglab.gradients import cotangents
from pglab.objectives import Problem
from pglab.trees import repeat_members

F64 = torch.float64


def columns(d: Distribution, action: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients with the value and with 1 at the parameters of `d` (rows `[N]`), `[1, N, n]` each."""
    found = []
    for v in (value, torch.ones_like(value)):
        grads, _ = cotangents(ScoreFunction(), d, Draw(action), Signal(v))
        found.append(torch.cat([g.flatten(1) for g in grads], 1).unsqueeze(0))
    return found[0], found[1]


def one_step(value: torch.Tensor, one: torch.Tensor, probability: torch.Tensor) -> Batch:
    """A batch of one-step columns with exact expectations."""
    root = probability.sqrt().unsqueeze(1)
    a, s = value * root, one * root

    def along(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ((a - b[0].unsqueeze(-1) * s) * s).sum(-1).unsqueeze(0), s.square().sum(-1).unsqueeze(0)

    scores = Scores(a, s, along)
    shape = (1, value.shape[0], value.shape[1])
    ok = torch.ones(shape, dtype=torch.bool)
    zero = torch.zeros(shape, dtype=F64)
    return Batch(zero.unsqueeze(-1), zero, ok, ok.long() * 0, scores=lambda: scores, whole_episodes=True)


def gaussian(mu: float, sigma: float) -> tuple[Distribution, torch.Tensor, torch.Tensor, torch.Tensor]:
    """z ~ N(mu, sigma^2) on quadrature nodes: rows, z^2, weights and the columns' gradients at (mean, log_std)."""
    x, w = hermite(40)
    d = Gaussian(torch.full((40, 1), mu, dtype=F64), torch.full((40, 1), sigma, dtype=F64).log())
    z = (mu + sigma * x).unsqueeze(1)
    return d, z, z[:, 0].square(), w


def fitted(baseline, batch: Batch) -> dict:
    return baseline.update(baseline.initial(1, "cpu"), batch)[0]


CASES = pytest.mark.parametrize(("mu", "sigma"), [(0.8, 1.0), (-1.5, 0.4), (0.0, 2.0)])


@CASES
def test_scalar_for_a_gaussian_quadratic_is_not_the_value(mu, sigma):
    """b* = 3 sigma^2 + mu^2 at the mean, where E f = sigma^2 + mu^2; the variances are 6 s^2 + 8 d^2 and 10 s^2 + 8 d^2."""
    d, z, f, w = gaussian(mu, sigma)
    a, s = (g[..., :1] for g in columns(d, z, f))  # at the mean alone
    batch = one_step(a, s, w)
    b = Optimal().predict(fitted(Optimal(), batch), batch)
    torch.testing.assert_close(b, torch.full_like(b, 3 * sigma**2 + mu**2), rtol=1e-10, atol=0)

    def variance(b: float) -> float:
        g = (a - b * s)[0, :, 0]
        return float((w * g.square()).sum() - (w * g).sum().square())

    assert variance(float(b[0, 0, 0])) == pytest.approx(6 * sigma**2 + 8 * mu**2, rel=1e-9)
    assert variance(sigma**2 + mu**2) == pytest.approx(10 * sigma**2 + 8 * mu**2, rel=1e-9)
    assert variance(0) == pytest.approx(15 * sigma**2 + 14 * mu**2 + mu**4 / sigma**2, rel=1e-9)


@CASES
def test_one_per_parameter_for_a_gaussian_quadratic(mu, sigma):
    """3 sigma^2 + mu^2 at the mean and 5 sigma^2 + mu^2 at log_std; the scalar is their mean weighted by E s_k^2."""
    d, z, f, w = gaussian(mu, sigma)
    batch = one_step(*columns(d, z, f), w)
    found = OptimalPerParameter().coefficient(fitted(OptimalPerParameter(), batch))
    each = torch.tensor([[3 * sigma**2 + mu**2, 5 * sigma**2 + mu**2]], dtype=F64)
    torch.testing.assert_close(found, each, rtol=1e-9, atol=0)
    square = torch.tensor([sigma**-2, 2.0], dtype=F64)
    b = Optimal().predict(fitted(Optimal(), batch), batch)[0, 0, 0]
    torch.testing.assert_close(b, (each[0] * square).sum() / square.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("theta", "t", "plain", "mean"), [(0.1, 0.499, 5.6611e-3, 2.304e-7), (0.5, 0.45, 1.5939e-2, 0.0)]
)
def test_one_bernoulli_has_no_variance_left(theta, t, plain, mean):
    """Toy A: f = (b - t)^2, gradient at the logit. With E f as the baseline there is some left, with b* none."""
    d = Bernoulli(torch.full((2, 1), theta, dtype=F64).logit())
    action, p = torch.tensor([[0.0], [1.0]], dtype=F64), torch.tensor([1 - theta, theta], dtype=F64)
    f = (action[:, 0] - t).square()
    a, s = columns(d, action, f)
    batch = one_step(a, s, p)

    def variance(b) -> float:
        g = (a - b * s)[0, :, 0]
        return float((p * g.square()).sum() - (p * g).sum().square())

    assert variance(0) == pytest.approx(plain, rel=1e-4)
    assert variance((p * f).sum()) == pytest.approx(mean, rel=1e-3, abs=1e-15)
    for b in (
        Optimal().predict(fitted(Optimal(), batch), batch)[0, 0, 0],
        OptimalPerTime(prior=0).predict(fitted(OptimalPerTime(prior=0), batch), batch)[0, 0, 0],
        OptimalPerParameter().coefficient(fitted(OptimalPerParameter(), batch))[0, 0],
    ):
        assert variance(b) == pytest.approx(0, abs=1e-15)
        assert float(b) == pytest.approx((1 - theta) * float(f[1]) + theta * float(f[0]), rel=1e-9)


# -- three steps in sequence, where scores of different steps share parameters


DISCOUNT = 0.8
THETA = torch.tensor([0.5, -0.3], dtype=F64)
LENGTH = 3


def episode(actions: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Every step's own score times gamma^t at two shared parameters, its reward to go, whether it exists, and the
    probability. The chance of a 1 depends on the step and on the action before; two 1s in a row end the episode."""
    score, reward, valid, probability = [], [], [], 1.0
    before, over = 0, False
    for t, a in enumerate(actions):
        x = torch.tensor([1.0, 0.7 * t - before], dtype=F64)
        p = torch.sigmoid((THETA * x).sum())
        score.append(torch.zeros(2, dtype=F64) if over else DISCOUNT**t * (a - p) * x)
        reward.append(0.0 if over else 1.0 + 2 * a - 1.5 * t * before)
        valid.append(not over)
        probability *= 0.5 if over else float(p if a else 1 - p)
        over = over or bool(a and before)
        before = a
    to_go = [sum(reward[t:]) for t in range(LENGTH)]
    return torch.stack(score), torch.tensor(to_go, dtype=F64), torch.tensor(valid), probability


def episodes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores `[T, N, n]`, values and validity `[T, N]`, probabilities `[N]` of all outcomes."""
    found = [episode(a) for a in itertools.product((0, 1), repeat=LENGTH)]
    score, value, valid = (torch.stack([x[i] for x in found], 1) for i in range(3))
    return score, value, valid, torch.tensor([x[3] for x in found], dtype=F64)


def chain() -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """The batch with exact expectations; scores and the columns' gradients without the roots of probabilities."""
    score, value, valid, p = episodes()
    assert float(p.sum()) == pytest.approx(1)
    a = (score * value.unsqueeze(-1)).sum(0)  # [N, n]
    root = p.sqrt().unsqueeze(1)

    def along(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left = a - (score * b[:, 0].unsqueeze(-1)).sum(0)
        return ((score * left).sum(-1) * p).unsqueeze(1), (score.square().sum(-1) * p).unsqueeze(1)

    scores = Scores((a * root).unsqueeze(0), (score.sum(0) * root).unsqueeze(0), along)
    ok, time = valid.unsqueeze(1), torch.arange(LENGTH)[:, None, None].expand(LENGTH, 1, len(p))
    one = Batch(
        torch.zeros(LENGTH, 1, len(p), 0), value.unsqueeze(1) * ok, ok, time, scores=lambda: scores, whole_episodes=True
    )
    return one, score, a


def trace(score: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> float:
    """Trace of the covariance of sum_t s_t (value_t - b_t); `b` `[T]`."""
    p = episodes()[3].unsqueeze(1)
    g = a - (b.view(-1, 1, 1) * score).sum(0)
    return float((p * g.square()).sum() - (p * g).sum(0).square().sum())


def test_scores_of_different_steps_are_uncorrelated_and_the_optimum_decouples():
    batch, score, a = chain()
    p = episodes()[3]
    gram = torch.einsum("tnk,unk,n->tu", score, score, p)
    assert float((gram - gram.diagonal().diag()).abs().max()) < 1e-15
    assert float(gram.diagonal().min()) > 0.01
    # The least-squares problem for all three at once, with whatever the Gram matrix is.
    wide = (score * p.sqrt().view(1, -1, 1)).flatten(1).T
    best = torch.linalg.lstsq(wide, (a * p.sqrt().unsqueeze(1)).flatten().unsqueeze(1)).solution[:, 0]
    found = OptimalPerTime(prior=0).predict(fitted(OptimalPerTime(prior=0), batch), batch)[:, 0, 0]
    torch.testing.assert_close(found, best, rtol=1e-10, atol=0)


def test_more_constants_leave_less_variance():
    batch, score, a = chain()
    per_time = OptimalPerTime(prior=0).predict(fitted(OptimalPerTime(prior=0), batch), batch)[:, 0, 0]
    scalar = Optimal().predict(fitted(Optimal(), batch), batch)[:, 0, 0]
    shared = OptimalPerTime(steps=2, prior=0)
    last_two = shared.predict(fitted(shared, batch), batch)[:, 0, 0]
    value, valid = batch.value[:, 0], batch.valid[:, 0]
    p = episodes()[3]
    mean = (p * value).sum(1) / (p * valid).sum(1)
    none = trace(score, a, torch.zeros(3))
    assert trace(score, a, per_time) < trace(score, a, last_two) < trace(score, a, scalar) < none
    assert trace(score, a, per_time) < trace(score, a, mean) < none
    for i in range(3):
        for step in (-0.01, 0.01):
            moved = per_time.clone()
            moved[i] += step
            assert trace(score, a, moved) > trace(score, a, per_time)
    for step in (-0.01, 0.01):
        assert trace(score, a, scalar + step) > trace(score, a, scalar)
    assert torch.equal(last_two[1], last_two[2])


def test_one_per_parameter_minimises_every_variance():
    batch, score, a = chain()
    p, s = episodes()[3].unsqueeze(1), score.sum(0)
    b = OptimalPerParameter().coefficient(fitted(OptimalPerParameter(), batch))[0]

    def variances(b: torch.Tensor) -> torch.Tensor:
        g = a - b * s
        return (p * g.square()).sum(0) - (p * g).sum(0).square()

    for step in (-0.01, 0.01):
        assert bool((variances(b + step) > variances(b)).all())
    scalar = Optimal().predict(fitted(Optimal(), batch), batch)[0, 0, 0]
    assert float(variances(b).sum()) < float(variances(scalar).sum())


# -- the state


def test_sums_are_of_the_past_and_decay():
    batch, *_ = chain()
    scores = batch.scores()
    double = Scores(2 * scores.value, scores.one, lambda b: (2 * scores.along(b / 2)[0], scores.along(b)[1]))
    later = replace(batch, scores=lambda: double)
    for baseline in (Optimal(decay=0.25), OptimalPerTime(decay=0.25, prior=0)):
        state = baseline.initial(1, "cpu")
        assert not bool(baseline.predict(state, batch).any())
        state = baseline.update(state, batch)[0]
        b = baseline.predict(state, batch)
        state = baseline.update(state, later)[0]
        torch.testing.assert_close(baseline.predict(state, batch), b * (0.25 + 2) / 1.25)
    baseline = OptimalPerParameter(decay=0.25)
    state = fitted(baseline, batch)
    b = baseline.coefficient(state)
    torch.testing.assert_close(baseline.coefficient(baseline.update(state, later)[0]), b * 2.25 / 1.25)
    assert baseline.coefficient(baseline.initial(3, "cpu")).shape == (3, 0)


def test_dead_parameters_have_0_and_nothing_is_nan():
    batch, *_ = chain()
    s = batch.scores()
    zero = torch.zeros_like(s.one[..., :1])
    tiny = torch.full_like(zero, 1e-22)  # squared, below what float32 can divide by
    dead = Scores(torch.cat([s.value, zero, 3 * tiny], -1).float(), torch.cat([s.one, zero, tiny], -1).float(), s.along)
    state = fitted(OptimalPerParameter(), replace(batch, scores=lambda: dead))
    found = OptimalPerParameter().coefficient(state)
    assert found[0, 2:].tolist() == [0.0, 0.0]
    assert bool((found[0, :2] != 0).all())
    none = Scores(0 * s.value, 0 * s.one, lambda b: tuple(0 * x for x in s.along(b)))
    still = replace(batch, scores=lambda: none)
    assert not bool(Optimal().predict(fitted(Optimal(), still), batch).any())
    for baseline in (OptimalPerTime(prior=0), OptimalPerTime()):
        assert bool(torch.isfinite(baseline.predict(fitted(baseline, still), batch)).all())


def test_a_step_that_batches_rarely_reach_is_remembered():
    batch, *_ = chain()
    baseline = OptimalPerTime(prior=0)
    state = fitted(baseline, batch)
    b = baseline.predict(state, batch)[:, 0, 0]
    short = replace(batch, valid=batch.valid & (batch.time < 1))
    for _ in range(3000):
        state, _ = baseline.update(state, short)
    torch.testing.assert_close(baseline.predict(state, batch)[:, 0, 0], b)


# -- plain objectives


def test_what_plain_objectives_fit_is_near_the_closed_form():
    d = Gaussian(torch.tensor([0.8], dtype=F64), torch.tensor([0.5], dtype=F64).log())
    each = torch.tensor([3 * 0.25 + 0.64, 5 * 0.25 + 0.64], dtype=F64)
    square = torch.tensor([4.0, 2.0], dtype=F64)

    def problem(name: str) -> Problem:
        return Problem.of("score_function", d, lambda z: z[:, 0].square(), baseline={"name": name, "decay": 0.99})

    one = problem("optimal")
    batch = Batch(torch.zeros(1, 3, 2, 0), torch.zeros(1, 3, 2).double(), torch.ones(1, 3, 2).bool(), torch.zeros(1, 3, 2).long(), whole_episodes=True)  # fmt: skip
    expected = float((each * square).sum() / square.sum())
    for name in ("optimal", "optimal_per_time"):
        one = problem(name)
        found = one.baseline.predict(repeat_members(one.baseline_state, 3), batch)
        assert found.unique().tolist() == pytest.approx([expected], rel=0.05)
    one = problem("optimal_per_parameter")
    torch.testing.assert_close(one.baseline.coefficient(one.baseline_state)[0], each, rtol=0.08, atol=0)


@pytest.mark.parametrize("name", ["optimal", "optimal_per_time", "optimal_per_parameter"])
def test_estimates_of_one_bernoulli_hardly_vary(name):
    d = Bernoulli(torch.tensor([0.1], dtype=F64).logit())
    found = pglab.estimate_gradient("score_function", d, lambda z: (z[:, 0] - 0.499).square(), 4000, baseline=name)
    exact = pglab.exact_gradient(d, lambda z: (z[:, 0] - 0.499).square())
    assert float(found["logits"].var()) < 1e-3 * 2.304e-7  # of what E f leaves
    torch.testing.assert_close(found["logits"].mean(0), exact["logits"], rtol=0, atol=1e-5)


def test_categorical_factors_have_a_constant_for_every_logit():
    """By enumeration of the two factors' nine joint outcomes, with the estimator's own cotangents."""
    d = Categorical(normal(2, 3, key=4))
    f = lambda z: (z * normal(2, 3, key=5)).flatten(1).sum(1) + 3 * z[:, 0, 1] * z[:, 1, 2]  # noqa: E731
    outcomes = d.enumerate()
    p = d.log_prob(outcomes).sum(-1).exp()
    a, s = columns(Categorical(d.logits.expand(9, 2, 3)), outcomes, f(outcomes))
    found = OptimalPerParameter().coefficient(fitted(OptimalPerParameter(), one_step(a, s, p)))[0]
    loop = torch.stack([(p * a[0, :, k] * s[0, :, k]).sum() / (p * s[0, :, k] ** 2).sum() for k in range(6)])
    torch.testing.assert_close(found, loop)
    one = Problem.of("score_function", d, f, baseline={"name": "optimal_per_parameter", "decay": 0.99})
    torch.testing.assert_close(one.baseline.coefficient(one.baseline_state)[0], loop, rtol=0.1, atol=0.02)


def test_a_prior_of_rows_shrinks_every_steps_correction_of_the_mean():
    """By hand from the sums: b_t = m_t + (off_t + k r c) / (q_t + k r), c all steps' own, r the mean square of a row."""
    batch, score, a = chain()
    p = episodes()[3]
    b = OptimalPerTime(prior=7).predict(fitted(OptimalPerTime(prior=7), batch), batch)[:, 0, 0]
    ok, value = batch.valid[:, 0].double(), batch.value[:, 0]
    mean = value.sum(1) / ok.sum(1)
    square = (score.square().sum(-1) * p).sum(1)
    off = ((score * a).sum(-1) * p).sum(1) - mean * square
    prior = 7 * square.sum() / ok.sum()
    expected = mean + (off + prior * off.sum() / square.sum()) / (square + prior)
    torch.testing.assert_close(b, expected, rtol=1e-10, atol=0)


def test_what_a_correction_is_computed_from_has_the_mean_of_the_plain_product():
    """Products with a mean subtracted have the plain ones' expectation and vary less."""
    _, score, a = chain()
    p = episodes()[3]
    plain = (score * a).sum(-1)  # [T, N]
    mean = torch.tensor([4.0, 2.0, 1.0], dtype=F64)
    left = a - (score * mean.view(-1, 1, 1)).sum(0)
    controlled = (score * left).sum(-1) + mean.unsqueeze(1) * score.square().sum(-1)
    torch.testing.assert_close((p * controlled).sum(1), (p * plain).sum(1), rtol=1e-12, atol=0)

    def variance(x: torch.Tensor) -> torch.Tensor:
        return (p * x.square()).sum(1) - (p * x).sum(1).square()

    assert bool((variance(controlled) < variance(plain)).all())
