"""Progress in the terminal: a live dashboard where there is a terminal, plain lines now and then where there is none."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from pglab.tracking.rows import Row
from pglab.tracking.text import BLOCKS, can_show, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from pglab.tracking.dashboard import Dashboard

PLAIN_INTERVAL = 5.0  # seconds between the plain lines of one task
LIVE_INTERVAL = 0.25  # seconds between redraws


class MultiProgress:
    """One row per task, added when its key is first seen. Nothing is shown when `quiet`, not even notes.

    Where the stream is a terminal, the rows are a dashboard that is redrawn in place; a dumb one (`TERM=dumb`) and
    anything else get plain lines. Control characters in keys and notes are shown as their escapes.

    Args:
        stream: where to write (default: stderr, so that a command's output can be piped).
        clock: seconds, for tests.
        console: draws the dashboard (default: one on `stream`, which honours NO_COLOR).
    """

    def __init__(
        self,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._drawn = -math.inf
        self._stale = False
        self._live: Live | None = None
        self._console: Console | None = None
        self._dashboard: Dashboard | None = None
        if not quiet and (console is not None or self.stream.isatty()):
            self._open_live(console)

    def expect(self, tasks: Mapping[str, tuple[int, int]]) -> None:
        """Announce tasks that may begin later.

        Args:
            tasks: key -> (steps of all its stages together, number of seeds). A task whose steps begin anew at 0 is in
                its next stage.
        """
        if self._live is not None:
            self._rows |= {key: Row(key, total, seeds, expected=total) for key, (total, seeds) in tasks.items()}
            self._redraw()

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
        if self.quiet:
            return
        now = self._clock()
        row = self._rows.setdefault(key, Row(key, total))
        row.update(step, total, return_, steps_per_second, now)
        if self._live is not None:
            if return_ is not None:
                row.course.add(return_)
            self._redraw()
        elif now - row.printed >= PLAIN_INTERVAL:
            self._print(row, now)

    def end(self, key: str, state: str) -> None:
        """Task `key` is over: `done`, `stopped` or `failed`."""
        if key in self._rows:
            self._rows[key].state = state
            self._redraw()

    def refresh(self) -> None:
        """Draw what came too soon after the last time to be drawn: for whoever waits for news."""
        if self._stale:
            self._redraw()

    def note(self, text: str) -> None:
        """A line of its own, above the rows where they are live."""
        if self.quiet:
            return
        text = visible(text, keep="\n")
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, emoji=False)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Show the last state of every row and leave the terminal as it was. Safe to call twice."""
        if self._live is not None and self._dashboard is not None:
            self._dashboard.whole = True
            self._live.stop()  # draws once more
        elif not self.quiet:
            for row in self._rows.values():
                if row.first_step is not None and row.printed_step != row.step:
                    self._print(row, self._clock())
        self._live, self._console, self.quiet, self._stale = None, None, True, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _print(self, row: Row, now: float) -> None:
        row.printed, row.printed_step = now, row.step
        print(row.line, file=self.stream, flush=True)

    def _open_live(self, console: Console | None) -> None:
        from rich.console import Console
        from rich.live import Live

        from pglab.tracking.dashboard import Dashboard

        if console is None:
            console = Console(file=self.stream)
        if not console.is_terminal or console.is_dumb_terminal:
            return
        self._console = console
        self._dashboard = Dashboard(self._rows, can_show(BLOCKS, console.encoding))
        self._live = Live(
            self._dashboard,
            console=console,
            auto_refresh=False,  # redrawn from `update`: no thread beside the training
            # What others print goes above the dashboard; but not from a pipe into the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start()

    def _redraw(self) -> None:
        """Draw the dashboard, unless that was done just before."""
        if self._live is None:
            return
        now = self._clock()
        self._stale = now - self._drawn < LIVE_INTERVAL
        if not self._stale:
            self._drawn = now
            self._live.refresh()
