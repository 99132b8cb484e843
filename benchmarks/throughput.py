"""Work trained per second: pglab against stable-baselines3, a JAX peer and a roofline, on the same work in one run.

The works are

- a2c: advantage actor-critic on CartPole-v1. Separate 64-64 tanh networks for policy and value, 64 environments x 32
  steps per update, one epoch, one minibatch, GAE (0.99, 0.95), no evaluation. Counted are environment steps.
- sac: SAC on Pendulum-v1. One environment, one update of critics, actor and entropy weight per step, batch 256, 64-64
  relu, learning rate 1e-3. Counted are updates.

Populations count the work of all members together. Every contestant is a process that stays alive; in each round all run
one timed slice, one after another and each round another one first, while the others wait. Process start, compilation and
warm-up are outside the time, and a machine that slows down slows all.

    python benchmarks/throughput.py --markdown throughput.md --json throughput.json
    python benchmarks/throughput.py --work a2c --rounds 3 --seconds 1 --only pglab jax
    python benchmarks/throughput.py --device cuda

The JAX peer needs `benchmarks/peers/setup.sh` once. On `--device cuda` the work is a2c with 4,096 environments.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import profiling
import reporting
from slices import Contestant, ContestantError, Slice

HERE = Path(__file__).resolve().parent
PEER = HERE / "peers" / ".venv" / "bin" / "python"
WORKS = ("a2c", "sac")
MEMBERS = {"a2c": (1, 16), "sac": (1, 8), "gpu": (1, 64)}
GPU_ENVS, GPU_EXECUTORS = 4096, ("eager", "cudagraph")
TITLES = {
    "a2c": "A2C on CartPole-v1, 64 environments x 32 steps",
    "sac": "SAC on Pendulum-v1, one environment, one update per step",
    "gpu": f"A2C on CartPole-v1 on a GPU, {GPU_ENVS:,} environments x 32 steps",
}
UNITS = {"a2c": "steps/s", "sac": "updates/s", "gpu": "steps/s"}
NOTES = {
    "a2c": "stable-baselines3: A2C on a DummyVecEnv with its default optimizer, RMSprop; the others have Adam. JAX: rejax's "
    "PPO with one epoch and one minibatch, compiled as a whole; what it does besides and leaves out is listed in "
    "benchmarks/peers/jax_a2c.py. pglab: its training loop, with logs at the usual intervals and no files.",
    "sac": "rejax draws its batch without replacement, which sorts the replay buffer at every update; it is shown as it is "
    "and with replacement, as the others draw.",
    "gpu": "stable-baselines3 steps its environments on the CPU and is not part of this. The aim: 20 million steps/s, and at "
    "least what JAX reaches on the same device.",
}
ROOFLINES = {
    "exact": ("torch.tanh", ["--tanh", "exact"]),
    "sigmoid": ("tanh by sigmoid", ["--tanh", "sigmoid"]),
    "reuse": ("tanh by sigmoid, forward passes reused", ["--tanh", "sigmoid", "--reuse"]),
}
DISTURBED = 0.05
"""Cores that other programs may use in the mean before the page warns of its own figures."""
OWN_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Taken out of the contestants' environment, so that a library's default is its default."""


@dataclass
class Entry:
    """A contestant and what was measured of it."""

    label: str
    kind: str
    """pglab, peer or roofline."""
    members: int
    command: list[str]
    variant: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    failure: str | None = None

    @property
    def rates(self) -> list[float]:
        """Work per second in each round."""
        return [one.rate for one in self.slices]

    @property
    def median(self) -> float:
        """Of the rounds' rates."""
        return statistics.median(self.rates)

    def record(self) -> dict[str, Any]:
        """For the JSON file."""
        found: dict[str, Any] = {
            "kind": self.kind,
            "members": self.members,
            "about": self.about,
            "failure": self.failure,
        }
        if self.rates:
            found |= {"median": self.median, "min": min(self.rates), "max": max(self.rates), "rounds": self.rates}
            found["cores"] = [one.cores for one in self.slices]
            found["cores_used_by_others"] = [one.others for one in self.slices]
        return found


def counted(members: int, noun: str = "member") -> str:
    """So many members in words."""
    return f"{members} {noun}{'s' if members > 1 else ''}"


