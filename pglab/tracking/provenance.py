"""Where a run came from: versions of what it ran on, and the state of the git checkout it was started in."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("pglab", "torch", "numpy", "gymnasium", "stable_baselines3")
DIFF_LIMIT = 1_000_000  # bytes
PATIENCE = 20.0  # seconds for one git command


def versions() -> dict[str, str | None]:
    """Python, platform and package versions; None for a package that is not installed. Imports none of them."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


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


def described() -> list[str]:
    """The machine and the versions, a line each, for a page."""
    known = ", ".join(f"{name} {version}" for name, version in versions().items() if version and name != "platform")
    return [machine(), known]


def git_state(folder: Path | None = None) -> tuple[dict[str, Any], bytes]:
    """What git says of `folder` (default: the working directory), and the diff of its tracked files.

    Returns:
        A record `{"commit", "dirty", "diff_truncated"}` and the diff, at most `DIFF_LIMIT` bytes. `dirty` is about
        tracked files. Everything is None (the diff empty) outside a checkout or without git; `commit` alone is None
        before the first commit. Never raises.
    """
    unknown: dict[str, Any] = {"commit": None, "dirty": None, "diff_truncated": False}
    folder = folder or Path.cwd()
    if _git(folder, "rev-parse", "--is-inside-work-tree").strip() != b"true":
        return unknown, b""
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD").strip().decode() or None
    against = ["HEAD"] if commit else []
    diff = _git(folder, "diff", "--no-ext-diff", "--no-textconv", "--no-color", *against)
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    record = {"commit": commit, "dirty": bool(diff or changed), "diff_truncated": len(diff) > DIFF_LIMIT}
    return record, diff[:DIFF_LIMIT]


def _git(folder: Path, *arguments: str) -> bytes:
    """Up to DIFF_LIMIT + 1 bytes of what git prints; empty where it is missing, fails or takes too long."""
    # A record must not run a repository's hooks, take its locks, or ask for a password.
    command = ["git", "-c", "core.fsmonitor=false", "-C", os.fspath(folder), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError:
        return b""
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        with process:
            assert process.stdout is not None
            output = process.stdout.read(DIFF_LIMIT + 1)
            if len(output) > DIFF_LIMIT:
                process.kill()  # the rest of an enormous diff is not wanted
                return output
        return output if process.returncode == 0 else b""
    except OSError:
        return b""
    finally:
        watchdog.cancel()
