"""Whether a distribution's functions agree with one another: its density with its draws, its conditional noise with its
draws, and its gradients with sums and integrals over the density.

Letters: B rows, M joint outcomes, D factors, K categories.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.errors import PglabError
from pglab.estimators import Draw, ScoreFunction, Signal
from pglab.gradients import cotangents
from pglab.lab.check_problems import CASES, numbers, quadratic
from pglab.lab.oracles import exact_gradient
from pglab.noise import Noise, Purpose
from pglab.objectives import Objective

SAMPLES = 20_000
LAW = 9.0
"""Minus the logarithm to base 10 of the p-value, above which (twice, on independent samples) a law is wrong: a billion laws
could be tested for one to be called wrong by chance."""
NODES = {1: 801, 2: 121}
"""Nodes per variable of the quadratures over noise, by number of variables; more than two would be too many."""
PANEL, QUANTILES = 16, (0.05, 0.25, 0.5, 0.75, 0.95)
"""Nodes per panel of the quadratures over a density, and where the panels meet."""
ENTROPY = 0.3
"""Weight of the entropy in the gradient that is checked."""


@dataclass(frozen=True)
class Property:
    """One thing that a distribution must satisfy."""

    problem: str
    property: str
    verdict: str
    error: float | None = None
    """How far off it is; for laws, minus the logarithm to base 10 of the p-value."""
    allowed: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Example:
    name: str
    distribution: Distribution
    f: Objective


def examples(cls: type[Distribution]) -> list[Example]:
    """Distributions of a family without rows: those of its static method `examples`, where it has one; those of the shipped
    family that it derives from; else one made of moderate numbers."""

    def general(z: Tensor) -> Tensor:
        flat = z.flatten(1)
        return quadratic(numbers(flat.shape[1]), numbers(flat.shape[1], phase=1.0))(flat)

    own = getattr(cls, "examples", None)
    if own is not None:
        return [Example(f"example {i + 1}", d, general) for i, d in enumerate(own())]
    base = next((c for c in cls.__mro__ if c in CASES), None)
    if base is not None:
        found = []
        for case in CASES[base]():
            fields = {f.name: getattr(case.distribution, f.name) for f in dataclasses.fields(case.distribution)}
            found.append(Example(case.name, cls(**fields), case.f))
        return found
    shape = (2, 3) if cls.event_ndim == 2 else (2,)
    made = cls(**{p: 0.4 * numbers(*shape, phase=float(i)) for i, p in enumerate(cls.parameters)})
    return [Example("moderate parameters", made, general)]


def properties(cls: type[Distribution]) -> Iterator[Property]:
    """All that is checked, example by example; what cannot be computed is a row that says so."""
    for example in examples(cls):
        one = example.distribution
        tests = _CONTINUOUS if one.kind == "continuous" else _FINITE
        for name, test in tests.items():
            try:
                found = test(one, example.f)
                if found is None:
                    continue
                error, allowed = found
                if allowed == LAW and not error <= LAW:
                    error = min(error, test(one, example.f, 1)[0])  # type: ignore[index]
            except Exception as failure:
                text = str(failure).strip().splitlines()
                kind = "" if isinstance(failure, PglabError) else f"{type(failure).__name__}: "
                yield Property(example.name, name, "FAILED", note=f"{kind}{text[0] if text else failure}")
                continue
            yield Property(example.name, name, "ok" if error <= allowed else "WRONG", error, allowed)


# -- tools


def rows(one: Distribution, count: int) -> Distribution:
    """The distribution on B rows."""
    changed = {
        f.name: getattr(one, f.name).expand(count, *one.noise_shape)
        for f in dataclasses.fields(one)
        if isinstance(getattr(one, f.name), Tensor)
    }
    return dataclasses.replace(one, **changed)


def drawn(one: Distribution, stream: int, count: int = SAMPLES) -> Tensor:
    """Noise for B rows."""
    noise = Noise.of_seeds([0]).apart(Purpose.MEASUREMENT, stream)
    return noise.of_kind(one.noise_kind, Purpose.ACTION, (0,), (count, *one.noise_shape), dtype=np.float64)[0]


def double_exponential(low: float, high: float, count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on (low, high) that bear singular endpoints (Takahasi & Mori 1974)."""
    t = torch.linspace(-3.6, 3.6, count, dtype=torch.float64)
    s = 0.5 * math.pi * torch.sinh(t)
    inner = (1 + torch.exp(-2 * s)).reciprocal()  # (1 + tanh s) / 2
    weight = (t[1] - t[0]) * 0.25 * math.pi * torch.cosh(t) / torch.cosh(s).square()
    step = torch.finfo(torch.float64).eps
    return low + (high - low) * inner.clamp(step, 1 - step), (high - low) * weight


