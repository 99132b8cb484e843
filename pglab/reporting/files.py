"""Reading the files of a run that may be anyone's: as data only, nothing outside the folder, and no more than is sensible."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from pglab.reporting.text import shown
from pglab.tracking.log import HEADER

LARGEST = 64 * 2**20
LARGEST_LOG = 2**30
MOST_STEPS = 2**53
"""Steps beyond which numbers are no counts."""

Columns = dict[str, dict[str, tuple[list[float], list[float]]]]
"""Tag -> member -> (steps, values), in the order of writing."""


class Damaged(Exception):
    """A file that is there and cannot be used: the message says why, without its name."""


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases: pglab writes none, and a few of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise Damaged("it uses YAML aliases")
        return super().compose_node(parent, index)


def content(folder: Path, name: str, largest: int = LARGEST) -> bytes | None:
    """The bytes of a folder's file; None where there is none. Raises Damaged for one that will not be read."""
    path = folder / name
    try:
        if not path.is_file():
            return None
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Damaged("it is a link to outside the folder")
        if path.stat().st_size > largest:
            raise Damaged(f"it is larger than {largest // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise Damaged(error.strerror or "the system refuses") from error


def text_of(folder: Path, name: str) -> str | None:
    """A text file, stripped; None where there is none. What is not UTF-8 is replaced."""
    found = content(folder, name)
    return None if found is None else found.decode("utf-8", "replace").strip()


def json_of(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file. Raises Damaged where it is none."""
    found = content(folder, name)
    if found is None:
        return None
    try:
        value = json.loads(found.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged("it is not JSON") from error
    if not isinstance(value, dict):
        raise Damaged("it is not a JSON object")
    return value


def yaml_of(folder: Path, name: str) -> dict[str, Any] | None:
    """A YAML mapping; None where there is no such file. Raises Damaged where it is none."""
    found = content(folder, name, 2**20)
    if found is None:
        return None
    try:
        value = yaml.load(found.decode("utf-8"), Loader=_PlainLoader)  # a SafeLoader: makes plain data only
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Damaged("it is not valid YAML") from error
    if not isinstance(value, dict):
        raise Damaged("it is not a mapping of names to values")
    return value


def log_of(folder: Path, tags: set[str]) -> tuple[Columns, int] | None:
    """What `log.csv` holds of these tags, and how many lines cannot be read; None where there is none.

    Unlike `pglab.tracking.log.read_log` it goes on after a bad line. A last line without its end is a crash's, and no
    mistake. Raises Damaged where the file is no log at all.
    """
    found = content(folder, "log.csv", LARGEST_LOG)
    if found is None:
        return None
    lines = found[: found.rfind(b"\n") + 1].decode("utf-8", "replace").split("\n")
    if not any(lines):
        return {}, 0
    if lines[0].strip() != ",".join(HEADER):
        raise Damaged(f"its first line is not {','.join(HEADER)}")
    columns: Columns = {tag: {} for tag in tags}
    bad = 0
    for line in lines[1:]:
        if not line:
            continue
        parts = line.split(",")
        try:
            if len(parts) != 4:
                parts = next(csv.reader([line]))
            step, member, tag, value = parts
            if tag in tags:
                at, number = float(int(step)), float(value)
                if not 0 <= at <= MOST_STEPS:
                    raise ValueError(step)
                steps, values = columns[tag].setdefault(member, ([], []))
                steps.append(at)
                values.append(number)
        except (ValueError, OverflowError, csv.Error, StopIteration):
            bad += 1
    return columns, bad


def is_log(folder: Path) -> bool:
    """Whether the folder's `log.csv` begins as pglab's do: other programs write files of that name too."""
    beginning = ",".join(HEADER).encode()
    try:
        with open(folder / "log.csv", "rb") as file:
            return file.read(len(beginning)) == beginning
    except OSError:
        return False


def name_of(path: Path) -> str:
    """A path as it is shown in a sentence."""
    return shown(path, 200)
