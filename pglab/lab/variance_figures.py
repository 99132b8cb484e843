"""Pictures of a measurement: noise and bias of every pair, NSR along training, cost against error, batch-size curves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pglab.lab.figures import DASHES, MARKERS, PALETTE
from pglab.lab.measuring import Measured, Measurement
from pglab.lab.variance_report import curve_of, rows_of, title
from pglab.tracking.files import atomic_write

Path = str | os.PathLike[str]


def write_all(measurement: Measurement, folder: Path, decompositions: Mapping[str, Any] | None = None) -> list[str]:
    """Every figure that there is something for, as PNG files in `folder`; their names. Raises PglabError where the disk
    refuses."""
    base, names = os.fspath(folder), []
    for name, draw in (
        ("noise_and_bias.png", noise_and_bias),
        ("nsr_along_training.png", nsr_along_training),
        ("cost_and_error.png", cost_and_error),
        ("batch_size.png", batch_size),
    ):
        if draw(measurement, os.path.join(base, name)):
            names.append(name)
    if decompositions and decomposition_stacks(decompositions, os.path.join(base, "decomposition.png")):
        names.append("decomposition.png")
    return names


def noise_and_bias(measurement: Measurement, path: Path) -> bool:
    """Bars with intervals: noise (trace over |E g|^2 where there is no better scale) and bias of every pair, a column of
    panels per snapshot."""
    found = [(m, rows_of(m)) for m in measurement]
    pairs = max(len(rows) for _, rows in found)
    # Error to the critic says what is the estimator's own; where there is none, grad J.
    kinds = [("nsr", "noise: NSR of one training-size gradient")]
    critic = any(r["critic_mse"] is not None for _, rows in found for r in rows)
    if critic:
        kinds.append(("critic_bias_squared", "bias²: to this critic's exact gradient, over its |g|²"))
    if any(r["mse"] is not None for _, rows in found for r in rows):
        kinds.append(("bias_squared", "bias²: to grad J, over |grad J|²"))
    figure, panels = _panels(len(kinds), len(found), 0.6 + 0.17 * pairs, 3.4, share_y=True)
    for column, (m, rows) in enumerate(found):
        y = np.arange(len(rows))[::-1]
        for line, (key, label) in enumerate(kinds):
            ax = panels[line][column]
            _bars(ax, y, [r[key] for r in rows])
            ax.set_xlabel(label, fontsize=7)
            ax.set_yticks(y, [r["pair"] for r in rows], fontsize=6)
            ax.set_ylim(-0.7, len(rows) - 0.3)
        panels[0][column].set_title(_two_lines(m), fontsize=8, loc="left")
    figure.supxlabel(
        "95 % intervals, by jackknife; grey: too few replicates for tails this heavy. Arrows: beyond the panel, or not above 0 "
        "(no bias seen, no signal resolved).",
        fontsize=7,
        color="0.3",
    )
    _save(figure, path)
    return True


def _two_lines(m: Measured) -> str:
    return title(m).replace(", seed", ",\nseed")


def _bars(ax: Any, y: np.ndarray, values: Sequence[tuple[float, float, float, bool] | None]) -> None:
    """Points with intervals on a logarithmic axis; what is not above zero, or has no interval, at the edge."""
    good = [v for v in values if v is not None and math.isfinite(v[0]) and v[0] > 0]
    if not good:
        ax.text(0.5, 0.5, "not resolved", transform=ax.transAxes, ha="center", va="center", fontsize=8, color="0.5")
        ax.set_xticks([])
        return
    least, most = min(v[0] for v in good), max(v[0] for v in good)
    low_edge, high_edge = least / 10, most * 10
    ax.set_xscale("log")
    ax.set_xlim(low_edge, high_edge)
    for at, v in zip(y, values, strict=True):
        if v is None or math.isnan(v[0]):
            continue
        value, low, high, reliable = v
        colour = PALETTE[0] if reliable else "0.55"
        if value <= 0 or not math.isfinite(value):
            edge = low_edge if value <= 0 else high_edge
            ax.plot([edge], [at], marker="<" if value <= 0 else ">", color=colour, markersize=4, clip_on=False)
            if value <= 0 and math.isfinite(high) and high > low_edge:
                ax.plot([low_edge, min(high, high_edge)], [at, at], color=colour, linewidth=1)
            if value > 0 and math.isfinite(low):
                ax.plot([max(low, low_edge), high_edge], [at, at], color=colour, linewidth=1)
            continue
        ax.plot([value], [at], "o", color=colour, markersize=3.5)
        if not math.isnan(low):
            ends = max(low, low_edge), min(high, high_edge)
            ax.plot(ends, [at, at], color=colour, linewidth=1)
    ax.grid(axis="x", color="0.9", linewidth=0.6)


def nsr_along_training(measurement: Measurement, path: Path) -> bool:
    """NSR of every pair against the steps of training, a panel per member. Needs two snapshots of one."""
    members: dict[str, list[Measured]] = {}
    for m in measurement:
        members.setdefault(m.subject.member, []).append(m)
    members = {name: ms for name, ms in members.items() if len(ms) > 1}
    if not members:
        return False
    figure, panels = _panels(1, len(members), 3.6, 4.6)
    for column, (name, ms) in enumerate(members.items()):
        ax = panels[0][column]
        everything = [rows_of(m) for m in ms]
        x = [m.subject.steps for m in ms]
        shared = [n for n in ms[0].names if all(n in m.names for m in ms)]
        for i, pair in enumerate(shared):
            values = [next(r for r in rows if r["pair"] == pair)["nsr"] for rows in everything]
            y = [v[0] if math.isfinite(v[0]) else np.nan for v in values]
            ax.plot(x, y, label=pair, linewidth=1.2, markersize=3, **_style(i))
        ax.set_yscale("log")
        ax.set_xlabel("environment steps of training")
        ax.set_ylabel("NSR of one training-size gradient")
        ax.set_title(f"{ms[0].subject.config.env.id}, {name} (gaps: no signal resolved)", fontsize=8, loc="left")
        ax.grid(color="0.9", linewidth=0.6)
    _legend(figure, panels[0][0])
    _save(figure, path)
    return True


def cost_and_error(measurement: Measurement, path: Path) -> bool:
    """Squared error against seconds and evaluations of f of one training-size gradient, with the frontier of the pairs that
    none other beats in both."""
    usable = []
    for m in measurement:
        rows = rows_of(m)
        key = "critic_mse" if m.to_critic is not None else "mse"
        points = [(r, r[key][0]) for r in rows if r[key] is not None and r[key][0] > 0]
        if len(points) > 1:
            usable.append((m, points, key))
    if not usable:
        return False
    costs = [("milliseconds", "ms"), ("evaluations", "evaluations of f")]
    figure, panels = _panels(len(costs), len(usable), 3.2, 4.4)
    for column, (m, points, key) in enumerate(usable):
        names = {n: i for i, n in enumerate(m.names)}
        for line, (cost, label) in enumerate(costs):
            ax = panels[line][column]
            x, y = np.array([r[cost] for r, _ in points]), np.array([v for _, v in points])
            for (r, v), cx in zip(points, x, strict=True):
                style = _style(names[r["pair"]])
                ax.plot(
                    [cx], [v], label=r["pair"], markersize=4, linestyle="", marker=style["marker"], color=style["color"]
                )
            order = np.lexsort((y, x))
            best, front = math.inf, []
            for i in order:
                if y[i] < best:
                    best = y[i]
                    front.append(i)
            ax.plot(x[front], y[front], color="0.5", linewidth=0.9, zorder=0, drawstyle="steps-post")
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel(f"{label} per training-size gradient")
            ax.set_ylabel("MSE to critic" if key == "critic_mse" else "MSE to grad J")
            ax.grid(color="0.9", linewidth=0.6)
        panels[0][column].set_title(title(m), fontsize=8, loc="left")
    _legend(figure, panels[0][0])
    _save(figure, path)
    return True


def batch_size(measurement: Measurement, path: Path) -> bool:
    """Mean pairwise cosine against rows per gradient (Ilyas et al. 2020, figure 1), a panel per snapshot."""
    found = [(m, curve_of(m)) for m in measurement]
    found = [(m, points) for m, points in found if len(points) > 1]
    if not found:
        return False
    figure, panels = _panels(1, len(found), 3.2, 4.0)
    for column, (m, points) in enumerate(found):
        ax = panels[0][column]
        x = [p.steps for p in points]
        for j, pair in enumerate(m.names):
            y = np.array([p.pairwise[j] for p in points])
            ax.plot(x, y, label=pair, linewidth=1.2, markersize=3, **_style(j))
        ax.axvline(m.rows, color="0.5", linewidth=0.8, linestyle=":")
        ax.set_xscale("log")
        ax.set_ylim(-0.15, 1.02)
        ax.set_xlabel("rows (state-action pairs) per gradient; dotted: training's")
        ax.set_ylabel("mean pairwise cosine")
        ax.set_title(title(m), fontsize=8, loc="left")
        ax.grid(color="0.9", linewidth=0.6)
    _legend(figure, panels[0][0])
    _save(figure, path)
    return True


PARTS = (("tau", "continuations (Sigma_tau)"), ("action", "actions (Sigma_a)"), ("state", "states (Sigma_s)"))


def decomposition_stacks(decompositions: Mapping[str, Any], path: Path) -> bool:
    """The law of total variance, summed over time, as stacked bars with the cross-time term beside them; a panel per
    snapshot, a bar per baseline. `decompositions`: snapshot title to `Decomposition.plain()`."""
    if not decompositions:
        return False
    figure, panels = _panels(1, len(decompositions), 2.6, 4.0)
    for column, (name, d) in enumerate(decompositions.items()):
        ax = panels[0][column]
        baselines = list(d["baselines"])
        for i, baseline in enumerate(baselines):
            parts, at = d["baselines"][baseline]["sums"], 0.0
            for k, (part, label) in enumerate(PARTS):
                value = max(0.0, parts[part]["value"])
                ax.bar(i, value, bottom=at, width=0.4, color=PALETTE[k], label=label if i == 0 else None)
                at += value
            cross = parts["cross"]
            ax.bar(
                i + 0.42,
                cross["value"],
                width=0.3,
                color=PALETTE[3],
                label="cross-time covariances" if i == 0 else None,
            )
            ax.errorbar(
                [i + 0.42], [cross["value"]], [[cross["value"] - cross["low"]], [cross["high"] - cross["value"]]],
                color="0.2", linewidth=0.9, capsize=2,
            )  # fmt: skip
        ax.axhline(0, color="0.3", linewidth=0.8)
        ax.set_xticks(np.arange(len(baselines)) + 0.2, [f"baseline {b}" for b in baselines], fontsize=7)
        ax.set_ylabel("trace of the covariance, per episode")
        ax.set_title(name, fontsize=8, loc="left")
    _legend(figure, panels[0][0])
    _save(figure, path)
    return True


# -- drawing


def _style(i: int) -> dict[str, Any]:
    n = len(PALETTE)
    return {
        "color": PALETTE[i % n],
        "linestyle": DASHES[i // n % len(DASHES)],
        "marker": MARKERS[i // n % len(MARKERS)],
    }


def _panels(lines: int, columns: int, height: float, width: float, share_y: bool = False) -> tuple[Any, Any]:
    # No pyplot: it keeps figures alive, and asks the machine for a display.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {"font.size": 7.5, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(settings):
        figure = Figure(figsize=(width * columns + 1.2, height * lines + 0.6), layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        panels = figure.subplots(lines, columns, squeeze=False, sharey="row" if share_y else False)
    return figure, panels


def _legend(figure: Any, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=max(1, min(4, len(labels))), frameon=False, fontsize=6.5
        )


def _save(figure: Any, path: Path) -> None:
    atomic_write(path, lambda file: figure.savefig(file, format="png"))