def product(nodes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """A rule for each of D variables, `[D, n]`, as one for all: `[n^D, D]` and `[n^D]`."""
    x = torch.stack([g.flatten() for g in torch.meshgrid(*nodes, indexing="ij")], -1)
    w = torch.stack([g.flatten() for g in torch.meshgrid(*weights, indexing="ij")], -1)
    return x, w.prod(-1)


def noise_rule(kind: str, dims: int) -> tuple[Tensor, Tensor]:
    """Nodes `[B, D]` and weights `[B]` that integrate over independent noises."""
    count = NODES[dims]
    if kind == "normal":
        x = torch.linspace(-9, 9, count, dtype=torch.float64)
        w = torch.exp(-0.5 * x.square()) * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    else:
        x, w = double_exponential(0.0, 1.0 if kind == "uniform" else 50.0, count)
        w = w if kind == "uniform" else w * torch.exp(-x)
    return product(x.expand(dims, -1), w.expand(dims, -1))


def density_rule(one: Distribution, count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights `[D, n]` of every variable, over where draws come from and as far again on both sides, or to where
    the density ends: panels of `count` nodes between quantiles of draws, and six times as many beyond them."""
    z = rows(one, SAMPLES).sample(drawn(one, 7))
    panels = z.quantile(torch.tensor(QUANTILES, dtype=z.dtype), 0)  # [quantiles, D]
    found = []
    for i in range(z.shape[1]):

        def inside(x: float, i: int = i) -> bool:
            at = z[:1].clone()
            at[:, i] = x
            return bool(torch.isfinite(rows(one, 1).log_prob(at)[0, i]))

        ends = panels[:, i].tolist()
        lowest, highest = float(z[:, i].min()), float(z[:, i].max())
        below, above = (edge(inside, x, x + s * (highest - lowest)) for x, s in ((lowest, -1), (highest, 1)))
        parts = [legendre(a, b, count) for a, b in itertools.pairwise(ends)]
        parts = [double_exponential(below, ends[0], 6 * count), *parts, double_exponential(ends[-1], above, 6 * count)]
        found.append([torch.cat(x) for x in zip(*parts, strict=True)])
    return torch.stack([x for x, _ in found]), torch.stack([w for _, w in found])


def edge(inside: Callable[[float], bool], near: float, far: float) -> float:
    """`far`, or how far it goes on being inside."""
    if inside(far):
        return far
    for _ in range(80):
        middle = 0.5 * (near + far)
        near, far = (middle, far) if inside(middle) else (near, middle)
    return near


_leggauss = cache(np.polynomial.legendre.leggauss)


def legendre(low: float, high: float, count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights."""
    x, w = _leggauss(count)
    half = 0.5 * (high - low)
    return torch.from_numpy(low + half * (x + 1)), torch.from_numpy(half * w)


def slope(one: Distribution, z: Tensor) -> Tensor:
    """d executed / d drawn of every factor, `[B, D]`."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        x = one.executed(leaf)
        return torch.ones_like(z) if x is leaf else torch.autograd.grad(x.sum(), leaf)[0].detach()


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors over the size of the second (1 at least)."""
    found = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
    return found if math.isfinite(found) else math.inf


def surprise(p: float) -> float:
    return -math.log10(max(p, 1e-300))


def gradients_of(objective: Callable[[Distribution], Tensor], one: Distribution) -> Tensor:
    """The gradient of a number at the parameters, flat."""
    with torch.enable_grad():
        leaf, parameters = one.cut()
        value = objective(leaf)
        if not value.requires_grad:
            return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
        found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])


Found = tuple[float, float] | None
"""How far off, and how far is allowed; None where it does not apply."""


# -- finite variables


def _outcome_weights(one: Distribution) -> tuple[Tensor, Tensor]:
    outcomes = one.enumerate()
    return outcomes, rows(one, len(outcomes)).log_prob(outcomes).sum(-1).exp()


