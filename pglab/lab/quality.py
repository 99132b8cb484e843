"""What one training-size gradient of each of J pairs is worth: spread, signal, error, direction, with 95 % intervals.

Everything is computed from a `Replicates` (R units in B groups, the mean of `per_gradient` = p units being one
training-size gradient), per pair and per section of the parameters. With units of mean mu and covariance S, and a
reference g:

    trace              tr S / p                              mean_variance = trace / n
    mean_log_variance  mean over k of ln(S_kk / p + 1e-20)   -46.05 for every dead parameter (variance 0) in the mean;
                                                             its bias, about -1 / R by the jackknife, is taken off
    squared_norm       |mu|^2: U = |mean|^2 - T / R          a U-statistic, T = estimate of tr S; may be negative
    nsr                trace / |mu|^2                        infinite where U <= 0, NaN where all gradients are zero
    snr                mean over k of |mu_k| / sqrt(S_kk / p)
    bias_squared       |mu - g|^2, a U-statistic as above    less `ref_noise`; may be negative
    mse                bias_squared + trace                  of one training-size gradient around g
    cosine             mean over the head of cos(one training-size gradient, g)
    mean_cosine        cos(mu, g), both norms debiased       NaN where a debiased square is not positive
    pairwise_cosine    mean of cos over pairs of the head (Ilyas et al. 2020, figure 1)

`snr` as |mean_k| / std_k would grow with noise alone: with x = mean_k / sqrt(var_k / R), E|x| is 0.80 without signal.
|x| - 1.29 exp(-2 x^2) stands for it, whose bias is at most 0.22 whatever the signal, and below 0.02 from a signal of
three standard errors. (No function of x is unbiased for a modulus, Cai & Low 2011; sqrt(max(0, x^2 - 1)) is off by up
to 0.34, and still by 0.2 at three.) The interval does not know of that bias. Parameters with mean 0 and variance 0
are left out.

**Intervals.** Groups are what is left out (delete-m jackknife for groups of unequal size, Busing, Meijer & van der
Leeden 1999). It gives a statistic's variance, its covariance with another on the same draws, and through its
pseudo-values its skewness. With these, Student's t is transformed by Hall's (1992) monotone cubic, which undoes the
skewness to first order. For the trace of heavy-tailed units that covered far better than a bootstrap's percentiles or
a plain t (benchmarks/coverage.md), and nothing is drawn at random. A ratio has Fieller's (1954) interval, each end
with the quantile that the skewness of numerator - ratio x denominator asks for; ratios between pairs are paired, since
groups are left out of both at once. The jackknife counts the degenerate part of a
U-statistic's variance, 2 tr(S^2) / R^2, twice; what is too much is taken off, as in `gradient_statistics`. (Ratios
between pairs and `mean_cosine` keep it.) A noisy reference adds to the variance of bias, error and mean_cosine as
though its noise had the shape of the pair's own covariance; in ratios between pairs, which share it, it is not
counted.

**Reliable** says that there are enough units for the tail they show: the standard error of the section's trace is at
most `TAIL` = 0.12 of it. With kappa = E d^2 / (E d)^2 of the units' squared deviations d = |g_r - mean|^2, that is R
>= 70 (kappa - 1). Measured (benchmarks/coverage.md): of Gaussian units in 20 directions none of 1,000 is marked at R
= 32. At kurtosis 22 (lognormal scale) 98 % are at R = 128, 65 % at 256, 4 % at 1,024, and those not marked cover 83,
93 and 94 % at 256, 512 and 1,024; at kurtosis 23 (Student's t) 94 % are at 32, 37 % at 128, 5 % at 512, those not
marked cover 88, 91 and 92 % at 128, 256 and 512. A tail that has not shown itself cannot be seen: of few heavy-tailed
units, the samples that look harmless are the ones that miss. (A bound on the skewness, which Hall's transform makes
good, marked those that cover.) Cosines of single gradients are bounded, and reliable from 8 on. The cosine of the
mean also wants its squared norm to be twice that one's standard error, and snr its bias to be at most half of its
interval's half.

Letters: R replicates (units), J pairs, B groups, H head, n parameters (of a section), p units per training-size
gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pglab.errors import PglabError
from pglab.lab.gradient_statistics import trace_of_square
from pglab.lab.intervals import (
    FEWEST_GROUPS,
    Estimate,
    Jackknifed,
    divide,
    interval,
    left_out,
    positive,
    ratio_interval,
    without_interval,
)
from pglab.lab.replicates import Replicates

TAIL = 0.12
FLOOR = 1e-20
_CHUNK = 1 << 22  # float64 numbers of [J, B, n] held at a time


@dataclass(frozen=True)
class _Distance:
    """|mu - g|^2 and its variance: a part linear in the noise of the mean, and a quadratic, degenerate one."""

    squared: Jackknifed
    linear: np.ndarray  # [J]
    degenerate: np.ndarray  # [J]

    @property
    def variance(self) -> np.ndarray:
        return self.linear + self.degenerate


class _Groups:
    """Groups of units: mean [J, n], sums less count times mean [J, B, n], squared deviations from the mean [J, B]."""

    def __init__(self, mean: np.ndarray, centred: np.ndarray, spread: np.ndarray, counts: np.ndarray) -> None:
        self.mean, self.centred, self.counts = mean, centred, counts
        self.units = r = counts.sum()
        self.gram = centred @ centred.swapaxes(-2, -1)  # [J, B, B]
        self.norms = np.diagonal(self.gram, axis1=-2, axis2=-1)
        self.rest = r - counts
        total = spread.sum(-1)
        self.traces = (total[:, None] - spread - self.norms / self.rest) / np.maximum(self.rest - 1, 1)  # without b
        self.trace = left_out(total / (r - 1), self.traces, counts)[0]

    def distance(self, reference: np.ndarray | float) -> _Distance:
        """Squared distance of mu from a reference [J, n]."""
        r, b, rest = self.units, len(self.counts), self.rest
        apart = self.mean - reference
        along = (self.centred @ apart[..., None])[..., 0]  # [J, B]
        square = (apart**2).sum(-1)
        without = square[:, None] - 2 * along / rest + self.norms / rest**2 - self.traces / rest
        found = left_out(square - self.trace.value / r, without, self.counts)[0]
        if b < FEWEST_GROUPS:
            return _Distance(found, np.full_like(square, np.nan), np.full_like(square, np.nan))
        # Sums over the square roots of the counts have the covariance of a unit.
        root = np.sqrt(self.counts)
        quadratic = np.maximum(trace_of_square(self.gram / (root[:, None] * root)), 0.0)
        surplus = quadratic * b / r**2 * (4 / (b - 2) - 2 / (b - 1))
        degenerate = 2 * quadratic / (r * (r - 1))
        return _Distance(found, np.maximum(found.variance - surplus - degenerate, 0.0), degenerate)


@dataclass(frozen=True)
class Quality:
    """Made by `quality`. `estimates`: section to statistic to `Estimate`."""

    estimates: dict[str, dict[str, Estimate]]
    _jackknifed: dict[str, dict[str, Jackknifed]]

    def ratios(self, against: int) -> dict[str, dict[str, Estimate]]:
        """Every pair's `trace_ratio`, and with a reference `mse_ratio`, to those of pair `against`, per section.

        Intervals are paired: what both have in common on the same draws cancels. The pair itself has (1, 1, 1). An
        infinite end says that the denominator cannot be told from zero.

        Raises:
            PglabError: where there is no such pair.
        """
        found: dict[str, dict[str, Estimate]] = {}
        for section, known in self._jackknifed.items():
            pairs = len(known["trace"].value)
            if not 0 <= against < pairs:
                raise PglabError(f"There is no pair {against}: there are {pairs}, the first is 0.")
            found[section], tame = {}, _tame(known["trace"])
            for name, top in known.items():
                bottom = Jackknifed(top.value[[against]], top.z[[against]])
                low, high = ratio_interval(top, bottom, top.variance, bottom.variance)
                value = divide(top.value, bottom.value)
                for end in (value, low, high):
                    end[against] = 1.0 if np.isfinite(end[against]) else end[against]
                found[section][f"{name}_ratio"] = Estimate(value, low, high, tame & tame[against])
        return found


def quality(
    replicates: Replicates,
    sections: Mapping[str, slice],
    reference: ArrayLike | None = None,
    ref_noise: Mapping[str, float] | None = None,
    intervals: bool = True,
) -> Quality:
    """All statistics at the top of this file, of one training-size gradient, per section and of the `total`.

    Args:
        replicates: at least two units. With fewer than 8 (or 8 gradients in the head, for cosines) intervals are NaN
            and nothing is reliable.
        sections: name to slice of the n parameters; `total`, all of them, is added.
        reference: [n] or [J, n], what bias, error and cosines are measured against; without it they are not made.
        ref_noise: section (and `total`) to tr(Sigma) / M, where the reference is the mean of M independent draws of
            covariance Sigma. Zero without it: the reference is known exactly.
        intervals: whether they are asked for. With False, fewer than four units are no error.

    Returns:
        The estimates; traces, squared norms and errors in squared units of the gradient.

    Raises:
        PglabError: for too few replicates, a section that is empty or outside, or a reference of another shape.
    """
    r, n, j = replicates.units, replicates.size, replicates.pairs
    if r < 2:
        raise PglabError(f"A variance needs at least 2 replicates, and there are {r}.")
    if intervals and r < 4:
        raise PglabError(f"Too few replicates for an interval: there are {r}, and at least 4 are needed.")
    parts = _sections(sections, n)
    noise = dict.fromkeys(parts, 0.0) if ref_noise is None else dict(ref_noise)
    if noise.keys() != parts.keys():
        raise PglabError(f"ref_noise has {', '.join(noise)}, and the sections are {', '.join(parts)}.")
    target = None if reference is None else np.asarray(reference, dtype=np.float64)
    if target is not None:
        if target.shape not in ((n,), (j, n)):
            raise PglabError(f"The reference has shape {target.shape}, and [n] = [{n}] or [J, n] is wanted.")
        target = np.broadcast_to(target, (j, n))
    host = replicates.cpu()
    width = max(1, _CHUNK // (len(host.counts) * (len(host.counts) + n)))
    blocks = [_block(host, slice(i, i + width), parts, target, noise) for i in range(0, j, width)]
    estimates, jackknifed = ({s: _joined([block[k][s] for block in blocks]) for s in parts} for k in (0, 1))
    return Quality(estimates, jackknifed)


def efficiency(mse: Estimate, cost: ArrayLike) -> Estimate:
    """1 / (mse x cost), the work-normalised precision of a gradient (Glynn & Whitt 1992), with the interval of `mse`.

    Args:
        mse: as `quality` gives it.
        cost: [J] or a number, positive, in any unit of work.

    Returns:
        Infinite where an error is not positive.

    Raises:
        PglabError: where a cost is not positive.
    """
    work = np.asarray(cost, dtype=np.float64)
    if not (work > 0).all():
        raise PglabError(f"A cost must be positive: {work.tolist()}.")
    value, low, high = (divide(np.ones_like(e), np.maximum(e, 0.0) * work) for e in (mse.value, mse.high, mse.low))
    return Estimate(value, low, high, mse.reliable)


def _block(
    replicates: Replicates,
    pairs: slice,
    parts: Mapping[str, slice],
    target: np.ndarray | None,
    noise: Mapping[str, float],
) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, Jackknifed]]]:
    """Some pairs: their estimates, and what ratios between pairs are made of."""
    p, r = replicates.per_gradient, replicates.units
    counts = replicates.counts.numpy().astype(np.float64)
    mean, offset, m2 = (x[pairs].numpy() for x in (replicates.mean, replicates.offset, replicates.m2))
    sums, squares = replicates.sums[pairs].numpy(), replicates.squares[pairs].double().numpy()
    centred = sums - counts[:, None] * offset[:, None]
    spread = squares - offset[:, None] * (2 * sums - counts[:, None] * offset[:, None])  # around the mean
    rest = (r - counts)[:, None]
    less = (spread.sum(1)[:, None] - spread - centred**2 / rest) / np.maximum(rest - 1, 1)
    variance, less = m2 / (r - 1) / p, np.maximum(less, 0.0) / p  # of a training-size gradient, and without each group
    logs, logs_less = np.log(variance + FLOOR), np.log(less + FLOOR)
    snr, snr_less = (
        _signal_to_noise(mean, variance, r / p),
        _signal_to_noise(mean[:, None] - centred / rest, less, rest / p),
    )
    head = replicates.head[pairs].double().numpy()
    estimates, kept = {}, {}
    for name, part in parts.items():
        groups = _Groups(mean[:, part], centred[..., part], spread[..., part].sum(-1), counts)
        # The value is made of the float64 moments; the groups' own squares are float32.
        groups.trace = unit = Jackknifed(m2[:, part].sum(-1) / (r - 1), groups.trace.z)
        trace, signal, tame = unit.times(1 / p), groups.distance(0.0), _tame(unit)
        log, corrected = left_out(logs[:, part].mean(-1), logs_less[..., part].mean(-1), counts)
        directions = head[..., part] / positive(np.linalg.norm(head[..., part], axis=-1, keepdims=True))
        estimates[name] = found = {
            "trace": interval(trace, tame, least=0.0),
            "mean_variance": interval(trace.times(1 / (part.stop - part.start)), tame, least=0.0),
            "mean_log_variance": interval(Jackknifed(corrected, log.z), tame),
            "squared_norm": interval(signal.squared, tame, signal.variance),
            "nsr": _nsr(trace, signal, tame),
            "snr": _snr(snr[:, part], snr_less[..., part], counts, r / p, tame),
            "pairwise_cosine": _pairwise(directions),
        }
        kept[name] = {"trace": trace}
        if target is None:
            continue
        goal, extent = target[pairs, part], np.linalg.norm(target[pairs, part], axis=-1)
        apart = groups.distance(goal)
        bias = Jackknifed(apart.squared.value - noise[name], apart.squared.z)
        kept[name]["mse"] = error = bias.plus(trace)
        surplus = bias.variance - apart.variance
        extra = _reference_variance(apart, unit.value / r, noise[name])
        found["bias_squared"] = interval(bias, tame, apart.variance + extra)
        found["mse"] = interval(error, tame, np.maximum(error.variance - surplus, apart.degenerate) + extra)
        found["cosine"] = _mean_of((directions * (goal / positive(extent)[:, None])[:, None]).sum(-1))
        found["mean_cosine"] = _mean_cosine(groups, goal, noise[name], signal, tame)
    return estimates, kept


def _reference_variance(apart: _Distance, own: np.ndarray, noise: float) -> np.ndarray:
    """What the reference's noise adds to the variance of a distance whose mean has the noise `own`.

    Its covariance is taken to be a multiple of the mean's; where that has none, to lie along the bias."""
    times = np.where(own > 0, divide(np.full_like(own, noise), own), 0.0)
    along = 4 * np.maximum(apart.squared.value, 0.0) * noise + 2 * noise**2
    return np.where(own > 0, apart.linear * times + apart.degenerate * ((1 + times) ** 2 - 1), along)


