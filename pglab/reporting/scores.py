"""What a variant is worth: final score, area under the curve, steps to a threshold, probability of improvement."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from pglab.lab.statistics import iqm

RESAMPLES = 2000


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IQM, 25th and 75th percentile of each row of `[n, P]`, over the members that have a value; NaN where none has."""
    if not np.isnan(values).any():
        low, high = np.quantile(values, [0.25, 0.75], axis=1) if values.size else (values[:, :0].sum(1),) * 2
        return (iqm(values, axis=1) if values.size else low), low, high
    found = np.full((3, len(values)), np.nan)
    for i, row in enumerate(values):
        known = row[~np.isnan(row)]
        if known.size:
            found[:, i] = [iqm(known), *np.quantile(known, [0.25, 0.75])]
    return found[0], found[1], found[2]


def area_under_curve(steps: ArrayLike, returns: ArrayLike, until: float) -> float:
    """The mean return from the first evaluation to `until` steps: the area under straight lines between evaluations, over
    the steps. NaN where the curve does not reach so far, or a value is missing."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    if len(x) < 2 or x[-1] < until or not until > x[0] or np.isnan(y).any():
        return math.nan
    inside = x < until
    x, y = np.r_[x[inside], until], np.r_[y[inside], np.interp(until, x, y)]
    return float(np.trapezoid(y, x) / (until - x[0]))


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """P(X > Y) over all pairs of a seed of X and a seed of Y, ties counted half (Agarwal et al. 2021, section 4.3; the
    Mann-Whitney statistic over the number of pairs), and its percentile bootstrap interval over seeds of both.

    Returns:
        (probability, low, high); the interval is NaN where either has fewer than two seeds, everything where either has
        none or a score is missing.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not len(a) or not len(b) or np.isnan(a).any() or np.isnan(b).any():
        return math.nan, math.nan, math.nan
    wins = (a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])  # [N, M]
    point = float(wins.mean())
    if len(a) < 2 or len(b) < 2:
        return point, math.nan, math.nan
    counts_a, counts_b = _counts(len(a), 0, resamples), _counts(len(b), 1, resamples)
    drawn = ((counts_a @ wins) * counts_b).sum(1) / wins.size
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return point, float(low), float(high)


@lru_cache(maxsize=64)
def _counts(n: int, side: int, resamples: int) -> np.ndarray:
    """`[resamples, n]`: how often each of n seeds is drawn in n draws with replacement."""
    generator = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(side,)))
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def horizon(lasts: list[tuple[float, bool]]) -> float | None:
    """The steps to which areas are taken in a group, from (last evaluation, finished) of its variants: as far as all
    finished ones go; as far as all go where none is."""
    known = [last for last, finished in lasts if finished] or [last for last, _ in lasts]
    return min(known) if known else None
