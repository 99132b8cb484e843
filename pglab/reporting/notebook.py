"""Results as tables for a notebook: HTML, and pandas where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pglab.errors import PglabError, unknown
from pglab.lab.tables import Column
from pglab.reporting.text import in_html, shown

if TYPE_CHECKING:
    from pglab.comparing import Compared
    from pglab.lab.measuring import Measurement
    from pglab.reporting.model import Report
    from pglab.training import Trained

Rows = list[dict[str, Any]]


def frame(rows: Rows) -> Any:
    """Rows as a pandas DataFrame. Raises PglabError where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise PglabError("to_pandas() needs pandas, which is not installed: pip install pandas.") from None
    return pandas.DataFrame(rows)


def html_table(rows: Rows, columns: Sequence[Column], title: str = "") -> str:
    """Rows as a plain HTML table; everything is escaped."""
    head = "".join(f"<th>{in_html(c.title)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{in_html(c.cell(row))}</td>" for c in columns) + "</tr>" for row in rows)
    caption = f"<caption>{in_html(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


# -- pglab.train


def trained_rows(trained: Trained) -> Rows:
    """A row per evaluation and member: its seed and swept values, steps, and mean return over episodes."""
    return [
        {"member": p, **member, "steps": e["steps"][p], "return": float(np.mean(e["returns"][p]))}
        for e in trained.evaluations
        for p, member in enumerate(trained.members)
    ]


def trained_html(trained: Trained) -> str:
    """Each setting's last return over its seeds."""
    from pglab.lab.statistics import iqm, stratified_bootstrap_interval

    if not trained.evaluations:
        return "<p>Training was interrupted before anything was evaluated.</p>"
    last = trained.evaluations[-1]
    found: dict[str, list[tuple[float, float]]] = {}
    for member, steps, returns in zip(trained.members, last["steps"], last["returns"], strict=True):
        setting = ", ".join(f"{k}={v:g}" for k, v in member.items() if k != "seed") or "all"
        found.setdefault(setting, []).append((float(np.mean(returns)), steps))
    rows = []
    for setting, values in found.items():
        scores = np.array([score for score, _ in values])
        rows.append({"setting": setting, "seeds": len(values), "steps": float(np.mean([s for _, s in values]))})
        rows[-1] |= {
            "iqm": float(iqm(scores)),
            "worst": float(scores.min()),
            "interval": stratified_bootstrap_interval(scores),
        }
    columns = [Column("setting"), Column("seeds"), Column("steps", form=",.0f"), Column("iqm", "IQM return", ".1f")]
    columns += [Column("interval", "95 % interval", ".1f"), Column("worst", "worst seed", ".1f")]
    state = "" if trained.finished else " (interrupted)"
    where = "" if trained.folder is None else f"<p>Run folder: {in_html(trained.folder)}</p>"
    return html_table(rows, columns, f"Last evaluation{state}") + where


# -- pglab.compare


def compared_rows(compared: Compared) -> Rows:
    """A row per finished variant, in the file's order."""
    rows: Rows = []
    for r in compared.rows:
        row = {"group": r.group, "variant": r.variant, "iqm": r.iqm, "low": r.interval[0], "high": r.interval[1]}
        row |= {"worst": r.worst, "steps_to_threshold": r.steps_to_threshold, "reached": r.reached, "seeds": r.seeds}
        row |= {"seconds": r.seconds, "steps_per_second": r.steps_per_second}
        rows.append(row | {f"nsr_{stage}": value for stage, value in r.nsr.items()} | r.chosen)
    return rows


def compared_html(compared: Compared) -> str:
    """A table per group, and what failed."""
    from pglab.lab.comparison import cells, columns_of

    parts = []
    for name, group in compared.comparison.groups.items():
        rows = [row for row in compared.rows if row.group == name]
        if rows:
            parts.append(html_table([cells(row) for row in rows], columns_of(rows), group.title or name))
    parts += [f"<p>Variant {in_html(key)} failed: {in_html(message)}</p>" for key, message in compared.failed.items()]
    parts += [f"<p>Variant {in_html(key)} was stopped.</p>" for key in compared.stopped]
    return "".join(parts) + f"<p>Folder: {in_html(compared.folder)}</p>"


