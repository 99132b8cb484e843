"""The page's pictures: which lines go into which panel, and in which style."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pglab.reporting.model import Curve, GroupResult, VarianceResult
from pglab.reporting.svg import Series, interval_bar, panel, swatch
from pglab.reporting.text import in_html

MOST = 10
"""Lines of a panel that have a colour; of more, the highest have one, the others are grey."""


def styles(group: GroupResult) -> dict[str, int | None]:
    """Each variant's colour and dash, by rank, the same in all panels of its group."""
    return {v.name: i if i < MOST else None for i, v in enumerate(group.variants)}


def unit_of(group: GroupResult) -> tuple[float, str]:
    """Seconds, minutes or hours: what wall time is shown in."""
    last = max((float(v.time_curve.x[-1]) for v in group.variants if v.time_curve and len(v.time_curve.x)), default=0.0)
    return (1.0, "s") if last < 300 else (60.0, "min") if last < 3 * 3600 else (3600.0, "h")


def learning(group: GroupResult, chosen: dict[str, int | None]) -> str:
    """Evaluations by steps and by wall time; training returns where some have no evaluations to draw."""
    size, unit = unit_of(group)
    by_steps = [_series(v.name, v.curve, chosen) for v in group.variants if v.curve and len(v.curve.x)]
    by_time = [
        _series(v.name, v.time_curve, chosen, size) for v in group.variants if v.time_curve and len(v.time_curve.x)
    ]
    training = [
        _series(v.name, v.training_curve, chosen)
        for v in group.variants
        if v.training_curve and len(v.training_curve.x)
    ]
    figures = []
    for series, title, xlabel in (
        (by_steps, "Evaluation return by environment steps", "environment steps per seed"),
        (by_time, "Evaluation return by wall time", f"wall time of all seeds together, {unit}"),
        (training, "Return of training episodes", "environment steps per seed"),
    ):
        if series:
            drawn = panel(series, xlabel, "return", f"{title}, {group.title}", group.threshold)
            figures.append(f"<figure><figcaption>{title}</figcaption>{drawn}</figure>")
    if not figures:
        return '<p class="quiet">There is no return to draw.</p>'
    level = "" if group.threshold is None else f" Dashed: {group.threshold:g}, which counts as solved."
    timed = (
        " Wall time is taken from the steps and rate of each log line: evaluations are included, pauses are not."
        if by_time
        else ""
    )
    return (
        f'<div class="panels">{"".join(figures)}</div>{_legend(group, chosen)}'
        f'<p class="quiet">Line: interquartile mean over seeds; band: 25th to 75th percentile.{level}{timed}</p>'
    )


def _legend(group: GroupResult, chosen: dict[str, int | None]) -> str:
    items = [f"<li>{swatch(style)}{in_html(name)}</li>" for name, style in chosen.items() if style is not None]
    rest = sum(style is None for style in chosen.values())
    if rest:
        items.append(f"<li>{swatch(None)}{rest} more</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _series(name: str, curve: Curve | None, chosen: dict[str, int | None], size: float = 1.0) -> Series:
    assert curve is not None
    return Series(name, curve.x / size, curve.iqm, curve.low, curve.high, chosen[name])


def noise(group: GroupResult, chosen: dict[str, int | None]) -> str:
    """Noise-to-signal ratio along training, where it was measured."""
    series = []
    for v in group.variants:
        if v.noise and chosen[v.name] is not None:
            steps, nsr, low, high = np.array([[n.step, n.nsr, n.low, n.high] for n in v.noise]).T
            series.append(Series(v.name, steps, nsr, low, high, chosen[v.name]))
    if not series:
        return ""
    drawn = panel(series, "environment steps per seed", "noise-to-signal ratio", "Gradient noise", logarithmic=True)
    return (
        f'<h4>Noise of the gradient along training</h4><figure class="alone">{drawn}</figure>{_legend(group, chosen)}'
        '<p class="quiet">Noise-to-signal ratio of one training-size gradient: trace of its covariance over the squared norm of its '
        "mean, seeds pooled; bars: 95 % intervals. Open triangle: no signal was told from zero.</p>"
    )


def log_scale(v: VarianceResult, key: str) -> tuple[float, float] | None:
    """The exponents between which a measurement's positive figures lie; None where there are none."""
    values = [x for p in v.pairs if p[key] for x in p[key] if math.isfinite(x) and x > 1e-12]
    return (math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1) if values else None


def log_bar(value: Sequence[float], scale: tuple[float, float]) -> str:
    """A figure with its interval on a logarithmic scale; what is not above zero stands at the left edge."""
    middle, low, high = map(_log, value)
    return interval_bar(middle, low, high, scale, 0)


def _log(x: float) -> float:
    return x if math.isnan(x) else math.inf if math.isinf(x) and x > 0 else math.log10(x) if x > 1e-12 else -math.inf