def given(options: argparse.Namespace) -> list[str]:
    """What was asked of pglab on the command line, for a contestant's."""
    asked = {"--threads": options.threads, "--executor": options.executor}
    return [word for name, value in asked.items() if value is not None for word in (name, str(value))]


def entries(work: str, options: argparse.Namespace) -> list[Entry]:
    """Everyone who does this work."""
    own, jax = [sys.executable, str(HERE / "contestants.py")], [str(PEER), str(HERE / "peers" / "jax_a2c.py")]
    found: list[Entry] = []
    if work == "gpu":
        sizes = ["--device", "cuda", "--envs", str(GPU_ENVS)]
        executors = [None] if options.executor else GPU_EXECUTORS
        for members in MEMBERS[work]:
            found.append(
                Entry(
                    f"JAX (rejax), {counted(members, 'seed')}",
                    "peer",
                    members,
                    [*jax, *sizes, "--members", str(members)],
                )
            )
            for executor in executors:
                command = [*own, "pglab", "a2c", *sizes, "--members", str(members), *given(options)]
                command += ["--executor", executor] if executor else []
                label = f"pglab, {counted(members)}, {executor or options.executor}"
                found.append(Entry(label, "pglab", members, command))
        return found
    name = f"stable-baselines3 {work.upper()}"
    found += [
        Entry(f"{name}, default threads", "peer", 1, [*own, "sb3", work]),
        Entry(f"{name}, one thread", "peer", 1, [*own, "sb3", work, "--threads", "1"]),
    ]
    if work == "sac":
        found.append(Entry("JAX (rejax), 1 seed, as it is", "peer", 1, [*jax, "--work", work]))
    for members in MEMBERS[work]:
        label, command = f"JAX (rejax), {counted(members, 'seed')}", [*jax, "--work", work, "--members", str(members)]
        if work == "sac":
            label, command = f"{label}, with replacement", [*command, "--draw", "with"]
        found.append(Entry(label, "peer", members, command))
    for members in MEMBERS[work]:
        for executor in [None, "compile"] if not options.executor else [None]:
            command = [*own, "pglab", work, "--members", str(members), *given(options)]
            command += ["--executor", executor] if executor else []
            label = f"pglab, {counted(members)}{', compiled' if executor else ''}"
            found.append(Entry(label, "pglab", members, command))
    if work == "a2c":
        for members in MEMBERS[work]:
            for variant, (words, arguments) in ROOFLINES.items():
                command = [sys.executable, str(HERE / "roofline.py"), "--members", str(members), *arguments]
                found.append(Entry(f"roofline, {counted(members)}, {words}", "roofline", members, command, variant))
    return found


def say(text: str) -> None:
    """Progress, to whoever waits."""
    print(text, file=sys.stderr, flush=True)


def start(entry: Entry) -> Contestant | None:
    """A contestant, warm; None (and its `failure`) where it does not start."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_THREADS}
    if entry.command[0] == str(PEER):
        if not PEER.exists():
            entry.failure = "benchmarks/peers/setup.sh was not run"
            return None
        environment.pop("PYTHONPATH", None)
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # on a GPU: memory is shared with those who wait
    try:
        contestant = Contestant([*entry.command, "--serve"], environment)
    except ContestantError as error:
        entry.failure = str(error)
        say(f"{entry.label}: does not start: {error}")
        return None
    entry.about = {name: value for name, value in contestant.about.items() if name != "ready"}
    say(f"{entry.label}: ready")
    return contestant


def measure(listed: Sequence[Entry], rounds: int, seconds: float) -> None:
    """Fill in the entries' rates, round by round."""
    running: list[tuple[Entry, Contestant]] = []
    try:
        for entry in listed:
            contestant = start(entry)
            if contestant is not None:
                running.append((entry, contestant))
        for number in range(rounds):
            first = number % max(1, len(running))
            for entry, contestant in running[first:] + running[:first]:
                if entry.failure:
                    continue
                try:
                    entry.slices.append(contestant.slice(seconds))
                except ContestantError as error:
                    entry.failure = str(error)
                    say(f"{entry.label}: has stopped: {error}")
                    continue
                say(f"round {number + 1} of {rounds}: {entry.label}: {entry.rates[-1]:,.0f}")
    finally:
        for _, contestant in running:
            contestant.close()


