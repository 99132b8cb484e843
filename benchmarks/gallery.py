"""The gallery of estimators: for each its formula and source, what it needs, and its variance and bias against how sharp
the sampled distribution is.

    python benchmarks/gallery.py --page docs/gallery.md --figures docs/figures/gallery

Everything is measured through `pglab.estimate_gradient` on one small problem per kind of action (float64, one draw per
estimate, fixed seed); the exact gradient is enumerated or integrated.
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch

import pglab
from pglab.distributions import Distribution
from pglab.estimators import ESTIMATORS, Estimator
from pglab.objectives import Problem

LOGITS = torch.tensor([[0.9, 0.3, -0.4, -0.8], [-0.2, 1.0, 0.1, -0.9]], dtype=torch.float64)
BITS = torch.tensor([0.8, -0.5, 0.2], dtype=torch.float64)
LOGIT_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
STDS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05)
CONCENTRATIONS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def table(a: torch.Tensor) -> torch.Tensor:
    """A curved f of two one-hot factors of four categories, defined inside the simplex as well."""
    c = torch.tensor([[0.5, -1.0, 0.3, 1.2], [1.0, 0.2, -0.7, 0.4]], dtype=a.dtype)
    x = (a * c).sum(-1)  # [B, 2]
    return (x[:, 0] - 0.4).square() + x[:, 0] * x[:, 1] + torch.sin(2 * x[:, 1])


def bits(b: torch.Tensor) -> torch.Tensor:
    """A curved f of three bits."""
    c = torch.tensor([1.0, -0.7, 0.5], dtype=b.dtype)
    x = (b * c).sum(-1)
    return (x - 0.45).square() + 0.5 * torch.sin(2 * x) + 0.3 * b[:, 0] * b[:, 1]


def wave(z: torch.Tensor) -> torch.Tensor:
    """A curved f of two real variables."""
    return z.square().sum(-1) + torch.sin(2 * z[:, 0]) + 0.5 * z[:, 0] * z[:, 1]


@dataclass(frozen=True)
class Setting:
    """One small problem, from flat to sharp."""

    title: str
    x: str
    sharpness: tuple[float, ...]
    make: Callable[[float], Distribution]
    f: Callable[[torch.Tensor], torch.Tensor]
    invert: bool = False


SETTINGS = {
    "categorical": Setting(
        "two categorical variables, K = 4",
        "scale of the logits",
        LOGIT_SCALES,
        lambda s: pglab.Categorical(LOGITS * s),
        table,
    ),
    "bernoulli": Setting(
        "three Bernoullis", "scale of the logits", LOGIT_SCALES, lambda s: pglab.Bernoulli(BITS * s), bits
    ),
    "gaussian": Setting(
        "two normal variables",
        "standard deviation",
        STDS,
        lambda s: pglab.Gaussian(
            torch.tensor([0.5, -0.3], dtype=torch.float64), torch.full((2,), math.log(s), dtype=torch.float64)
        ),
        wave,
        invert=True,
    ),
    "beta": Setting(
        "two Beta variables",
        "concentration (alpha + beta)",
        CONCENTRATIONS,
        lambda s: pglab.Beta(
            torch.tensor([0.6, 0.3], dtype=torch.float64) * s, torch.tensor([0.4, 0.7], dtype=torch.float64) * s
        ),
        wave,
    ),
}


def settings_of(estimator: type[Estimator]) -> list[str]:
    """The first setting of each kind of action that the estimator serves; Beta where no other continuous one is."""
    made = {name: s.make(s.sharpness[0]) for name, s in SETTINGS.items()}
    found = [name for name, d in made.items() if estimator.serves(type(d))]
    return [n for n in found if n != "beta" or "gaussian" not in found]


def measured(name: str, setting: Setting, sharpness: float, n: int, **more: Any) -> dict[str, float]:
    """Trace of the covariance, squared bias (its sampling noise taken off), squared norm and evaluations of one estimate."""
    d = setting.make(sharpness)
    counted = 0

    def f(a: torch.Tensor) -> torch.Tensor:
        nonlocal counted
        counted += len(a)
        return setting.f(a)

    problem = Problem.of(name, d, f, **more)
    counted = 0
    found = problem.estimates(n)
    made = math.ceil(n / problem._block_size) * problem._block_size
    exact = pglab.exact_gradient(d, setting.f)
    g = torch.cat([x.flatten(1) for x in found.values()], 1)
    true = torch.cat([x.flatten() for x in exact.values()])
    variance = float(g.var(0).sum())
    off = float((g.mean(0) - true).square().sum()) - variance / n
    return {
        "sharpness": sharpness,
        "variance": variance,
        "bias2": off,
        "bias2_error": 2 * math.sqrt(max(off, 0) * variance / n) + 2 * variance / n,
        "norm2": float(true.square().sum()),
        "evaluations": counted / made,
    }


def draw(name: str, curves: dict[str, Any], path: Path) -> None:
    """One panel per setting: variance, and squared bias where there is one, both over the squared norm of the gradient."""
    import matplotlib as mpl
    import matplotlib.ticker

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from pglab.lab.figures import PALETTE

    blue, red, *_ = PALETTE
    figure, axes = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 2.9), squeeze=False)
    for ax, (key, lines) in zip(axes[0], curves.items(), strict=True):
        s = SETTINGS[key]
        for label, rows, colour, dash in (
            ("score_function", lines["score_function"], "0.6", "-"),
            ("with leave_one_out, 2 draws", lines["leave_one_out"], "0.6", ":"),
            (f"{name}: variance", lines["own"], blue, "-"),
        ):
            x = [r["sharpness"] for r in rows]
            ax.plot(
                x, [max(r["variance"] / r["norm2"], 1e-12) for r in rows], color=colour, linestyle=dash, label=label
            )
        biased = [r for r in lines["own"] if r["bias2"] > r["bias2_error"]] if lines["biased"] else []
        if biased:
            ax.plot(
                [r["sharpness"] for r in biased],
                [r["bias2"] / r["norm2"] for r in biased],
                color=red,
                linestyle="--",
                marker="o",
                markersize=3,
                label=f"{name}: bias²",
            )
        ax.set(xscale="log", yscale="log", xlabel=s.x)
        ax.set_ylim(bottom=max(ax.get_ylim()[0], 1e-6))
        ax.set_title(s.title, fontsize=8)
        ax.xaxis.set_major_locator(mpl.ticker.FixedLocator(list(s.sharpness)))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        ax.tick_params(labelsize=7)
        if s.invert:
            ax.invert_xaxis()
    axes[0][0].set_ylabel("over |gradient|²", fontsize=8)
    axes[0][0].legend(fontsize=6)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def section(name: str, curves: dict[str, Any], image: str) -> str:
    cls = ESTIMATORS.get(name)
    part = cls()
    evaluations = max(r["evaluations"] for lines in curves.values() for r in lines["own"])
    bias = f"biased: {part.declared_bias}" if part.declared_bias else "unbiased"
    if cls.bias and not part.declared_bias:
        bias += f" ({cls.bias})"
    facts = [
        ("serves", cls.served()),
        ("needs", ", ".join(sorted(cls.needs))),
        ("for E[signal]", bias),
        ("evaluations of f", f"{cls.evaluations} (measured here: up to {evaluations:.3g} an estimate)"),
        ("baseline", "yes" if cls.uses_baseline else "no"),
        ("source", cls.paper),
    ]
    lines = "\n".join(f"| {k} | {v} |" for k, v in facts)
    text = inspect.cleandoc(cls.__doc__ or "")
    return f"## {name}\n\n{text}\n\n| | |\n| :--- | :--- |\n{lines}\n\n![Variance and bias of {name}]({image})"


INTRODUCTION = """\
Every estimator that pglab has: what it computes, what it needs, where it comes from, and how its variance and bias change
as the distribution that is sampled becomes sharper (towards the right in each figure).