def _signal_to_noise(mean: np.ndarray, variance: np.ndarray, gradients: float | np.ndarray) -> np.ndarray:
    """|mu| / sqrt(variance) from means over `gradients`, debiased. NaN where both are zero, infinite without noise."""
    x = divide(np.abs(mean) * np.sqrt(gradients), np.sqrt(variance))
    return (x - 1.29 * np.exp(-2 * x**2)) / np.sqrt(gradients)


def _tame(trace: Jackknifed) -> np.ndarray:
    """[J] whether the tail of the units is not too heavy for their number."""
    return np.sqrt(trace.variance) <= TAIL * trace.value if trace.z.shape[-1] >= FEWEST_GROUPS else trace.value < 0


def _snr(whole: np.ndarray, without: np.ndarray, counts: np.ndarray, gradients: float, tame: np.ndarray) -> Estimate:
    alive = ~np.isnan(whole)
    number = positive(alive.sum(-1).astype(np.float64))
    value = np.where(alive.any(-1), np.where(alive, whole, 0.0).sum(-1) / number, np.nan)
    without = np.where(alive[:, None] & ~np.isnan(without), without, 0.0).sum(-1) / number[:, None]
    with np.errstate(invalid="ignore"):
        made = interval(left_out(value, without, counts)[0], tame, least=0.0)
        bias = 0.22 / np.sqrt(gradients) * ((whole * np.sqrt(gradients) < 3) & alive).sum(-1) / number  # at most
    return Estimate(made.value, made.low, made.high, made.reliable & (bias < (made.high - made.low) / 4))


