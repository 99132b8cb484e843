"""The report as Markdown with PNG figures beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pglab.lab.tables import Column, markdown_table
from pglab.reporting.model import GroupResult, Report, VarianceResult
from pglab.reporting.pictures import figures
from pglab.reporting.text import in_markdown, without_links

SCORES = (
    Column("variant"),
    Column("iqm", "IQM", ".1f"),
    Column("interval", "95 % interval", ".1f"),
    Column("worst", "worst seed", ".1f"),
    Column("area", "area under curve", ".1f"),
    Column("area_interval", "95 % interval", ".1f"),
    Column("steps_to_threshold", "steps to threshold", ",.0f"),
    Column("reached", "seeds there"),
    Column("seeds"),
    Column("steps", "steps per seed", ",.0f"),
    Column("seconds", "wall time, s", ".1f"),
    Column("state"),
)


def markdown(report: Report, folder: Path) -> str:
    """The document; its figures are written into the folder. Raises PglabError where the disk refuses."""
    parts = [f"# {in_markdown(report.title)}", in_markdown(report.summary, 1000)]
    parts.append(f"Read from {', '.join(map(in_markdown, report.sources))}.")
    number = 0
    for section in report.sections:
        parts.append(f"## {in_markdown(section.environment)}")
        for group in section.groups:
            number += 1
            parts.append(f"### {in_markdown(group.title)}")
            parts.append(in_markdown(group.finding, 1500))
            parts += [f"![{what}]({name})" for what, name in figures(group, folder, number)]
            parts += _tables(group)
        for v in section.variance:
            parts += [f"### Gradients at frozen policies: {in_markdown(v.title)}", _variance(v)]
            parts.append(f"Distances are to {in_markdown(v.to)}.")
        parts += [in_markdown(text, 1000) for text in dict.fromkeys(v.definition for v in section.variance)]
    problems = [*report.problems, *((o.folder, said) for o in report.origins for said in o.problems)]
    if problems:
        parts.append("## What is missing")
        parts.append("\n".join(f"- {in_markdown(what)}: {in_markdown(said)}" for what, said in problems))
    if report.origins:
        parts.append("## How to make the runs again")
        origins = [
            {
                "run": o.folder,
                "command": o.command,
                "git commit": None if o.commit is None else o.commit + (" with changes" if o.dirty else ""),
                "versions": o.versions,
            }
            for o in report.origins
        ]
        parts.append(markdown_table(origins, ["run", "command", "git commit", "versions"]))
    return without_links("\n\n".join(part.rstrip("\n") for part in parts if part) + "\n")


def _tables(group: GroupResult) -> list[str]:
    rows: list[dict[str, Any]] = []
    for v in group.variants:
        row: dict[str, Any] = {c.key: getattr(v, c.key, None) for c in SCORES}
        row |= {"variant": v.name, "seeds": len(v.seeds), "state": None if v.finished else "not finished"}
        row["reached"] = f"{v.reached}/{len(v.scores)}" if group.threshold is not None else None
        rows.append(row)
    columns = [c for c in SCORES if c.key == "variant" or any(c.cell(row) not in ("–", "– to –") for row in rows)]
    parts = [markdown_table(rows, columns)]
    if group.until is not None:
        parts.append(f"Area under curve: the mean return up to {group.until:,.0f} steps, by evaluations.")
    parts += ["\n".join(f"- {in_markdown(note)}" for note in group.notes)] if group.notes else []
    if group.improvements:
        odds = [
            {"a": i.better, "b": i.than, "p": i.probability, "interval": (i.low, i.high)} for i in group.improvements
        ]
        parts.append("Probability of improvement: how often a seed of one ends above a seed of the other.")
        parts.append(
            markdown_table(
                odds, [Column("a", "variant"), Column("b", "above"), Column("p", "probability", ".2f"), Column("interval", "95 % interval", ".2f")]
            )
        )  # fmt: skip
    if group.differ and len(group.variants) > 1:
        names = [v.name for v in group.variants]
        parts.append("Settings that differ:")
        rows = [{"variant": n, **{f"= {k}": v.get(n) for k, v in group.differ.items()}} for n in names]
        parts.append(markdown_table(rows, ["variant", *(Column(f"= {k}", k) for k in group.differ)]))
    return parts


def _variance(v: VarianceResult) -> str:
    rows = [
        {"pair": p["pair"], **{k: None if p[k] is None else p[k][0] for k in ("nsr", "bias", "mse", "cosine")}, "ms": p["milliseconds"]}
        | {"interval": p["nsr"][1:] if p["nsr"] else None}
        for p in v.pairs
    ]  # fmt: skip
    columns = [
        Column("pair"),
        Column("nsr", "NSR"),
        Column("interval", "95 % interval"),
        Column("bias", "bias²"),
        Column("mse", "MSE"),
    ]
    return markdown_table(rows, [*columns, Column("cosine", form=".2f"), Column("ms", form=".2f")])
