"""How a gradient's quality grows with the batch (Ilyas et al. 2020, figures 1 and 2).

Letters: J pairs, H training-size gradients, n parameters, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST = 4
"""Fewest gradients that a mean pairwise cosine is taken over."""


@dataclass(frozen=True)
class Point:
    """Gradients of so many training-size batches."""

    batches: int
    steps: float
    """Environment steps (rows, for a replay agent) of one."""
    pairwise: np.ndarray
    """`[J]`: mean cosine between two independent ones."""
    pairwise_half: np.ndarray
    """`[J]`: half the width of its 95 % interval (jackknife over the gradients)."""
    cosine: np.ndarray | None
    """`[J]`: mean cosine to the reference; None where it supports none."""


def batch_curve(head: np.ndarray, steps: float, reference: np.ndarray | None) -> list[Point]:
    """Cosines of means of 1, 2, 4, ... of the gradients `head` `[J, H, n]`, disjoint, as long as 4 of them are left."""
    found = []
    size, count = 1, head.shape[1]
    while count // size >= LEAST:
        g = count // size
        means = head[:, : g * size].reshape(len(head), g, size, -1).mean(2, dtype=np.float64)  # [J, G, n]
        with np.errstate(divide="ignore", invalid="ignore"):
            directions = means / np.linalg.norm(means, axis=-1, keepdims=True)
        total = directions.sum(1)  # [J, n]
        value = ((total**2).sum(-1) - g) / (g * (g - 1))
        rest = total[:, None] - directions  # without each
        without = ((rest**2).sum(-1) - (g - 1)) / ((g - 1) * (g - 2))
        error = np.sqrt((without - without.mean(-1, keepdims=True)).__pow__(2).sum(-1) * (g - 1) / g)
        cosine = None
        if reference is not None:
            cosine = (directions @ (reference / np.linalg.norm(reference))).mean(-1)
        found.append(Point(size, steps * size, value, stats.t.ppf(0.975, g - 1) * error, cosine))
        size *= 2
    return found
