"""`pglab report`."""

from __future__ import annotations

from pathlib import Path

from pglab.cli.app import parser

DESCRIPTION = """\
Read run folders, comparison folders or whole folders of runs, and write one
page that stands alone (report.html), the same as Markdown with figures
(report.md), and every number (report.json). Unfinished and failed runs are
read as far as they go.

  pglab report runs/cartpole-20260101-120000
  pglab report runs/a runs/b --out ab --name "a against b"
"""


def main(arguments: list[str]) -> int:
    p = parser("report", DESCRIPTION)
    p.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, comparison folders, or folders of them")
    p.add_argument(
        "--out", metavar="FOLDER", help="where to write (default: report/ in the folder, or here for several)"
    )
    p.add_argument("--name", help="the report's title (default: the folders' names)")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = p.parse_args(arguments)

    from pglab.reporting import report

    out = Path(options.out) if options.out else (Path(options.runs[0]) if len(options.runs) == 1 else Path()) / "report"
    made = report(options.runs, out, options.name)
    if not options.quiet:
        from rich.console import Console

        from pglab.reporting.text import shown

        console = Console(highlight=False)

        def say(text: str) -> None:
            console.print(text, markup=False, soft_wrap=True)

        say(made.summary)
        for section in made.sections:
            for group in section.groups:
                say(f"{section.environment}, {group.title}: {group.finding}")
        missing = len(made.problems) + sum(len(o.problems) for o in made.origins)
        if missing:
            say(f"{missing} thing{'s are' if missing > 1 else ' is'} missing or damaged: the report says what.")
        say(f"Open {shown(out / 'report.html')} (also report.md and report.json).")
    return 0
