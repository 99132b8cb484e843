"""Estimates of plain objectives: rows are independent, seeded, and what the estimator gives on its own."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from spine import assert_mean, normal

import pglab
from pglab.distributions import Bernoulli, Categorical, Gaussian, SquashedGaussian
from pglab.errors import PglabError
from pglab.objectives import Problem, estimate_gradient

LOGITS = torch.tensor([[0.3, -0.2, 0.9], [1.0, 0.0, -1.0]], dtype=torch.float64)
BITS = torch.tensor([0.4, -1.1, 0.2], dtype=torch.float64)
TABLE = normal(3, 3, key=4)


def table(a: torch.Tensor) -> torch.Tensor:
    """f of two categorical factors: any table of their outcomes."""
    return torch.einsum("bi,ij,bj->b", a[:, 0], TABLE, a[:, 1])


def bits(b: torch.Tensor) -> torch.Tensor:
    return (b * torch.tensor([1.0, -2.0, 0.5], dtype=b.dtype)).sum(-1).square()


def exact_table() -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    p = torch.softmax(logits, -1)
    return torch.autograd.grad(p[0] @ TABLE @ p[1], logits)[0]


@pytest.mark.statistical
@pytest.mark.parametrize("baseline", ["none", "moving_average", "leave_one_out"])
@pytest.mark.parametrize("draws", [2, 4])
def test_score_function_estimates_have_the_exact_mean(baseline, draws):
    found = estimate_gradient("score_function", Categorical(LOGITS), table, 40_000, draws, baseline=baseline)
    assert found.keys() == {"logits"}
    assert found["logits"].shape == (40_000, 2, 3)
    assert_mean(found["logits"], exact_table(), resolution=0.1)


def test_exact_gradient_by_enumeration_is_the_one_by_softmax():
    torch.testing.assert_close(pglab.exact_gradient(Categorical(LOGITS), table)["logits"], exact_table())


def test_a_categorical_without_an_axis_of_factors_has_none_in_actions_and_results_either():
    seen = []

    def f(a: torch.Tensor) -> torch.Tensor:
        seen.append(a.shape[1:])
        return a @ TABLE[0]

    flat = estimate_gradient("score_function", Categorical(LOGITS[0]), f, 5)["logits"]
    one = estimate_gradient("score_function", Categorical(LOGITS[:1]), lambda a: a[:, 0] @ TABLE[0], 5)["logits"]
    assert seen[0] == (3,)
    torch.testing.assert_close(flat, one[:, 0])
    exact = pglab.exact_gradient(Categorical(LOGITS[0]), f)["logits"]
    p = torch.softmax(LOGITS[0], 0)
    torch.testing.assert_close(exact, p * (TABLE[0] - p @ TABLE[0]))


def test_masked_categories_are_never_drawn():
    mask = torch.tensor([[True, False, True], [True, True, True]])

    def f(a: torch.Tensor) -> torch.Tensor:
        return torch.where(a[:, 0, 1] > 0, torch.nan, table(a))

    found = estimate_gradient("score_function", Categorical(LOGITS, mask), f, 300)["logits"]
    assert bool(torch.isfinite(found).all())
    assert bool((found[:, 0, 1] == 0).all())
    exact = pglab.exact_gradient(Categorical(LOGITS, mask), f)["logits"]
    assert bool(torch.isfinite(exact).all())
    assert exact[0, 1] == 0


def test_the_mean_over_draws_is_the_mean_of_single_draws():
    """Without a baseline a row is the mean over its own draws: its variance is a single draw's divided by their number."""
    one = estimate_gradient("score_function", Bernoulli(BITS), bits, 60_000)["logits"].var(0)
    four = estimate_gradient("score_function", Bernoulli(BITS), bits, 60_000, draws=4)["logits"].var(0)
    torch.testing.assert_close(four * 4, one, rtol=0.05, atol=0)


