"""`log.csv`: every number of a run in long format, exact to the last bit, for programs to read."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pglab.errors import PglabError
from pglab.tracking.files import file_error

HEADER = ("step", "member", "tag", "value")
EVERYONE = "all"  # the member of a value that belongs to the whole population


class Series(NamedTuple):
    """One member's values of one tag."""

    steps: np.ndarray  # [n] int64, environment steps
    values: np.ndarray  # [n] float64


class LogFile:
    """Appends rows to a log. Values are written by `repr`, so two runs are equal when their files are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise file_error(path, error) from error
        if self._file.tell() == 0:
            self._write([HEADER])

    def append(self, step: int, rows: Iterable[tuple[str, str, float]]) -> None:
        """Write (member, tag, value) rows of one step. Raises PglabError where the disk refuses."""
        self._write([(step, member, tag, repr(value)) for member, tag, value in rows])

    def flush(self, sync: bool = False) -> None:
        """Hand everything to the operating system; with `sync`, to the disk."""
        try:
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise file_error(self.path, error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise file_error(self.path, error) from error

    def _write(self, rows: Iterable[tuple]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        try:
            self._file.write(text.getvalue().encode())
        except OSError as error:
            raise file_error(self.path, error) from error


def read_log(folder: str | os.PathLike[str]) -> dict[str, dict[str, Series]]:
    """Everything that a run folder's `log.csv` holds: tag -> member name -> Series, in the order of writing.

    Values of the whole population stand under the member `all`. A last line cut off by a crash is left out.

    Raises:
        PglabError: where the file is missing, or a line of it is not `step,member,tag,value`.
    """
    path = Path(folder) / "log.csv"
    try:
        content = path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PglabError(f"Cannot read {path}: {reason}.") from error
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    reader = csv.reader(io.StringIO(lines, newline=""))
    if lines and tuple(next(reader)) != HEADER:
        raise PglabError(f"Cannot read {path}: its first line is not {','.join(HEADER)}.")
    for row in reader:
        try:
            step, member, tag, value = row
            found.setdefault(tag, {}).setdefault(member, []).append((int(step), float(value)))
        except ValueError as error:
            raise PglabError(f"Cannot read {path}: line {reader.line_num} is {','.join(row)!r}.") from error
    return {tag: {member: _series(pairs) for member, pairs in members.items()} for tag, members in found.items()}


def _series(pairs: list[tuple[int, float]]) -> Series:
    steps, values = zip(*pairs, strict=True)
    return Series(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))
