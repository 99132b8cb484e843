"""A quadratic program on the simplex: the variance of straight-through Gumbel-Softmax and its Rao-Blackwellization.

Proposition 3 of the paper: the variance with K conditional draws is E[var(ST-GS | D)] / K + var(E[ST-GS | D]), a
straight line in 1 / K, which the estimates for several K are held to.

Source: Paulus, Maddison & Krause (2021), sections 4 and 5.2.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from pglab_envs.discrete_toys import SimplexProgram

import pglab
from published.variances import trace

TITLE = "A quadratic program on the simplex (Gumbel-Rao)"
PROBS = (0.6, 0.3, 0.1)
TEMPERATURES = (0.1, 0.5, 1.0)
SAMPLES = (1, 10, 100, 1000)


def run(quick: bool = False) -> dict[str, Any]:
    numbers, samples = (2000, (1, 10)) if quick else (20_000, SAMPLES)
    p = torch.tensor(PROBS, dtype=torch.float64)
    f = SimplexProgram().objective_at(p)
    q = pglab.Categorical(p.log())
    rows = []
    for tau in TEMPERATURES:
        g = pglab.estimate_gradient("straight_through_gumbel_softmax", q, f, numbers, temperature=tau)["logits"]
        row: dict[str, Any] = {"temperature": tau, "straight_through_gumbel_softmax": trace(g)}
        for k in samples:
            n = numbers if k < 1000 else numbers // 5
            g = pglab.estimate_gradient("gumbel_rao", q, f, n, temperature=tau, samples=k, seed=k)["logits"]
            row[f"gumbel_rao, K = {k}"] = trace(g)
        rows.append(row)
    return {"samples": samples, "rows": rows}


def line(record: dict[str, Any], row: dict[str, Any]) -> float:
    """The largest distance, in standard errors, of the middle Ks' variances from the line through first and last."""
    first, *middle, last = record["samples"]
    (a, ea), (b, eb) = row[f"gumbel_rao, K = {first}"], row[f"gumbel_rao, K = {last}"]
    worst = 0.0
    for k in middle:
        share = (1 / k - 1 / last) / (1 / first - 1 / last)
        v, e = row[f"gumbel_rao, K = {k}"]
        error = math.sqrt(e**2 + (share * ea) ** 2 + ((1 - share) * eb) ** 2)
        worst = max(worst, abs(v - share * a - (1 - share) * b) / error)
    return worst


def page(record: dict[str, Any]) -> str:
    from reporting import table

    ways = [way for way in record["rows"][0] if way != "temperature"]
    rows = [[way, *(f"{math.log10(r[way][0]):.3f}" for r in record["rows"])] for way in ways]
    worst = max(line(record, r) for r in record["rows"])
    relative = max(r[way][1] / r[way][0] for r in record["rows"] for way in ways)
    saved = ", ".join(f"{r[ways[0]][0] / r[ways[-1]][0]:.3g} at {r['temperature']:g}" for r in record["rows"])
    falls = all(r[a][0] > r[b][0] for r in record["rows"] for a, b in itertools.pairwise(ways[1:]))
    return "\n\n".join(
        [
            f"(z - c)' A (z - c) of one of 3 categories, c = 1/3, A the paper's matrix at p = {PROBS}, which is also "
            "the distribution. log10 of the trace of the covariance of one estimate at the logits; standard errors "
            f"up to {relative / math.log(10):.3f}.",
            table(["log10 tr Cov", *(f"temperature {r['temperature']:g}" for r in record["rows"])], rows),
            "Published: a figure, not read off here; the claim is a variance that falls with K. "
            f"{'Reproduced' if falls else 'Not reproduced'}; straight-through Gumbel-Softmax over the largest K, by "
            f"temperature: {saved}. Proposition 3 (a line in 1 / K): the Ks between are within {worst:.1f} standard "
            "errors.",
        ]
    )


def draw(axes: list[Any], record: dict[str, Any]) -> None:
    """One panel: variance against temperature."""
    from pglab.lab.figures import DASHES, PALETTE

    (panel,) = axes
    x = [r["temperature"] for r in record["rows"]]
    for k, way in enumerate(way for way in record["rows"][0] if way != "temperature"):
        y = [math.log10(r[way][0]) for r in record["rows"]]
        panel.plot(x, y, color=PALETTE[k], linestyle=DASHES[k % 4], marker="o", markersize=3, label=way)
    panel.set(xscale="log", xlabel="temperature", ylabel="log10 tr Cov", title="Simplex program: Gumbel-Rao")
    panel.legend(fontsize=6)
