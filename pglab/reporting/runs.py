"""One run folder as the report reads it: whatever of it is there, and a sentence for whatever is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pglab.reporting.files import MOST_STEPS, Columns, Damaged, json_of, log_of, text_of, yaml_of
from pglab.reporting.text import shown
from pglab.tracking.log import EVERYONE
from pglab.tracking.tracker import MemberLabel

TAGS = {
    "eval/return",
    "charts/episodic_return",
    "charts/steps",
    "charts/SPS",
    "gradient/trace_variance",
    "gradient/squared_norm",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """One agent of the population."""

    name: str
    setting: str
    """Its swept values, `learning_rate=0.001`; empty without a sweep."""


@dataclass
class Points:
    """Returns along training."""

    steps: np.ndarray
    """`[n, P]`, environment steps of each member."""
    returns: np.ndarray
    """`[n, P]`; NaN where a member has none."""


@dataclass
class Stage:
    """A measurement of the gradient's noise during training."""

    stage: str
    step: float
    trace: np.ndarray
    """`[P]`: trace of the covariance."""
    squared_norm: np.ndarray
    """`[P]`."""


@dataclass
class Clock:
    """Wall time along training: of all members together, evaluations and measurements included."""

    steps: np.ndarray
    """`[k]`: mean steps of the members at each log line, from 0."""
    seconds: np.ndarray
    """`[k]`: since the start."""

    def at(self, steps: np.ndarray) -> np.ndarray:
        """Seconds at so many steps."""
        return np.interp(steps, self.steps, self.seconds)


@dataclass
class Run:
    """A run folder."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    evaluations: Points | None = None
    training: Points | None = None
    clock: Clock | None = None
    no_clock: str = ""
    """Why there is no clock."""
    stages: list[Stage] = field(default_factory=list)
    seconds: float | None = None
    finished: bool = False
    command: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    variance: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def environment(self) -> str:
        env = self.config.get("env")
        found = env.get("id") if isinstance(env, dict) else None
        return shown(found, 100) if isinstance(found, str) and found else "unknown environment"

    @property
    def agent(self) -> str:
        agent = self.config.get("agent")
        found = agent.get("name") if isinstance(agent, dict) else agent
        return shown(found, 60) if isinstance(found, str) else "unknown agent"

    @property
    def total_steps(self) -> int | None:
        found = self.config.get("total_steps")
        return found if isinstance(found, int) and 0 < found < 2**53 else None


def read_run(path: Path) -> Run:
    """Everything the report wants of the folder. Never raises for what is in it; `problems` says what is missing."""
    run = Run(path)

    def attempt(name: str, reader: Callable[[], T | None]) -> T | None:
        try:
            return reader()
        except Damaged as error:
            run.problems.append(f"{name} is damaged: {error}.")
            return None

    config = attempt("config.yaml", lambda: yaml_of(path, "config.yaml"))
    if config is None and not run.problems:
        run.problems.append("It has no config.yaml.")
    run.config = config or {}
    results = attempt("results.json", lambda: json_of(path, "results.json"))
    if results is None and not any(p.startswith("results.json") for p in run.problems):
        run.problems.append("It has no results.json: it is not finished, or failed.")
    if results is not None:
        attempt("results.json", lambda: _take_results(run, results))
    log = attempt("log.csv", lambda: log_of(path, TAGS))
    if log is None and not any(p.startswith("log.csv") for p in run.problems):
        run.problems.append("It has no log.csv.")
    if log is not None:
        _take_log(run, *log)
    else:
        run.no_clock = "there is no readable log.csv"
    run.command = attempt("command.txt", lambda: text_of(path, "command.txt"))
    run.versions = attempt("versions.json", lambda: json_of(path, "versions.json")) or {}
    run.git = attempt("git.json", lambda: json_of(path, "git.json")) or {}
    run.variance = attempt("variance/report.json", lambda: json_of(path, "variance/report.json"))
    return run


def _take_results(run: Run, results: dict[str, Any]) -> None:
    """Evaluations and measurements of `results.json`. Raises Damaged where they do not fit together."""
    try:
        members = [_member(m) for m in results["members"]]
        count = len(members)
        steps = [_counts(e["steps"], (count,)) for e in results["evaluations"]]
        returns = [_numbers(e["returns"], (count, -1)) for e in results["evaluations"]]
        stages = [
            Stage(
                shown(m["stage"], 40),
                float(_counts(m["step"], ())),
                _numbers(m["trace_variance"], (count,)),
                _numbers(m["squared_norm"], (count,)),
            )
            for m in results.get("measurements", [])
        ]
        seconds = results.get("seconds", {}).get("total")
        run.seconds = None if seconds is None else float(seconds)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Damaged("its members, evaluations or measurements are not as pglab writes them") from error
    if len({m.name for m in members}) < count:
        raise Damaged("two of its members have one name")
    run.members, run.stages = members, stages
    if steps and count:
        run.evaluations = Points(np.array(steps), np.array([r.mean(1) for r in returns]))
    run.finished = results.get("finished") is True


def _member(found: dict[str, Any]) -> Member:
    swept = {shown(key, 60): float(value) for key, value in found.items() if key != "seed"}
    label = MemberLabel(int(found["seed"]), swept)
    return Member(label.name, label.setting)


def _numbers(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as float64 of this shape, -1 being any size but 0. Raises ValueError or TypeError."""
    found = np.asarray(value, dtype=np.float64)
    if found.ndim != len(shape) or any(
        n == 0 or want not in (-1, n) for n, want in zip(found.shape, shape, strict=True)
    ):
        raise ValueError("shape")
    return found


