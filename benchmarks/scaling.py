"""How pglab's cost grows: time and memory against members, environments, network width and steps per rollout.

The work is advantage actor-critic on CartPole-v1: separate 64-64 tanh networks for policy and value, 64 environments x 32
steps per update, one epoch, one minibatch, Adam; one of the four numbers is varied at a time. Every point is a process of
its own. It trains for a few seconds through the training loop, without logs or evaluations, and reports

- the time of one environment step of one member (an update's median time / members / environments / steps);
- its peak resident set, and the resident set before the trainer was made (Python and the libraries).

    python benchmarks/scaling.py --out benchmarks/scaling

writes OUT.md and OUT.json, and the figure docs/figures/scaling.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NEVER = 1_000_000_000
AXES: dict[str, tuple[str, list[int]]] = {
    "members": ("members", [2**k for k in range(9)]),
    "environments": ("environments per member", [2**k for k in range(11)]),
    "width": ("width of both hidden layers", [2**k for k in range(4, 10)]),
    "steps": ("steps per rollout", [2**k for k in range(2, 10)]),
}
LINEAR = ("members", "environments", "steps")
"""Axes along which both costs are expected to be a constant and a slope."""
WARM = 3


def resident() -> tuple[int, int]:
    """Bytes in memory of this process: now, and at most so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}
        return found["VmRSS"], found["VmHWM"]
    except (OSError, KeyError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return most, most


def child(point: dict[str, Any]) -> None:
    """Measure one point and print it as JSON."""
    from pglab.config import Config
    from pglab.training import Trainer
    from pglab.watching import Watcher

    hidden = [point["width"]] * 2
    config = Config.read(
        {
            "env": {"id": "CartPole-v1", "num_envs": point["environments"]},
            "agent": {"steps": point["steps"], "returns": {"name": "gae", "lam": 0.95}, "value": {"hidden": hidden}},
            "policy": {"hidden": hidden},
            "baseline": "value",
            "learning_rate": 7e-4,
            "max_grad_norm": 0.5,
            "seeds": point["members"],
            "total_steps": NEVER,
            "evaluation": {"every": NEVER, "episodes": 1},
            "checkpoint": {"every": NEVER},
            "log_every": NEVER,
            "threads": point["threads"],
        }
    )
    rest, _ = resident()
    stamps: list[tuple[float, int]] = []  # before every update: the time, and the steps of all members so far

    def stop() -> bool:
        stamps.append((time.perf_counter(), int(trainer.steps.sum())))
        return len(stamps) > WARM + 3 and stamps[-1][0] - stamps[WARM][0] > point["seconds"]

    trainer = Trainer(config, watcher=Watcher(stop=stop))
    trainer.run()
    timed = stamps[WARM:]
    # The loop may ask once for several updates: what counts is time over steps.
    each = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(timed)]
    per_step = statistics.median(each)
    rows = point["members"] * point["environments"] * point["steps"]
    print(
        json.dumps(
            {
                "seconds_per_step": per_step,
                "seconds_per_step_range": [min(each), max(each)],
                "seconds_per_update": per_step * rows,
                "timed": len(each),
                "peak_bytes": resident()[1],
                "rest_bytes": rest,
                "parameters_per_member": sum(p.flat.shape[1] for p in trainer.agent.networks().values()),
            }
        )
    )


def measure(point: dict[str, Any]) -> dict[str, Any]:
    """One point in a process of its own; `failed` where it did not come to an end (out of memory, say)."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(point)], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    if done.returncode:
        return {**point, "failed": done.returncode}
    return {**point, **json.loads(done.stdout.splitlines()[-1])}


def linear_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares y = a + b x, and the share of the variance it explains."""
    b, a = statistics.linear_regression(x, y)
    explained = statistics.correlation(x, y) ** 2
    return {"constant": a, "slope": b, "r_squared": explained}


