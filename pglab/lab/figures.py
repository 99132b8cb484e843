"""The two figures of a comparison: learning curves, and the noise of the gradient along training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from pglab.lab.statistics import iqm
from pglab.tracking.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito 2008, without the yellow that white swallows: told apart with any colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "D", "v", "P", "X", "h")

Curves = Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]
Measurements = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def learning_curves(
    curves: Curves,
    path: str | os.PathLike[str],
    threshold: float | Mapping[str, float] | None = None,
    title: str | None = None,
    ylabel: str = "episodic return",
) -> None:
    """Write a PNG with one panel per group: interquartile mean and 25-75 % band over seeds, for every variant.

    Args:
        curves: group -> variant -> (steps [n], returns [n, P]); environment steps per seed, P seeds. NaN where a seed
            has no return yet. Variants keep their colour from panel to panel.
        path: of the PNG.
        threshold: a dashed line at this return, for all groups or by group.

    Raises:
        PglabError: where the file cannot be written.
    """
    styles = _styles(curves)

    def draw(axes: Axes, group: str) -> None:
        for variant, (steps, returns) in curves[group].items():
            colour, dash, _ = styles[variant]
            x = np.asarray(steps, dtype=np.float64)
            middle, low, high = _band(np.asarray(returns, dtype=np.float64))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, middle, color=colour, linestyle=dash, linewidth=1.6)
        level = threshold.get(group) if isinstance(threshold, Mapping) else threshold
        if level is not None:
            axes.axhline(level, color="0.35", linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
            # At the left end: at the start of training, curves are elsewhere.
            axes.annotate(
                f"threshold {level:g}", (0, level), xycoords=("axes fraction", "data"), xytext=(3, 2),
                textcoords="offset points", ha="left", va="bottom", fontsize=7, color="0.35",
            )  # fmt: skip
        axes.xaxis.set_major_formatter(lambda value, _: _thousands(value))
        axes.locator_params(axis="x", nbins=5)
        axes.margins(x=0.01)

    seeds = sorted({np.asarray(returns).shape[1] for variants in curves.values() for _, returns in variants.values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}" if seeds else "0"
    caption = f"Line: interquartile mean over {count} seeds. Band: 25th to 75th percentile of the seeds."
    _figure(curves, styles, draw, path, title, "environment steps per seed", ylabel, caption, markers=False)


def gradient_variance(data: Measurements, path: str | os.PathLike[str], title: str | None = None) -> None:
    """Write a PNG with one panel per group: the noise-to-signal ratio of one gradient, at stages of training.

    Args:
        data: group -> variant -> records with `stage` (the order of first appearance is the order of the axis), `step`,
            `nsr`, `low`, `high` and `trace_variance`. An infinite `nsr` stands at the upper edge as an open triangle
            over the line down to `low`; an infinite `high` ends in an arrow there.
        path: of the PNG.

    Raises:
        PglabError: where the file cannot be written.
    """
    styles = _styles(data)
    unbounded = any(
        math.isinf(r["nsr"]) or math.isinf(r["high"])
        for variants in data.values()
        for records in variants.values()
        for r in records
    )

    def draw(axes: Axes, group: str) -> None:
        variants = data[group]
        records = [record for found in variants.values() for record in found]
        stages = list(dict.fromkeys(str(record["stage"]) for record in records))
        floor, ceiling = _log_limits([r[key] for r in records for key in ("nsr", "low", "high")])
        axes.set_yscale("log")
        axes.set_ylim(floor, ceiling)
        axes.set_xlim(-0.5, max(1, len(stages)) - 0.5)
        axes.set_xticks(range(len(stages)), [_stage_label(stage, records) for stage in stages])
        axes.tick_params(axis="x", length=0)
        axes.grid(False, axis="x")
        for edge in range(1, len(stages)):
            axes.axvline(edge - 0.5, color="0.9", linewidth=0.8, zorder=0)
        for i, (variant, found) in enumerate(variants.items()):
            offset = (i - (len(variants) - 1) / 2) * min(0.14, 0.8 / len(variants))
            for record in found:
                if not math.isnan(record["nsr"]):
                    x = stages.index(str(record["stage"])) + offset
                    _ratio(axes, x, record, styles[variant], floor, ceiling)

    caption = (
        "Noise-to-signal ratio of one gradient: trace of its covariance / squared norm of its mean "
        "(unbiased estimates). Bars: 95 % intervals."
    )
    if unbounded:
        caption += " Arrow: interval without upper bound; open triangle: no signal found."
    _figure(data, styles, draw, path, title, "stage of training", "noise-to-signal ratio", caption, markers=True)


def _ratio(
    axes: Axes, x: float, record: Mapping[str, Any], style: tuple[str, str, str], floor: float, ceiling: float
) -> None:
    colour, _, marker = style
    top = 10 ** (math.log10(ceiling) - 0.035 * math.log10(ceiling / floor))  # of arrows, just inside the panel
    nsr, low, high = (float(record[key]) for key in ("nsr", "low", "high"))
    low = max(low, floor)
    axes.plot([x, x], [low, min(high, top)], color=colour, linewidth=1.2, solid_capstyle="butt")
    if math.isinf(nsr):
        axes.plot(x, top, marker="^", color=colour, markersize=6, markerfacecolor="white", linestyle="none")
    else:
        if math.isinf(high):
            axes.annotate(
                "", (x, 10 ** (math.log10(ceiling) - 0.005 * math.log10(ceiling / floor))), (x, top),
                arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.2, "mutation_scale": 7,
                            "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
        axes.plot(x, max(nsr, floor), marker=marker, color=colour, markersize=4.5, linestyle="none")


def _log_limits(values: Sequence[float]) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value) and value > 0]
    if not known:
        return 0.1, 10.0
    # Room above for arrows; at least a decade and a half, so that a tick label is always in sight.
    low, high = math.log10(min(known)), math.log10(max(known))
    room = max(0.12 * (high - low), 0.1)
    short = max(0.0, 1.5 - (high - low)) / 2
    return 10 ** (low - room - short), 10 ** (high + 2 * room + short)


def _stage_label(stage: str, records: Sequence[Mapping[str, Any]]) -> str:
    steps = {int(record["step"]) for record in records if str(record["stage"]) == stage}
    return f"{stage}\n{_thousands(steps.pop())} steps" if len(steps) == 1 else stage


def _band(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IQM, 25th and 75th percentile of each row of [n, P], over the seeds that have a value; NaN where none has."""
    band = np.full((3, len(returns)), np.nan)
    for i, row in enumerate(returns):
        known = row[~np.isnan(row)]
        if known.size:
            band[:, i] = [iqm(known), *np.quantile(known, [0.25, 0.75])]
    return band[0], band[1], band[2]


