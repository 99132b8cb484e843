"""The live dashboard, drawn on a console of our own."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from pglab.jobs import Job, expected
from pglab.tracking.dashboard import Dashboard, chosen
from pglab.tracking.rows import Row, seconds_left_of_all
from pglab.tracking.terminal import MultiProgress

COLOUR = re.compile(r"\x1b\[[0-9;]*(?<![0-9])(?:3[0-9]|4[0-9]|9[0-7]|10[0-7])[0-9;]*m")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def console(**options: Any) -> Console:
    given = {"width": 80, "height": 24, "record": True, "force_terminal": True, "color_system": "standard"}
    return Console(**{"file": io.StringIO(), **given, **options})


def drawn(rows: list[Row], unicode: bool = True, whole: bool = False, **options: Any) -> list[str]:
    """The lines of the dashboard, without styles."""
    dashboard = Dashboard({row.title: row for row in rows}, unicode)
    dashboard.whole = whole
    on = console(**options)
    on.print(dashboard)
    return on.export_text().splitlines()


def row(title: str, step: int = 0, total: int = 100_000, rate: float | None = None, **more: Any) -> Row:
    return Row(title, total, 8, total, state="running", first_step=0, step=step, rate=rate, **more)


def with_course(row: Row, values: list[float]) -> Row:
    for value in values:
        row.course.add(value)
    row.return_ = values[-1]
    return row


def test_a_row_says_how_far_how_fast_how_well() -> None:
    rows = [
        with_course(row("group/value", 50_000, rate=10_000.0), [0, 1, 2, 3, 4, 5, 6, 7]),
        Row("group/none", 100_000, 8, 100_000),
    ]
    assert drawn(rows) == [
        "0 of 2 done   50k of 200k steps   25%   about 0:15 left",
        "            progress      steps/s    left   return so far                 seeds",
        "group/value ━━━━────  50%     10k    0:05      7.0 ▁▂▃▄▅▆▇█                   8",
        "group/none  ────────   0%         waiting                                     8",
    ]
    assert drawn(rows, unicode=False)[2].split() == [
        "group/value", "####....", "50%", "10k", "0:05", "7.0", "_.-=+*#@", "8",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [20, 40, 60, 80, 81, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    rows = [
        with_course(row("evil\x1b[31m\x1b]0;title\x07\nname", 99_999_999, 10**9, 1e9), [-99_999.9, 1e300, 5.0] * 50),
        row("漢字" * 20, 5, 10**12, 1e-3),
        row("a/" + "very_" * 20 + "long_name", 3, 0, float("inf")),
        row("", 0, 10, 0.0, return_=float("nan")),
    ]
    for row_, state in zip(rows, ("running", "failed", "done", "stopped"), strict=True):
        row_.state = state
    for unicode in (True, False):
        lines = drawn(rows, unicode=unicode, width=width)
        assert len(lines) == 6
        assert max(cell_len(line) for line in lines) < width
        assert all(line.isprintable() for line in lines)
    if width >= 80:
        assert any(r"\x07\nname" in line for line in lines)
        assert any("long_name" in line for line in lines)  # names differ in their ends


def test_more_rows_than_lines_shows_those_under_way() -> None:
    rows = [row(f"v{i}") for i in range(30)]
    for i, each in enumerate(rows):
        each.state = "done" if i < 10 else "running" if i < 14 else "waiting"
    lines = drawn(rows, height=12)
    assert len(lines) <= 11
    shown = [line.split()[0] for line in lines[2:]]
    assert shown == ["v7", "v8", "v9", "v10", "v11", "v12", "v13", "and"]
    assert lines[-1].strip() == "and 7 done, 16 waiting"
    assert len(drawn(rows, height=12, whole=True)) == 32
    assert chosen(rows, 30) == rows


def test_time_left_counts_what_waits() -> None:
    rows = [row("a", 50, 100, 10.0), row("b", 0, 100, 10.0), Row("c", 100, expected=100)]
    assert seconds_left_of_all(rows) == pytest.approx((5 + 10 + 10) / 2)
    assert seconds_left_of_all([row("a", 0, 1000, 1.0), row("b", 0, 10, 10.0)]) == 1000.0  # the longest decides
    assert seconds_left_of_all([row("a", 0, 100)]) is None
    done = row("a", 100, 100, 10.0)
    done.state = "done"
    assert seconds_left_of_all([done, Row("b", 100, expected=100)]) == pytest.approx(10.0)
    assert seconds_left_of_all([done]) == 0.0


def test_a_task_of_two_stages_goes_on_where_the_first_ended() -> None:
    tuned = Row("a", 0, expected=300)
    for step, total in ((100, 200), (200, 200), (0, 100), (50, 100)):
        tuned.update(step, total, None, None, float(step))
    assert tuned.fraction == pytest.approx(250 / 300)
    assert tuned.line == "[a] 50/100 steps  1 steps/s  0:50 left"


def progress_on(on: Console, clock: Clock) -> MultiProgress:
    return MultiProgress(stream=on.file, clock=clock, console=on)  # type: ignore[arg-type]


def test_the_terminal_is_drawn_four_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    on, clock = console(), Clock()
    frames = []
    monkeypatch.setattr(Dashboard, "__rich_console__", lambda self, *_: frames.append(clock.now) or [])
    with progress_on(on, clock) as progress:
        begun = len(frames)
        progress.expect({"a": (1000, 4), "b": (1000, 4)})
        for i in range(1000):
            clock.now = i / 1000
            progress.update("a", i, 1000, float(i))
        assert len(frames) - begun <= 4
        progress.refresh()
        assert len(frames) - begun <= 4
        clock.now = 1.2
        progress.refresh()
        progress.refresh()
        assert len(frames) - begun <= 5
        assert frames[-1] == 1.2


def test_nothing_is_computed_for_what_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("pglab.tracking.text.Course.add", fail)
    monkeypatch.setattr(Dashboard, "__init__", fail)
    for progress in (MultiProgress(stream=io.StringIO()), MultiProgress(quiet=True, stream=io.StringIO())):
        progress.expect({"a": (10, 1)})
        progress.update("a", 1, 10, 3.0)
        progress.end("a", "done")
        progress.close()


@pytest.mark.parametrize("no_color", [True, False])
def test_no_color_is_honoured(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    on, clock = console(), Clock()
    with progress_on(on, clock) as progress:
        progress.update("a", 1, 10, 3.0)
        clock.now = 1.0
        progress.update("a", 5, 10, 4.0)
        progress.note("said")
        progress.end("a", "done")
    written = on.file.getvalue()  # type: ignore[attr-defined]
    assert bool(COLOUR.search(written)) != no_color
    assert "said" in written
    assert written.endswith("\x1b[?25h")  # the cursor is back


def test_notes_and_names_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    on, clock = console(), Clock()
    with progress_on(on, clock) as progress:
        progress.update("\x1b]0;owned\x07", 1, 10)
        progress.note("gone\x1b[2J :smile: [bold]")
    written = on.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b]0;" not in written
    assert "\x1b[2J" not in written
    assert r"gone\x1b[2J :smile: [bold]" in written
    assert r"\x1b]0;owned\x07" in written


def test_a_stream_that_cannot_show_blocks_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    raw = io.BytesIO()
    on, clock = console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True)), Clock()
    with progress_on(on, clock) as progress:
        for i in range(5):
            clock.now = float(i)
            progress.update("a_name_that_is_much_too_long_for_its_column/variant", i, 4, float(i))
    assert b"########" in raw.getvalue()
    assert b"_-+#@" in raw.getvalue()
    assert b"~" in raw.getvalue()
    assert raw.getvalue().decode("ascii")


def test_a_job_announces_the_steps_of_its_tuning_too() -> None:
    data = {"env": {"id": "CartPole-v1"}, "seeds": 3, "total_steps": 100}
    grid = {"learning_rate": [0.1, 0.2], "discount": [0.9, 0.99]}
    assert expected(Job("a", data, "", "", [])) == (300, 3)
    assert expected(Job("a", data, "", "", [], tune=grid)) == (300 + 4 * 300, 3)
    assert expected(Job("a", data, "", "", [], resume=True, tune=grid)) == (300, 3)
