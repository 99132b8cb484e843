"""Choosing the torch device, threads, and how memory is kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from functools import cache

import torch

from pglab.errors import PglabError


def pick_device(name: str) -> torch.device:
    """The torch device of that name; `auto` is cuda where there is one. Raises PglabError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PglabError(f"Unknown device {name!r}: choose cpu, cuda or auto.") from None
    if device.type not in ("cpu", "cuda"):
        raise PglabError(f"Device {name!r} is not supported: choose cpu, cuda or auto.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PglabError(f"Device {name!r} is not there: this machine or this build of torch has no CUDA; choose cpu.")
    return device


ROWS_PER_THREAD = 1024
"""A second thread pays where the products of an update have twice this many rows (docs/performance.md)."""


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_threads(wanted: int | str, rows: int, device: torch.device) -> int:
    """The number of torch threads: the one `wanted`, or for `auto` what the rows of an update can feed."""
    if isinstance(wanted, int):
        return wanted
    return 1 if device.type != "cpu" else max(1, min(available_cores(), rows // ROWS_PER_THREAD))


@cache
def keep_memory() -> None:
    """Have the C library keep freed memory instead of giving it back to the system (glibc only; once per process).

    Every update allocates and frees the same few megabytes. Given back, each page of them is mapped in again at its first
    use: thousands of page faults an update with 16 members.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest that glibc takes
        libc.mallopt(trim_threshold, 2**31 - 1)
