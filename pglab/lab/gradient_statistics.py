"""How noisy a gradient estimate is, from independent replicates of it at frozen parameters.

With replicates g_1 .. g_R, mean mu and covariance S:

    trace of the covariance   T = sum_i |g_i - g_mean|^2 / (R - 1)                            unbiased for tr S
    squared norm of the mean  U = (|sum_i g_i|^2 - sum_i |g_i|^2) / (R (R - 1))               unbiased for |mu|^2
                                = |g_mean|^2 - T / R
    noise-to-signal ratio     T / U                                         of ONE gradient, tr S / |mu|^2

The naive |g_mean|^2 would contain T / R: it makes every estimator look good at large noise. U may come out zero or
negative; then the replicates show no signal at all, and the ratio is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

_CHUNK = 1 << 22  # float64 numbers held at a time


@dataclass(frozen=True)
class _Moments:
    """What every statistic here is made of, float64. Differences are taken before squares, so nothing cancels."""

    mean_square: np.ndarray  # [...] |g_mean|^2
    along: np.ndarray  # [..., R] g_mean . (g_i - g_mean)
    gram: np.ndarray  # [..., R, R] (g_i - g_mean) . (g_j - g_mean)

    @property
    def spread(self) -> np.ndarray:
        """[..., R] |g_i - g_mean|^2."""
        return np.diagonal(self.gram, axis1=-2, axis2=-1)


def _moments(gradients: ArrayLike) -> _Moments:
    g = np.asarray(gradients)
    if g.ndim < 2 or g.shape[-2] < 2:
        raise ValueError(f"gradients have shape {g.shape}: [..., R, n] with at least R = 2 replicates are wanted")
    *batch, replicates, n = g.shape
    mean_square, along = np.zeros(batch), np.zeros((*batch, replicates))
    gram = np.zeros((*batch, replicates, replicates))
    width = max(1, _CHUNK // max(1, g.size // max(1, n)))
    for start in range(0, n, width):
        part = g[..., start : start + width].astype(np.float64)
        mean = part.mean(axis=-2, keepdims=True)  # [..., 1, c]
        part -= mean
        mean_square += (mean**2).sum(axis=(-2, -1))
        along += (part @ mean.swapaxes(-2, -1))[..., 0]
        gram += part @ part.swapaxes(-2, -1)
    return _Moments(mean_square, along, gram)


def trace_variance(gradients: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Trace of the covariance of one gradient, and the jackknife standard error of that number (Efron & Stein 1981).

    Args:
        gradients: [..., R, n], independent replicates; leading axes are a batch (the population).

    Returns:
        (value, se), each [...] float64, in squared units of the gradient. `se` is NaN for R = 2.

    Raises:
        ValueError: for fewer than two replicates.
    """
    spread = _moments(gradients).spread
    value, left_out = _trace(spread)
    if spread.shape[-1] < 3:
        return value, np.full_like(value, np.nan)
    return value, np.sqrt(_jackknife(left_out, left_out))