def _thousands(value: float) -> str:
    """`0`, `500`, `120k` or `1.5M`."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _styles(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str, str]]:
    """Colour, dash and marker of each variant, the same in all panels."""
    variants = list(dict.fromkeys(variant for group in groups.values() for variant in group))
    n = len(PALETTE)
    return {v: (PALETTE[i % n], DASHES[i // n % len(DASHES)], MARKERS[i % n]) for i, v in enumerate(variants)}


def _figure(
    groups: Mapping[str, Any],
    styles: Mapping[str, tuple[str, str, str]],
    draw: Callable[[Axes, str], None],
    path: str | os.PathLike[str],
    title: str | None,
    xlabel: str,
    ylabel: str,
    caption: str,
    markers: bool,
) -> None:
    """Panels in rows of up to three, one legend and the caption below them."""
    # No pyplot: it keeps figures alive, and asks the machine for a display.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = 2 if len(groups) == 4 else min(3, max(1, len(groups)))
    lines = -(-max(1, len(groups)) // columns)
    width = {1: 5.6, 2: 7.4, 3: 9.4}[columns]
    settings: Any = {"font.size": 8.5, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(settings):
        handles = [
            Line2D([], [], color=c, label=_literal(name), linewidth=1.8, **_shown(dash, marker, markers))
            for name, (c, dash, marker) in styles.items()
        ]
        fit = max(1, int(width / (0.65 + 0.07 * max((len(name) for name in styles), default=1))))
        legend_lines = max(1, -(-len(handles) // fit))
        per_row = -(-len(handles) // legend_lines)
        wrapped = _wrap(caption, int(width * 16))
        foot = 0.14 + 0.18 * legend_lines + 0.13 * (wrapped.count("\n") + 1)  # inches below the panels
        head = 0.32 if title else 0.05
        height = 2.5 * lines + foot + head
        figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        cast(Any, figure.get_layout_engine()).set(rect=(0, foot / height, 0.99, 1 - (foot + head) / height))
        panels = figure.subplots(lines, columns, squeeze=False)
        for panel, group in zip(panels.flat, groups, strict=False):
            panel.set_title(_literal(group), loc="left", fontweight="bold")
            panel.grid(True, color="0.9", linewidth=0.6)
            panel.set_axisbelow(True)
            draw(panel, group)
        for panel in panels.flat[len(groups) :]:
            panel.set_visible(False)
        for row in panels:
            row[0].set_ylabel(ylabel)
        for column in range(columns):
            visible = [panels[i, column] for i in range(lines) if panels[i, column].get_visible()]
            if visible:
                visible[-1].set_xlabel(xlabel)
        if title:
            figure.text(0.012, 1 - 0.06 / height, _literal(title), ha="left", va="top", fontsize=11, fontweight="bold")
        if handles:
            figure.legend(
                handles=handles, loc="upper center", bbox_to_anchor=(0.5, (foot - 0.02) / height), ncols=per_row,
                frameon=False, borderaxespad=0, handlelength=2.2, columnspacing=1.6,
            )  # fmt: skip
        figure.text(0.5, 0.05 / height, wrapped, ha="center", va="bottom", fontsize=7, color="0.35")
        atomic_write(path, lambda file: figure.savefig(file, format="png"))


def _shown(dash: str, marker: str, markers: bool) -> dict[str, Any]:
    return {"linestyle": "none", "marker": marker} if markers else {"linestyle": dash}


def _literal(text: str) -> str:
    """A name with dollar signs is a name, not mathematics."""
    return text.replace("$", r"\$")


def _wrap(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
