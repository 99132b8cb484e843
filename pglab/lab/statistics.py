"""Statistics over seeds: interquartile mean, bootstrap intervals, steps to a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike


class Statistic(Protocol):
    """A function of an array along one axis, such as `numpy.mean` or `iqm`."""

    def __call__(self, x: np.ndarray, *, axis: int) -> np.ndarray: ...


def iqm(x: ArrayLike, axis: int | None = -1) -> np.ndarray:
    """Interquartile mean: the mean of what is left when the lowest and the highest quarter are cut off.

    Agarwal et al. 2021 (Deep RL at the edge of the statistical precipice, section 4.3), in the definition of their
    library rliable, `scipy.stats.trim_mean(x, 0.25)`: `floor(n / 4)` values are cut at each end and the rest have equal
    weight; no value is cut in part. Fewer than four values are all kept.

    Args:
        x: any shape.
        axis: the axis averaged over; None takes all values together.

    Returns:
        float64, `x` without `axis`. NaN where any value is NaN.

    Raises:
        ValueError: where there is nothing to average.
    """
    values = np.asarray(x, dtype=np.float64)
    if axis is None:
        values, axis = values.reshape(-1), 0
    n = values.shape[axis]
    if n == 0:
        raise ValueError("the interquartile mean of no values is undefined")
    cut = n // 4
    # numpy sorts NaN to the end, where the cut would hide it.
    missing = np.isnan(values).any(axis=axis)
    middle = np.sort(values, axis=axis).take(np.arange(cut, n - cut), axis=axis)
    return np.where(missing, np.nan, middle.mean(axis=axis))


def stratified_bootstrap_interval(
    scores: ArrayLike | Sequence[ArrayLike],
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over seeds (Agarwal et al. 2021, section 4.1; Efron 1979).

    What is resampled is the seed, with replacement, since a seed is what would be drawn anew if the experiment were
    repeated. A seed's episodes stay together: its score is their mean, which carries the episodes' own noise with it.
    With several strata (environments, say), given as a list, seeds are drawn within each stratum, and the statistic is
    taken over the scores of all strata together.

    With few seeds a percentile interval is too narrow: of the IQM of 5 normal scores, a nominal 95 % covers 89 %.

    Args:
        scores: [seeds], or [seeds, episodes], or a list of such arrays, one per stratum.
        statistic: called with `x` [resamples, scores] and `axis=1`.
        confidence: in (0, 1).
        resamples: how many times the seeds are drawn.
        seed: of the resampling; the same arguments give the same interval.

    Returns:
        (low, high), in the units of the scores; (NaN, NaN) where a stratum has fewer than two seeds.
    """
    strata = scores if isinstance(scores, list | tuple) and np.ndim(scores[0]) > 0 else [scores]
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    drawn = []
    for stratum in strata:
        values = np.asarray(stratum, dtype=np.float64)
        values = values if values.ndim == 1 else values.mean(axis=tuple(range(1, values.ndim)))  # [seeds]
        if len(values) < 2:
            return math.nan, math.nan
        drawn.append(values[generator.integers(len(values), size=(resamples, len(values)))])
    estimates = statistic(np.concatenate(drawn, axis=1), axis=1)  # [resamples]
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


def steps_to_threshold(steps: ArrayLike, returns: ArrayLike, threshold: float) -> np.ndarray:
    """Steps at the first evaluation whose return is at or above `threshold`.

    Args:
        steps: [n], environment steps, ascending.
        returns: [n, P]; NaN is below every threshold.

    Returns:
        [P] float64, in environment steps; inf for a member that never gets there.
    """
    steps = np.asarray(steps, dtype=np.float64)
    reached = np.asarray(returns) >= threshold  # [n, P]
    if len(steps) == 0:
        return np.full(reached.shape[1:], np.inf)
    return np.where(reached.any(axis=0), steps[reached.argmax(axis=0)], np.inf)


def pooled_nsr(measurement: Mapping[str, Any]) -> dict[str, float]:
    """The seeds' noise-to-signal ratios as one: mean trace variance / mean squared norm over seeds, so that a seed whose
    signal is not told from zero does not decide it; the interval is the bootstrap over seeds of that ratio."""
    trace = np.asarray(measurement["trace_variance"], dtype=np.float64)  # [P]
    signal = np.asarray(measurement["squared_norm"], dtype=np.float64)
    rng = np.random.default_rng(np.random.SeedSequence(0))
    index = rng.integers(len(trace), size=(2000, len(trace)))

    def ratio(t: np.ndarray, s: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(s > 0, t / s, np.inf)

    drawn = np.sort(ratio(trace[index].mean(1), signal[index].mean(1)))
    low, high = drawn[round(0.025 * (len(drawn) - 1))], drawn[round(0.975 * (len(drawn) - 1))]
    point = ratio(trace.mean(keepdims=True), signal.mean(keepdims=True))[0]
    return {"nsr": float(point), "low": float(low), "high": float(high), "trace_variance": float(trace.mean())}
