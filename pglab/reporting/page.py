"""The report as one HTML page that needs nothing else, or as a fragment for a notebook."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pglab.lab.tables import Column
from pglab.reporting import panels
from pglab.reporting.model import GroupResult, Improvement, Report, Section, VarianceResult, VariantResult
from pglab.reporting.style import PAGE, style
from pglab.reporting.svg import interval_bar, swatch
from pglab.reporting.text import in_html

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(report: Report) -> str:
    """A whole HTML document."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # An icon of its own, or a browser asks for one.
        '<link rel="icon" href="data:,">'
        f"<title>{in_html(report.title)}</title><style>{PAGE}{style()}</style></head>"
        f'<body class="pglab">{_main(report)}</body></html>\n'
    )


def fragment(report: Report) -> str:
    """The report for a notebook's cell."""
    return f'<div class="pglab"><style>{style()}</style>{_main(report)}</div>'


def _main(report: Report) -> str:
    sections = "".join(_section(section, i) for i, section in enumerate(report.sections))
    links = "".join(f'<a href="#env{i}">{in_html(s.environment)}</a>' for i, s in enumerate(report.sections))
    nav = f"<nav>{links}</nav>" if len(report.sections) > 1 else ""
    read = ", ".join(f"<code>{in_html(source)}</code>" for source in report.sources[:8])
    more = f" and {len(report.sources) - 8} more" if len(report.sources) > 8 else ""
    return (
        f'<main><header><p class="kicker">pglab report</p><h1>{in_html(report.title)}</h1>'
        f'<p>{in_html(report.summary, 1000)}</p><p class="quiet">Read from {read}{more}.</p>{nav}</header>'
        f"{sections}{_missing(report)}{_reproduce(report)}</main>"
    )


def _section(section: Section, number: int) -> str:
    groups = "".join(_group(group, len(section.groups) > 1) for group in section.groups)
    kept = "" if len(section.groups) < 2 else (
        '<p class="quiet">The groups below are of different algorithms or different comparisons: they are not ranked against one another.</p>'
    )  # fmt: skip
    variance = "".join(_variance(v) for v in section.variance)
    if variance:
        said = dict.fromkeys(v.definition for v in section.variance)
        notes = "".join(f'<p class="quiet">{in_html(text, 1000)}</p>' for text in said)
        variance = f"<h3>Gradients at frozen policies</h3>{variance}{notes}"
    return f'<section id="env{number}"><h2>{in_html(section.environment)}</h2>{kept}{groups}{variance}</section>'


def _group(group: GroupResult, titled: bool) -> str:
    styles = panels.styles(group)
    parts = [f"<h3>{in_html(group.title)}</h3>" if titled else f'<p class="quiet">{in_html(group.title)}</p>']
    parts.append(f'<p class="finding">{in_html(group.finding, 1500)}</p>')
    parts.append(panels.learning(group, styles))
    parts.append("<h4>Scores</h4>")
    parts.append(_scores(group, styles))
    if group.notes:
        parts.append(f'<div class="warn"><ul>{"".join(f"<li>{in_html(n)}</li>" for n in group.notes)}</ul></div>')
    parts.append(_improvements(group))
    parts.append(panels.noise(group, styles))
    parts.append(_settings(group))
    return f'<div class="group">{"".join(parts)}</div>'


def number(value: float | None, form: str = ".1f") -> str:
    """A number as it is shown, with the whole of it for programs."""
    text = Column("v", form=form).cell({"v": value})
    known = value is not None and not (isinstance(value, float) and math.isnan(value))
    return f'<data value="{value!r}">{in_html(text)}</data>' if known else in_html(text)


def pair(interval: tuple[float, float], form: str = ".1f") -> str:
    """An interval as it is shown."""
    low, high = interval
    return "–" if math.isnan(low) or math.isnan(high) else f"{number(low, form)} to {number(high, form)}"