@pytest.mark.parametrize("k", [2, 3])
def test_leave_one_out_stays_within_an_estimate(k):
    """Its exact variance, over all joint outcomes of k draws of one Bernoulli."""
    p, t = 0.3, 0.45
    first = second = 0.0
    for outcome in itertools.product((0.0, 1.0), repeat=k):
        weight = math.prod(p if b else 1 - p for b in outcome)
        f = [(b - t) ** 2 for b in outcome]
        g = sum((b - p) * (f[i] - (sum(f) - f[i]) / (k - 1)) for i, b in enumerate(outcome)) / k
        first, second = first + weight * g, second + weight * g * g
    found = estimate_gradient(
        "score_function",
        Bernoulli(torch.logit(torch.tensor([p], dtype=torch.float64))),
        lambda b: (b[:, 0] - t) ** 2,
        200_000,
        draws=k,
        baseline="leave_one_out",
    )["logits"]
    assert float(found.var()) == pytest.approx(second - first**2, rel=0.03)


def test_the_noise_depends_on_seed_and_number_of_the_estimate_alone():
    many = estimate_gradient("score_function", Bernoulli(BITS), bits, 20_000)["logits"]
    few = estimate_gradient("score_function", Bernoulli(BITS), bits, 9_000)["logits"]
    assert torch.equal(many[:9_000], few)
    other = estimate_gradient("score_function", Bernoulli(BITS), bits, 100, seed=1)["logits"]
    assert not torch.equal(many[:100], other)


def test_two_estimators_see_the_same_draws():
    seen: list[list[torch.Tensor]] = [[], []]
    for i, name in enumerate(("score_function", "straight_through_gumbel_softmax")):

        def f(b: torch.Tensor, i: int = i) -> torch.Tensor:
            seen[i].append(b.detach())
            return bits(b)

        estimate_gradient(name, Bernoulli(BITS), f, 64)
    assert torch.equal(seen[0][0], seen[1][-1])


