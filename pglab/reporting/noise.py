"""The gradient's noise along training, and what `pglab variance` measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pglab.lab.statistics import pooled_nsr
from pglab.reporting.grouping import Line
from pglab.reporting.model import Noise, VarianceResult
from pglab.reporting.text import shown

Figure = tuple[float, float, float]


def noise_of(line: Line) -> list[Noise]:
    """The line's measurements: seeds pooled as `pglab compare` does, stage by stage."""
    stages: dict[str, tuple[list[float], list[np.ndarray], list[np.ndarray]]] = {}
    for part in line.parts:
        for stage in part.run.stages:
            steps, trace, norm = stages.setdefault(stage.stage, ([], [], []))
            steps.append(stage.step)
            trace.append(stage.trace[part.members])
            norm.append(stage.squared_norm[part.members])
    found = []
    for name, (steps, trace, norm) in stages.items():
        measured = {"trace_variance": np.concatenate(trace), "squared_norm": np.concatenate(norm)}
        if measured["trace_variance"].size and not any(np.isnan(v).any() for v in measured.values()):
            pooled = pooled_nsr(measured)
            found.append(Noise(name, float(np.mean(steps)), pooled["nsr"], pooled["low"], pooled["high"]))
    return found


def variance_of(report: dict[str, Any], where: str) -> tuple[list[tuple[str, VarianceResult]], int]:
    """(environment, measurement) of a `variance/report.json`, and how many of its measurements cannot be read."""
    found, bad = [], 0
    measured: Any = report.get("measured")
    listed: list[Any] = measured if isinstance(measured, list) else [None]
    for m in listed:
        try:
            environment = shown(m["environment"], 100)
            pairs = [_pair(row) for row in m["pairs"]]
            steps = float(m["steps"])
            title = f"{where}: {shown(m['member'], 60)}, {shown(m['stage'], 60)} ({steps:,.0f} steps of training)"
        except (KeyError, TypeError, ValueError, OverflowError):
            bad += 1
            continue
        critic = any(p["to"] == "critic" for p in pairs)
        to = "the critic's exact gradient at the same states" if critic else "grad J"
        for p in pairs:
            if critic != (p.pop("to") == "critic"):
                p["mse"] = p["bias"] = None  # of another reference: not of this column
        found.append((environment, VarianceResult(title, shown(report.get("definition", ""), 800), pairs, to)))
    return found, bad


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    """Noise and distances of one pair; to the critic where that was measured, an estimator's own error."""
    critic = row.get("critic_mse") is not None
    prefix = "critic_" if critic else ""
    return {
        "pair": shown(row["pair"], 120),
        "nsr": _figure(row.get("nsr")),
        "mse": _figure(row.get(f"{prefix}mse")),
        "bias": _figure(row.get(f"{prefix}bias_squared")),
        "cosine": _figure(row.get("critic_cosine") if critic else row.get("cosine")),
        "milliseconds": _number(row.get("milliseconds")),
        "to": "critic" if critic else "grad J",
    }


def _figure(value: Any) -> Figure | None:
    """(value, low, high) of an estimate; None where there is none."""
    if value is None:
        return None
    first, low, high = (_number(v) for v in list(value)[:3])
    return None if first is None or math.isnan(first) else (first, _or_nan(low), _or_nan(high))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
