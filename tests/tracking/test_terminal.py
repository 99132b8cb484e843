"""Progress lines, with a clock and a terminal of our own."""

from __future__ import annotations

import io
import re

import pytest

from pglab.tracking.terminal import MultiProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with MultiProgress(stream=stream, clock=clock) as progress:
        for second in range(11):
            clock.now = second
            progress.update(
                "cartpole/value", 100_000 + second * 31_200, 500_000, return_=float("nan") if second < 3 else 212.34
            )
        progress.note("checkpoint [bold]")
    assert stream.getvalue().splitlines() == [
        "[cartpole/value] 100,000/500,000 steps",
        "[cartpole/value] 256,000/500,000 steps  31,200 steps/s  0:08 left  return 212.3",
        "[cartpole/value] 412,000/500,000 steps  31,200 steps/s  0:03 left  return 212.3",
        "checkpoint [bold]",
    ]
    stream.truncate(0)
    progress = MultiProgress(stream=stream, clock=clock)
    progress.update("a", 0, 10)
    progress.update("a", 10, 10, steps_per_second=5.0)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines()[-1] == "[a] 10/10 steps  5 steps/s"


def test_quiet_is_silent() -> None:
    for stream in (io.StringIO(), Terminal()):
        with MultiProgress(quiet=True, stream=stream) as progress:
            progress.update("a", 1, 2)
            progress.note("text")
        assert stream.getvalue() == ""


def test_many_tasks_have_a_plain_line_each() -> None:
    stream, clock = io.StringIO(), Clock()
    with MultiProgress(stream=stream, clock=clock) as progress:
        progress.update("reinforce", 1, 10)
        progress.update("rebar", 2, 10)
        progress.update("rebar", 3, 10, steps_per_second=0.0)
        assert stream.getvalue().splitlines() == ["[reinforce] 1/10 steps", "[rebar] 2/10 steps"]
    assert stream.getvalue().splitlines()[2:] == ["[rebar] 3/10 steps  0 steps/s"]


def test_a_terminal_shows_live_rows_within_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    stream, clock = Terminal(), Clock()
    with MultiProgress(stream=stream, clock=clock) as progress:
        progress.update("cartpole [red]", 0, 500_000)
        clock.now = 10.0
        progress.update("cartpole [red]", 120_000, 500_000, return_=212.3, steps_per_second=31_200.0)
        progress.update("a variant with a very long name", 1, 0)
        progress.note("a [note]")
    shown = stream.getvalue()
    assert "cartpole [red]" in shown
    for part in ("120k of 500k steps", "24%", "31.2k", "0:13", "212.3"):
        assert part in shown
    assert "a [note]" in shown
    assert "\x1b[3" not in shown  # no colours
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    assert 0 < max(map(len, lines)) <= 80


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with MultiProgress(stream=stream) as progress:
        progress.update("a", 1, 10)
    assert stream.getvalue() == "[a] 1/10 steps\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_announced_is_plain_lines_only_once_it_begins(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal() if terminal else io.StringIO()
    with MultiProgress(stream=stream) as progress:
        progress.expect({"a": (10, 4), "b": (10, 4)})
        progress.update("a", 5, 10, return_=1.0)
        progress.update("a", 10, 10, return_=2.0)
        progress.end("a", "done")
        progress.end("b", "stopped")
        progress.refresh()
    assert stream.getvalue().splitlines()[0] == "[a] 5/10 steps  return 1.0"
    assert stream.getvalue().splitlines()[-1].startswith("[a] 10/10 steps")
    assert "[b]" not in stream.getvalue()


def test_plain_lines_hold_no_control_characters() -> None:
    stream = io.StringIO()
    with MultiProgress(stream=stream) as progress:
        progress.update("evil\x1b[2J\rname", 1, 10, return_=1.0)
        progress.note("two\nlines, and \x1b[31m red")
    assert stream.getvalue() == "[evil\\x1b[2J\\rname] 1/10 steps  return 1.0\ntwo\nlines, and \\x1b[31m red\n"
