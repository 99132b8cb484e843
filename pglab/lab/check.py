"""Whether estimators, baselines and distributions are what they say: each is held to exact gradients on small problems.

An estimate's mean over many draws is compared, coordinate by coordinate, with the gradient found by enumeration or
quadrature. What is known exactly of a draw (how often each outcome comes up, the moments of its noise) takes most of the
noise out of that mean, so that biases far below an estimate's standard deviation are seen.

Letters: S estimates, N draws per estimate, n coordinates of a gradient, q features of a draw.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor

from pglab.baselines import BASELINES, Baseline, Batch
from pglab.distributions import FAMILIES, Bernoulli, Categorical, Distribution, Gaussian
from pglab.errors import PglabError, unknown
from pglab.estimators import ESTIMATORS, Estimator, Signal
from pglab.estimators.base import Draw
from pglab.gradients import cotangents
from pglab.lab.check_distributions import Property, properties
from pglab.lab.check_episodes import expectations
from pglab.lab.check_problems import CASES, Case
from pglab.lab.oracles import exact_gradient
from pglab.noise import Noise, Purpose
from pglab.objectives import Objective, Problem

FALSE_ALARM = 1e-6
"""Probability that a check of everything calls anything biased that is not."""
COMPARISONS = 20_000
"""At most so many comparisons are made in a check of everything: false alarms are shared out among them."""
THRESHOLD = -NormalDist().inv_cdf(FALSE_ALARM / COMPARISONS / 2)
"""What |z| must exceed, twice, on independent draws: the second time because means of few rare events are not normal."""
SEEN = 0.05
"""Draws are added until a bias of this fraction of the standard deviation, and of the largest coordinate of the gradient,
would be seen, or the budget is spent."""
PILOT, FEWEST, BUDGET = 4096, 16384, 2**21
"""Estimates from which coefficients and sample sizes are taken, the fewest made afterwards, and about the most numbers
drawn for one problem."""
RARE = 0.01
"""Outcomes below this probability are too few to learn from what an estimate is there."""
TAIL = -math.log(FALSE_ALARM / COMPARISONS / 2) / (3 * THRESHOLD)
"""Times the largest deviation over the number of estimates: what is added to a standard error for rare large values, as in
Bernstein's inequality."""
DRAWS = 4
"""Draws per estimate where draws are compared with one another."""
FIT_UPDATES = 40
"""An estimator that learns is fitted this little: whatever it has learned, its mean must be right."""
EXACT = 1e-7
"""Where nothing is random, a difference of this fraction of the gradient is none."""

WHOLE = (Bernoulli, Categorical, Gaussian)
"""Families on all of whose problems baselines are checked, one for each kind; on the others' first two."""
EPISODES = "enumerated episodes"


# -- records


@dataclass(frozen=True)
class Row:
    """One problem."""

    family: str
    problem: str
    verdict: str
    """consistent, BIASED, declared (a bias that is declared), none seen (where one is declared), or FAILED."""
    note: str = ""
    """How it failed."""
    estimates: int = 0
    """How many were averaged; 0 where the mean was found without sampling."""
    z: float | None = None
    """The largest |z| of the coordinates' differences, None where nothing is random."""
    bias: float | None = None
    """The largest difference of a coordinate from the exact gradient's, over the gradient's largest coordinate."""
    seen: float | None = None
    """The bias that would have been seen, in the same unit, with probability about 0.98."""
    variance: float | None = None
    """Trace of the covariance of one estimate."""
    to_score_function: float | None = None
    """That over score_function's without a baseline, at an equal number of draws."""
    to_leave_one_out: float | None = None
    """The same over score_function's with leave_one_out."""


