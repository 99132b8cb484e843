"""The laboratory: what gradients are worth, and statistics of comparisons. Tables and figures are modules of their own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pglab.lab.gradient_statistics import noise_to_signal, trace_variance
from pglab.lab.statistics import iqm, steps_to_threshold, stratified_bootstrap_interval

if TYPE_CHECKING:
    from pglab.lab.decomposition import decompose
    from pglab.lab.measuring import measure

__all__ = [
    "decompose",
    "iqm",
    "measure",
    "noise_to_signal",
    "steps_to_threshold",
    "stratified_bootstrap_interval",
    "trace_variance",
]

_LATER = {"decompose": "pglab.lab.decomposition", "measure": "pglab.lab.measuring"}


def __getattr__(name: str) -> Any:
    # Measuring needs agents and training; training needs the statistics above.
    if name not in _LATER:
        raise AttributeError(f"module 'pglab.lab' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
