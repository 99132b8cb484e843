"""Small charts as inline SVG: they follow the page's colours, light or dark, and stay sharp at any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pglab.reporting.text import in_html

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 44
COLOURS = 7
DASHES = ("", "7 4", "2 3", "8 3 2 3")
FARTHEST = 1e100
"""Returns beyond which a run has diverged; they are not drawn."""
MOST_POINTS = 400
"""Points of a line that are drawn; of more, every so many."""


@dataclass
class Series:
    """One line of a panel, with a band or error bars between `low` and `high`."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    style: int | None
    """Which colour and dash; None for one among many, grey and thin."""


def swatch(style: int | None) -> str:
    """A short piece of the line, for legends and tables."""
    return f'<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true"><line x1="1" y1="5" x2="25" y2="5" {_stroke(style)}/></svg>'


def _stroke(style: int | None) -> str:
    if style is None:
        return 'class="line rest"'
    dash = DASHES[style // COLOURS % len(DASHES)]
    return f'class="line s{style % COLOURS}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def panel(
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    label: str,
    level: float | None = None,
    logarithmic: bool = False,
) -> str:
    """Lines over a common axis. `level` is a dashed line at that height; logarithmic panels have error bars and markers
    in place of bands, and show infinite values at the upper edge."""
    xs = [v for s in series for v in (s.x.min(initial=math.inf), s.x.max(initial=-math.inf)) if math.isfinite(v)]
    ys = np.concatenate([np.r_[s.y, s.low, s.high] for s in series] + [np.array([] if level is None else [level])])
    ys = ys[(np.abs(ys) < FARTHEST) & ((ys > 1e-100) if logarithmic else True)]
    if not xs or not ys.size:
        return '<p class="quiet">There is nothing to draw.</p>'
    left, right = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, min(xs) + 0.5)
    bottom, top, ticks = _log_ticks(ys) if logarithmic else _ticks(ys)
    room = 0.03 * (right - left) if logarithmic else 0.0
    left, right = left - room, right + room

    def at_x(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def at_y(value: float) -> float:
        v, low, high = (
            (math.log10(max(q, bottom)) for q in (value, bottom, top)) if logarithmic else (value, bottom, top)
        )
        return HEIGHT - BOTTOM - (v - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{in_html(label)}">']
    for tick in ticks:
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in nice(left, right, 5):
        if left <= tick <= right:
            parts.append(
                f'<text class="tick" x="{at_x(tick):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{short(tick)}</text>'
            )
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    if level is not None:
        y = at_y(level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for s in sorted(series, key=lambda s: s.style is not None):
        parts.append(_bars(s, at_x, at_y, top) if logarithmic else _lines(s, at_x, at_y))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{in_html(xlabel)}</text>')
    parts.append(
        f'<text class="label" transform="translate(13 {TOP + (base - TOP) / 2}) rotate(-90)" text-anchor="middle">{in_html(ylabel)}</text></svg>'
    )
    return "".join(parts)


Scale = Callable[[float], float]


def _lines(s: Series, at_x: Scale, at_y: Scale) -> str:
    keep = np.unique(np.linspace(0, len(s.x) - 1, min(len(s.x), MOST_POINTS)).astype(int))
    x, y, low, high = (v[keep] for v in (s.x, s.y, s.low, s.high))
    parts = [f"<g><title>{in_html(s.name)}</title>"]
    if s.style is not None:
        for piece in _pieces((np.abs(low) < FARTHEST) & (np.abs(high) < FARTHEST)):
            edge = [f"{at_x(x[i]):.1f} {at_y(high[i]):.1f}" for i in piece]
            edge += [f"{at_x(x[i]):.1f} {at_y(low[i]):.1f}" for i in reversed(piece)]
            parts.append(f'<path class="band f{s.style % COLOURS}" d="M{"L".join(edge)}Z"/>')
    for piece in _pieces(np.abs(y) < FARTHEST):
        points = [f"{at_x(x[i]):.1f} {at_y(y[i]):.1f}" for i in piece]
        if len(points) == 1:  # a line of one point would not be seen
            cx, cy = points[0].split()
            parts.append(f'<circle class="f{(s.style or 0) % COLOURS}" cx="{cx}" cy="{cy}" r="3"/>')
        else:
            parts.append(f'<path {_stroke(s.style)} d="M{"L".join(points)}"/>')
    return "".join([*parts, "</g>"])


def _bars(s: Series, at_x: Scale, at_y: Scale, top: float) -> str:
    colour = f"{(s.style or 0) % COLOURS}"
    parts = [f"<g><title>{in_html(s.name)}</title>"]
    values = [(x, min(y, top)) for x, y in zip(s.x, s.y, strict=True) if not math.isnan(y)]
    if len(values) > 1:
        points = "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in values)
        parts.append(f'<path {_stroke(s.style)} opacity="0.45" d="M{points}"/>')
    for x, y, low, high in zip(s.x, s.y, s.low, s.high, strict=True):
        if math.isnan(y):
            continue
        at = f"{at_x(x):.1f}"
        if not (math.isnan(low) or math.isnan(high)):
            ends = f'y1="{at_y(min(low, top)):.1f}" y2="{at_y(min(high, top)):.1f}"'
            parts.append(f'<line class="line s{colour}" x1="{at}" x2="{at}" {ends}/>')
        if math.isinf(y):
            tip = at_y(top)
            parts.append(f'<path class="open s{colour}" d="M{at} {tip:.1f}l-5 9h10Z"/>')
        else:
            parts.append(f'<circle class="f{colour}" cx="{at}" cy="{at_y(y):.1f}" r="3.6"/>')
    return "".join([*parts, "</g>"])


def _pieces(known: np.ndarray) -> list[list[int]]:
    """Runs of indices without a gap."""
    found: list[list[int]] = []
    for i in np.flatnonzero(known).tolist():
        if found and found[-1][-1] == i - 1:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def interval_bar(
    value: float, low: float, high: float, scale: tuple[float, float], style: int | None, dots: Sequence[float] = ()
) -> str:
    """A value with its interval on a scale shared by a table's rows, and faint dots for single seeds."""
    least, most = scale
    span = (most - least) or 1.0

    def at(v: float) -> float:
        return 6 + min(max((v - least) / span, 0.0), 1.0) * 148

    colour = "rest" if style is None else f"{style % COLOURS}"
    parts = [
        '<svg class="bar" viewBox="0 0 160 18" aria-hidden="true"><line class="grid" x1="6" x2="154" y1="9" y2="9"/>'
    ]
    parts += [f'<circle class="seed f{colour}" cx="{at(d):.1f}" cy="9" r="2.6"/>' for d in dots if math.isfinite(d)]
    if not (math.isnan(low) or math.isnan(high)):
        parts.append(f'<line class="thick s{colour}" x1="{at(low):.1f}" x2="{at(high):.1f}" y1="9" y2="9"/>')
    if not math.isnan(value):
        parts.append(f'<circle class="dot f{colour}" cx="{at(value):.1f}" cy="9" r="4.4"/>')
    return "".join([*parts, "</svg>"])


def nice(low: float, high: float, count: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = (high - low) / max(count, 1)
    size = 10.0 ** math.floor(math.log10(span)) if span > 0 else 1.0
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _ticks(values: np.ndarray) -> tuple[float, float, list[float]]:
    low, high = float(values.min()), float(values.max())
    if not high > low:
        low, high = low - max(abs(low), 1) * 0.1, high + max(abs(high), 1) * 0.1
    ticks = nice(low, high, 5)
    if not ticks[-1] > ticks[0] or len(ticks) > 12:  # numbers too near one another for their size
        ticks = [low - max(abs(low), 1) * 0.1, high + max(abs(high), 1) * 0.1]
    return ticks[0], ticks[-1], ticks


def _log_ticks(values: np.ndarray) -> tuple[float, float, list[float]]:
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()) + 0.15)
    low, high = max(low, -300), min(max(high, low + 1), 300)
    every = max(1, -(-(high - low) // 6))
    return 10.0**low, 10.0**high, [10.0**k for k in range(low, high + 1, every)]


def short(value: float) -> str:
    """A tick: `0`, `500`, `120k`, `1.5M`, `0.01` or `1e-05`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < size * 1e4:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"
