"""Sum-and-sample and the unordered set estimator: every set of outcomes gone through, with probabilities, ratios and
estimates found by permutations in plain numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from spine import assert_mean, make, noise_of, normal, repeated
from test_unbiased import exact_discrete, table_critic

from pglab.distributions import Bernoulli, Categorical, Distribution
from pglab.estimators import Draw, Signal
from pglab.estimators.outcomes import IMPOSSIBLE, category_log_probs, most_probable, without_replacement
from pglab.estimators.sum_and_sample import SumAndSample
from pglab.estimators.unordered_set import UnorderedSet, first_draw
from pglab.gradients import cotangents

EXACT = {"rtol": 1e-10, "atol": 1e-12}
CASES = pytest.mark.parametrize(
    ("family", "d", "k", "masked"),
    [
        ("categorical", 1, 3, False),
        ("categorical", 1, 10, True),
        ("categorical", 2, 3, False),
        ("categorical", 2, 3, True),
        ("categorical", 4, 2, False),
        ("bernoulli", 1, 2, False),
        ("bernoulli", 2, 2, False),
        ("bernoulli", 4, 2, False),
        ("categorical", 2, 1, False),
    ],
)


# -- by permutations


def drawn_in_order(p: np.ndarray, order: tuple[int, ...], gone: float = 0.0) -> float:
    """The probability of drawing outcomes in this order without replacement, once mass `gone` has been taken away."""
    found, left = 1.0, 1.0 - gone
    for i in order:
        found *= p[i] / left
        left -= p[i]
    return found


def drawn_as_set(p: np.ndarray, members: tuple[int, ...], gone: float = 0.0) -> float:
    return sum(drawn_in_order(p, order, gone) for order in itertools.permutations(members))


def without(members: tuple[int, ...], *out: int) -> tuple[int, ...]:
    return tuple(i for i in members if i not in out)


def set_estimate(
    p: np.ndarray, f: np.ndarray, score: np.ndarray, members: tuple[int, ...], baseline: bool
) -> np.ndarray:
    """sum_s p(s) R(S, s) (f(s) - b) score(s), `[...]` for scores `[M, ...]`."""
    found = np.zeros(score.shape[1:])
    whole = drawn_as_set(p, members)
    for s in members:
        left = drawn_as_set(p, without(members, s), p[s])
        b = 0.0
        if baseline:
            b = p[s] * f[s]
            for other in without(members, s):
                second = drawn_as_set(p, without(members, s, other), p[s] + p[other])
                b += p[other] * second / left * f[other]
        found = found + p[s] * left / whole * (f[s] - b) * score[s]
    return found


# -- noise that gives wanted arrival times


def noise_for(one: Distribution, times: np.ndarray, size: int) -> torch.Tensor:
    """The exponentials `[D, size, K]` under which joint outcome number m of the enumeration arrives at time `times[m]`: the
    sampler's construction turned round."""
    p = category_log_probs(one).exp().numpy()
    d, k = p.shape
    times = times.reshape((k,) * d)
    noise = np.ones((d, size, k))
    kept = [()]
    for level in range(d):
        found = []
        for rank, prefix in enumerate(kept):
            mass = np.prod([p[i, v] for i, v in enumerate(prefix)])
            for v in range(k):
                time = times[(*prefix, v)].min()
                wait = time if level == 0 else 1.0 + time - times[prefix].min()
                noise[level, rank, v] = wait * mass * p[level, v]
                found.append((time, (*prefix, v)))
        kept = [prefix for _, prefix in sorted(found)[:size]]
    return torch.from_numpy(noise)


def every_set(one: Distribution, size: int, order: tuple[int, ...] | None = None):
    """All sets of `size` outcomes, and noise that draws each, `[sets, D, size, K]`."""
    m = len(one.enumerate())
    sets = list(itertools.combinations(range(m), size))
    noise = []
    for members in sets:
        times = 100.0 + np.arange(m)
        times[list(members)] = 1 + np.array(order if order else range(size))
        noise.append(noise_for(one, times, size))
    return sets, torch.stack(noise)


def by_sets(estimator: UnorderedSet, one: Distribution, f, order: tuple[int, ...] | None = None):
    """Sets, and the estimate for each, `[sets, *event]`."""
    sets, noise = every_set(one, estimator.k, order)
    rows = repeated(one, len(sets))
    draw = Draw(rows.mode(), None, {"arrivals": noise})
    (g,), _ = cotangents(estimator, rows, draw, Signal(critic=f))
    return sets, g


