"""Progress in the terminal: live rows where there is a terminal, plain lines now and then where there is none."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL = 5.0  # seconds between the plain lines of one task
LIVE_INTERVAL = 0.2  # seconds between redraws


@dataclass
class Row:
    """One task: where it is, how fast, and how well it does."""

    title: str
    total: int
    first_step: int | None = None  # a resumed run does not start at 0
    first_time: float = 0.0
    step: int = 0
    rate: float | None = None  # steps per second
    return_: float | None = None
    printed: float = -math.inf  # when its last plain line was printed
    printed_step: int = -1

    def update(self, step: int, return_: float | None, rate: float | None, now: float) -> None:
        if self.first_step is None:
            self.first_step, self.first_time = step, now
        self.step = step
        if rate is not None:
            self.rate = rate
        elif now > self.first_time and step > self.first_step:
            self.rate = (step - self.first_step) / (now - self.first_time)
        if return_ is not None:
            self.return_ = return_

    @property
    def parts(self) -> list[str]:
        """Steps per second, time left and return, as far as they are known."""
        parts = []
        if self.rate is not None and math.isfinite(self.rate):
            parts.append(f"{self.rate:,.0f} steps/s")
            if self.rate > 0 and self.step < self.total:
                parts.append(f"{clock_time((self.total - self.step) / self.rate)} left")
        if self.return_ is not None and not math.isnan(self.return_):
            parts.append(f"return {self.return_:.1f}" if abs(self.return_) < 1e5 else f"return {self.return_:.3g}")
        return parts

    @property
    def line(self) -> str:
        return "  ".join([f"[{self.title}] {self.step:,}/{self.total:,} steps", *self.parts])


def clock_time(seconds: float) -> str:
    """`0:12`, `12:05` or `1:02:03`."""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class MultiProgress:
    """One row per task, added when its key is first seen. Nothing is shown when `quiet`, not even notes.

    Args:
        stream: where to write (default: stderr, so that a command's output can be piped).
        clock: seconds, for tests.
    """

    def __init__(
        self, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._tasks: dict[str, TaskID] = {}
        self._drawn = -math.inf
        self._live: RichProgress | None = None
        self._console: Console | None = None
        if not quiet and self.stream.isatty():
            self._open_live()

    def update(
        self,
        key: str,
        step: int,
        total: int,
        return_: float | None = None,
        steps_per_second: float | None = None,
    ) -> None:
        """Show how far task `key` is.

        Args:
            step, total: steps done, and to be done.
            return_: its latest return; NaN or None where there is none yet.
            steps_per_second: measured from the updates themselves where not given.
        """
        now = self._clock()
        row = self._rows.setdefault(key, Row(key, total))
        row.total = total
        row.update(step, return_, steps_per_second, now)
        if self.quiet:
            return
        if self._live is not None:
            self._redraw(key, row, now)
        elif now - row.printed >= PLAIN_INTERVAL:
            self._print(row, now)

    def note(self, text: str) -> None:
        """A line of its own, above the rows where they are live."""
        if self.quiet:
            return
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Show the last state of every row and leave the terminal as it was. Safe to call twice."""
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
        elif not self.quiet:
            for row in self._rows.values():
                if row.printed_step != row.step:
                    self._print(row, self._clock())
        self._live, self._console, self.quiet = None, None, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _print(self, row: Row, now: float) -> None:
        row.printed, row.printed_step = now, row.step
        print(row.line, file=self.stream, flush=True)

    def _open_live(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        console = Console(file=self.stream)
        if console.is_dumb_terminal:
            return
        self._console = console
        self._live = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True)),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[rest]}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True)),
            console=console,
            auto_refresh=False,  # redrawn from `update`: no thread beside the training
        )
        self._live.start()

    def _redraw(self, key: str, row: Row, now: float) -> None:
        assert self._live is not None
        rest = "  ".join([f"{short_count(row.step)}/{short_count(row.total)}", *row.parts])
        if key not in self._tasks:
            self._tasks[key] = self._live.add_task(row.title, total=row.total, rest=rest)
        # A task of no steps is complete from the start; rich would draw it as one that knows no end.
        completed, total = (row.step, row.total) if row.total > 0 else (1, 1)
        self._live.update(self._tasks[key], completed=completed, total=total, rest=rest)
        if now - self._drawn >= LIVE_INTERVAL:
            self._drawn = now
            self._live.refresh()


def short_count(count: int) -> str:
    """`950`, `120k` or `1.5M`: a count of steps in few characters."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + unit
    return str(count)
