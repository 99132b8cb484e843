"""Comparison tables, for the terminal (rich, 80 columns) and for documents (Markdown), from the same rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

MISSING = "–"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: the key of its values in a row, its heading, and how a value is shown.

    `form` is a format specification such as `".1f"` or `",.0f"`, or a function of the value; the default shows whole
    numbers with thousands and others with four digits.
    """

    key: str
    heading: str = ""
    form: str | Callable[[Any], str] = ""

    @property
    def title(self) -> str:
        return self.heading or self.key.replace("_", " ")

    def cell(self, row: Row) -> str:
        """The value as text: `–` for None, NaN and a missing key, `∞` for infinity, `low to high` for a pair."""
        value = row.get(self.key)
        if value is None or (isinstance(value, Real) and math.isnan(value)):
            return MISSING
        if callable(self.form):
            return self.form(value)
        if isinstance(value, tuple):
            return " to ".join(Column(self.key, form=self.form).cell({self.key: item}) for item in value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if not isinstance(value, Real):
            return str(value)
        if math.isinf(value):
            return "∞" if float(value) > 0 else "-∞"
        if self.form:
            return format(value, self.form)
        return f"{int(value):,}" if isinstance(value, Integral) else _four_digits(float(value))


def _four_digits(value: float) -> str:
    """`-212.3`, `0.0123`, `31,200` or `1.23e-07`: four digits, no exponent where it can be done without."""
    size = abs(value)
    if value == 0 or 1e-4 <= size < 1e3:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1e3 <= size < 1e7 else f"{value:.3g}"


def _columns(columns: Sequence[Column | str]) -> list[Column]:
    return [column if isinstance(column, Column) else Column(column) for column in columns]


def rich_table(
    rows: Sequence[Row], columns: Sequence[Column | str], title: str | None = None, width: int = 80
) -> Group:
    """A rich renderable no wider than `width` characters.

    Columns that do not fit beside one another go to further tables below, each beginning with the first column, so no
    number is cut off. Text is shown as it is: brackets in names are not markup.
    """
    from rich.console import Group

    first, *others = _columns(columns)
    blocks: list[list[Column]] = [[first]]
    # Names may be wrapped, so the first column asks for a third of the width at most.
    start = min(_width(first, rows), width // 3)
    used = start + 2  # the table's edges
    for column in others:
        wanted = _width(column, rows) + 3  # padding, and the divider
        if used + wanted > width - 2 and len(blocks[-1]) > 1:
            blocks.append([first])
            used = start + 2
        blocks[-1].append(column)
        used += wanted
    return Group(*(_block(block, rows, title if i == 0 else None, width) for i, block in enumerate(blocks)))


def _width(column: Column, rows: Sequence[Row]) -> int:
    from rich.cells import cell_len

    # A heading may be wrapped between words, a value may not.
    return max(cell_len(text) for text in [*column.title.split(), *(column.cell(row) for row in rows)])


def _block(columns: list[Column], rows: Sequence[Row], title: str | None, width: int) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    for i, column in enumerate(columns):
        number = i > 0 and _is_number(column, rows)
        wanted = _width(column, rows)
        table.add_column(
            Text(column.title),
            justify="right" if number else "left",
            overflow="fold",
            # Exact widths: left to itself, rich squeezes names to spare headings the wrapping.
            width=min(wanted, width // 3) if i == 0 else wanted,
        )
    for row in rows:
        table.add_row(*(Text(column.cell(row)) for column in columns))
    return table


def _is_number(column: Column, rows: Sequence[Row]) -> bool:
    values = [row.get(column.key) for row in rows]
    return not any(isinstance(value, str) for value in values)


def markdown_table(rows: Sequence[Row], columns: Sequence[Column | str]) -> str:
    """The rows as a Markdown table, ending in a newline; characters that Markdown or HTML would read are escaped."""
    shown = _columns(columns)
    aligned = [":---" if i == 0 or not _is_number(column, rows) else "---:" for i, column in enumerate(shown)]
    lines = [[_escape(column.title) for column in shown], aligned]
    lines += [[_escape(column.cell(row)) for column in shown] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
