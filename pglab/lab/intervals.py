"""Intervals by leaving out groups: Student's t, transformed for skewness, and Fieller's for ratios.

The delete-m jackknife for groups of unequal size (Busing, Meijer & van der Leeden 1999) gives a statistic's variance, its
covariance with another on the same draws, and through its pseudo-values its skewness. With these, Student's t is transformed by
Hall's (1992) monotone cubic, which undoes the skewness to first order.

Letters: J pairs, B groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from pglab.lab.gradient_statistics import fieller

CONFIDENCE = 0.95
FEWEST_GROUPS = 8
"""Groups below which there is no interval."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of every pair with its 95 % interval (NaN where there is none). `estimate[j]` is that of one pair."""

    value: np.ndarray  # [J] float64
    low: np.ndarray  # [J]
    high: np.ndarray  # [J]
    reliable: np.ndarray  # [J] bool

    def __getitem__(self, pair: int) -> tuple[float, float, float, bool]:
        return float(self.value[pair]), float(self.low[pair]), float(self.high[pair]), bool(self.reliable[pair])


@dataclass(frozen=True)
class Jackknifed:
    """A statistic, and z with mean(z^2) its jackknife variance and mean(z z') its covariance with another."""

    value: np.ndarray  # [J]
    z: np.ndarray  # [J, B]

    @property
    def variance(self) -> np.ndarray:
        return (self.z**2).mean(-1)

    def times(self, factor: float) -> Jackknifed:
        return Jackknifed(self.value * factor, self.z * factor)

    def plus(self, other: Jackknifed) -> Jackknifed:
        return Jackknifed(self.value + other.value, self.z + other.z)


def left_out(value: np.ndarray, without: np.ndarray, counts: np.ndarray) -> tuple[Jackknifed, np.ndarray]:
    """From a statistic [J], and without each group [J, B] of `counts` units [B]; also less the estimate of its bias."""
    share = counts.sum() / counts  # R / m_b
    corrected = len(counts) * value - ((1 - 1 / share) * without).sum(-1)
    pseudo = share * value[:, None] - (share - 1) * without
    return Jackknifed(value, (pseudo - corrected[:, None]) / np.sqrt(share - 1)), corrected


def interval(
    found: Jackknifed, tame: np.ndarray | bool = True, variance: np.ndarray | None = None, least: float = -np.inf
) -> Estimate:
    """Student's t with Hall's transformation; the jackknife's variance unless another is given."""
    b = found.z.shape[-1]
    if b < FEWEST_GROUPS:
        return without_interval(found.value)
    error, skewness = np.sqrt(found.variance if variance is None else variance), skewness_of(found.z)
    low = found.value - error * hall(quantile_of(b), skewness, b)
    high = found.value - error * hall(-quantile_of(b), skewness, b)
    return Estimate(found.value, np.maximum(low, least), high, np.isfinite(low) & tame)


def ratio_interval(
    top: Jackknifed, bottom: Jackknifed, v_top: np.ndarray, v_bottom: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fieller's interval of a ratio of non-negative numbers; each end takes Hall's quantile there."""
    b = top.z.shape[-1]
    if b < FEWEST_GROUPS:
        return np.full_like(top.value, np.nan), np.full_like(top.value, np.nan)
    numerator, covariance = np.maximum(top.value, 0.0), (top.z * bottom.z).mean(-1)
    ends = []
    for side, sign in ((0, 1.0), (1, -1.0)):
        quantile = np.full_like(numerator, quantile_of(b))
        for _ in range(5):  # the skewness is that at the end found
            end = fieller(numerator, bottom.value, v_top, covariance, v_bottom, quantile)[side]
            finite = np.isfinite(end)[:, None]
            z = np.where(finite, top.z, 0.0) - np.where(finite, np.where(finite, end[:, None], 0.0), 1.0) * bottom.z
            quantile = np.abs(hall(sign * quantile_of(b), skewness_of(z), b))
        ends.append(end)
    return ends[0], ends[1]


def hall(quantile: float, skewness: np.ndarray, b: int) -> np.ndarray:
    """The t whose transform t + s t^2 / 3 + s / 6 + s^2 t^3 / 27, with s = skewness / sqrt(B), is `quantile`."""
    s = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness) / np.sqrt(b)
    return (np.cbrt(1 + s * (quantile - s / 6)) - 1) / (s / 3)


def quantile_of(b: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, b - 1))


def skewness_of(z: np.ndarray) -> np.ndarray:
    apart = z - z.mean(-1, keepdims=True)
    second = (apart**2).mean(-1)
    return np.where(second > 0, divide((apart**3).mean(-1), second**1.5), 0.0)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def positive(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 1.0)


def without_interval(value: np.ndarray) -> Estimate:
    missing = np.full_like(value, np.nan)
    return Estimate(value, missing, missing, np.zeros(len(value), bool))