Each figure shows one small curved objective per kind of action. Blue: trace of the covariance of a single estimate; red:
its squared bias where it is visible above sampling noise; both over the squared norm of the exact gradient, so 1 means
noise (or bias) as large as the gradient. Grey, to compare: the plain score function, and (dotted) its mean of two draws with
the leave-one-out baseline. Lower is better, but per *estimate*: an estimator that evaluates f ten times has to be ten
times better than one that evaluates it once; the number of evaluations stands in each table.

[Counter-examples](counterexamples.md) shows where four common beliefs about these estimators fail, and
[choosing an estimator](choosing-an-estimator.md) what to make of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--figures", type=Path, default=Path("docs/figures/gallery"))
    parser.add_argument(
        "--only", nargs="*", help="these estimators only: their figures, and their sections of a page that exists"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, sections = options.samples, []
    known: dict[tuple[str, str], list[dict[str, float]]] = {}
    for key, s in SETTINGS.items():
        known[key, "score_function"] = [measured("score_function", s, x, n) for x in s.sharpness]
        known[key, "leave_one_out"] = [
            measured("score_function", s, x, n, draws=2, baseline="leave_one_out") for x in s.sharpness
        ]
    names = options.only or ESTIMATORS.names()
    for name in names:
        curves = {}
        for key in settings_of(ESTIMATORS.get(name)):
            s = SETTINGS[key]
            own = [measured(name, s, x, n) for x in s.sharpness]
            biased = bool(ESTIMATORS.get(name)().declared_bias)
            curves[key] = {r: known[key, r] for r in ("score_function", "leave_one_out")} | {
                "own": own,
                "biased": biased,
            }
        image = options.figures / f"{name}.png"
        draw(name, curves, image)
        summary = ", ".join(
            f"{k}: {np.median([r['variance'] / r['norm2'] for r in c['own']]):.3g}" for k, c in curves.items()
        )
        print(f"{name}: median variance over |gradient|^2: {summary}", flush=True)
        if options.page:
            sections.append(section(name, curves, image.relative_to(options.page.parent).as_posix()))
    if options.page and options.only:
        page = options.page.read_text(encoding="utf-8")
        for name, new in zip(names, sections, strict=True):
            page = (
                re.sub(rf"^## {name}\n.*?(?=\n\n## |\Z)", lambda _, new=new: new, page.rstrip(), flags=re.M | re.S)
                + "\n"
            )
        options.page.write_text(page, encoding="utf-8")
    elif options.page:
        origin = reporting.origin(reporting.provenance())
        contents = " · ".join(f"[{name}](#{name})" for name in names)
        text = "\n\n".join(
            [f"# Gallery of estimators\n\n{INTRODUCTION}", contents, f"{origin} Estimates: {n:,} each.", *sections]
        )
        options.page.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