def table(headings: Sequence[str], rows: Iterable[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    """A table in a box of its own that scrolls: each row a heading and cells of (class, content), all of it HTML."""
    rows = list(rows)
    kinds = ["", *(kind for kind, _ in rows[0][1])] if rows else []
    numeric = [i < len(kinds) and kinds[i] == "num" for i in range(len(headings))]
    head = "".join(
        f'<th scope="col"{_class("num" if n else "")}>{h}</th>' for h, n in zip(headings, numeric, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td{_class(kind)}>{cell}</td>" for kind, cell in cells)}</tr>'
        for name, cells in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _scores(group: GroupResult, styles: dict[str, int | None]) -> str:
    values = [x for v in group.variants for x in (*v.scores, *v.interval) if math.isfinite(x)]
    scale = (min(values), max(values)) if values else (0.0, 1.0)
    reach = group.threshold is not None
    headings = [
        "variant",
        "IQM",
        "95 % interval",
        "seeds, IQM and interval",
        "worst seed",
        "area under curve",
        "95 % interval",
    ]
    headings += [f"steps to {group.threshold:g}", "seeds there"] if reach else ["seeds"]
    headings += ["steps per seed", "wall time, s"]

    def cells(v: VariantResult) -> list[tuple[str, str]]:
        bar = interval_bar(v.iqm, *v.interval, scale, styles[v.name], v.scores)
        found = [("num", number(v.iqm)), ("num", pair(v.interval)), ("", bar), ("num", number(v.worst))]
        found += [("num", number(v.area)), ("num", pair(v.area_interval))]
        if reach:
            found += [("num", number(v.steps_to_threshold, ",.0f")), ("num", f"{v.reached}/{len(v.scores)}")]
        else:
            found.append(("num", str(len(v.seeds))))
        return [*found, ("num", number(v.steps, ",.0f")), ("num", number(v.seconds))]

    named = [
        f'<span class="named">{swatch(styles[v.name])}<span>{in_html(v.name)}{_badge(v)}</span></span>'
        for v in group.variants
    ]
    rows = [(name, cells(v)) for name, v in zip(named, group.variants, strict=True)]
    until = (
        ""
        if group.until is None
        else f" Area under curve: the mean return up to {group.until:,.0f} steps, by evaluations."
    )
    return table(headings, rows) + (
        '<p class="quiet">IQM: interquartile mean over seeds of the last evaluation’s mean return; intervals by stratified '
        f"bootstrap over seeds.{until} Wall time: of all its seeds, trained together.</p>"
    )


def _badge(v: VariantResult) -> str:
    if v.finished:
        return ""
    at = (
        ""
        if v.steps is None
        else f" at {v.steps:,.0f}" + (f" of {v.total_steps:,}" if v.total_steps else "") + " steps"
    )
    return f' <span class="badge">not finished{at}</span>'


def _improvements(group: GroupResult) -> str:
    if not group.improvements:
        return ""
    found = {(i.better, i.than): i for i in group.improvements}
    rows_of = list(dict.fromkeys(i.better for i in group.improvements))
    columns = [v.name for v in group.variants if any(i.than == v.name for i in group.improvements)]
    if len(rows_of) == 1 and len(columns) > 2:
        rows = [(in_html(c), [("num", number(found[rows_of[0], c].probability, ".2f")), ("num", _odds(found[rows_of[0], c]))]) for c in columns]  # fmt: skip
        shown = table([f"{in_html(rows_of[0])} above", "probability", "95 % interval"], rows)
    else:
        rows = [(in_html(r), [_heat(found.get((r, c))) for c in columns]) for r in rows_of]
        shown = table(["row above column", *map(in_html, columns)], rows)
    return (
        f'<h4>Probability of improvement</h4>{shown}<p class="quiet">How often a seed of one ends above a seed of the other, over all '
        "pairs, ties counted half; 95 % bootstrap intervals over seeds. 0.50 says nothing, and so does an interval around it.</p>"
    )


def _odds(i: Improvement) -> str:
    return pair((i.low, i.high), ".2f")


def _heat(i: Improvement | None) -> tuple[str, str]:
    if i is None or math.isnan(i.probability):
        return "heat", "–"
    colour = "c0" if i.probability >= 0.5 else "c1"
    share = round(abs(i.probability - 0.5) * 80)
    cell = f"{number(i.probability, '.2f')}<small>{_odds(i)}</small>"
    return f'heat" style="background:color-mix(in srgb,var(--{colour}) {share}%,transparent)', cell


def _settings(group: GroupResult) -> str:
    names = [v.name for v in group.variants]
    parts = []
    if group.differ and len(names) > 1:
        if len(names) <= 12:
            rows = [(in_html(k), [("text", in_html(v.get(n, "–"))) for n in names]) for k, v in group.differ.items()]
            parts.append(table(["setting", *map(in_html, names)], rows))
        else:
            rows = [(in_html(n), [("text", in_html(v.get(n, "–"))) for v in group.differ.values()]) for n in names]
            parts.append(table(["variant", *map(in_html, group.differ)], rows))
        parts.insert(0, "<h4>Settings that differ</h4>")
    if group.common:
        common = table(["setting", "value"], [(in_html(k), [("text", in_html(v))]) for k, v in group.common.items()])
        said = "Settings that are the same in all" if len(names) > 1 else "Settings"
        parts.append(
            f'<details><summary>{said} <span class="quiet">({len(group.common)})</span></summary>{common}</details>'
        )
    return "".join(parts)


def _variance(v: VarianceResult) -> str:
    noise, bias = panels.log_scale(v, "nsr"), panels.log_scale(v, "bias")
    headings = ["pair"]
    headings += ["noise (NSR)", "95 % interval", "logarithmic"] if noise else []
    headings += ["bias²", "95 % interval", "logarithmic"] if bias else []
    rest = [
        (k, form) for k, form in (("mse", ""), ("cosine", ".2f"), ("milliseconds", ".2f")) if any(p[k] for p in v.pairs)
    ]
    headings += [{"mse": "MSE", "cosine": "cosine", "milliseconds": "ms"}[k] for k, _ in rest]

    def cells(p: dict) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for key, scale in (("nsr", noise), ("bias", bias)):
            if scale:
                value = p[key] or (math.nan,) * 3
                found += [
                    ("num", number(value[0], "")),
                    ("num", pair(value[1:], "")),
                    ("", panels.log_bar(value, scale)),
                ]
        single = [(p[k][0] if isinstance(p[k], tuple) else p[k], form) for k, form in rest]
        return [*found, *(("num", number(value, form)) for value, form in single)]

    rows = [(in_html(p["pair"]), cells(p)) for p in v.pairs]
    return f'<h4>{in_html(v.title)}</h4>{table(headings, rows)}<p class="quiet">Distances are to {in_html(v.to)}.</p>'


def _missing(report: Report) -> str:
    found = [(what, said) for what, said in report.problems]
    found += [(o.folder, problem) for o in report.origins for problem in o.problems]
    if not found:
        return ""
    items = "".join(f"<li><code>{in_html(what)}</code> {in_html(said)}</li>" for what, said in found)
    return f'<section><h2>What is missing</h2><div class="warn"><ul>{items}</ul></div></section>'


def _reproduce(report: Report) -> str:
    if not report.origins:
        return ""
    parts = []
    for o in report.origins:
        commit = "git commit not known" if o.commit is None else f"git commit {in_html(o.commit)}"
        changes = ", with uncommitted changes, which are in its git.diff" if o.dirty else ""
        command = in_html(o.command, 1200) if o.command else "command.txt is not there."
        parts.append(
            f'<details><summary>{in_html(o.folder)} <span class="quiet">{in_html(o.environment)}</span></summary>'
            f'<pre>{command}</pre><p class="quiet">{commit}{changes}. {in_html(o.versions, 2000)}</p></details>'
        )
    listed = "".join(parts)
    if len(parts) > 12:
        listed = f"<details><summary>{len(parts)} runs</summary>{listed}</details>"
    return f"<section><h2>How to make the runs again</h2>{listed}</section>"
