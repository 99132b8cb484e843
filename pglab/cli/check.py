"""`pglab check`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pglab.cli.app import load_plugins, parser, split, write_json_file

if TYPE_CHECKING:
    from pglab.lab.check import Report

DESCRIPTION = """\
Hold an estimator, a baseline or a distribution to exact gradients on small
problems: is it biased, and how large is its variance? Without a name, all that
are shipped; with --plugin and no name, those of the plug-in. Exits with 1 when
something is biased that says it is not, or does not work.

  pglab check score_function
  pglab check my_baseline --plugin my_baseline.py
  pglab check gumbel_softmax --temperature 0.1
  pglab check
"""
LEGEND = (
    "|z|: the largest distance of a coordinate's mean from the exact gradient (or from the estimator whose mean it claims), "
    "in standard errors; above {threshold:.2f}, twice on independent draws, it is called biased (false alarms: {alarm:.0e} "
    "in all). bias: the largest distance from the exact gradient over the gradient's largest coordinate; sees: the bias "
    "that would have been called one. variance: the trace, of one estimate; beside it, that over score_function's without "
    "a baseline and with leave_one_out at the same number of draws."
)
OPTIONS = "settings:\n  Options of the method named, as --name value: --temperature 0.1\n"


def main(arguments: list[str]) -> int:
    p = parser("check", DESCRIPTION, OPTIONS)
    p.add_argument("name", nargs="?", help="an estimator, baseline or distribution (default: all)")
    p.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a file or module that registers more"
    )
    p.add_argument("--jobs", type=int, default=None, metavar="N", help="processes, where several are checked")
    p.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options, settings = split(p, arguments)
    load_plugins(options.plugin)

    from pglab.errors import PglabError
    from pglab.lab.check import methods, named

    if options.jobs is not None and options.jobs < 1:
        raise PglabError(f"--jobs must be at least 1, not {options.jobs}.")
    if settings and options.name is None:
        raise PglabError(f"--{settings[0][0]} is an option of one method: name it, as in `pglab check NAME`.")
    todo = named(options.name) if options.name else methods(options.plugin)
    if not todo:
        raise PglabError(f"Plug-in {options.plugin[0]!r} registers no estimator, baseline or distribution.")
    reports: list[Report] = []
    for report in run(todo, dict(settings), options.plugin, min(options.jobs or cores(), len(todo))):
        reports.append(report)
        if not options.quiet and len(todo) > 3:
            print(f"[{len(reports)}/{len(todo)}] {line(report)}", flush=True)
    reports.sort(key=lambda r: todo.index((r.part, r.name)))
    write_json_file(options.json, [record(r) for r in reports])
    if not options.quiet:
        show(reports)
    return 1 if any(r.failed for r in reports) else 0


# -- running


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(todo: Sequence[tuple[str, str]], settings: dict[str, Any], plugins: list[str], jobs: int) -> Iterator[Report]:
    """The reports, each when it is done; in this process where there is one job."""
    if jobs == 1:
        from pglab.lab.check import check

        prepare([])
        for part, name in todo:
            yield check(part, name, settings)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, prepare, (plugins,)) as pool:
        try:
            for future in as_completed([pool.submit(one, part, name, settings) for part, name in todo]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def prepare(plugins: list[str]) -> None:
    """A worker process, before its first check. One thread: the tensors are small."""
    import torch

    torch.set_num_threads(1)
    load_plugins(plugins)


def one(part: str, name: str, settings: dict[str, Any]) -> Report:
    from pglab.lab.check import check

    return check(part, name, settings)


# -- showing


def line(report: Report) -> str:
    return f"{report.part} {report.name}: {report.verdict}"


def record(report: Report) -> dict[str, Any]:
    """The report as it is written with --json."""
    from dataclasses import asdict

    return {**asdict(report), "z": report.z, "bias": report.bias}


def show(reports: Sequence[Report]) -> None:
    """Every problem of a few methods, or one row for each of many."""
    from rich.console import Console

    from pglab.lab.check import FALSE_ALARM, THRESHOLD

    console = Console(highlight=False, markup=False)
    if len(reports) > 3:
        summary(console, reports)
    else:
        for report in reports:
            details(console, report)
    if any(r.part != "distribution" for r in reports) and len(reports) <= 3:
        console.print(LEGEND.format(threshold=THRESHOLD, alarm=FALSE_ALARM), end="\n\n")
    for report in reports:
        if len(reports) <= 3 or report.failed:
            console.print(line(report))


def details(console: Any, report: Report) -> None:
    from pglab.lab.check import Property, Row, percent
    from pglab.lab.tables import Column, rich_table

    width = min(console.width, 110)
    if report.part == "distribution":
        rows = [vars(r) for r in report.rows if isinstance(r, Property)]
        columns: list[Column | str] = [
            "property",
            "examples",
            Column("error", "off by", ".1e"),
            Column("allowed", "", ".0e"),
            "verdict",
        ]
        console.print(rich_table(by_property(rows), columns, f"distribution {report.name}", width))
    else:
        columns = [
            "problem",
            Column("z", "|z|", ".2f"),
            Column("bias", "", percent),
            Column("seen", "sees", percent),
            "verdict",
            Column("variance", "", ".3g"),
            Column("to_score_function", "/ score function", ".3g"),
            Column("to_leave_one_out", "/ leave one out", ".3g"),
        ]
        shown = [r for r in report.rows if isinstance(r, Row)]
        for family in dict.fromkeys(r.family for r in shown):
            rows = [vars(r) for r in shown if r.family == family]
            console.print(rich_table(rows, columns, f"{report.part} {report.name}, {family}", width))
    for r in report.rows:
        if r.note:
            console.print(f"FAILED, {r.problem}: {r.note}")
    for note in report.notes:
        console.print(f"Left out: {note}")


def by_property(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst example of each property, and how many there were."""
    found = []
    for name in dict.fromkeys(r["property"] for r in rows):
        these = [r for r in rows if r["property"] == name]
        worst = next((r for r in these if r["verdict"] != "ok"), max(these, key=lambda r: r["error"]))
        found.append({**worst, "examples": len(these)})
    return found


def summary(console: Any, reports: Sequence[Report]) -> None:
    from pglab.lab.check import percent
    from pglab.lab.tables import Column, rich_table

    for part in dict.fromkeys(r.part for r in reports):
        rows = [
            {"name": r.name, "problems": len(r.rows), "z": r.z, "bias": r.bias, "verdict": short(r)}
            for r in reports
            if r.part == part
        ]
        columns: list[Column | str] = ["name", Column("z", "|z|", ".3g"), Column("bias", "", percent)]
        if part == "distribution":
            columns = ["name", Column("problems", "properties")]
        console.print(rich_table(rows, [*columns, "verdict"], f"{part}s", 80))


def short(report: Report) -> str:
    """The verdict up to its figures, which have columns of their own."""
    if report.failed:
        return report.verdict.partition(":")[0]
    for text in ("the mean of", "declared biased"):
        if report.verdict.startswith(text):
            return "as declared"
    return "consistent"