def _sums_to_one(one: Distribution, f: Objective) -> Found:
    return abs(float(_outcome_weights(one)[1].sum()) - 1), 1e-9


def _outcomes_match(one: Distribution, f: Objective, again: int = 0) -> Found:
    from scipy import stats

    outcomes, p = _outcome_weights(one)
    z = rows(one, SAMPLES).sample(drawn(one, again))
    counts = torch.stack([(z == o).flatten(1).all(1).sum() for o in outcomes]).double()
    if int(counts.sum()) < SAMPLES or bool((counts[p < 1e-300] > 0).any()):
        return math.inf, LAW  # something was drawn that cannot be
    # Rare outcomes are counted together: the chi-square law wants at least a handful of each.
    order = p.argsort(descending=True)
    expected, seen = SAMPLES * p[order], counts[order]
    many = max(1, int((expected >= 20).sum()))
    expected = torch.cat([expected[:many], expected[many:].sum()[None]])
    seen = torch.cat([seen[:many], seen[many:].sum()[None]])
    keep = expected > 1e-6
    statistic = float(((seen - expected).square() / expected.clamp_min(1e-6))[keep].sum())
    return surprise(float(stats.chi2.sf(statistic, max(1, int(keep.sum()) - 1)))), LAW


def _noise_makes_the_action(one: Distribution, f: Objective) -> Found:
    many = rows(one, SAMPLES)
    z = many.sample(drawn(one, 0))
    again = many.sample(many.noise_given(z, drawn(one, 1)))
    return float((z != again).flatten(1).any(1).double().mean()), 1e-4


def _conditional_law(one: Distribution, f: Objective, again: int = 0) -> Found:
    """The noise of draws that came out a certain way, against conditional noise for those ways: every factor's and outcome's
    coordinates, and their differences."""
    from scipy import stats

    many, noise = rows(one, SAMPLES), drawn(one, 3 + 4 * again)
    others = many.sample(drawn(one, 4 + 4 * again))
    made = many.sample(noise), noise
    given = others, many.noise_given(others, drawn(one, 5 + 4 * again))
    worst = 0.0
    for i in range(one.noise_shape[0]):
        for way in range(2 if one.kind == "binary" else one.noise_shape[1]):
            a, b = (_where(one.kind, z[:, i], x[:, i], way) for z, x in (made, given))  # [.., K or 1]
            if min(len(a), len(b)) < 200:
                continue
            first = min(way, a.shape[1] - 1)
            looks = [(x.log(), y.log()) for x, y in zip(a.T, b.T, strict=True)]
            looks += [(x - a[:, first], y - b[:, first]) for x, y in zip(a.T, b.T, strict=True)]
            p = [stats.ks_2samp(x.numpy(), y.numpy(), method="asymp").pvalue for x, y in looks]
            worst = max(worst, *map(surprise, p))
    return worst, LAW


def _where(kind: str, z: Tensor, noise: Tensor, way: int) -> Tensor:
    """The noise of the rows whose factor came out one way, `[.., K]` (`[.., 1]` for bits)."""
    return noise[z == way].unsqueeze(1) if kind == "binary" else noise[z[:, way] > 0.5]


def _conditional_gradient(one: Distribution, f: Objective) -> Found:
    """Autograd through the conditional noise against differences."""
    count = 64
    many, fresh = rows(one, count), drawn(one, 6, count)
    z = many.sample(drawn(one, 7, count))
    weights = numbers(*fresh.shape, phase=0.3)
    (name,) = one.parameters
    at = getattr(one, name)
    found = gradients_of(lambda d: (rows(d, count).noise_given(z, fresh) * weights).sum(), one).reshape(at.shape)
    step, numeric = 1e-6, torch.zeros_like(at)
    for index in np.ndindex(*at.shape):
        sides = []
        for sign in (1, -1):
            moved = at.clone()
            moved[index] += sign * step
            there = rows(dataclasses.replace(one, **{name: moved}), count).noise_given(z, fresh)
            sides.append(float((there * weights).sum()))
        numeric[index] = (sides[0] - sides[1]) / (2 * step)
    return difference(found, numeric), 1e-5