def against(one: Entry, other: Entry) -> dict[str, float]:
    """The ratio of the medians, and the smallest and largest ratio of a round."""
    paired = [a / b for a, b in zip(one.rates, other.rates, strict=True)]
    return {"ratio": one.median / other.median, "min": min(paired), "max": max(paired)}


def ratios(listed: Sequence[Entry]) -> dict[str, dict[str, dict[str, float]]]:
    """pglab's entries against each peer, and against each roofline of as many members."""
    measured = [e for e in listed if e.rates and not e.failure]
    return {
        one.label: {
            other.label: against(one, other)
            for other in measured
            if other.kind == "peer" or (other.kind == "roofline" and other.members == one.members)
        }
        for one in measured
        if one.kind == "pglab"
    }


def result_table(work: str, listed: Sequence[Entry]) -> str:
    """What was measured of everyone."""
    rows = []
    for e in listed:
        if e.rates and not e.failure:
            known = [one.cores for one in e.slices if one.cores is not None]
            cores = f"{statistics.mean(known):.1f}" if known else ""
            rows.append([e.label, str(e.about.get("threads", "")), cores, f"{e.median:,.0f}", _range(e)])
        else:
            # The whole reason is in the record; in a table a line of it.
            reason = "not yet measured" if e.failure is None else textwrap.shorten(f"not measured: {e.failure}", 120)
            rows.append([e.label, "", "", reason, ""])
    head = ["", "torch threads", "cores used", f"{UNITS[work]} (median)", "smallest to largest"]
    return reporting.table(head, rows)


def _range(entry: Entry) -> str:
    return f"{min(entry.rates):,.0f} to {max(entry.rates):,.0f}"


def ratio_table(listed: Sequence[Entry]) -> str:
    """pglab's members against each peer."""
    found = ratios(listed)
    peers = [e.label for e in listed if e.kind == "peer" and any(e.label in row for row in found.values())]
    if not peers:
        return ""
    rows = [
        [
            peer,
            *[f"{row[peer]['ratio']:.2f} ({row[peer]['min']:.2f} to {row[peer]['max']:.2f})" for row in found.values()],
        ]
        for peer in peers
    ]
    table = reporting.table(["as many times as fast as", *found], rows)
    return f"Ratios of medians; in parentheses the smallest and largest ratio within a round.\n\n{table}"


def roofline_table(listed: Sequence[Entry]) -> str:
    """pglab's fraction of the rooflines."""
    found = ratios(listed)
    rows = []
    for variant, (words, _) in ROOFLINES.items():
        cells, flop = [], 0
        for one in (e for e in listed if e.label in found):
            other = next((e for e in listed if (e.variant, e.members) == (variant, one.members)), None)
            known = other is not None and other.label in found[one.label]
            if known and other is not None:
                flop = other.about["flop_per_step"]
                gflops = other.median * flop / 1e9
                cells.append(f"{found[one.label][other.label]['ratio']:.1%} of {gflops:.0f} GFLOP/s")
            else:
                cells.append("")
        if any(cells):
            rows.append([f"{words} ({flop / 1000:.1f} kFLOP a step)", *cells])
    if not rows:
        return ""
    return (
        "pglab's fraction of the roofline, the products and tanh alone (benchmarks/roofline.py).\n\n"
        + reporting.table(["roofline", *found], rows)
    )


def section(work: str, listed: Sequence[Entry]) -> str:
    """One work's part of the page."""
    parts = [f"## {TITLES[work]}", result_table(work, listed), ratio_table(listed), roofline_table(listed), NOTES[work]]
    return "\n\n".join(part for part in parts if part)


