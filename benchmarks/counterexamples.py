"""Counter-examples to four things that are often said of gradient estimators, as one figure and one table.

    python benchmarks/counterexamples.py --figure docs/figures/counterexamples.png --out benchmarks/counterexamples

- "A relaxation's small variance is worth its bias": on one Bernoulli its mean has the wrong sign.
- "Anneal the temperature to 0": most Jacobians are then exactly 0 while the variance explodes.
- "Reparameterization has the lower variance": not on cos(k z).
- "A control variate beats a baseline": on one Bernoulli nothing beats the best constant; on ten it depends on f.

Variances are of single estimates, measured through `pglab.estimate_gradient` in float64 unless said otherwise; exact
values beside them come from closed forms.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch

import pglab

THETAS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])
TEMPERATURES = np.array([1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01])
WAVES = np.array([0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0])
TARGETS = np.array([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
LAMBDAS = (0.1, 0.25, 0.5, 0.75, 1.0)


def bernoulli(theta: float, d: int = 1) -> pglab.Bernoulli:
    return pglab.Bernoulli(torch.full((d,), math.log(theta / (1 - theta)), dtype=torch.float64))


def square(t: float):
    return lambda b: (b - t).square().sum(-1)


def wrong_sign(n: int) -> list[dict[str, Any]]:
    """Means of relaxed estimators of d/d logit E[(b - .499)^2], whose true value is theta (1 - theta) .002."""
    rows = []
    for theta in THETAS:
        row = {"theta": theta, "exact": theta * (1 - theta) * (1 - 2 * 0.499)}
        for name, options in (
            ("straight_through", {}),
            ("gumbel_softmax", {"temperature": 1.0}),
            ("reinmax", {}),
        ):
            row[name] = float(
                pglab.estimate_gradient(name, bernoulli(theta), square(0.499), n, **options)["logits"].mean()
            )
        rows.append(row)
    return rows


def annealing(n: int) -> list[dict[str, Any]]:
    """Gumbel-Softmax with K = 2 in float32: the fraction of exactly zero Jacobians, and the variance."""
    rows = []
    for theta in (0.5, 0.1):
        logits = torch.tensor([math.log(theta), math.log(1 - theta)])
        for temperature in TEMPERATURES:
            g = pglab.estimate_gradient(
                "gumbel_softmax",
                pglab.Categorical(logits),
                lambda a: (a[:, 0] - 0.499).square(),
                n,
                temperature=float(temperature),
            )["logits"]
            dead = float((g == 0).all(-1).float().mean())
            rows.append(
                {"theta": theta, "temperature": temperature, "dead": dead, "variance": float(g[:, 0].double().var())}
            )
    return rows


def cosine(n: int) -> list[dict[str, Any]]:
    """d/d mean of E[cos(k z)], z ~ N(0.3, 1): variances of the two estimators, measured and exact."""
    rows, m = [], 0.3
    d = pglab.Gaussian(torch.tensor([m], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    for k in WAVES:

        def f(z: torch.Tensor, k: float = float(k)) -> torch.Tensor:
            return torch.cos(k * z[:, 0])

        found = {e: float(pglab.estimate_gradient(e, d, f, n)["mean"].var()) for e in ("score_function", "pathwise")}
        # E[sin^2(k z)] k^2, and E[eps^2 cos^2(k z)], each less the squared mean.
        mean = -k * math.sin(k * m) * math.exp(-(k**2) / 2)
        wave, damp = math.cos(2 * k * m), math.exp(-2 * k**2)
        rows.append(
            {
                "k": k,
                **found,
                "exact pathwise": k**2 * (1 - wave * damp) / 2 - mean**2,
                "exact score_function": (1 + (1 - 4 * k**2) * wave * damp) / 2 - mean**2,
            }
        )
    return rows


def rebar_ratio(d: int, t: float, n: int) -> float:
    """REBAR's variance over that of the score function with baseline E[f], at theta = .5, for the best of the lambdas and
    the optimal weight of the control variate (the estimate is linear in it)."""
    p, f = bernoulli(0.5, d), square(t)
    mean = d * (t**2 + (1 - t) ** 2) / 2
    against = pglab.estimate_gradient("score_function", p, lambda b: f(b) - mean, n)["logits"].var(0).sum()
    best = math.inf
    for temperature in LAMBDAS:
        options = {"temperature": temperature, "learn": False}
        without, with_ = (pglab.estimate_gradient("rebar", p, f, n, **options, eta=eta)["logits"] for eta in (0.0, 1.0))
        a, h = without - without.mean(0), (with_ - without) - (with_ - without).mean(0)
        eta = -(a * h).sum() / h.square().sum()
        best = min(best, float((a + eta * h).square().sum() / (n - 1)))
    return best / float(against) if against > 0 else math.inf


def control_variates(n: int) -> list[dict[str, Any]]:
    return [{"t": t, "ten": rebar_ratio(10, float(t), n), "one": best_of_one(float(t), n)} for t in TARGETS]


def best_of_one(t: float, n: int) -> float:
    """On one Bernoulli: REBAR's variance at its optimal weight, as it is; the best constant baseline's is 0."""
    p, f = bernoulli(0.5), square(t)
    best = math.inf
    for temperature in LAMBDAS:
        without, with_ = (
            pglab.estimate_gradient("rebar", p, f, n, temperature=temperature, learn=False, eta=eta)["logits"]
            for eta in (0.0, 1.0)
        )
        a, h = without - without.mean(0), (with_ - without) - (with_ - without).mean(0)
        eta = -(a * h).sum() / h.square().sum()
        best = min(best, float((a + eta * h).square().sum() / (n - 1)))
    return best


def draw(record: dict[str, Any], path: Path) -> None:
    """The figure: one panel for each."""
    import matplotlib as mpl
    import matplotlib.ticker

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from pglab.lab.figures import PALETTE

    blue, red, green, pink, *_ = PALETTE
    figure, ((a, b), (c, e)) = plt.subplots(2, 2, figsize=(9.5, 7))
    rows = record["wrong sign"]
    x = [r["theta"] for r in rows]
    for name, colour, dash in (
        ("straight_through", red, "--"), ("gumbel_softmax", green, ":"), ("reinmax", pink, "-."),
    ):  # fmt: skip
        a.plot(x, [r[name] for r in rows], color=colour, linestyle=dash, label=name)
    a.plot(x, [r["exact"] for r in rows], color="black", linewidth=1.2, label="exact (reinmax lies on it)")
    a.axhline(0, color="0.7", linewidth=0.6, zorder=0)
    a.set(xlabel="theta = P(b = 1)", ylabel="mean of the estimate", title="Wrong sign: E[(b − .499)²], one Bernoulli")
    a.legend(fontsize=7)

    for theta, colour in ((0.5, blue), (0.1, red)):
        part = [r for r in record["annealing"] if r["theta"] == theta]
        x = [r["temperature"] for r in part]
        b.plot(
            x, [r["variance"] for r in part], color=colour, marker="o", markersize=3, label=f"variance, theta {theta}"
        )
    b.set(xscale="log", yscale="log", xlabel="temperature", ylabel="variance", title="Annealed Gumbel-Softmax, float32")
    b.invert_xaxis()
    twin = b.twinx()
    for theta, colour in ((0.5, blue), (0.1, red)):
        part = [r for r in record["annealing"] if r["theta"] == theta]
        twin.plot(
            [r["temperature"] for r in part],
            [r["dead"] for r in part],
            color=colour,
            linestyle=":",
            label=f"zero, theta {theta}",
        )
    twin.set(ylabel="fraction of exactly zero gradients", ylim=(0, 1))
    lines = [*b.get_lines(), *twin.get_lines()]
    b.legend(lines, [str(line.get_label()) for line in lines], fontsize=7, loc="upper left")

    rows = record["cosine"]
    x = [r["k"] for r in rows]
    for name, colour in (("score_function", blue), ("pathwise", red)):
        c.plot(
            x,
            [r[name] for r in rows],
            color=colour,
            marker="o",
            markersize=3,
            linestyle="none",
            label=f"{name}, measured",
        )
        c.plot(x, [r[f"exact {name}"] for r in rows], color=colour, linewidth=1, label=f"{name}, exact")
    c.set(xscale="log", yscale="log", xlabel="k", ylabel="variance", title="E[cos(kz)], z ~ N(0.3, 1)")
    c.xaxis.set_major_locator(mpl.ticker.FixedLocator(x))
    c.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    c.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    c.tick_params(axis="x", labelsize=7)
    c.legend(fontsize=7)

    rows = record["control variates"]
    x = [r["t"] for r in rows]
    e.plot(
        x, [r["ten"] for r in rows], color=blue, marker="o", markersize=3, label="ten Bernoullis: REBAR / E[f] baseline"
    )
    e.axhline(1, color="0.6", linewidth=0.8)
    e.set(xlabel="t", ylabel="ratio of variances", yscale="log", title="f = Σ(bᵢ − t)², theta = .5")
    other = e.twinx()
    other.plot(
        x,
        [r["one"] for r in rows],
        color=red,
        linestyle="--",
        marker="s",
        markersize=3,
        label="one Bernoulli: REBAR's variance",
    )
    other.set(ylabel="variance (the best constant's: 0)", ylim=(0, None))
    lines = [e.get_lines()[0], *other.get_lines()]
    e.legend(lines, [str(line.get_label()) for line in lines], fontsize=7, loc="center left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def page(record: dict[str, Any]) -> str:
    """The tables, with what each shows in a sentence."""

    def t(rows: list[dict[str, Any]], digits: int = 3) -> str:
        return reporting.table(list(rows[0]), [[f"{v:.{digits}g}" for v in r.values()] for r in rows])

    return "\n\n".join(
        [
            "Four things that are often said of gradient estimators, and where they fail.",
            "![The four counter-examples](figures/counterexamples.png)",
            f"{reporting.origin(record)} {record['samples']:,} estimates for each number.",
            "## Wrong sign\n\n*A relaxation's small variance is worth its bias.* Means of estimates of d/d logit E[(b - .499)^2] on one "
            "Bernoulli variable. The true gradient is positive everywhere; for every theta below one half, straight-through and "
            "Gumbel-Softmax (temperature 1) go the other way, and above it they are hundreds of times too large. ReinMax is exact "
            "for quadratic f: what is left of it is sampling noise.",
            t(record["wrong sign"]),
            "## Annealing to 0\n\n*Anneal the temperature, and the bias goes.* It does. Gumbel-Softmax with K = 2 in float32: the variance "
            "grows like one over the temperature, and at 0.01 more than half of all gradients are exactly zero: vanishing and "
            "exploding at once.",
            t(record["annealing"]),
            "## A fast cosine\n\n*Reparameterization has the lower variance.* Variances of the two estimators of d/d mean "
            "E[cos(k z)], z ~ N(0.3, 1), measured and in closed form. From about k = 0.9 on, the score function's is lower; its variance is "
            "bounded by that of f, pathwise's by that of f'.",
            t(record["cosine"]),
            "## Control variates against baselines\n\n*A control variate beats a baseline.* REBAR on f = sum (b_i - t)^2 at theta = .5, at its best "
            "weight and the best of five temperatures. *ten*: ten Bernoullis, its variance over that of the baseline E[f]: better "
            "up to about t = .27, 13 times worse at t = .45. *one*: a single Bernoulli, its variance as it is; the best constant "
            "baseline's is 0, and a control variate that is a smooth function can only add noise to a constant there.",
            t(record["control variates"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = options.samples
    record = reporting.provenance() | {
        "samples": n,
        "wrong sign": wrong_sign(n),
        "annealing": annealing(n),
        "cosine": cosine(n),
        "control variates": control_variates(n),
    }
    if options.figure:
        draw(record, options.figure)
    reporting.write(options.out, "Counter-examples", page(record), record)


if __name__ == "__main__":
    main()
