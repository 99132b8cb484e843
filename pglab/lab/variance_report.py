"""What a measurement found, as rows for tables, as Markdown, and as plain data for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pglab.config import ActorCriticConfig, OnPolicyConfig
from pglab.lab.curves import batch_curve
from pglab.lab.intervals import Estimate
from pglab.lab.measuring import DEFINITION, Measured, Measurement
from pglab.lab.tables import MISSING, Column, markdown_table

Figure = tuple[float, float, float, bool]
"""Value, low, high, whether the interval is to be relied on."""
ROUNDING = 1e-8
"""Squared errors below this share of E|g|^2 are float32's own: sums over rows that cancel."""


def short(value: float) -> str:
    """Three digits, without an exponent where it can be done without."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 1e5 or (value and abs(value) < 1e-3):
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_interval(found: Figure | None) -> str:
    """`value (low to high)`, with a question mark where the interval is not to be relied on; a dash where there is none."""
    if found is None or math.isnan(found[0]):
        return MISSING
    value, low, high, reliable = found
    if math.isnan(low) or math.isnan(high):
        return short(value)
    return f"{short(value)} ({short(low)} to {short(high)}{'' if reliable else '?'})"


def scaled(found: Figure | None, by: float, least: float = 0.0) -> Figure | None:
    """An estimate over a positive number; None where that is none. What is below `least` is rounding: zero."""
    if found is None or not by > 0:
        return None
    value, low, high, reliable = found
    if abs(value) / by < least:
        return 0.0, 0.0, 0.0, True
    return value / by, low / by, high / by, reliable


def rows_of(m: Measured, section: str = "total") -> list[dict[str, Any]]:
    """A mapping per pair: every statistic as (value, low, high, reliable), or a number; None where there is none."""
    known = m.quality.estimates[section]
    ratios = m.ratios[section]
    critic = m.to_critic.estimates[section] if m.to_critic is not None else None
    norm = m.reference.squared_norm if section == "total" else _norm(m, section)
    efficiencies = m.efficiencies() if section == "total" else {}
    other = _other_cosine(m)
    rows = []
    for j, pair in enumerate(m.pairs):

        def of(statistics: dict[str, Estimate] | None, name: str, j: int = j) -> Any:
            return statistics[name][j] if statistics is not None and name in statistics else None

        nsr = known["nsr"][j]
        trace, size = known["trace"][j][0], max(known["squared_norm"][j][0], 0.0)
        rounding = ROUNDING * (trace + size) / m.critic_norm if m.critic_norm > 0 else 0.0
        row: dict[str, Any] = {
            "pair": pair.name,
            "declared": pair.declared or None,
            "replicate": m.units[j],
            "nsr": nsr,
            "nsr_times_steps": scaled(nsr, 1 / m.costs[j].steps),
            "trace": known["trace"][j],
            "trace_ratio": of(ratios, "trace_ratio"),
            "squared_norm": known["squared_norm"][j],
            "mean_variance": known["mean_variance"][j],
            "mean_log_variance": known["mean_log_variance"][j],
            "snr": known["snr"][j],
            "pairwise_cosine": of(known, "pairwise_cosine"),
            "mse": scaled(of(known, "mse"), norm),
            "mse_ratio": of(ratios, "mse_ratio"),
            "bias_squared": scaled(of(known, "bias_squared"), norm),
            "cosine": of(known, "cosine"),
            "mean_cosine": of(known, "mean_cosine"),
            "other_cosine": None if other is None else float(other[j]),
            "critic_mse": scaled(of(critic, "mse"), m.critic_norm, rounding),
            "critic_bias_squared": scaled(of(critic, "bias_squared"), m.critic_norm, rounding),
            "critic_cosine": None if m.critic_cosine is None else m.critic_cosine[j],
            "effective_rows": float(m.effective[j]),
            "zero": float(m.zeros[j]),
            "evaluations": m.costs[j].evaluations,
            "steps": m.costs[j].steps,
            "milliseconds": m.costs[j].seconds * 1e3,
        }
        exact = row["critic_mse"] is not None and row["critic_mse"][0] == 0.0
        row |= {
            f"per_{name}": (math.inf, math.inf, math.inf, True) if exact else e[j] for name, e in efficiencies.items()
        }
        rows.append(row)
    return rows


def _norm(m: Measured, section: str) -> float:
    place = m.places[section]
    part = m.reference.gradient[place]
    return float(part @ part) - m.reference.noise.get(section, 0.0)


def _other_cosine(m: Measured) -> np.ndarray | None:
    """`[J]`: mean cosine of one training-size gradient to grad J with the other weighting of states."""
    if not m.reference.other_supported:
        return None
    length = np.linalg.norm(m.head, axis=-1) * np.linalg.norm(m.reference.other)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (m.head @ m.reference.other / length).mean(-1)


def columns_of(m: Measured, rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns of a full table: those that have anything in them."""
    mse = "MSE to grad J" if m.to_critic is None else "MSE to critic"
    columns = [
        Column("pair"),
        Column("nsr", "NSR", with_interval),
        Column("nsr_times_steps", "NSR x steps", lambda v: short(v[0])),
        Column("trace_ratio", "trace / first", with_interval),
        Column("critic_mse", "MSE to critic", with_interval),
        Column("critic_bias_squared", "bias² to critic", with_interval),
        Column("critic_cosine", "cosine to critic", with_interval),
        Column("mse", "MSE to grad J", with_interval),
        Column("bias_squared", "bias² to grad J", with_interval),
        Column("cosine", "cosine to grad J", with_interval),
        Column("other_cosine", "cosine, other weighting", ".2f"),
        Column("pairwise_cosine", "pairwise cosine", with_interval),
        Column("snr", "SNR per parameter", with_interval),
        Column("mean_log_variance", "mean log variance", lambda v: short(v[0])),
        Column("effective_rows", "effective rows", ",.0f"),
        Column("zero", "zero rows", ".0%"),
        Column("evaluations", "evaluations of f", ",.0f"),
        Column("milliseconds", "ms", ".2f"),
        Column("per_evaluations", f"1 / ({mse} x evaluations)", lambda v: short(v[0])),
        Column("per_steps", f"1 / ({mse} x steps)", lambda v: short(v[0])),
        Column("per_seconds", f"1 / ({mse} x seconds)", lambda v: short(v[0])),
    ]
    return [c for c in columns if c.key == "pair" or any(c.cell(row) != MISSING for row in rows)]


