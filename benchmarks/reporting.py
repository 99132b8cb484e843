"""What the benchmark scripts share: the machine, the versions, and a page of Markdown with a JSON record beside it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHOWN = ("python", "torch", "numpy", "gymnasium", "stable_baselines3", "pglab")


def machine() -> str:
    """Cores, processor, memory and system in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores of {_processor()}, {memory:.0f} GiB, {platform.system()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