def _counts(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`_numbers` that can be numbers of steps."""
    found = _numbers(value, shape)
    if not ((found >= 0) & (found <= MOST_STEPS)).all():
        raise ValueError("steps")
    return found


def _take_log(run: Run, columns: Columns, bad: int) -> None:
    """What `log.csv` adds: all of it where there are no results, else training returns and the clock."""
    if bad:
        run.problems.append(f"log.csv has {bad:,} line{'s' if bad > 1 else ''} that cannot be read and are left out.")
    if not run.members:
        tags = ("eval/return", "charts/steps", "charts/episodic_return")
        logged = dict.fromkeys(member for tag in tags for member in columns.get(tag, {}))
        run.members = [_named(name) for name in logged if name != EVERYONE]
    names = [m.name for m in run.members]
    training = _table(columns.get("charts/episodic_return", {}), names)
    run.training = None if training is None else Points(*training)
    if run.evaluations is None:
        found = _table(columns.get("eval/return", {}), names)
        run.evaluations = None if found is None else Points(*found)
        run.stages = _logged_stages(columns, names)
    if not columns.get("charts/episodic_return") and not columns.get("eval/return"):
        run.problems.append("log.csv has no returns.")
    run.clock, run.no_clock = _clock(columns, names)


def _named(name: str) -> Member:
    match = re.fullmatch(r"seed-?\d+(?:_(.*))?", name)
    return Member(name, (match[1] or "") if match else name)


def _table(found: dict[str, tuple[list[float], list[float]]], names: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps `[n, P]` and values `[n, P]`: a row for every step at which any member has a value."""
    known = {name: found[name] for name in names if name in found}
    if not known:
        return None
    steps = np.unique(np.concatenate([np.asarray(s) for s, _ in known.values()]))
    values = np.full((len(steps), len(names)), np.nan)
    for i, name in enumerate(names):
        if name in known:
            values[np.searchsorted(steps, known[name][0]), i] = known[name][1]
    return np.repeat(steps[:, None], len(names), axis=1), values


def _logged_stages(columns: Columns, names: list[str]) -> list[Stage]:
    trace = _table(columns.get("gradient/trace_variance", {}), names)
    norm = _table(columns.get("gradient/squared_norm", {}), names)
    if trace is None or norm is None or not np.array_equal(trace[0], norm[0]):
        return []
    at = trace[0][:, 0]
    return [
        Stage(f"step {s:,.0f}", float(s), t, n)
        for s, t, n in zip(at, trace[1], norm[1], strict=True)
        if not (np.isnan(t).any() or np.isnan(n).any())
    ]


def _clock(columns: Columns, names: list[str]) -> tuple[Clock | None, str]:
    """Wall time of each log line, and else why there is none.

    `charts/SPS` is the steps of all members since the log line before over the seconds since then, so the seconds are the
    growth of the summed `charts/steps` over it. Evaluations and measurements in between are included; the time that an
    interrupted run stood still is not.
    """
    rate = columns.get("charts/SPS", {}).get(EVERYONE)
    steps = _table(columns.get("charts/steps", {}), names)
    if rate is None or steps is None:
        return None, "log.csv has no charts/SPS and charts/steps"
    lines, total = steps[0][:, 0], steps[1].sum(1)
    if not np.array_equal(np.asarray(rate[0]), lines) or np.isnan(total).any():
        return None, "charts/SPS or charts/steps is missing on some lines of log.csv"
    gained, speed = np.diff(total, prepend=0.0), np.asarray(rate[1])
    if not (np.isfinite(speed).all() and (speed > 0).all() and (gained >= 0).all()):
        return None, "charts/SPS is not positive, or charts/steps falls, on some lines of log.csv"
    seconds = np.cumsum(gained / speed)
    return Clock(np.r_[0.0, lines], np.r_[0.0, seconds]), ""
