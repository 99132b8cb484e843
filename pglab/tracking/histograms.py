"""Histograms small enough for every log line."""

from __future__ import annotations

from typing import Any

import numpy as np


def histogram(values: np.ndarray, bins: int = 16) -> Any:
    """`values` in so many equal bins between their extremes, as TensorBoard's proto; None where none is finite."""
    known = np.asarray(values, dtype=np.float64).reshape(-1)
    known = known[np.isfinite(known)]
    if not known.size:
        return None
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    low, high = float(known.min()), float(known.max())
    if high - low > 1e-9 * max(abs(low), abs(high)):
        counts, edges = np.histogram(known, bins, (low, high))
        limits = edges[1:]
    else:  # all alike: bins between them would be narrower than TensorBoard's float32 can tell apart
        counts, limits = np.array([known.size]), np.array([high])
    with np.errstate(over="ignore"):
        squares = float(known @ known)
    return HistogramProto(
        min=low,
        max=high,
        num=known.size,
        sum=float(known.sum()),
        sum_squares=squares,
        bucket_limit=limits.tolist(),
        bucket=counts.astype(np.float64).tolist(),
    )