def _relaxation(one: Distribution, f: Objective) -> Found:
    """The relaxed draw lies nearest to the draw of the same noise."""
    many, noise = rows(one, SAMPLES), drawn(one, 0)
    z, soft = many.sample(noise), many.relax(noise, 0.5)
    if one.kind == "binary":
        near = (soft > 0.5).to(z.dtype)
    else:
        near = torch.zeros_like(z).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return float((near != z).flatten(1).any(1).double().mean()), 1e-4


def _finite_entropy(one: Distribution, f: Objective) -> Found:
    if not one.has_entropy:
        return None
    _, p = _outcome_weights(one)
    exact = -torch.where(p > 0, p * p.clamp_min(1e-300).log(), 0.0).sum()
    return difference(one.entropy().sum(), exact), 1e-8


def _finite_gradient(one: Distribution, f: Objective) -> Found:
    """The gradient of sum p (f - w log p) over all outcomes, against the score function's and the entropy's, averaged over
    all outcomes."""
    outcomes, p = _outcome_weights(one)
    value = f(outcomes)

    def objective(d: Distribution) -> Tensor:
        log_p = rows(d, len(outcomes)).log_prob(outcomes).sum(-1)
        possible = p > 0
        return (log_p.exp() * (value - ENTROPY * log_p))[possible].sum()

    many = rows(one, len(outcomes))
    found, _ = cotangents(
        ScoreFunction(), many, Draw(outcomes), Signal(value=value), None, ENTROPY, drawn(one, 0, len(p))
    )
    mean = torch.cat([torch.einsum("m,m...->...", p, g).flatten() for g in found])
    return difference(mean, gradients_of(objective, one)), 1e-8


def _agrees_with_the_oracle(one: Distribution, f: Objective) -> Found:
    """`exact_gradient` against the sum or integral over the density."""
    try:
        known = torch.cat([g.flatten() for g in exact_gradient(one, f).values()])
    except PglabError:
        return None
    if one.kind != "continuous":
        outcomes = one.enumerate()
        value = f(outcomes)
        exact = gradients_of(lambda d: (rows(d, len(value)).log_prob(outcomes).sum(-1).exp() * value).sum(), one)
        return difference(known, exact), 1e-8
    integral = _integral(one, f, 0.0)
    return None if integral is None else (difference(known, integral), 1e-6)


# -- continuous variables


def _integrates_to_one(one: Distribution, f: Objective) -> Found:
    """The density of the executed action, one factor at a time."""
    _, density = _marginals(one)
    return float((density.sum(1) - 1).abs().max()), 1e-6


def _marginals(one: Distribution) -> tuple[Tensor, Tensor]:
    """Nodes `[D, n]` of the drawn action, and the probability of each."""
    x, w = density_rule(one, 8 * PANEL)
    at = x.T  # [n, D]: factors are independent, so all are looked at at once
    log_p = rows(one, len(at)).log_prob(at)
    return x, (log_p.exp() * slope(one, at).abs()).T * w


def _draws_match(one: Distribution, f: Objective, again: int = 0) -> Found:
    from scipy import stats

    x, mass = _marginals(one)
    z = rows(one, SAMPLES).sample(drawn(one, again))
    worst = 0.0
    for i in range(z.shape[1]):
        cumulative = (mass[i].cumsum(0) - 0.5 * mass[i]).numpy()

        def cdf(at: Any, i: int = i, cumulative: np.ndarray = cumulative) -> np.ndarray:
            return np.interp(at, x[i].numpy(), cumulative)

        worst = max(worst, surprise(stats.kstest(z[:, i].numpy(), cdf).pvalue))
    return worst, LAW


def _noise_helps(one: Distribution, f: Objective) -> Found:
    """log_prob of a draw with and without its noise: values and scores."""
    count = 256
    noise = drawn(one, 0, count)
    z = rows(one, count).sample(noise)
    weights = numbers(*z.shape)
    with_noise = gradients_of(lambda d: (rows(d, count).log_prob(z, noise) * weights).sum(), one)
    without = gradients_of(lambda d: (rows(d, count).log_prob(z) * weights).sum(), one)
    values = difference(rows(one, count).log_prob(z, noise), rows(one, count).log_prob(z))
    return max(values, difference(with_noise, without)), 1e-7


def _noise_found_again(one: Distribution, f: Objective) -> Found:
    many, noise = rows(one, SAMPLES), drawn(one, 0)
    z = many.sample(noise)
    return difference(many.sample(many.noise_given(z, drawn(one, 1))), z), 1e-6


