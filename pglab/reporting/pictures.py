"""The PNG figures beside `report.md`: the page's panels, drawn for paper."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pglab.lab.figures import DASHES, PALETTE, gradient_variance
from pglab.reporting.model import Curve, GroupResult, Noise
from pglab.reporting.panels import MOST, unit_of
from pglab.reporting.svg import FARTHEST, short
from pglab.tracking.files import atomic_write


def figures(group: GroupResult, folder: Path, number: int) -> list[tuple[str, str]]:
    """Write the group's figures; (what, file name) of each. Raises PglabError where the disk refuses."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may have characters that the font has not
        if any(v.curve or v.training_curve for v in group.variants):
            name = f"report-curves-{number}.png"
            _learning(group, folder / name)
            found.append(("Learning curves", name))
        noise = {_literal(v.name): [_record(n) for n in v.noise] for v in group.variants[:MOST] if v.noise}
        if noise:
            name = f"report-noise-{number}.png"
            gradient_variance({_literal(group.title): noise}, folder / name)
            found.append(("Noise of the gradient", name))
    return found


def _record(n: Noise) -> dict[str, Any]:
    """A measurement as the figure takes it; what is beyond all bounds is as good as infinite."""
    nsr, low, high = (math.inf if v > FARTHEST else v for v in (n.nsr, n.low, n.high))
    return {
        "stage": n.stage,
        "step": n.step,
        "nsr": nsr,
        "low": min(low, FARTHEST),
        "high": high,
        "trace_variance": 0.0,
    }


def _learning(group: GroupResult, path: Path) -> None:
    # No pyplot: it keeps figures alive, and asks the machine for a display.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size, unit = unit_of(group)
    wanted: list[tuple[str, str, float]] = [
        ("curve", "environment steps per seed", 1.0),
        ("time_curve", f"wall time of all seeds together, {unit}", size),
        ("training_curve", "environment steps per seed (training episodes)", 1.0),
    ]
    kinds = [k for k in wanted if any(getattr(v, k[0]) is not None for v in group.variants)]
    settings: Any = {"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(settings):
        figure = Figure(figsize=(4.4 * len(kinds) + 0.4, 3.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, (key, label, scale) in zip(panels, kinds, strict=True):
            for i, v in enumerate(group.variants):
                curve: Curve | None = getattr(v, key)
                if curve is not None:
                    _line(axes, curve, scale, i, v.name)
            if group.threshold is not None:
                axes.axhline(group.threshold, color="0.35", linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
            axes.set_xlabel(label)
            axes.set_ylabel("return" if axes is panels[0] else "")
            axes.grid(axis="y", color="0.92")
            axes.xaxis.set_major_formatter(lambda value, _: short(value))
            axes.locator_params(axis="x", nbins=5)
        handles = {
            h.get_label(): h for axes in panels for h in axes.get_lines() if not str(h.get_label()).startswith("_")
        }
        figure.legend(
            handles=list(handles.values()),
            loc="outside lower center",
            frameon=False,
            fontsize=7.5,
            ncols=2 * len(kinds),
        )
        figure.suptitle(_literal(group.title), x=0.01, ha="left", fontsize=10)
        atomic_write(path, lambda file: figure.savefig(file, format="png"))


def _line(axes: Any, curve: Curve, scale: float, rank: int, name: str) -> None:
    x = curve.x / scale
    y, low, high = (np.where(np.abs(v) < FARTHEST, v, np.nan) for v in (curve.iqm, curve.low, curve.high))
    if rank >= MOST:
        axes.plot(x, y, color="0.7", linewidth=0.6, zorder=1.5, label="_other")
        return
    colour, dash = PALETTE[rank % len(PALETTE)], DASHES[rank // len(PALETTE) % len(DASHES)]
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        x, y, color=colour, linestyle=dash, linewidth=1.6, label=_literal(name), marker="o" if len(x) == 1 else ""
    )


def _literal(text: str) -> str:
    """A name with dollar signs is a name, not mathematics; one that begins with an underscore is not hidden."""
    cut = text if len(text) <= 60 else f"{text[:59]}…"
    return cut.replace("$", r"\$") if not cut.startswith("_") else f" {cut}".replace("$", r"\$")