def fits(axis: str, points: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Peak memory and time of an update as straight lines in the varied number."""
    if axis not in LINEAR or len(points) < 3:
        return {}
    x = [float(p[axis]) for p in points]
    return {key: linear_fit(x, [p[key] for p in points]) for key in ("peak_bytes", "seconds_per_update")}


def size(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count:,.0f} B"


def figure(found: dict[str, list[dict[str, Any]]], path: Path, caption: str) -> None:
    """A PNG: time above, memory below, one column for each axis."""
    import textwrap

    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    from pglab.lab.figures import PALETTE
    from pglab.tracking.files import atomic_write

    settings: Any = {"font.size": 8.5, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(settings):
        width = 1.0 + 2.3 * len(found)
        wrapped = "\n".join(textwrap.wrap(caption, int(width * 16)))
        foot, height = 0.12 + 0.13 * (wrapped.count("\n") + 1), 4.6
        drawn = Figure(figsize=(width, height + foot), layout="constrained", dpi=150)
        FigureCanvasAgg(drawn)
        engine: Any = drawn.get_layout_engine()
        engine.set(rect=(0, foot / (height + foot), 0.99, height / (height + foot)))
        panels = drawn.subplots(2, len(found), squeeze=False, sharey="row", sharex="col")
        for column, (axis, points) in enumerate(found.items()):
            x = [p[axis] for p in points]
            above, below = panels[0, column], panels[1, column]
            above.plot(x, [p["seconds_per_step"] * 1e6 for p in points], color=PALETTE[0], marker="o", markersize=3.5)
            below.plot(x, [p["peak_bytes"] / 2**20 for p in points], color=PALETTE[1], marker="s", markersize=3.5)
            below.plot(x, [p["rest_bytes"] / 2**20 for p in points], color="0.5", linestyle=":", linewidth=1.2)
            above.set_title(axis, loc="left", fontweight="bold")
            below.set_xlabel(AXES[axis][0])
            for panel in (above, below):
                panel.set_xscale("log", base=2)
                panel.set_yscale("log")
                panel.grid(True, color="0.9", linewidth=0.6)
                panel.set_axisbelow(True)
                panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                panel.yaxis.set_minor_formatter(NullFormatter())
        panels[0, 0].set_ylabel("µs per step of a member")
        panels[1, 0].set_ylabel("peak memory, MiB")
        drawn.text(0.5, 0.05 / (height + foot), wrapped, ha="center", va="bottom", fontsize=7, color="0.35")
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda file: drawn.savefig(file, format="png"))


def page(found: dict[str, list[dict[str, Any]]], fitted: dict[str, dict[str, Any]]) -> str:
    """A table and the fits for each axis."""
    from reporting import table

    header_rest = ["µs per step", "steps/s", "ms per update", "peak memory", "above rest"]
    parts = []
    for axis, points in found.items():
        rows = [
            [
                f"{p[axis]}",
                f"{p['seconds_per_step'] * 1e6:.3g}",
                f"{1 / p['seconds_per_step']:,.0f}",
                f"{p['seconds_per_update'] * 1e3:,.2f}",
                size(p["peak_bytes"]),
                size(p["peak_bytes"] - p["rest_bytes"]),
            ]
            for p in points
        ]
        part = f"## {axis.capitalize()}\n\n" + table([AXES[axis][0], *header_rest], rows)
        if fitted[axis]:
            memory, seconds = fitted[axis]["peak_bytes"], fitted[axis]["seconds_per_update"]
            one = {"members": "member", "environments": "environment", "steps": "step"}[axis]
            part += (
                f"\n\nLinear fits: peak memory {size(memory['constant'])} + {memory['slope']:,.0f} bytes "
                f"({size(memory['slope'])}) per {one} (R² {memory['r_squared']:.4f}); an update "
                f"{seconds['constant'] * 1e3:.2f} ms + {seconds['slope'] * 1e3:.4g} ms per {one} "
                f"(R² {seconds['r_squared']:.4f})."
            )
        parts.append(part)
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for axis, (meaning, values) in AXES.items():
        shown = " ".join(map(str, values))
        parser.add_argument(f"--{axis}", type=int, nargs="*", default=values, help=f"{meaning} (default: {shown})")
    parser.add_argument("--base", type=json.loads, default={}, help="another anchor, as JSON: '{\"members\": 16}'")
    parser.add_argument("--seconds", type=float, default=3.0, help="timed for each point (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "scaling.png", help="the PNG")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return

    anchor = {"members": 1, "environments": 64, "width": 64, "steps": 32, **options.base}
    if set(anchor) != set(AXES):
        parser.error(f"--base takes {', '.join(AXES)}")
    known: dict[str, dict[str, Any]] = {}  # the anchor itself stands on every axis, and is measured once
    found: dict[str, list[dict[str, Any]]] = {}
    failed: list[dict[str, Any]] = []
    for axis in AXES:
        for value in getattr(options, axis):
            point = {**anchor, axis: value, "seconds": options.seconds, "threads": options.threads}
            key = json.dumps(point, sort_keys=True)
            if key not in known:
                known[key] = measure(point)
                said = known[key].get("seconds_per_step")
                cost = "failed" if said is None else f"{said * 1e6:.3g} µs, {size(known[key]['peak_bytes'])}"
                print(f"{axis} {value}: {cost}", file=sys.stderr)
                if said is None:
                    failed.append(known[key])
            if "failed" not in known[key]:
                found.setdefault(axis, []).append(known[key])
    if not found:
        raise SystemExit("No point could be measured.")

    from reporting import origin, provenance, write

    fitted = {axis: fits(axis, points) for axis, points in found.items()}
    threads = f"{options.threads} torch thread{'s' * (options.threads > 1)}"
    record = {**provenance(), "anchor": anchor, "points": found, "failed": failed, "fits": fitted}
    shown = f"{anchor['members']} member{'s' * (anchor['members'] > 1)}, {anchor['environments']} environments x {anchor['steps']} steps, 2 x {anchor['width']} tanh units"
    text = f"Advantage actor-critic on CartPole-v1 at {shown}, one of these varied at a time; {threads}. {origin(record)}\n\n"
    text += (
        "Each point is a process of its own. Time is the median over its updates; memory is the process's peak resident "
        "set, and rest is what Python and the libraries took before the trainer was made.\n\n"
    )
    if failed:
        text += f"{len(failed)} points did not come to an end (see the JSON).\n\n"
    write(options.out, "Scaling", text + page(found, fitted), record)
    caption = (
        f"A2C on CartPole-v1 at {shown}, one varied at a time; {threads}. Above: median time of an update per environment "
        "step of a member. Below: peak resident set of the process; dotted: Python and the libraries alone."
    )
    figure(found, options.figure, caption)
    print(f"\nFigure: {os.path.relpath(options.figure)}", file=sys.stderr)


if __name__ == "__main__":
    main()