def tables(one: Distribution, f) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities `[M]`, f `[M]` and scores `[M, *event]` of all joint outcomes, by hand."""
    outcomes = one.enumerate()
    p = one.log_prob(outcomes).sum(-1).exp().numpy()
    mean = torch.sigmoid(one.logits) if isinstance(one, Bernoulli) else one.probs()
    return p, f(outcomes).numpy(), (outcomes - mean).numpy()


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize(
    ("family", "d", "k", "size"),
    [
        ("categorical", 1, 5, 2),
        ("categorical", 1, 5, 3),
        ("categorical", 1, 5, 4),
        ("categorical", 1, 5, 5),
        ("categorical", 2, 3, 2),
        ("categorical", 2, 3, 4),
        ("bernoulli", 3, 2, 3),
        ("bernoulli", 4, 2, 2),
        ("bernoulli", 2, 2, 4),
    ],
)
def test_unordered_set_over_all_sets(family, d, k, size, baseline):
    one = make(family, (), d, k)
    f, values = table_critic(one)
    estimator = UnorderedSet(k=size, baseline=baseline)
    sets, g = by_sets(estimator, one, f)
    p, table, score = tables(one, f)
    for members, found in zip(sets, g.numpy(), strict=True):
        np.testing.assert_allclose(found, set_estimate(p, table, score, members, baseline), rtol=1e-9, atol=1e-11)
    weight = torch.tensor([drawn_as_set(p, members) for members in sets], dtype=torch.float64)
    assert float(weight.sum()) == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(torch.einsum("s,s...->...", weight, g), exact_discrete(one, values), **EXACT)
    reverse = by_sets(estimator, one, f, tuple(reversed(range(size))))[1]
    torch.testing.assert_close(g, reverse, **EXACT)  # the order does not matter


def test_one_draw_without_baseline_is_reinforce():
    one = make("categorical", (), 2, 3)
    f, _ = table_critic(one)
    sets, g = by_sets(UnorderedSet(k=1, baseline=False), one, f)
    _, table, score = tables(one, f)
    index = [s for (s,) in sets]
    np.testing.assert_allclose(g.numpy(), table[index, None, None] * score[index], rtol=1e-10)


# -- three bits of one logit, f = sum (x_i - t_i)^2: exact variances of the estimate at the shared logit

TARGET = torch.tensor([0.6, 0.51, 0.48], dtype=torch.float64)
GRADIENTS = {0.0: -0.045, -4.0: -3.179287e-3}
SUM_AND_SAMPLE = {(-4.0, 1): 5.0625e-5, (-4.0, 4): 3.7693e-8}  # where the k most probable are not a matter of ties
SETS = {  # (logit, k): without and with the built-in baseline, and independent draws with leave-one-out
    (0.0, 2): (0.187894, 6.11250e-3, 7.27500e-3),
    (0.0, 3): (0.104386, 2.26250e-3, 3.20000e-3),
    (0.0, 4): (0.0626315, 1.13083e-3, 1.98750e-3),
    (-4.0, 2): (1.20959e-3, 2.97824e-5, 3.81025e-4),
    (-4.0, 3): (4.04359e-5, 8.07115e-6, 2.45780e-4),
    (-4.0, 4): (5.10593e-6, 1.05549e-6, 1.82276e-4),
}


def three_bits(logit: float) -> Bernoulli:
    return Bernoulli(torch.full((3,), logit, dtype=torch.float64))


def distance(x: torch.Tensor) -> torch.Tensor:
    return (x - TARGET).square().sum(-1)


def moments(estimates: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    assert weight.sum() == pytest.approx(1, abs=1e-10)
    mean = float(weight @ estimates)
    return mean, float(weight @ (estimates - mean) ** 2)


def leave_one_out(p: np.ndarray, f: np.ndarray, score: np.ndarray, k: int) -> tuple[float, float]:
    """Moments of the leave-one-out estimate over all k-tuples of independent draws."""
    index = np.array(list(itertools.product(range(len(p)), repeat=k)))
    gain = f[index] - f[index].mean(1, keepdims=True)
    return moments((gain * score[index]).sum(1) / (k - 1), p[index].prod(1))


@pytest.mark.parametrize(("logit", "k"), list(SETS))
def test_three_bits_unordered_set_against_leave_one_out(logit, k):
    one = three_bits(logit)
    p, f, score = tables(one, distance)
    plain, based, independent = SETS[logit, k]
    for baseline, variance in ((False, plain), (True, based)):
        sets, g = by_sets(UnorderedSet(k=k, baseline=baseline), one, distance)
        weight = np.array([drawn_as_set(p, members) for members in sets])
        mean, found = moments(g.sum(-1).numpy(), weight)
        assert mean == pytest.approx(GRADIENTS[logit], rel=1e-6)
        assert found == pytest.approx(variance, rel=1e-5)
    mean, found = leave_one_out(p, f, score.sum(1), k)
    assert mean == pytest.approx(GRADIENTS[logit], rel=1e-6)
    assert found == pytest.approx(independent, rel=1e-5)
    # With as many evaluations: a little better where all outcomes are as likely, much better where few are.
    assert based < (0.9 if logit == 0 else 0.1) * independent
    # Without the built-in baseline it is worse than leave-one-out where the distribution is flat.
    assert (plain > 10 * independent) == (logit == 0)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("logit", [0.0, -4.0])
def test_three_bits_sum_and_sample(logit, k):
    n = 100_000
    one, seen = three_bits(logit), []
    p, f, score = tables(one, distance)

    def critic(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return distance(x)

    rows = repeated(one, n)
    draw = Draw(rows.mode(), None, {"rest": noise_of("exponential", (n, 3, k + 1, 2), 5)})
    (g,), _ = cotangents(SumAndSample(k=k), rows, draw, Signal(critic=critic))
    number = (seen[0] @ torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)).long().numpy()  # [k + 1, n]
    assert (number[:k] == number[:k, :1]).all()
    best, other = number[:k, 0], number[k]
    assert p[best].sum() == pytest.approx(np.sort(p)[-k:].sum(), rel=1e-12)
    rest = 1 - p[best].sum()
    left = [m for m in range(8) if m not in best]
    assert set(other) == set(left)
    base = np.einsum("m,md->d", p[best] * f[best], score[best])
    np.testing.assert_allclose(g.numpy(), base + rest * f[other, None] * score[other], rtol=1e-9, atol=1e-12)
    share = p[left] / rest
    assert_mean(torch.from_numpy(other[:, None] == np.array(left)).double(), torch.from_numpy(share), 0.02)
    first = [int(np.flatnonzero(other == m)[0]) for m in left]
    mean, variance = moments(g.sum(-1).numpy()[first], share)
    assert mean == pytest.approx(GRADIENTS[logit], rel=1e-6)
    exact = moments(((p[best] * f[best]) @ score[best].sum(1)) + rest * f[left] * score[left].sum(1), share)[1]
    assert variance == pytest.approx(exact, rel=1e-9)
    if (logit, k) in SUM_AND_SAMPLE:
        assert variance == pytest.approx(SUM_AND_SAMPLE[logit, k], rel=1e-4)


# -- the outcomes themselves


@CASES
def test_the_most_probable_outcomes_and_the_mass_of_the_rest(family, d, k, masked):
    for size in (1, 2, 4, 7):
        one = make(family, (50,), d, k, masked=masked)
        found = most_probable(category_log_probs(one), size, noise_of("exponential", (50, d, size + 1, k)))
        m = k**d
        probs = one.log_prob(one.enumerate().unsqueeze(1)).sum(-1).exp().T  # [50, M]
        number = (found.index * k ** torch.arange(d - 1, -1, -1)).sum(-1)
        assert number.shape == (50, min(size, m))
        assert all(len(set(row)) == len(row) for row in number.tolist())
        p = probs.gather(1, number)
        torch.testing.assert_close(p, probs.sort(1, descending=True).values[:, :size], **EXACT)
        torch.testing.assert_close(found.log_prob.exp(), p, **EXACT)
        left = probs.scatter(1, number, 0.0)
        torch.testing.assert_close(found.rest.exp(), left.sum(1), **EXACT)
        if found.other is None:
            assert size >= m
            continue
        other = (found.other * k ** torch.arange(d - 1, -1, -1)).sum(-1, keepdim=True)
        drawn = left.gather(1, other).squeeze(1)
        assert bool((drawn > 0).logical_or(left.sum(1) == 0).all())


@pytest.mark.statistical
@pytest.mark.parametrize(("family", "d", "k", "masked"), [("categorical", 2, 3, False), ("bernoulli", 3, 2, False)])
def test_the_law_of_draws_without_replacement_and_of_the_rest(family, d, k, masked):
    n, size = 100_000, 2
    one = make(family, (), d, k, masked=masked)
    m, place = k**d, k ** torch.arange(d - 1, -1, -1)
    p = one.log_prob(one.enumerate()).sum(-1).exp().numpy()
    log_p = category_log_probs(one).expand(n, d, k)
    found = without_replacement(log_p, size, noise_of("exponential", (n, d, size, k), 6))
    pair = (found.index * place).sum(-1)
    assert bool((pair[:, 0] != pair[:, 1]).all())
    order = torch.zeros(n, m * m, dtype=torch.float64).scatter_(1, (pair[:, :1] * m + pair[:, 1:]), 1.0)
    wanted = [drawn_in_order(p, (a, b)) if a != b else 0.0 for a in range(m) for b in range(m)]
    possible = torch.tensor(wanted) > 0
    assert_mean(order[:, possible], torch.tensor(wanted, dtype=torch.float64)[possible], resolution=0.02)
    rest = most_probable(log_p, size, noise_of("exponential", (n, d, size + 1, k), 7))
    left = p.copy()
    left[(rest.index[0] * place).sum(-1).numpy()] = 0
    number = (rest.other * place).sum(-1, keepdim=True)
    drawn = torch.zeros(n, m, dtype=torch.float64).scatter_(1, number, 1.0)
    some = torch.from_numpy(left > 0)
    assert_mean(drawn[:, some], torch.from_numpy(left / left.sum())[some], resolution=0.02)
    assert bool((drawn[:, ~some] == 0).all())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("whole", [False, True])
def test_the_probability_of_having_been_first(n, whole):
    """Against sums over all orders; with `whole` the set is everything there is."""
    p = np.random.default_rng(n).dirichlet(np.ones(n if whole else n + 2))[:n]
    rest = -math.inf if whole else math.log(1 - p.sum())
    weight, others = first_draw(torch.from_numpy(np.log(p)), torch.tensor(rest, dtype=torch.float64))
    members = tuple(range(n))
    orders = {order: drawn_in_order(p, order) for order in itertools.permutations(members)}
    total = sum(orders.values())
    for s in members:
        first = sum(q for order, q in orders.items() if order[0] == s)
        assert float(weight[s]) == pytest.approx(first / total, rel=1e-9)
        left = drawn_as_set(p, without(members, s), p[s]) if n > 1 else 1.0
        for t in members:
            wanted = p[s] if s == t else p[t] * drawn_as_set(p, without(members, s, t), p[s] + p[t]) / left
            assert float(others[s, t]) == pytest.approx(wanted, rel=1e-9)
    assert float(weight.sum()) == pytest.approx(1, abs=1e-12)
    if n > 1:
        torch.testing.assert_close(others.sum(-1), torch.ones(n).double(), **EXACT)


# -- as estimators

BOTH = pytest.mark.parametrize("estimator", [SumAndSample(k=3), UnorderedSet(k=3)], ids=lambda e: e.name)


def sampled(estimator, one: Distribution, f, n: int, baseline=None) -> torch.Tensor:
    rows = repeated(one, n)
    event = tuple(one.noise_shape)
    extra = {name: noise_of(kind, (n, *shape), 11) for name, (kind, shape) in estimator.extra_noise("", event).items()}
    (g,), value = cotangents(estimator, rows, Draw(rows.mode(), None, extra), Signal(None, baseline, f))
    assert bool(torch.isfinite(g).all())
    assert bool(torch.isfinite(value).all())
    return g


@pytest.mark.statistical
@BOTH
@CASES
def test_the_mean_is_the_exact_gradient(estimator, family, d, k, masked):
    one = make(family, (), d, k, masked=masked)
    f, values = table_critic(one)
    g = sampled(estimator, one, f, 40_000)
    assert_mean(g, exact_discrete(one, values), resolution=0.05)
    if masked:
        assert bool((g[:, ~one.mask] == 0).all())


@BOTH
@pytest.mark.parametrize(("family", "d", "k"), [("categorical", 1, 3), ("categorical", 3, 1), ("bernoulli", 1, 2)])
def test_as_many_outcomes_as_there_are_give_the_exact_gradient(estimator, family, d, k):
    one = make(family, (), d, k)
    f, values = table_critic(one)
    g = sampled(estimator, one, f, 50)
    torch.testing.assert_close(g, exact_discrete(one, values).expand_as(g), **EXACT)


@BOTH
def test_with_fewer_possible_outcomes_than_wanted_it_is_exact_and_f_is_not_asked_about_others(estimator):
    mask = torch.tensor([[True, False, True], [False, True, False]])
    one = Categorical(normal(2, 3), mask)
    f, values = table_critic(one)

    def critic(a: torch.Tensor) -> torch.Tensor:
        assert bool((a[..., ~mask] == 0).all())
        return f(a)

    g = sampled(estimator, one, critic, 200)
    torch.testing.assert_close(g, exact_discrete(one, values).expand_as(g), **EXACT)


@pytest.mark.parametrize("per_factor", [False, True])
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_a_baseline_leaves_the_mean_of_sum_and_sample_alone(family, per_factor):
    """Over every v, with its probability."""
    n, k = 4000, 1
    one = make(family, (), 2, 2)
    f, values = table_critic(one)
    p, _, _ = tables(one, f)
    b = torch.tensor([1.7, -0.4], dtype=torch.float64).expand(n, 2) if per_factor else torch.full((n,), 1.3).double()
    g = sampled(SumAndSample(k=k), one, f, n, b)
    plain = sampled(SumAndSample(k=k), one, f, n)
    assert not torch.allclose(g, plain)
    mean = torch.zeros_like(g[0])
    rounded = (plain * 1e9).round().flatten(1).unique(dim=0, return_inverse=True)[1]
    kinds = [int((rounded == i).nonzero()[0]) for i in range(int(rounded.max()) + 1)]
    assert len(kinds) == 3
    left = sorted(range(4), key=lambda m: p[m])[:3]
    # Which v a row had: by its share among the rows.
    share = np.array([float((rounded == i).double().mean()) for i in range(3)])
    exact = p[left] / p[left].sum()
    assert np.abs(np.sort(share) - np.sort(exact)).max() < 0.04
    for row, q in zip(np.array(kinds)[np.argsort(share)], np.sort(exact), strict=True):
        mean = mean + q * g[row]
    torch.testing.assert_close(mean, exact_discrete(one, values), rtol=1e-8, atol=1e-9)


def test_the_peaked_case_in_float32_keeps_the_mass_of_the_rest():
    """1 - p is 0 in float32 where the rest has 1e-20."""
    logits = torch.tensor([[[45.0, 0.0, -1.0], [47.0, 1.0, 0.5]]])
    noise = noise_of("exponential", (1, 2, 3, 3)).float()
    for size in (1, 2):
        for made in (most_probable, without_replacement):
            a, b = (
                made(category_log_probs(Categorical(logits.to(t))), size, noise[..., : size + 1, :].to(t))
                for t in (torch.float32, torch.float64)
            )
            assert torch.equal(a.index, b.index)
            torch.testing.assert_close(a.rest.double(), b.rest, rtol=1e-5, atol=1e-5)
            assert float(a.rest) < -40


@BOTH
@pytest.mark.parametrize(("family", "d", "k"), [("categorical", 4, 3), ("categorical", 1, 1000), ("bernoulli", 4, 2)])
def test_float32_with_extreme_logits(estimator, family, d, k):
    n = 1000 if k < 1000 else 50
    shape = (n, d) if family == "bernoulli" else (n, d, k)
    scale = torch.linspace(0, 50, n).view(n, *([1] * (len(shape) - 1)))
    logits = normal(*shape).sign().float() * scale + normal(*shape, key=1).float()  # no two equal: no ties
    c, found = normal(*shape[1:]), []
    for dtype in (torch.float32, torch.float64):
        one = (Bernoulli if family == "bernoulli" else Categorical)(logits.to(dtype))
        extra = {
            name: noise_of(kind, (n, *s), 11).float().clamp_min(1e-30).to(dtype)
            for name, (kind, s) in estimator.extra_noise("", shape[1:]).items()
        }
        signal = Signal(critic=lambda a: (3 + (a.double() * c).flatten(2).sum(-1)).to(a.dtype))
        (g,), value = cotangents(estimator, one, Draw(one.mode(), None, extra), signal)
        assert bool(torch.isfinite(g).all())
        assert bool(torch.isfinite(value).all())
        found.append(g.double())
    off = (found[0] - found[1]).flatten(1).norm(dim=1)
    assert float((off - 1e-3 * found[1].flatten(1).norm(dim=1)).max()) < 1e-5


def test_masked_outcomes_stand_below_every_possible_one():
    d = Categorical(torch.tensor([[50.0, -50.0, 0.0]]).expand(6, 3), torch.tensor([True, True, False]).expand(6, 3))
    log_p = category_log_probs(d)
    assert float(log_p[:, :2].min()) == pytest.approx(-100)
    assert bool((log_p[:, 2] == IMPOSSIBLE).all())


@pytest.mark.parametrize("part", [SumAndSample, UnorderedSet])
def test_wrong_options_are_refused(part):
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        part(k=0)


def test_more_wrong_options():
    with pytest.raises(ValueError, match="less than or equal to 10"):
        UnorderedSet(k=11)
    with pytest.raises(ValueError, match="k of at least 2"):
        UnorderedSet(k=1)