def brief_columns(m: Measured, rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns of a table for the terminal, 80 characters wide: intervals for NSR only, the rest is in the report."""
    wanted = {
        "pair": "pair",
        "nsr": "NSR",
        "critic_mse": "MSE critic",
        "critic_bias_squared": "bias² critic",
        "mse": "MSE J",
        "bias_squared": "bias² J",
        "cosine": "cos J",
        "milliseconds": "ms",
    }
    found = []
    for column in columns_of(m, rows):
        if column.key in wanted:
            form = column.form if column.key in ("pair", "nsr", "milliseconds") else lambda v: short(v[0])
            found.append(Column(column.key, wanted[column.key], form))
    return found


def title(m: Measured) -> str:
    s = m.subject
    return f"{s.config.env.id}, {s.member}, {s.stage} ({s.steps:,} steps of training)"


def references(m: Measured) -> list[str]:
    """What distances are to, a line each."""
    lines = []
    if m.to_critic is not None:
        lines.append(
            "Critic: the exact gradient of this critic's E[Q(s, a)], entropies included, at the same states as each replicate; "
            f"|E g|² = {short(m.critic_norm)}, over which MSE and bias² are given."
        )
    r = m.reference
    size = f"|g|² = {short(r.squared_norm)}" if r.squared_norm > 0 else "|g|² is not above its noise"
    lines.append(f"grad J: {r.definition}. {size}. {r.verdict}")
    if r.critic_share is not None and math.isfinite(r.critic_share):
        lines.append(
            f"The critic's error: its exact gradient is off grad J by {r.critic_share:.2g} of |grad J|² (at the same states)."
        )
    if m.critic_errors is not None:
        lines.append(m.critic_errors.said)
    lines.append(f"Other weighting: {r.other_definition}.")
    return lines


def markdown(measurement: Measurement, heading: str, command: str, machine: Sequence[str]) -> str:
    """The whole measurement as a page."""
    parts = [f"# {heading}\n\n{DEFINITION}\n", f"    {command}\n"]
    parts += ["".join(f"{line}  \n" for line in machine)] if machine else []
    for m in measurement:
        rows = rows_of(m)
        parts.append(f"## {title(m)}\n")
        parts.append(
            f"{m.replicates} replicates of one training-size gradient ({m.rows:,.0f} rows, {m.costs[0].steps:,.0f} environment "
            f"steps); a replicate is {_said_units(m)}. {m.seconds:.0f} s.\n"
        )
        parts.append("".join(f"- {line}\n" for line in [*references(m), *m.notes]))
        parts.append(markdown_table(rows, columns_of(m, rows)))
        parts.append(_layers(m))
        parts.append(_curve(m))
    return "\n".join(part for part in parts if part)


def _said_units(m: Measured) -> str:
    kinds, agent = set(m.units), m.subject.config.agent
    if kinds == {"batch"}:
        if isinstance(agent, ActorCriticConfig):
            return "a minibatch"
        first = isinstance(agent, OnPolicyConfig) and agent.minibatches > 1
        return "the first minibatch of a batch" if first else "a whole batch"
    column = "an episode" if _episodes(m) else "an environment's block of steps"
    if kinds == {"column"}:
        return column
    coupled = ", ".join(n for n, u in zip(m.names, m.units, strict=True) if u == "batch")
    return f"{column}, but a whole batch where rows are coupled ({coupled})"


def _episodes(m: Measured) -> bool:
    return getattr(m.subject.config.agent, "collect", "") == "episodes"


def _layers(m: Measured) -> str:
    """NSR and MSE, layer by layer."""
    places = [s for s in m.quality.estimates if s != "total"]
    if len(places) < 2:
        return ""
    rows = []
    for j, name in enumerate(m.names):
        row: dict[str, Any] = {"pair": name}
        for place in places:
            known = m.quality.estimates[place]
            row[f"nsr {place}"] = known["nsr"][j][0]
            row[f"mse {place}"] = (
                known["mse"][j][0] / _norm(m, place) if "mse" in known and _norm(m, place) > 0 else None
            )
        rows.append(row)
    columns = [Column("pair"), *(Column(f"nsr {p}", f"NSR {p}", short) for p in places)]
    if any(row[f"mse {p}"] is not None for row in rows for p in places):
        columns += [Column(f"mse {p}", f"MSE {p}", short) for p in places]
    return f"Layer by layer:\n\n{markdown_table(rows, columns)}"


def curve_of(m: Measured) -> list[Any]:
    """Batch-size curves (see `batch_curve`), against the environment steps (rows, for a replay agent)."""
    return batch_curve(m.head, m.rows, m.reference.gradient if m.reference.supported else None)


def _curve(m: Measured) -> str:
    points = curve_of(m)
    if len(points) < 2:
        return ""
    rows = []
    for j, name in enumerate(m.names):
        row: dict[str, Any] = {"pair": name}
        for p in points:
            value, half = p.pairwise[j], p.pairwise_half[j]
            row[str(p.batches)] = None if math.isnan(value) else f"{value:.2f} ± {half:.2f}"
        rows.append(row)
    columns = [Column("pair"), *(Column(str(p.batches), f"{p.steps:,.0f} rows") for p in points)]
    text = "Mean cosine between two independent gradients of so many rows (Ilyas et al. 2020, figure 1):"
    return f"{text}\n\n{markdown_table(rows, columns)}"


def plain(measurement: Measurement) -> dict[str, Any]:
    """Everything, as JSON holds it."""
    return {
        "definition": DEFINITION,
        "seconds": measurement.seconds,
        "measured": [_plain(m) for m in measurement],
    }


def _plain(m: Measured) -> dict[str, Any]:
    s, r = m.subject, m.reference
    return {
        "environment": s.config.env.id,
        "member": s.member,
        "stage": s.stage,
        "at": s.at,
        "steps": s.steps,
        "replicates": m.replicates,
        "rows": m.rows,
        "seconds": m.seconds,
        "notes": m.notes,
        "reference": {
            "definition": r.definition,
            "other_definition": r.other_definition,
            "squared_norm": r.squared_norm,
            "noise": r.noise.get("total", 0.0),
            "halves_cosine": r.halves,
            "supported": r.supported,
            "verdict": r.verdict,
            "critic_share": r.critic_share,
            "draws": r.episodes,
            "steps": r.steps,
        },
        "critic_squared_norm": m.critic_norm,
        "critic_errors": None if m.critic_errors is None else vars(m.critic_errors),
        "pairs": rows_of(m),
        "layers": {section: rows_of(m, section) for section in m.quality.estimates if section != "total"},
        "curve": [
            {
                "batches": p.batches,
                "rows": p.steps,
                "pairwise": dict(zip(m.names, p.pairwise.tolist(), strict=True)),
                "pairwise_half": dict(zip(m.names, p.pairwise_half.tolist(), strict=True)),
                "cosine": None if p.cosine is None else dict(zip(m.names, p.cosine.tolist(), strict=True)),
            }
            for p in curve_of(m)
        ],
    }
