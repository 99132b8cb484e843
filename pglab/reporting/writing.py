"""Making a report and writing its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pglab.errors import PglabError
from pglab.reporting.building import build
from pglab.reporting.files import Damaged, json_of, name_of
from pglab.reporting.markdown import markdown
from pglab.reporting.model import Report
from pglab.reporting.page import page
from pglab.tracking.files import file_error, write_json, write_text

FILES = ("report.html", "report.md", "report.json")


def report(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
) -> Report:
    """Read run folders, comparison folders and folders of either, and report what they hold.

    Nothing is trained and no code of a run is imported; unfinished, failed and damaged runs are read as far as they go.

    Args:
        paths: one folder or several; each is searched to the bottom.
        out: where `report.html`, `report.md` with its figures, and `report.json` are written; an earlier report there is
            replaced. None writes nothing.
        name: the title; else the folders' names.

    Raises:
        PglabError: where a folder is not there or has no runs in it, or the files cannot be written.
    """
    sources = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    folder = None if out is None else Path(out)
    if folder is not None:
        _check(folder)
    made = build(sources, name)
    if folder is not None:
        _write(made, folder)
    return made


def _check(folder: Path) -> None:
    """PglabError where the folder has files of another kind under the report's names: `pglab variance` has a report.json."""
    if folder.exists() and not folder.is_dir():
        raise PglabError(f"Cannot write the report to {name_of(folder)}: it is not a folder.")
    there = [name for name in FILES if (folder / name).exists()]
    if not there:
        return
    try:
        ours = (json_of(folder, "report.json") or {}).get("kind") == "pglab report"
    except Damaged:
        ours = False
    if not ours:
        raise PglabError(
            f"{name_of(folder)} has a {there[0]} that is not an earlier report's: give another folder with --out."
        )


def _write(made: Report, folder: Path) -> None:
    made.folder = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("report-*.png"):  # of an earlier report with more groups
            old.unlink()
    except OSError as error:
        raise file_error(name_of(folder), error) from error
    write_text(folder / "report.md", markdown(made, folder))
    write_text(folder / "report.html", page(made))
    write_json(folder / "report.json", made.plain())  # last: it tells that the report is whole, and ours
