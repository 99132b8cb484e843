"""Which folders a report is made of: runs, comparisons, and folders of either, searched to the bottom."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pglab.errors import PglabError
from pglab.reporting.files import Damaged, is_log, json_of, name_of, yaml_of
from pglab.reporting.runs import Run, read_run
from pglab.reporting.text import shown


@dataclass
class Comparison:
    """A comparison folder: what its files say of its runs."""

    path: Path
    name: str
    threshold: float | None = None
    titles: dict[str, str] = field(default_factory=dict)
    """Group -> title."""
    order: list[tuple[str, str]] = field(default_factory=list)
    """(group, variant), in the file's order."""
    failed: dict[str, str] = field(default_factory=dict)
    """group/variant -> message."""


@dataclass
class Found:
    """What was read."""

    runs: list[Run] = field(default_factory=list)
    of: dict[Path, Comparison] = field(default_factory=dict)
    """Run folder -> the comparison it is part of."""
    measurements: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    """Folders of `pglab variance` that stand outside a run, with their `report.json`."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(what, sentence) of things that are not a run's own."""


def find(sources: Sequence[str | os.PathLike[str]]) -> Found:
    """Read all runs under the sources, each once. Raises PglabError where a source is not there, or there is no run."""
    if not sources:
        raise PglabError("Name at least one run folder, comparison folder or folder of runs.")
    found, seen = Found(), set()
    comparisons: dict[Path, Comparison] = {}
    for source in map(Path, sources):
        if not source.is_dir():
            raise PglabError(f"There is no folder {name_of(source)}.")
        for folder in _folders(source, found):
            real = folder.resolve()
            if real in seen:
                continue
            seen.add(real)
            if (folder / "comparison.yaml").is_file():
                comparisons.setdefault(real, _comparison(folder, found))
            if _is_run(folder):
                found.runs.append(read_run(folder))
                above = real.parent.parent
                if above not in comparisons and (above / "comparison.yaml").is_file():
                    comparisons[above] = _comparison(
                        above, Found()
                    )  # of a run named by itself: its other runs are not asked for
                if above in comparisons:
                    found.of[folder] = comparisons[above]
            elif folder.name != "variance" or not _is_run(folder.parent):
                _standing_alone(folder, found)
    if not found.runs and not found.measurements:
        where = ", ".join(name_of(Path(s)) for s in sources)
        raise PglabError(f"There are no runs in {where}: a run folder has a config.yaml and a log.csv.")
    return found


def _folders(source: Path, found: Found) -> list[Path]:
    """The source and what lies below, in the order of names. Links are not followed, nor runs looked into."""
    folders = []

    def refuse(error: OSError) -> None:
        found.problems.append((shown(error.filename, 200), f"It cannot be read: {error.strerror}."))

    for where, below, _ in os.walk(source, onerror=refuse):
        folder = Path(where)
        folders.append(folder)
        below[:] = [] if _is_run(folder) else sorted(b for b in below if not b.startswith("."))
    return folders


def _is_run(folder: Path) -> bool:
    """A log or results of pglab's, or a config that names an environment: other programs have a config.yaml too."""
    if (folder / "comparison.yaml").is_file():
        return False
    logged = (folder / "log.csv").is_file()
    if not (folder / "config.yaml").is_file():
        return logged and is_log(folder)
    if logged or (folder / "checkpoints").is_dir() or (folder / "results.json").is_file():
        return True
    try:
        return "env" in (yaml_of(folder, "config.yaml") or {})
    except Damaged:
        return False


def _comparison(folder: Path, found: Found) -> Comparison:
    """The comparison at `folder`; what of its runs never began or failed goes to `found.problems`."""
    made = Comparison(folder, shown(folder.name, 100))
    where = name_of(folder)
    try:
        data = yaml_of(folder, "comparison.yaml") or {}
        threshold = data.get("threshold")
        made.threshold = float(threshold) if isinstance(threshold, int | float) else None
        for key, group in data["groups"].items():
            made.titles[str(key)] = shown(group.get("title") or key, 100)
            made.order += [(str(key), str(variant)) for variant in group["variants"]]
    except (Damaged, KeyError, TypeError, AttributeError) as error:
        why = str(error) if isinstance(error, Damaged) else "it has no groups of variants"
        found.problems.append((where, f"comparison.yaml is damaged: {why}."))
    try:
        failed = (json_of(folder, "results.json") or {}).get("failed") or {}
        made.failed = {str(key): str(message) for key, message in failed.items()}
    except (Damaged, AttributeError) as error:
        found.problems.append((where, f"results.json is damaged: {error if isinstance(error, Damaged) else 'failed'}."))
    for group, variant in made.order:
        key = f"{group}/{variant}"
        # Names come from a file: one that leads out of the folder is not looked up.
        inside = not {group, variant} & {"", ".", ".."} and not any(c in key for c in "\\\0") and key.count("/") == 1
        here = folder / group / variant if inside else None
        if key not in made.failed and (here is None or not (here / "config.yaml").is_file()):
            found.problems.append((where, f"Variant {shown(key, 100)} has no run: it was not started."))
    for key, message in made.failed.items():
        last = (message.strip().splitlines() or ["no message"])[-1]
        found.problems.append((where, f"Variant {shown(key, 100)} failed: {shown(last, 200)}"))
    return made


def _standing_alone(folder: Path, found: Found) -> None:
    """A folder that `pglab variance` made for a config or another library's model."""
    try:
        data = json_of(folder, "report.json")
    except Damaged as error:
        found.problems.append((name_of(folder), f"report.json is damaged: {error}."))
        return
    if data is not None and isinstance(data.get("measured"), list):
        found.measurements.append((folder, data))