def _nsr(trace: Jackknifed, signal: _Distance, tame: np.ndarray) -> Estimate:
    t, u = trace.value, signal.squared.value
    value = np.where(u > 0, divide(t, u), np.where((t == 0) & (u == 0), np.nan, np.inf))
    return Estimate(value, *ratio_interval(trace, signal.squared, trace.variance, signal.variance), tame)


def _mean_cosine(groups: _Groups, goal: np.ndarray, noise: float, signal: _Distance, tame: np.ndarray) -> Estimate:
    """cos(mu, g) by the delta method."""

    def projected(on: np.ndarray) -> Jackknifed:
        along = (groups.mean * on).sum(-1)
        without = along[:, None] - (groups.centred @ on[..., None])[..., 0] / groups.rest
        return left_out(along, without, groups.counts)[0]

    u, length, product = signal.squared.value, (goal**2).sum(-1) - noise, projected(goal)
    there = (u > 0) & (length > 0)
    u, length = np.where(there, u, np.nan), np.where(there, length, np.nan)
    scale = 1 / np.sqrt(u * length)
    slope = product.value * scale / (2 * u)
    found = Jackknifed(product.value * scale, product.z * scale[:, None] - signal.squared.z * slope[:, None])
    # Where the reference goes, the cosine's slope is along mu less its projection on g.
    across = projected((groups.mean - goal * (product.value / length)[:, None]) * scale[:, None])
    own = groups.trace.value / groups.units
    extra = across.variance * np.where(own > 0, divide(np.full_like(own, noise), own), 0.0)
    made = interval(found, tame & there & (u > 2 * np.sqrt(signal.variance)), found.variance + extra)
    low, value, high = (np.clip(x, -1.0, 1.0) for x in (made.low, made.value, made.high))
    return Estimate(value, low, high, made.reliable)


