"""Timing several programs side by side: each runs one slice of a stated length when told, and waits otherwise.

A contestant is a program with a loop of its own that calls `Slices.between` after every piece of work. The program that
compares them starts each as a `Contestant`, waits until it is warm, and asks for slices in turn; whoever is not asked
blocks on its standard input. Process start, compilation and warm-up are outside of every slice.

Standard library only: programs of other virtual environments import this file too.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_LIMIT = 900.0  # seconds until a contestant has compiled and is warm
SLICE_LIMIT = 300.0  # seconds a slice may take longer than it was asked to


def told() -> tuple[Iterator[float], Callable[[dict[str, Any]], None]]:
    """Lengths of slices as they are asked for on standard input, and how to answer on standard output.

    From here on whatever else the program prints goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(record: dict[str, Any]) -> None:
        answers.write(json.dumps(record) + "\n")
        answers.flush()

    return (float(json.loads(line)["seconds"]) for line in sys.stdin), answer


class Slices:
    """Cuts a running loop into timed slices.

    Args:
        lengths: seconds of each slice; the next is asked for when one is over.
        answer: told once what is `about` the contestant when it is warm, then `{"work", "seconds"}` of each slice.
        about: what to say about the contestant.
        warm: pieces of work before the first slice.
        synchronize: waits until all work that was given to the device is done.
    """

    def __init__(
        self,
        lengths: Iterator[float],
        answer: Callable[[dict[str, Any]], None],
        about: Mapping[str, Any] | None = None,
        warm: int = 3,
        synchronize: Callable[[], None] = lambda: None,
    ) -> None:
        self._lengths, self._answer, self._about, self._synchronize = lengths, answer, dict(about or {}), synchronize
        self._warm = warm
        self._length: float | None = None
        self._began: float | None = None
        self._base = 0

    def between(self, done: int) -> bool:
        """To be called after every piece, with all the work done so far. True when nothing more is asked for.

        The first piece of a slice is not timed: it fills the caches that somebody else had used.
        """
        if self._warm > 0:
            self._warm -= 1
            if self._warm:
                return False
            self._synchronize()
            self._answer({"ready": True, **self._about})
            return self._next()
        assert self._length is not None
        if self._began is None:
            self._synchronize()
            self._began, self._base = time.perf_counter(), done
            return False
        if time.perf_counter() - self._began < self._length:
            return False
        self._synchronize()
        seconds = time.perf_counter() - self._began
        if done == self._base:
            return False  # a slice is one piece at least
        self._answer({"work": done - self._base, "seconds": seconds})
        return self._next()

    def _next(self) -> bool:
        self._length, self._began = next(self._lengths, None), None
        return self._length is None


def busy_seconds() -> float | None:
    """Processor time that everything on this machine has used, and that its host took away; None where unknown."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def used_seconds(process: int) -> float | None:
    """Processor time that a process has used; None where unknown."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ContestantError(Exception):
    """A contestant that did not start, or stopped."""


@dataclass(frozen=True)
class Slice:
    """What a contestant did in one slice."""

    work: int
    seconds: float
    cores: float | None
    """Cores it used in the mean; None where that is unknown."""
    others: float | None
    """Cores that everything else on the machine used meanwhile; None where that is unknown."""

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.work / self.seconds


class Contestant:
    """A program that answers as `Slices` does, from its start to its end."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=None if environment is None else dict(environment),
        )
        try:
            self.about = self._read(START_LIMIT)
        except ContestantError:
            self.close()
            raise

    def slice(self, seconds: float) -> Slice:
        """Let it run for about `seconds`. ContestantError if it has stopped."""
        assert self._process.stdin is not None
        began, before, own_before = time.perf_counter(), busy_seconds(), used_seconds(self._process.pid)
        try:
            self._process.stdin.write(json.dumps({"seconds": seconds}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise ContestantError(self._last_words()) from None
        found = self._read(seconds + SLICE_LIMIT)
        after, own_after = busy_seconds(), used_seconds(self._process.pid)
        cores = others = None
        if before is not None and own_before is not None and after is not None and own_after is not None:
            took, own = time.perf_counter() - began, own_after - own_before
            cores, others = own / took, max(0.0, after - before - own) / took
        return Slice(int(found["work"]), float(found["seconds"]), cores, others)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _read(self, patience: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        if not ready:
            self._process.kill()
            raise ContestantError(f"no answer for {patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise ContestantError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it stopped without a word"
