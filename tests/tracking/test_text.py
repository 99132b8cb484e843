"""Names, numbers and series in few characters."""

from __future__ import annotations

import math
import sys

import pytest

from pglab.tracking.text import ASCII_BLOCKS, BLOCKS, Course, can_show, clock_time, short_count, sparkline, visible


def test_numbers_are_short() -> None:
    assert [clock_time(s) for s in (11.2, 725, 3723)] == ["0:12", "12:05", "1:02:03"]
    assert [short_count(n) for n in (950, 120_000, 1_500_000)] == ["950", "120k", "1.5M"]


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7, 0], 8, "█▁"),
        ([-1000, -500, 0], 12, "▁▅█"),
        ([0, 2, 0, 2, 8, 6, 1, 1], 4, "▁▁█▁"),  # the means 1, 1, 7, 1
        ([5, 5, 5], 12, "▄▄▄"),
        ([float("nan"), 1, float("inf"), 2], 12, "▁█"),
        ([-sys.float_info.max, sys.float_info.max], 12, "▁█"),
        ([5e-324, 0.0], 12, "▄▄"),  # no distance that a number can hold
        ([], 12, ""),
        ([1, 2], 0, ""),
    ],
)
def test_a_sparkline_shows_the_series(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line
    plain = sparkline(values, width, unicode=False)
    assert plain == line.translate(str.maketrans(BLOCKS, ASCII_BLOCKS))
    assert plain.isascii()


def test_a_course_of_any_length_is_kept_in_few_numbers() -> None:
    course = Course(most=8)
    for i in range(1000):
        course.add(float(i))
        course.add(math.nan)
        assert len(course.values) <= 9
    assert course.values[0] == pytest.approx(63.5)  # the mean of 0 to 127
    assert course.values == sorted(course.values)
    assert course.values[-1] > 930
    short = Course(most=8)
    for value in (3.0, 1.0):
        short.add(value)
    assert short.values == [3.0, 1.0]


def test_control_characters_are_shown_as_escapes() -> None:
    assert visible("plain [red] 漢字 é") == "plain [red] 漢字 é"
    assert visible("a\x1b[2J\x07\r\n\x9b1m\x7f") == r"a\x1b[2J\x07\r\n\x9b1m\x7f"
    assert visible("\u202eabc\u2028\ufeff") == r"\u202eabc\u2028\ufeff"
    assert visible("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"


def test_an_encoding_can_or_cannot_show_blocks() -> None:
    assert can_show(BLOCKS, "utf-8")
    assert can_show(BLOCKS, None)
    assert not can_show(BLOCKS, "ascii")
    assert not can_show(BLOCKS, "latin-1")
    assert not can_show("a", "no such encoding")