def _pairwise(directions: np.ndarray) -> Estimate:
    """Mean cosine over pairs i < j: the U-statistic of |E u|^2 of unit vectors u [J, H, n]."""
    if directions.shape[1] < 2:
        return without_interval(np.full(len(directions), np.nan))
    mean = directions.mean(1)
    centred = directions - mean[:, None]
    found = _Groups(mean, centred, (centred**2).sum(-1), np.ones(directions.shape[1])).distance(0.0)
    return interval(found.squared, True, found.variance)


def _mean_of(values: np.ndarray) -> Estimate:
    """Mean of independent values [J, H]."""
    if values.shape[1] == 0:
        return without_interval(np.full(len(values), np.nan))
    mean = values.mean(-1)
    return interval(Jackknifed(mean, (values - mean[:, None]) / np.sqrt(max(values.shape[1] - 1, 1))))


def _joined(blocks: list[dict]) -> dict:
    """Estimates of some pairs each, as one of all."""
    return {
        name: type(first)(*(np.concatenate([getattr(b[name], f) for b in blocks]) for f in first.__dataclass_fields__))
        for name, first in blocks[0].items()
    }


def _sections(sections: Mapping[str, slice], n: int) -> dict[str, slice]:
    found = {}
    for name, part in sections.items():
        start, stop, step = part.indices(n)
        if name == "total" or step != 1 or start >= stop or (part.stop or 0) > n:
            raise PglabError(f"Section {name!r} is {part}: a part of {n} parameters, not called 'total', is wanted.")
        found[name] = slice(start, stop)
    return {**found, "total": slice(0, n)}