# -- pglab.measure


def measured_rows(measurement: Measurement) -> Rows:
    """A row per subject and pair: every statistic, with `_low`, `_high` and `_reliable` where it has an interval."""
    from pglab.lab.variance_report import rows_of

    rows: Rows = []
    for m in measurement:
        s = m.subject
        for found in rows_of(m):
            row: dict[str, Any] = {
                "environment": s.config.env.id,
                "member": s.member,
                "stage": s.stage,
                "training_steps": s.steps,
            }
            for key, value in found.items():
                if isinstance(value, tuple):
                    row |= dict(zip((key, f"{key}_low", f"{key}_high", f"{key}_reliable"), value, strict=True))
                else:
                    row[key] = value
            rows.append(row)
    return rows


def measured_html(measurement: Measurement) -> str:
    """A table per subject, as `pglab variance` has them."""
    from pglab.lab.variance_report import columns_of, rows_of, title

    parts = []
    for m in measurement:
        rows = rows_of(m)
        parts.append(html_table(rows, columns_of(m, rows), title(m)))
    return "".join(parts)


# -- pglab.reporting.report

TABLES = ("scores", "variants", "curves", "improvements", "noise", "variance")


def report_rows(report: Report, table: str) -> Rows:
    """One of a report's tables. Raises PglabError for a name that is none."""
    if table not in TABLES:
        raise unknown("table", shown(table), TABLES)
    rows: Rows = []
    for section in report.sections:
        for group in section.groups:
            where = {"environment": section.environment, "group": group.title}
            if table == "improvements":
                rows += [where | vars(i) for i in group.improvements]
            for v in group.variants:
                rows += [where | {"variant": v.name} | row for row in _rows_of(v, table)]
        if table == "variance":
            for m in section.variance:
                rows += [{"environment": section.environment, "measured": m.title, **_flat(pair)} for pair in m.pairs]
    return rows


def _rows_of(v: Any, table: str) -> Rows:
    if table == "scores":
        # Scores are of the seeds that were evaluated, and those are the run's members in their order.
        evaluated = v.seeds if len(v.seeds) == len(v.scores) else [str(i) for i in range(len(v.scores))]
        return [
            {"seed": seed, "score": score, "area": area, "finished": v.finished}
            for seed, score, area in zip(evaluated, v.scores, v.areas, strict=True)
        ]
    if table == "variants":
        row = {"iqm": v.iqm, "low": v.interval[0], "high": v.interval[1], "worst": v.worst, "area": v.area}
        row |= {
            "area_low": v.area_interval[0],
            "area_high": v.area_interval[1],
            "steps_to_threshold": v.steps_to_threshold,
        }
        return [
            row
            | {
                "reached": v.reached,
                "seeds": len(v.seeds),
                "steps": v.steps,
                "seconds": v.seconds,
                "finished": v.finished,
            }
        ]
    if table == "noise":
        return [vars(n) for n in v.noise]
    if table == "curves":
        kinds = (
            ("evaluation", "steps", v.curve),
            ("evaluation", "seconds", v.time_curve),
            ("training", "steps", v.training_curve),
        )
        return [
            {"return_of": of, "along": along, "x": x, "iqm": y, "low": low, "high": high}
            for of, along, c in kinds
            if c is not None
            for x, y, low, high in zip(c.x.tolist(), c.iqm.tolist(), c.low.tolist(), c.high.tolist(), strict=True)
        ]
    return []


def _flat(pair: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pair.items():
        if isinstance(value, tuple):
            found |= dict(zip((key, f"{key}_low", f"{key}_high"), value, strict=True))
        else:
            found[key] = value
    return found
