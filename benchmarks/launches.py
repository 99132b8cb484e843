"""How often pglab's training on a GPU launches work from the host, and how much of the time the device is busy.

    python benchmarks/launches.py --members 64 --executor cudagraph

A population trains as in throughput.py; after the first updates, some are watched by torch's profiler. `python
benchmarks/throughput.py --device cuda` runs this for each of pglab's contestants, apart from the timed slices, since watching
costs time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
"""Calls with which the host gives the device something to do, as torch's profiler names them (or begins to)."""
WARM, WATCHED = 10, 20
"""Updates before the profiler watches, and while it does."""


@dataclass(frozen=True)
class Seen:
    """What a profiler saw: a call on the host, or something the device did."""

    name: str
    on_device: bool
    start: float
    end: float
    """Microseconds."""


def summary(seen: Iterable[Seen], updates: int, seconds: float) -> dict[str, Any]:
    """Per update: the host's launches by name, and what the device did (kernels, copies, fills). `busy` is the part of the
    `seconds` in which the device did at least one thing."""
    launches: dict[str, float] = {}
    intervals: list[tuple[float, float]] = []
    for one in seen:
        if one.on_device:
            intervals.append((one.start, one.end))
        elif one.name.startswith(LAUNCHES):
            launches[one.name] = launches.get(one.name, 0) + 1 / updates
    return {
        "launches": launches,
        "launches_per_update": sum(launches.values()),
        "device_operations_per_update": len(intervals) / updates,
        "busy": covered(intervals) * 1e-6 / seconds,
        "updates": updates,
    }


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def watched(options: argparse.Namespace) -> dict[str, Any]:
    """Train, watch, sum up."""
    import torch
    from contestants import PglabLoop, pglab_config
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    loop = PglabLoop(pglab_config(options))
    profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    asked, times = 0, [0.0, 0.0]

    def between(_: int) -> bool:
        nonlocal asked
        asked += 1
        if asked == WARM + 1:
            loop.synchronize()
            profiler.start()
            times[0] = time.perf_counter()
        if asked == WARM + 1 + WATCHED:
            loop.synchronize()
            times[1] = time.perf_counter()
            profiler.stop()
            return True
        return False

    loop.run(between)
    seen = [
        Seen(e.name, e.device_type == DeviceType.CUDA, e.time_range.start, e.time_range.end) for e in profiler.events()
    ]
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": name, **summary(seen, WATCHED, times[1] - times[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1, help="members trained at once (default: 1)")
    parser.add_argument("--envs", type=int, default=4096, help="environments per member (default: 4096)")
    parser.add_argument("--executor", default="cudagraph", help="how updates are executed (default: cudagraph)")
    parser.add_argument("--threads", type=int, help="torch threads (default: pglab's)")
    parser.add_argument("--device", default="cuda", help="(default: cuda)")
    options = parser.parse_args()
    from pglab.errors import PglabError

    try:
        print(json.dumps(watched(argparse.Namespace(work="a2c", **vars(options)))))
    except PglabError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