def noise_to_signal(gradients: ArrayLike, confidence: float = 0.95) -> dict[str, np.ndarray]:
    """Noise-to-signal ratio of ONE gradient with a confidence interval.

    The interval is Fieller's (1954): the ratios rho for which T - rho U is within its standard error of zero. Unlike a
    jackknife of log(T / U) it exists for U <= 0, and is unbounded above just when U is not significantly positive.
    Variances and the covariance of T and U are the jackknife's, save for one term: where the mean is small, U is a
    degenerate U-statistic, and the jackknife counts its variance 2 tr(S^2) / (R (R - 1)) (Chen & Qin 2010)
    twice. That term is estimated without bias from the U-centred Gram matrix (Szekely & Rizzo 2014) and the
    surplus taken off. U is nearly normal when many directions carry the noise; with a noise of few directions and no
    signal its skewness makes the interval conservative or liberal by some per cent.

    Args:
        gradients: [..., R, n], independent replicates; leading axes are a batch (the population).
        confidence: of the interval, in (0, 1).

    Returns:
        `nsr`, `low`, `high`, `trace_variance`, `squared_norm`, each [...] float64. `nsr` is inf where `squared_norm` is
        not positive (NaN where every gradient is exactly zero). With fewer than four replicates the interval is
        (0, inf).

    Raises:
        ValueError: for fewer than two replicates.
    """
    moments = _moments(gradients)
    spread, along = moments.spread, moments.along
    replicates = spread.shape[-1]
    trace, traces = _trace(spread)
    signal = moments.mean_square - trace / replicates  # U
    with np.errstate(divide="ignore", invalid="ignore"):
        nsr = np.where(signal > 0, trace / signal, np.where((trace == 0) & (signal == 0), np.nan, np.inf))
    found = {"nsr": nsr, "low": np.zeros_like(nsr), "high": np.full_like(nsr, np.inf)}
    if replicates >= 4:
        # |mean without i|^2, from mean - (g_i - mean) / (R - 1)
        squares = moments.mean_square[..., None] - 2 * along / (replicates - 1) + spread / (replicates - 1) ** 2
        signals = squares - traces / (replicates - 1)
        degenerate = trace_of_square(moments.gram) / replicates
        surplus = degenerate * (4 / (replicates - 2) - 2 / (replicates - 1))
        variance = np.maximum(_jackknife(signals, signals) - surplus, 2 * degenerate / (replicates - 1))
        quantile = _student_quantile((1 + confidence) / 2, replicates - 1)
        found["low"], found["high"] = fieller(
            trace, signal, _jackknife(traces, traces), _jackknife(traces, signals), variance, quantile
        )
    return {**found, "trace_variance": trace, "squared_norm": signal}


def _trace(spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """T [...], and T without replicate i [..., R] (NaN for R = 2, where nothing is left)."""
    replicates = spread.shape[-1]
    total = spread.sum(axis=-1)
    if replicates == 2:
        return total, np.full_like(spread, np.nan)
    left_out = (total[..., None] - spread * replicates / (replicates - 1)) / (replicates - 2)
    return total / (replicates - 1), left_out


def _jackknife(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Covariance of two statistics from their leave-one-out values [..., R]."""
    replicates = a.shape[-1]
    product = (a - a.mean(axis=-1, keepdims=True)) * (b - b.mean(axis=-1, keepdims=True))
    return product.sum(axis=-1) * (replicates - 1) / replicates


def trace_of_square(gram: np.ndarray) -> np.ndarray:
    """tr(S^2) [...], unbiased for any distribution: the squared norm of the U-centred Gram matrix. Needs R >= 4."""
    replicates = gram.shape[-1]
    off = gram * (1 - np.eye(replicates))
    rows = off.sum(axis=-1) / (replicates - 2)
    total = off.sum(axis=(-2, -1)) / ((replicates - 1) * (replicates - 2))
    centred = (off - rows[..., :, None] - rows[..., None, :] + total[..., None, None]) * (1 - np.eye(replicates))
    return (centred**2).sum(axis=(-2, -1)) / (replicates * (replicates - 3))


def fieller(
    trace: np.ndarray, signal: np.ndarray, v_tt: np.ndarray, v_tu: np.ndarray, v_uu: np.ndarray, quantile: float
) -> tuple[np.ndarray, np.ndarray]:
    """The rho >= 0 with (T - rho U)^2 <= q^2 Var(T - rho U): a quadratic a rho^2 - 2 b rho + c <= 0."""
    # |mu|^2 cannot be negative; a U below zero says no more than zero does.
    signal = np.maximum(signal, 0.0)
    a = signal**2 - quantile**2 * v_uu
    b = trace * signal - quantile**2 * v_tu
    c = trace**2 - quantile**2 * v_tt
    root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # (b - root) / a in the form that does not cancel, and that holds for a = 0 and, with the other sign, for a < 0
        # (where the roots straddle zero and this is the positive one).
        low = np.where(c > 0, np.where(b + root > 0, c / (b + root), np.inf), 0.0)
        high = np.where(a > 0, (b + root) / a, np.inf)
    certain = (trace == 0) & (signal > 0)  # all replicates agree
    return np.where(certain, 0.0, low), np.where(certain, 0.0, high)


def _student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by Cornish-Fisher expansion (Abramowitz & Stegun 1964, 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