def launches(listed: Sequence[Entry], measured: bool) -> tuple[dict[str, Any], str]:
    """What pglab's contestants on a GPU launch, and how busy the device is; found in processes of their own, and as a part of
    the page."""
    found: dict[str, Any] = {}
    rows = []
    for entry in listed:
        if entry.kind != "pglab":
            continue
        row = ["not yet measured", "", ""]
        if measured:
            words = entry.command[entry.command.index("a2c") + 1 :]
            command = [sys.executable, str(HERE / "launches.py"), *words]
            say(f"{entry.label}: counting launches")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["it stopped without a word"])[-1]
                found[entry.label] = {"failure": reason}
                row = [textwrap.shorten(f"not measured: {reason}", 120), "", ""]
            else:
                one = found[entry.label] = json.loads(done.stdout.splitlines()[-1])
                row = [
                    f"{one['launches_per_update']:,.1f}",
                    f"{one['device_operations_per_update']:,.1f}",
                    f"{one['busy']:.0%}",
                ]
        rows.append([entry.label, *row])
    head = ["", "launches per update", "device operations per update", "device busy"]
    text = "Launches by the host and what the device does, while torch's profiler watches (benchmarks/launches.py).\n\n"
    return found, text + reporting.table(head, rows)


def profiled(work: str, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Where pglab's time goes, found in a process of its own, and as a part of the page."""
    command = [sys.executable, str(HERE / "profiling.py"), "--raw", "--work", work, "--seconds", str(options.seconds)]
    command += ["--members", *map(str, MEMBERS[work]), *given(options)]
    say(f"{work}: looking where the time goes")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    title = f"## Where pglab's time goes: {TITLES[work]}"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it stopped without a word"])[-1]
        return {"failure": reason}, f"{title}\n\nNot measured: {reason}"
    found = json.loads(done.stdout.splitlines()[-1])
    return found, f"{title}\n\n{profiling.page(found)}"


def has_gpu() -> bool:
    """Whether torch can use a CUDA device."""
    import torch

    return torch.cuda.is_available()


def _works(text: str) -> list[str]:
    named = text.split(",")
    if unknown := set(named) - set(WORKS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose of {', '.join(WORKS)}")
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=_works, default=list(WORKS), help="a2c, sac or both, by commas (default: a2c,sac)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="slices of each contestant (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each slice (default: 4)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--executor", help="pglab's `executor` setting (default: pglab's own)")
    parser.add_argument("--threads", type=int, help="pglab's `threads` setting (default: pglab's own)")
    parser.add_argument("--only", nargs="+", help="only contestants whose label holds one of these, in any case")
    parser.add_argument("--profile", action="store_true", help="show where pglab's time goes too (on the CPU)")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    options = parser.parse_args()

    gpu, load = has_gpu(), os.getloadavg()[0]
    record = reporting.provenance() | {
        "load_average_before": load,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    works = ["gpu"] if options.device == "cuda" else options.work
    sections: list[str] = []
    peer_versions: dict[str, str] | None = None
    others: list[float] = []
    for work in works:
        listed = entries(work, options)
        if options.only:
            listed = [e for e in listed if any(part.lower() in e.label.lower() for part in options.only)]
        if work != "gpu" or gpu:
            measure(listed, options.rounds, options.seconds)
        peer_versions = next((e.about["versions"] for e in listed if "versions" in e.about), peer_versions)
        others += [one.others for e in listed for one in e.slices if one.others is not None]
        record[work] = {"title": TITLES[work], "unit": UNITS[work], "ratios": ratios(listed)}
        record[work]["contestants"] = {e.label: e.record() for e in listed}
        sections.append(section(work, listed))
        if work == "gpu":
            record[work]["launches"], text = launches(listed, gpu)
            sections.append(text)
    if "gpu" not in works and not gpu:
        listed = entries("gpu", options)
        sections += [section("gpu", listed), launches(listed, measured=False)[1]]
    if options.profile and options.device == "cpu":
        record["profile"] = {}
        for work in works:
            record["profile"][work], text = profiled(work, options)
            sections.append(text)

    record["peer_versions"] = peer_versions
    head = reporting.origin(record)
    if peer_versions:
        head += "\nPeer: " + ", ".join(f"{name} {version}" for name, version in peer_versions.items()) + "."
    head += f"\nSlices of {options.seconds:g} s, {options.rounds} rounds. Load average before the run {load:.2f}"
    if others:
        mean = statistics.mean(others)
        head += f"; other programs used {mean:.2f} cores in the mean of all slices, {max(others):.2f} in the worst"
        if mean > DISTURBED:
            head += ". **That is too much: these figures are not to be relied on**"
    head += "."
    page = "\n\n".join(["# Throughput", head, *sections]) + "\n"
    print(page)
    for path, text in ((options.markdown, page), (options.json, json.dumps(record, indent=2) + "\n")):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
