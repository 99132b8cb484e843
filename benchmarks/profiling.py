"""Where pglab's time goes, by looking at what it does every few milliseconds.

A second thread looks at the stack of the training loop at random moments, 2 ms apart in the mean, and files each look
under the part of the work that it belongs to. Unlike a tracing profiler that makes small operations no slower, so shares
are those of the real loop; what looking costs is measured and stated. The training thread cannot be looked at while it
holds the interpreter, only when torch is at work or within 0.1 ms of it, which moves a look to the next operation.

    python benchmarks/profiling.py --work a2c --members 16

The work is that of throughput.py. Shares are those of a CPU run with the eager executor: code that is compiled or replayed
by the device has no Python stack to look at.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from contestants import PglabLoop, pglab_config
from reporting import table
from slices import Slices

ENVIRONMENT, POLICY, STORING = "environment", "policy, in the rollout", "noise, sampling, storing"
ADVANTAGES, UPDATE, OPTIMIZER = "values and advantages", "update, forward and backward", "optimizer and clipping"
REPLAY, LOGGING, REST = "replay", "counting and logging", "everything else"
PARTS = (ENVIRONMENT, POLICY, STORING, ADVANTAGES, UPDATE, OPTIMIZER, REPLAY, LOGGING, REST)

Where = tuple[str, str]
"""Module within the package (`agents.on_policy`) and function."""
Found = dict[str, Any]
"""`shares` of each part; the largest of `rest` by function; `kept`, the speed while looked at over the speed otherwise;
the number of `looks`."""


def frames(frame: FrameType | None) -> list[Where]:
    """The stack's functions within pglab, innermost first."""
    found = []
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        package, _, rest = module.partition(".")
        if package in ("pglab", "pglab_envs"):
            found.append((rest if package == "pglab" else f"envs.{rest}", frame.f_code.co_name))
        frame = frame.f_back
    return found


def part(stack: list[Where]) -> str:
    """Which part of the work a stack belongs to."""
    modules = {module for module, _ in stack}
    functions = {function for _, function in stack}
    if any(module.startswith(("envs.", "environments.")) for module in modules):
        return ENVIRONMENT
    if ("training", "count") in stack:
        return LOGGING
    if "optimizers" in modules or functions & {"step_policy", "move_target", "tune_entropy"}:
        return OPTIMIZER
    if "replay" in modules or "_transitions" in functions:
        return REPLAY
    if ("collect" in functions and "learn" not in functions) or ("rollout" in modules and "update" in functions):
        return POLICY if modules & {"networks", "policy", "preprocessing"} else STORING
    if "noise" in modules:
        return STORING
    if functions & {"gradient", "learn_value", "learn_critic"} or "gradients" in modules:
        return UPDATE
    if "returns" in modules or functions & {"prepare", "returns"}:
        return ADVANTAGES
    if modules & {"tracking", "watching"} or functions & {"_log", "_after_update"}:
        return LOGGING
    return REST


class Looker(threading.Thread):
    """Looks at another thread's stack at random moments until `stop`."""

    def __init__(self, watched: int, mean: float = 0.002) -> None:
        super().__init__(daemon=True)
        self.watched, self.mean = watched, mean
        self.on, self.stopped = threading.Event(), False
        self.parts: Counter[str] = Counter()
        self.rest: Counter[str] = Counter()

    def run(self) -> None:
        chance = random.Random(0)
        while not self.stopped:
            if not self.on.is_set():
                self.on.wait(0.1)
                continue
            time.sleep(self.mean * (0.5 + chance.random()))
            stack = frames(sys._current_frames().get(self.watched))
            if not self.on.is_set():
                continue
            found = part(stack)
            self.parts[found] += 1
            if found == REST and stack:
                self.rest[".".join(stack[0])] += 1


def shares(options: argparse.Namespace, seconds: float, rounds: int = 3) -> Found:
    """Where the time of one population goes. Slices with and without looking take turns."""
    sys.setswitchinterval(1e-4)
    loop = PglabLoop(pglab_config(options))
    looker = Looker(threading.get_ident())
    looker.start()
    runs: list[dict[str, float]] = []

    def lengths() -> Iterator[float]:
        for number in range(2 * rounds):
            (looker.on.set if number % 2 else looker.on.clear)()
            yield seconds

    slices = Slices(lengths(), runs.append, warm=4 if options.work == "a2c" else 600)
    loop.run(slices.between)
    looker.on.clear()
    looker.stopped = True
    looker.join()
    rates = [run["work"] / run["seconds"] for run in runs[1:]]
    total = sum(looker.parts.values())
    return {
        "shares": {name: looker.parts[name] / total for name in PARTS},
        "rest": {name: count / total for name, count in looker.rest.most_common(5)},
        "kept": statistics.median(rates[1::2]) / statistics.median(rates[::2]),
        "looks": total,
    }


def page(found: Mapping[str, Found]) -> str:
    """A table of shares, one column for each population size."""
    columns = {f"{members} member{'s' if members != '1' else ''}": one for members, one in found.items()}
    names = [name for name in PARTS if any(one["shares"][name] for one in columns.values())]
    rows = [[name, *[f"{one['shares'][name]:.1%}" for one in columns.values()]] for name in names]
    text = table(["share of the time", *columns], rows)
    kept = ", ".join(f"{one['kept']:.0%}" for one in columns.values())
    text += f"\n\nSpeed while looked at, of the speed otherwise: {kept}."
    for name, one in columns.items():
        rest = ", ".join(f"`{where}` {share:.1%}" for where, share in one["rest"].items())
        text += f" Largest of everything else, {name}: {rest}." if rest else ""
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=["a2c", "sac"], default="a2c")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 16], help="population sizes (default: 1 16)")
    parser.add_argument("--envs", type=int, default=64, help="a2c: environments per member (default: 64)")
    parser.add_argument("--threads", type=int, help="torch threads (default: pglab's)")
    parser.add_argument("--executor", default="eager", help="how updates are executed (default: eager)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of six slices (default: 4)")
    parser.add_argument("--raw", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = {}
    for members in options.members:
        one = argparse.Namespace(**{**vars(options), "members": members, "device": "cpu"})
        found[str(members)] = shares(one, options.seconds)
    print(json.dumps(found) if options.raw else page(found))


if __name__ == "__main__":
    main()
