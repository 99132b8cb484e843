"""What a terminal shows of a population while it trains: a line of totals, and a line for every task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pglab.tracking.rows import Row, seconds_left, seconds_left_of_all
from pglab.tracking.text import clock_time, short_count, short_return, sparkline, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

COLUMNS = {"progress": 8, "": 4, "steps/s": 7, "left": 7, "return": 8, "so far": 12, "seeds": 5}
"""Heading -> width. The first column is the title, and takes what is left."""
SPARED = ("seeds", "so far", "steps/s", "progress")
"""What a narrow terminal goes without, in this order."""
NARROWEST, WIDEST = 14, 40
"""Of the title."""
STYLES = {"waiting": "dim", "running": "cyan", "done": "green", "stopped": "yellow", "failed": "red"}


class Dashboard:
    """A rich renderable of all rows, at most as wide as the terminal and, unless `whole`, less than its height."""

    def __init__(self, rows: Mapping[str, Row], unicode: bool = True) -> None:
        self.rows, self.unicode = rows, unicode
        self.whole = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        rows = list(self.rows.values())
        if not rows:
            return
        # One cell is left free: a terminal may go to the next line when its last column is written.
        width = max(1, min(options.max_width, console.width) - 1)
        titles = [visible(row.title) for row in rows]
        title, columns = layout(width, titles)
        yield Text(totals(rows)[:width], style="bold", no_wrap=True, overflow="crop")
        heading = " ".join([" " * title, *(_aligned(name, size, name) for name, size in columns.items())])
        yield Text(heading[:width], style="dim", no_wrap=True, overflow="crop")
        shown = rows if self.whole else chosen(rows, max(1, console.height - 4))
        for row in shown:
            yield self._line(row, title, columns, width)
        if len(shown) < len(rows):
            kept = {id(row) for row in shown}
            states = Counter(row.state for row in rows if id(row) not in kept)
            text = ", ".join(f"{count} {state}" for state, count in states.items())
            yield Text(f"and {text}"[:width], style="dim", no_wrap=True, overflow="crop")

    def _line(self, row: Row, title: int, columns: Mapping[str, int], width: int) -> Text:
        from rich.text import Text

        line = Text(no_wrap=True, overflow="crop")
        line.append(fitted(visible(row.title), title, self.unicode), style="dim" if row.state == "waiting" else "")
        for name, size in columns.items():
            cell, style = self._cell(row, name, size)
            line.append(" ").append(_aligned(cell, size, name), style=style)
        line.truncate(width)
        return line

    def _cell(self, row: Row, name: str, size: int) -> tuple[str, str]:
        """Its text and style."""
        if name == "progress":
            full, rest = "━─" if self.unicode else "#."
            done = int(row.fraction * size)
            return full * done + rest * (size - done), STYLES[row.state]
        if name == "":
            return f"{int(100 * row.fraction)}%", ""
        if name == "steps/s":
            rate = row.known_rate
            return ("", "") if rate is None else (short_count(round(rate)), "")
        if name == "left":
            seconds = seconds_left(row)
            if seconds is None or seconds == 0:
                return ("", "") if row.state == "running" else (row.state, STYLES[row.state])
            return clock_time(seconds) if seconds < 360_000 else f"{seconds / 86_400:.0f} d", ""
        if name == "return":
            # A return that is NaN has not been seen.
            unknown = row.return_ is None or row.return_ != row.return_
            return "" if unknown else short_return(row.return_ or 0.0), "bold"
        if name == "so far":
            return sparkline(row.course.values, size, self.unicode), "magenta"
        return "" if row.seeds is None else str(row.seeds), ""


def layout(width: int, titles: list[str]) -> tuple[int, dict[str, int]]:
    """The title's width, and the columns that fit beside it with theirs."""
    from rich.cells import cell_len

    wanted = min(WIDEST, max(cell_len(title) for title in titles))
    columns = dict(COLUMNS)
    for name in SPARED:
        if _title_width(width, columns) >= min(wanted, NARROWEST):
            break
        del columns[name]
    room = _title_width(width, columns)
    if "so far" in columns and room > wanted:
        columns["so far"] += min(room - wanted, 28)
    return max(1, min(wanted, _title_width(width, columns))), columns


def _title_width(width: int, columns: Mapping[str, int]) -> int:
    return width - sum(size + 1 for size in columns.values())


def fitted(text: str, width: int, unicode: bool = True) -> str:
    """`text` in exactly so many cells. Of a longer one the end is kept: names of variants differ there."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) > width:
        mark = ("…" if unicode else "~")[:width]
        while text and cell_len(mark + text) > width:
            text = text[1:]
        text = mark + text
    return set_cell_size(text, width)


def _aligned(text: str, width: int, column: str) -> str:
    """Numbers end at the same place; bars and courses begin at the same place."""
    return (text.ljust(width) if column in ("progress", "so far") else text.rjust(width))[:width]


def totals(rows: list[Row]) -> str:
    """How much of everything is done, and how long the rest will take."""
    done = sum(row.earlier + row.step if row.state != "done" else row.all_steps for row in rows)
    total = sum(row.all_steps for row in rows)
    parts = [f"{short_count(done)} of {short_count(total)} steps", f"{int(100 * done / total) if total else 100}%"]
    if len(rows) > 1:
        parts.insert(0, f"{sum(row.state == 'done' for row in rows)} of {len(rows)} done")
    left = seconds_left_of_all(rows)
    if left:
        parts.append(f"about {clock_time(left)} left")
    return "   ".join(parts)


def chosen(rows: list[Row], most: int) -> list[Row]:
    """At most so many rows, in their order: those under way, then those that failed, then the newest that are over."""
    if len(rows) <= most:
        return rows
    rank = {"running": 0, "failed": 1, "stopped": 1, "done": 2, "waiting": 3}
    # The last line is for what is left out.
    by_rank = sorted(range(len(rows)), key=lambda i: (rank[rows[i].state], -i if rows[i].state == "done" else i))
    return [rows[i] for i in sorted(by_rank[: max(1, most - 1)])]