@dataclass(frozen=True)
class Report:
    """What was found of one estimator, baseline or distribution."""

    name: str
    part: str
    """estimator, baseline or distribution."""
    declared: str
    """unbiased, or where it says it is biased."""
    verdict: str
    failed: bool
    """Whether it is not what it declares, or does not work."""
    rows: tuple[Row | Property, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def z(self) -> float | None:
        """The largest |z| of all problems."""
        return max((r.z for r in self.rows if isinstance(r, Row) and r.z is not None), default=None)

    @property
    def bias(self) -> float | None:
        """The largest measured bias of all problems."""
        return max((r.bias for r in self.rows if isinstance(r, Row) and r.bias is not None), default=None)


# -- measuring


@dataclass(frozen=True)
class Known:
    """What is known of one case."""

    family: str
    case: Case
    exact: Tensor  # [n]
    score_function: float
    """Trace of the covariance of score_function's single draw."""
    leave_one_out: float
    """Of the mean of `DRAWS` draws with leave_one_out."""


@dataclass(frozen=True)
class Measured:
    """Means and variances of differences."""

    estimates: int
    mean: Tensor  # [n]
    error: Tensor  # [n]: standard error of the mean
    largest: Tensor  # [n]: the largest deviation of one estimate from the mean
    deviation: Tensor  # [n]: standard deviation of one estimate
    variance: float  # trace


@dataclass(frozen=True)
class Apart(Problem):
    """A problem whose critic is another function than the one whose values are given: what an agent has whose values are
    returns and whose critic is learned."""

    other: Objective | None = None

    def _signal(self, d: Distribution, draw: Draw) -> Signal:
        signal = super()._signal(d, draw)
        assert self.other is not None
        elsewhere = replace(self, f=self.other)
        return replace(signal, critic=lambda action: Problem.critic(elsewhere, action))


class PerFactor(Baseline):
    """A constant of its own for every factor."""

    name: ClassVar[str] = "a constant per factor"
    per_factor = True

    def predict(self, state: Mapping[str, Any], batch: Batch) -> Tensor:
        assert batch.distribution is not None
        rows = batch.value.shape
        d = batch.distribution.noise_shape[len(rows)]
        return (0.4 + 0.3 * torch.arange(d, dtype=batch.value.dtype)).expand(*rows, d)


def flat(case: Case, gradients: Sequence[Tensor]) -> Tensor:
    """Gradients by parameter `[S, *event]` as `[S, n]`; of a shared parameter, the sum over the factors."""
    return torch.cat([(g.sum(1, keepdim=True) if case.shared else g).flatten(1) for g in gradients], 1)


def features(problem: Problem, draw: Draw) -> Tensor:
    """`[S, q]`: functions of the draws whose mean is exactly 0, from which most of an estimate can be foretold."""
    one = problem.distribution
    if one.kind == "continuous":
        assert draw.noise is not None
        return _polynomials(one.noise_kind, draw.noise[0]).mean(1)
    z = draw.action[0]  # [S, N, *event]
    if one.kind == "binary":
        z = torch.stack([1 - z, z], -1)
    p = one.log_prob(one.enumerate()).sum(-1).exp()  # [M]
    joint = z[..., 0, :]
    for other in z.unbind(-2)[1:]:
        joint = (joint.unsqueeze(-1) * other.unsqueeze(-2)).flatten(-2)  # the last factor runs fastest
    often = p > RARE
    often[p.argmax()] = False  # the others say how often it came up
    return (joint[..., often] - p[often]).mean(1)


def _polynomials(kind: str, noise: Tensor) -> Tensor:
    """Products of orthonormal polynomials of D independent noises `[..., D]`, `[..., q]`; each has mean 0."""
    d = noise.shape[-1]
    degree = {1: 6, 2: 4}.get(d, 4 if kind == "normal" else 3)
    x = 2 * noise - 1 if kind == "uniform" else noise
    found = [torch.ones_like(x), {"normal": x, "uniform": math.sqrt(3) * x, "exponential": 1 - x}[kind]]
    for k in range(1, degree):
        a, b = found[k], found[k - 1]
        if kind == "normal":
            new = (x * a - math.sqrt(k) * b) / math.sqrt(k + 1)
        elif kind == "uniform":
            plain = (2 * k + 1) * x * a / math.sqrt(2 * k + 1) - k * b / math.sqrt(2 * k - 1)
            new = plain / (k + 1) * math.sqrt(2 * k + 3)
        else:
            new = ((2 * k + 1 - x) * a - k * b) / (k + 1)
        found.append(new)
    if kind == "uniform":  # in place of the highest two: densities on an interval have logarithms in their scores
        found[-2:] = [1 + noise.log(), 1 + torch.log1p(-noise)]
    powers = [p for p in itertools.product(range(degree + 1), repeat=d) if 0 < sum(p) <= degree]
    return torch.stack([math.prod(found[k][..., i] for i, k in enumerate(p)) for p in powers], -1)  # type: ignore[misc]


def estimates(case: Case, problems: Sequence[Problem], noise: Noise, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """At least `count` estimates by blocks: those of several problems on the same draws side by side `[S, len(problems),
    n]`, and the draws' features `[S, q]`."""
    size = min(4096, *(problem._block_size for problem in problems))
    for counter in range(-(-count // size)):
        _, draw = problems[0]._rows(noise, counter, size, problems[0].draws)
        found = [flat(case, problem._block(noise, counter, size)) for problem in problems]
        yield torch.stack(found, 1), features(problems[0], draw)


def cost(problem: Problem) -> float:
    """About how many numbers one estimate draws or evaluates."""
    event = tuple(problem.distribution.noise_shape)
    extra = problem.estimator.extra_noise(problem.distribution.noise_kind, event)
    one = math.prod(event) + sum(math.prod(shape) for _, shape in extra.values())
    return problem.draws * one * max(1, problem.estimator.width(problem.distribution)) ** 0.5


def measured(known: Known, problems: Sequence[Problem], less: Tensor, weights: Tensor, stream: int) -> Measured:
    """The mean of the problems' estimates combined with `weights` `[problems]`, less `less` `[n]`, on noise of its own."""
    case, noise = known.case, problems[0].noise

    def differences(count: int, *key: int) -> Iterator[tuple[Tensor, Tensor]]:
        for g, h in estimates(case, problems, noise.apart(Purpose.MEASUREMENT, stream, *key), count):
            if not bool(torch.isfinite(g).all()):
                raise FloatingPointError("an estimate is not finite")
            yield torch.einsum("spn,p->sn", g, weights) - less, h

    pilot = list(differences(PILOT, 0))
    y, h = torch.cat([b[0] for b in pilot]), torch.cat([b[1] for b in pilot])
    centre = y.mean(0)
    slope = torch.linalg.lstsq(h, y - centre, driver="gelsd").solution  # [q, n]
    total, squares, raw, raws, largest = (torch.zeros_like(centre) for _ in range(5))
    most = int(BUDGET / sum(cost(p) for p in problems))
    n = 0
    for y, h in differences(max(FEWEST, most), 1):
        off = y - centre
        rest = off - h @ slope
        total, squares = total + rest.sum(0), squares + rest.square().sum(0)
        raw, raws, n = raw + off.sum(0), raws + off.square().sum(0), n + len(y)
        largest = torch.maximum(largest, off.abs().amax(0))
        error = (squares / n - (total / n).square()).clamp_min(0).div(n - 1).sqrt()
        deviation = (raws / n - (raw / n).square()).clamp_min(0).sqrt()
        found = Measured(n, total / n + centre, error, largest, deviation, float(deviation.square().sum()))
        # How long it goes on depends on spreads, not on where the mean is.
        size = known.exact.abs().max()
        wanted = SEEN * torch.minimum(deviation, size).clamp_min(0.01 * size)
        if n >= FEWEST and bool((smallest_seen(known, found) <= wanted).all()):
            break
    return found


def smallest_seen(known: Known, found: Measured) -> Tensor:
    """`[n]`: the bias that would be called one with probability 0.98."""
    return THRESHOLD * uncertainty(known, found) + 2 * found.error


def uncertainty(known: Known, found: Measured) -> Tensor:
    """`[n]`: what a difference is divided by to give z: the standard error, with an allowance for rare large values and
    for rounding and quadrature."""
    size = float(known.exact.abs().max()) + known.score_function**0.5 + float(found.deviation.max())
    return found.error + found.largest * (TAIL / found.estimates) + EXACT * size / THRESHOLD


def compared(known: Known, problem: Problem, reference: Problem | None = None, variant: str = "") -> Row:
    """The row of one problem; with a reference the difference to it is what must be 0."""
    one = torch.ones(1, dtype=torch.float64)

    def differences(stream: int) -> Measured:
        if reference is None:
            return measured(known, [problem], known.exact, one, stream)
        weights = torch.tensor([1.0, -1.0], dtype=torch.float64)
        return measured(known, [problem, reference], torch.zeros_like(known.exact), weights, stream)

    plain = measured(known, [problem], known.exact, one, 0)
    tested = plain if reference is None else differences(1)
    z = tested.mean.abs() / uncertainty(known, tested)
    off = z > THRESHOLD
    if bool(off.any()):
        again = differences(2)
        off = off & (again.mean.abs() > THRESHOLD * uncertainty(known, again))
    declared = bool(problem.estimator.declared_bias) or not problem.baseline.unbiased
    size, per_draw = float(known.exact.abs().max()), plain.variance * problem.draws
    return Row(
        family=known.family,
        problem=known.case.name + variant,
        verdict=_verdict(bool(off.any()), declared and reference is None),
        estimates=plain.estimates,
        z=float(z.max()),
        bias=float(plain.mean.abs().max()) / size,
        seen=float(smallest_seen(known, tested).max()) / size,
        variance=plain.variance,
        to_score_function=per_draw / known.score_function,
        to_leave_one_out=per_draw / DRAWS / known.leave_one_out,
    )


def mixes_rows(problem: Callable[[], Problem]) -> bool:
    """Whether an estimate is another one when its row is alone. (What fails is reported by the rows themselves.)"""
    try:
        one = problem()
        d, draw = one._rows(one.noise.apart(Purpose.MEASUREMENT, 8), 0, 4, 1)
        together, *alone = (_at_rows(one, d, draw, at) for at in (slice(None), *(slice(i, i + 1) for i in range(4))))
        return not torch.allclose(together, torch.cat(alone, 1), rtol=1e-6, atol=1e-9, equal_nan=True)
    except Exception:
        return False


def _at_rows(one: Problem, d: Distribution, draw: Draw, at: slice) -> Tensor:
    """The estimates of some rows of a draw `[1, S, 1]`, made from those rows, `[1, S', 1, n]`."""
    parts = {f.name: getattr(d, f.name) for f in fields(d)}
    d = replace(d, **{name: x[:, at] for name, x in parts.items() if isinstance(x, Tensor)})
    noise = None if draw.noise is None else draw.noise[:, at]
    draw = Draw(draw.action[:, at], noise, {name: x[:, at] for name, x in draw.extra.items()})
    grads, _ = cotangents(one.estimator, d, draw, one._signal(d, draw), one.estimator_state)
    return torch.cat([g.flatten(3) for g in grads], -1)


@cache
def known_of(family: type[Distribution]) -> tuple[Known, ...]:
    """The problems of a family with their exact gradients and the reference's variances."""
    found = []
    for case in CASES[family]():
        exact = flat(case, [g.unsqueeze(0) for g in exact_gradient(case.distribution, case.f).values()])[0]
        traces = []
        for baseline, draws in (("none", 1), ("leave_one_out", DRAWS)):
            problem = Problem.of("score_function", case.distribution, case.f, draws, baseline=baseline)
            noise = problem.noise.apart(Purpose.MEASUREMENT, 9)
            g = torch.cat([g[:, 0] for g, _ in estimates(case, [problem], noise, 4 * PILOT // draws)])
            traces.append(float(g.var(0).sum()))
        found.append(Known(family.__name__, case, exact, *traces))
    return tuple(found)


# -- estimators


def check_estimator(
    estimator: str | Mapping[str, Any] | Estimator, families: Iterable[type[Distribution]] = FAMILIES
) -> Report:
    """One estimator on the problems of every family that it serves.

    Where it takes baselines, also with a constant and with one per factor; where it takes f's value and a critic, also
    with a critic that is not f. One that declares `same_mean_as` is compared with that estimator on the same noise.
    """
    part: Estimator = _built(ESTIMATORS, estimator)
    missing = [name for name in ("needs", "kinds", "unbiased", "evaluations", "paper") if not hasattr(part, name)]
    if missing:
        raise PglabError(f"Estimator {part.name!r} does not declare {', '.join(missing)}, as every estimator must.")
    start = time.perf_counter()
    rows = [row for family in families if part.serves(family) for row in _on_family(part, known_of(family))]
    declared = f"biased: {part.declared_bias}" if part.declared_bias else "unbiased"
    return _report(part.name, "estimator", declared, part.same_mean_as, rows, start)


def _on_family(part: Estimator, known: Sequence[Known]) -> Iterator[Row]:
    other = _same_mean(part)

    def make(which: Estimator, one: Known, baseline: Any = "none") -> Callable[[], Problem]:
        return lambda: _problem(which, one.case, baseline)

    for one in known:
        yield _row(one, make(part, one), make(other, one) if other else None)
    several = next(k for k in known if k.case.distribution.noise_shape[0] > 1 and not k.case.shared)
    if mixes_rows(make(part, several)):
        yield Row(several.family, several.case.name, "FAILED", "an estimate changes with the other rows of the batch")
    if part.uses_baseline:
        yield _row(known[0], make(part, known[0], "moving_average"), variant=", constant baseline")
        yield _row(several, make(part, several, PerFactor()), variant=", baseline per factor")
    if "value" in part.needs and any(need.startswith("critic") for need in part.needs):
        yield _row(several, lambda: _apart(_problem(part, several.case)), variant=", critic apart from f")


def _same_mean(part: Estimator) -> Estimator | None:
    """The estimator whose mean `part` claims to have, with the same options where it has them."""
    if not part.same_mean_as:
        return None
    cls = ESTIMATORS.get(part.same_mean_as)
    return cls(**{k: getattr(part, k) for k in cls.model_fields if k in type(part).model_fields})


def _problem(part: Estimator, case: Case, baseline: Any = "none", draws: int = 1) -> Problem:
    return Problem.of(_briefly_fitted(part), case.distribution, case.f, draws, baseline=baseline)


def _briefly_fitted(part: Estimator) -> Estimator:
    """The same estimator, which asks for fewer updates before it is used."""
    if part.fit_updates <= FIT_UPDATES:
        return part
    cls: Any = type(part)
    brief = type(cls.__name__, (cls,), {"fit_updates": FIT_UPDATES, "__module__": cls.__module__})
    return brief(**{k: getattr(part, k) for k in cls.model_fields})


def _apart(problem: Problem) -> Problem:
    """The same problem with a critic that knows little of f."""
    given = {f.name: getattr(problem, f.name) for f in fields(Problem)}
    return Apart(**given, other=lambda z: 0.7 * problem.f(z) + 0.4 * z.flatten(1).sum(-1).square() + 1)


# -- baselines


def check_baseline(
    baseline: str | Mapping[str, Any] | Baseline, families: Iterable[type[Distribution]] = FAMILIES
) -> Report:
    """One baseline under score_function: on an episodic problem where every pair of episodes is enumerated, and on the
    plain problems that it serves, `DRAWS` draws per estimate."""
    part: Baseline = _built(BASELINES, baseline)
    start = time.perf_counter()
    rows, refused = list(_episodes(part)), []
    score_function = ESTIMATORS.get("score_function")()
    for one in (k for family in families for k in known_of(family)[: None if family in WHOLE else 2]):
        try:
            problem = _problem(score_function, one.case, part, DRAWS)
        except PglabError as error:
            refused.append(str(error))  # it needs what a plain objective does not have
        except Exception as error:
            rows.append(_failed(one.family, one.case.name, error))
        else:
            rows.append(_row(one, partial(replace, problem)))
    declared = "unbiased" if part.unbiased else f"biased: {part.bias}"
    return _report(part.name, "baseline", declared, "", rows, start, dict.fromkeys(refused))


def _episodes(part: Baseline) -> Iterator[Row]:
    try:
        found = expectations(part)
    except Exception as error:
        yield _failed(EPISODES, "all", error)
        return
    for e in found:
        bias = float((e.mean - e.exact).abs().max()) / float(e.exact.abs().max())
        if e.fault or not math.isfinite(bias):
            yield Row(EPISODES, e.name, "FAILED", e.fault or "an estimate is not finite")
            continue
        layout = e.name.partition(",")[0]
        yield Row(
            family=EPISODES,
            problem=e.name,
            verdict=_verdict(bias > EXACT, declared=not part.unbiased),
            bias=bias,
            variance=e.variance,
            to_score_function=e.variance / _episode_variances("none")[layout],
            to_leave_one_out=e.variance / _episode_variances("leave_one_out")[layout],
        )


@cache
def _episode_variances(name: str) -> dict[str, float]:
    return {e.name: e.variance for e in expectations(BASELINES.get(name)()) if "," not in e.name}


# -- distributions


def check_distribution(family: str | type[Distribution]) -> Report:
    """One family of distributions; see `pglab.lab.check_distributions`."""
    families = distributions()
    if isinstance(family, str):
        found = _spelled(family, families)
        if found is None:
            raise unknown("distribution", family, families)
        family = families[found]
    start = time.perf_counter()
    rows = tuple(properties(family))
    wrong = [r for r in rows if r.verdict != "ok"]
    verdict = "consistent" if rows else "FAILED: it has no examples"
    if wrong:
        note = f": {wrong[0].note}" if wrong[0].note else ""
        verdict = f"{wrong[0].verdict}: {wrong[0].property}{note} ({wrong[0].problem})"
    return Report(
        name=snake_case(family.__name__),
        part="distribution",
        declared="",
        verdict=verdict,
        failed=bool(wrong) or not rows,
        rows=rows,
        seconds=time.perf_counter() - start,
    )


def distributions() -> dict[str, type[Distribution]]:
    """All families that have been defined, by name: `squashed_gaussian` for SquashedGaussian."""
    found: dict[str, type[Distribution]] = {}
    todo: list[Any] = [Distribution]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if not inspect.isabstract(cls):
                found[snake_case(cls.__name__)] = cls
    return found


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _spelled(name: str, families: Mapping[str, Any]) -> str | None:
    """The name of a family that may be given as its class is."""
    return next((n for n in (name, snake_case(name)) if n in families), None)


# -- by name


def methods(plugins: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(part, name) of all estimators, baselines and distributions that are shipped; or, given plug-ins that have been
    loaded, of those that they define."""
    modules = {f"pglab_plugin_{Path(p).stem}" if p.endswith(".py") else p for p in plugins}

    def wanted(cls: type) -> bool:
        if not modules:
            return cls.__module__.startswith("pglab.")
        return any(cls.__module__ == m or cls.__module__.startswith(f"{m}.") for m in modules)

    found = [("estimator", n) for n in ESTIMATORS.names() if wanted(ESTIMATORS.get(n))]
    found += [("baseline", n) for n in BASELINES.names() if wanted(BASELINES.get(n))]
    return found + [("distribution", n) for n, cls in sorted(distributions().items()) if wanted(cls)]


def named(name: str) -> list[tuple[str, str]]:
    """(part, name) of whatever has that name: an estimator, a baseline, a distribution, or several of them. PglabError with
    the nearest name where nothing has."""
    families = distributions()
    found = [("estimator", name)] if name in ESTIMATORS.names() else []
    found += [("baseline", name)] if name in BASELINES.names() else []
    family = _spelled(name, families)
    found += [("distribution", family)] if family else []
    if not found:
        allowed = {*ESTIMATORS.names(), *BASELINES.names(), *families}
        raise unknown("estimator, baseline or distribution", name, allowed)
    return found


def check(part: str, name: str, options: Mapping[str, Any] | None = None) -> Report:
    """The report on one method: `part` is estimator, baseline or distribution. PglabError for unknown names and options."""
    if part == "distribution":
        if options:
            raise PglabError(f"Distribution {name!r} takes no options here: {', '.join(options)}.")
        return check_distribution(name)
    given = {"name": name, **(options or {})}
    return check_estimator(given) if part == "estimator" else check_baseline(given)


# -- reports


def _built(registry: Any, given: Any) -> Any:
    try:
        return registry.build(given)
    except ValueError as error:
        raise PglabError(str(error)) from None


def _verdict(off: bool, declared: bool) -> str:
    if off:
        return "declared" if declared else "BIASED"
    return "none seen" if declared else "consistent"


def _row(
    known: Known, problem: Callable[[], Problem], reference: Callable[[], Problem] | None = None, variant: str = ""
) -> Row:
    """The row of one problem, or how it failed."""
    try:
        return compared(known, problem(), reference() if reference else None, variant)
    except Exception as error:
        return _failed(known.family, known.case.name + variant, error)


def _failed(family: str, problem: str, error: Exception) -> Row:
    lines = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, PglabError | FloatingPointError) else f"{type(error).__name__}: "
    return Row(family, problem, "FAILED", kind + lines[0])


def _report(
    name: str, part: str, declared: str, same_as: str, rows: Sequence[Row], start: float, notes: Iterable[str] = ()
) -> Report:
    failed = [r for r in rows if r.verdict == "FAILED"]
    wrong = [r for r in rows if r.verdict == "BIASED"]
    worst = percent(max((r.bias for r in rows if r.bias is not None), default=0.0))
    if failed:
        verdict = f"FAILED: {failed[0].note} ({failed[0].family}: {failed[0].problem})"
    elif not rows:
        verdict = "FAILED: it serves none of the problems"
    elif wrong:
        verdict = f"BIASED: not the mean of {same_as}" if same_as else "BIASED"
    elif same_as:
        verdict = f"the mean of {same_as}: consistent; measured bias {worst}"
    elif declared != "unbiased" and all(r.verdict == "none seen" for r in rows):
        verdict = "declared biased: none seen on these problems"
    elif declared != "unbiased":
        verdict = f"declared biased: measured bias {worst}"
    else:
        verdict = "unbiased: consistent"
    return Report(
        name=name,
        part=part,
        declared=declared + (f"; the mean of {same_as}" if same_as else ""),
        verdict=verdict,
        failed=bool(failed or wrong or not rows),
        rows=tuple(rows),
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
    )


def percent(x: float) -> str:
    """A fraction as a percentage of two digits."""
    if x < 1e-9:
        return "0 %"
    return f"{100 * x:.2g} %" if x < 1 else f"{100 * x:,.0f} %"