def test_options_reach_the_estimator():
    cold = estimate_gradient("gumbel_softmax", Bernoulli(BITS), bits, 2_000, temperature=0.1)["logits"]
    warm = estimate_gradient({"name": "gumbel_softmax", "temperature": 2.0}, Bernoulli(BITS), bits, 2_000)["logits"]
    assert float(cold.var(0).sum()) > 5 * float(warm.var(0).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_parameters_dtype(dtype):
    found = estimate_gradient("pathwise", Gaussian(BITS.to(dtype), BITS.to(dtype)), lambda z: z.sum(-1), 3)
    assert {g.dtype for g in found.values()} == {dtype}
    assert found["log_std"].shape == (3, 3)


MISTAKES = {
    "estimator": (("reinforce", Bernoulli(BITS), bits), {}, "reinforce"),
    "option": (("score_function", Bernoulli(BITS), bits), {"temprature": 1.0}, "temprature"),
    "kind": (("pathwise", Bernoulli(BITS), bits), {}, "does not serve Bernoulli"),
    "draws": (("score_function", Bernoulli(BITS), bits), {"draws": 0}, "draws must be at least 1"),
    "too few draws": (("score_function", Bernoulli(BITS), bits), {"baseline": "leave_one_out"}, "at least 2"),
    "value": (("score_function", Bernoulli(BITS), bits), {"baseline": "value"}, "no states"),
    "no baseline used": (("gumbel_softmax", Bernoulli(BITS), bits), {"baseline": "moving_average"}, "uses no baseline"),
    "rows": (("score_function", Bernoulli(BITS[None]), bits), {}, r"wants \[D\]"),
    "different shapes": (("pathwise", Gaussian(BITS, BITS[:2]), bits), {}, "the same for all"),
    "integers": (("score_function", Bernoulli(torch.tensor([1, 2])), bits), {}, "floating-point"),
    "f of the wrong shape": (("score_function", Bernoulli(BITS), lambda b: b), {}, "one number each"),
    "f without gradient": (("pathwise", Gaussian(BITS, BITS), lambda z: z.detach().sum(-1)), {}, "no gradient"),
    "f of integers": (("score_function", Bernoulli(BITS), lambda b: b.sum(-1).long()), {}, "floating-point"),
    "two temperatures": (("gumbel_softmax", Bernoulli(BITS), bits), {"temperature": [0.1, 1.0]}, "one at a time"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_sentence(name):
    arguments, options, message = MISTAKES[name]
    with pytest.raises(PglabError, match=message):
        estimate_gradient(*arguments, num_samples=10, **options)


def test_no_estimates_are_refused():
    with pytest.raises(PglabError, match="num_samples"):
        estimate_gradient("score_function", Bernoulli(BITS), bits, 0)


def test_blocks_are_smaller_where_many_actions_are_evaluated_at_once():
    wide = Problem.of("enumeration", Bernoulli(torch.zeros(12)), lambda b: b.sum(-1))
    narrow = Problem.of("score_function", Bernoulli(torch.zeros(12)), lambda b: b.sum(-1))
    assert wide._block_size < narrow._block_size / 100


# -- exact gradients

MEAN, LOG_STD = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([-0.5, 0.2], dtype=torch.float64)


def test_exact_gradient_of_a_polynomial_under_a_gaussian():
    """E[z0^3 + z0 z1] = m0^3 + 3 m0 s0^2 + m0 m1."""
    found = pglab.exact_gradient(Gaussian(MEAN, LOG_STD), lambda z: z[:, 0] ** 3 + z[:, 0] * z[:, 1])
    m, v = MEAN, (2 * LOG_STD).exp()
    wanted = torch.stack([3 * m[0] ** 2 + 3 * v[0] + m[1], m[0]])
    torch.testing.assert_close(found["mean"], wanted)
    torch.testing.assert_close(found["log_std"], torch.stack([6 * m[0] * v[0], torch.zeros(()).double()]))


def test_exact_gradient_of_a_cosine_under_a_gaussian():
    """E[cos(k z)] = cos(k m) exp(-k^2 s^2 / 2)."""
    k, m, s = 3.0, 0.4, 0.6
    d = Gaussian(torch.tensor([m], dtype=torch.float64), torch.tensor([math.log(s)], dtype=torch.float64))
    found = pglab.exact_gradient(d, lambda z: torch.cos(k * z[:, 0]))
    damp = math.exp(-(k**2) * s**2 / 2)
    assert float(found["mean"]) == pytest.approx(-k * math.sin(k * m) * damp, rel=1e-8)
    assert float(found["log_std"]) == pytest.approx(-(k**2) * s**2 * math.cos(k * m) * damp, rel=1e-8)


def test_exact_gradient_of_a_squashed_gaussian_is_the_slope_of_its_expectation():
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64)

    def expectation(m: float, log_s: float) -> float:
        y = torch.tanh(m + math.exp(log_s) * x)
        return float(torch.trapezoid((y**2 + y) * torch.exp(-0.5 * x * x), x) / math.sqrt(2 * math.pi))

    d = SquashedGaussian(torch.tensor([0.3], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64))
    found = pglab.exact_gradient(d, lambda y: (y**2 + y)[:, 0])
    h = 1e-4
    assert float(found["mean"]) == pytest.approx(
        (expectation(0.3 + h, -0.4) - expectation(0.3 - h, -0.4)) / (2 * h), rel=1e-6
    )
    assert float(found["log_std"]) == pytest.approx(
        (expectation(0.3, -0.4 + h) - expectation(0.3, -0.4 - h)) / (2 * h), rel=1e-6
    )


def test_exact_gradient_says_where_it_has_none():
    with pytest.raises(PglabError, match="at most 3"):
        pglab.exact_gradient(Gaussian(torch.zeros(4), torch.zeros(4)), lambda z: z.sum(-1))
    with pytest.raises(PglabError, match="too many to enumerate"):
        pglab.exact_gradient(Bernoulli(torch.zeros(17)), lambda b: b.sum(-1))
    with pytest.raises(PglabError, match="not smooth"):
        pglab.exact_gradient(Gaussian(MEAN[:1], LOG_STD[:1]), lambda z: (z[:, 0] > 0.123).double())


def test_exact_gradient_of_an_objective_that_is_no_smooth_function_of_discrete_draws():
    found = pglab.exact_gradient(Bernoulli(BITS), lambda b: (b.sum(-1) > 1.5).double())
    logits = BITS.clone().requires_grad_()
    p = torch.sigmoid(logits)
    at_least_two = p[0] * p[1] + p[0] * p[2] + p[1] * p[2] - 2 * p.prod()
    torch.testing.assert_close(found["logits"], torch.autograd.grad(at_least_two, logits)[0])
