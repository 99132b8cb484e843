"""What the benchmark scripts share: the machine, the versions, and a page of Markdown with a JSON record beside it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pglab.tracking.provenance import machine

SHOWN = ("python", "torch", "numpy", "gymnasium", "stable_baselines3", "pglab")


def provenance() -> dict[str, Any]:
    """Machine, versions, git commit and command, for the record."""
    from pglab.tracking.provenance import git_state, versions

    state, _ = git_state(Path(__file__).parent)
    return {"machine": machine(), "versions": versions(), "git": state, "command": command()}


def command() -> str:
    """The command line, as it can be typed again."""
    return shlex.join(["python", *sys.argv])


def origin(record: dict[str, Any]) -> str:
    """Two lines of Markdown from `provenance`."""
    known = ", ".join(f"{name} {record['versions'][name]}" for name in SHOWN if record["versions"].get(name))
    return f"{record['machine']}; {known}.\nCommand: `{record['command']}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, numbers to the right."""
    lines = [header, [":---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(out: Path | None, title: str, text: str, record: dict[str, Any]) -> None:
    """Print the page, and where `out` is given write OUT.md and OUT.json."""
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
