"""Where the tasks that are watched are, and how long they will take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from pglab.tracking.text import Course, clock_time, short_return, visible


@dataclass
class Row:
    """One task: where it is, how fast, and how well it does."""

    title: str
    total: int
    seeds: int | None = None
    expected: int = 0  # steps of all its stages together, as announced: tuning first, then training
    earlier: int = 0  # steps of the stages that are over
    state: str = "waiting"  # then running, and in the end done, stopped or failed
    first_step: int | None = None  # a resumed run does not start at 0
    first_time: float = 0.0
    step: int = 0
    rate: float | None = None  # steps per second
    return_: float | None = None
    course: Course = field(default_factory=Course)  # of the return, kept where it is shown
    printed: float = -math.inf  # when its last plain line was printed
    printed_step: int = -1

    def update(self, step: int, total: int, return_: float | None, rate: float | None, now: float) -> None:
        """Take over what was reported."""
        if step < self.step:  # another stage begins
            self.earlier += self.total
            self.first_step, self.rate, self.course = None, None, Course(self.course.most)
        if self.first_step is None:
            self.first_step, self.first_time = step, now
        self.step, self.total, self.state = step, total, "running"
        if rate is not None:
            self.rate = rate
        elif now > self.first_time and step > self.first_step:
            self.rate = (step - self.first_step) / (now - self.first_time)
        if return_ is not None:
            self.return_ = return_

    @property
    def all_steps(self) -> int:
        """Of all its stages."""
        return max(self.expected, self.earlier + self.total)

    @property
    def fraction(self) -> float:
        """How much of it is done, from 0 to 1."""
        if self.state == "done" or not self.all_steps:
            return 1.0
        return min(1.0, (self.earlier + self.step) / self.all_steps)

    @property
    def known_rate(self) -> float | None:
        """Its steps per second, where they say how long it will take."""
        return self.rate if self.rate is not None and math.isfinite(self.rate) and self.rate > 0 else None

    @property
    def parts(self) -> list[str]:
        """Steps per second, time left and return, as far as they are known."""
        parts = []
        if self.rate is not None and math.isfinite(self.rate):
            parts.append(f"{self.rate:,.0f} steps/s")
            if self.rate > 0 and self.step < self.total:
                parts.append(f"{clock_time((self.total - self.step) / self.rate)} left")
        if self.return_ is not None and not math.isnan(self.return_):
            parts.append(f"return {short_return(self.return_)}")
        return parts

    @property
    def line(self) -> str:
        return "  ".join([f"[{visible(self.title)}] {self.step:,}/{self.total:,} steps", *self.parts])


def seconds_left(row: Row) -> float | None:
    """Until a task under way has done all its steps; None where its speed is not known."""
    rate = row.known_rate
    if row.state != "running" or rate is None:
        return None
    return max(0, row.all_steps - row.earlier - row.step) / rate


def seconds_left_of_all(rows: Iterable[Row]) -> float | None:
    """Until all tasks are over: those whose speed is not known are taken to be as fast as the others on average, and as
    many to run at a time as now. None where nothing is known yet."""
    rows = list(rows)
    running = [row for row in rows if row.state == "running"]
    paces = [1 / rate for row in rows if (rate := row.known_rate) is not None]
    if not paces:
        return None
    known = [seconds for row in running if (seconds := seconds_left(row)) is not None]
    unknown = [row for row in rows if row.state in ("waiting", "running") and seconds_left(row) is None]
    steps = sum(row.all_steps - row.earlier - row.step for row in unknown)
    work = sum(known) + max(0, steps) * sum(paces) / len(paces)
    return max([work / max(1, len(running)), *known])