def _noise_law(one: Distribution, f: Objective, again: int = 0) -> Found:
    from scipy import stats

    many = rows(one, SAMPLES)
    given = many.noise_given(many.sample(drawn(one, 3 + 4 * again)), drawn(one, 4 + 4 * again))
    law = {"normal": "norm", "uniform": "uniform", "exponential": "expon"}[one.noise_kind]
    return max(surprise(stats.kstest(given[:, i].numpy(), law).pvalue) for i in range(given.shape[1])), LAW


def _carries_its_gradient(one: Distribution, f: Objective) -> Found:
    """A draw that is given carries the gradient of the draw that noise makes."""
    count = 256
    noise = drawn(one, 0, count)
    z = rows(one, count).sample(noise)
    weights = numbers(*z.shape)
    try:
        found = gradients_of(lambda d: (rows(d, count).at_its_noise(z) * weights).sum(), one)
    except PglabError:
        return None
    made = gradients_of(lambda d: (rows(d, count).rsample(noise) * weights).sum(), one)
    return difference(found, made), 1e-6


def _integral(one: Distribution, f: Objective, weight: float) -> Tensor | None:
    """The gradient of the integral of p (f - weight log p), flat; None for more than two factors."""
    dims = one.noise_shape[-1]
    if dims not in NODES:
        return None
    z, w = product(*density_rule(one, PANEL))
    w = w * slope(one, z).abs().prod(-1)
    value = f(one.executed(z))

    def objective(d: Distribution) -> Tensor:
        log_p = rows(d, len(z)).log_prob(z).sum(-1)
        return (w * log_p.exp() * (value - weight * log_p)).sum()

    return gradients_of(objective, one)


def _entropy(one: Distribution, f: Objective) -> Found:
    if not one.has_entropy:
        return None
    x, mass = _marginals(one)
    log_p = rows(one, x.shape[1]).log_prob(x.T).T
    return difference(one.entropy(), -(mass * log_p).sum(1)), 1e-6


def _pathwise(one: Distribution, f: Objective) -> Found:
    """The gradient that draws carry, averaged over the noise."""
    exact = _integral(one, f, 0.0)
    if exact is None:
        return None
    noise, w = noise_rule(one.noise_kind, one.noise_shape[-1])
    found = gradients_of(lambda d: (w * f(d.executed(rows(d, len(w)).rsample(noise)))).sum(), one)
    return difference(found, exact), 1e-5


def _gradient(one: Distribution, f: Objective) -> Found:
    """The gradient of the integral of p (f - w log p), against the score function's and the entropy's, averaged over the
    noise."""
    exact = _integral(one, f, ENTROPY)
    if exact is None:
        return None
    noise, w = noise_rule(one.noise_kind, one.noise_shape[-1])
    many = rows(one, len(w))
    z = many.sample(noise)
    signal = Signal(value=f(one.executed(z)))
    found, _ = cotangents(ScoreFunction(), many, Draw(z, noise), signal, None, ENTROPY, noise)
    mean = torch.cat([(w @ g).flatten() for g in found])
    return difference(mean, exact), 1e-5


Test = Callable[..., Found]

_FINITE: dict[str, Test] = {
    "probabilities sum to 1": _sums_to_one,
    "draws have these probabilities": _outcomes_match,
    "noise_given makes the action": _noise_makes_the_action,
    "noise_given has the conditional law": _conditional_law,
    "noise_given carries its gradient": _conditional_gradient,
    "relax is nearest to the draw": _relaxation,
    "entropy": _finite_entropy,
    "gradient of E[f - w log p]": _finite_gradient,
    "exact_gradient": _agrees_with_the_oracle,
}

_CONTINUOUS: dict[str, Test] = {
    "density integrates to 1": _integrates_to_one,
    "draws have this density": _draws_match,
    "log_prob with and without noise": _noise_helps,
    "noise_given makes the action": _noise_found_again,
    "noise_given has the noise's law": _noise_law,
    "at_its_noise carries rsample's gradient": _carries_its_gradient,
    "entropy": _entropy,
    "gradient of E[f], pathwise": _pathwise,
    "gradient of E[f - w log p]": _gradient,
    "exact_gradient": _agrees_with_the_oracle,
}
