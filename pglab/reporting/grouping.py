"""Which members are one variant, and which variants may be compared: the report's sections, groups and lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pglab.reporting.finding import Comparison, Found
from pglab.reporting.runs import Run
from pglab.reporting.text import flattened, shown, shown_setting

PLACE = ("seeds", "device", "threads", "executor", "checkpoint", "snapshots", "plugins", "env.vectorization")
"""Settings that say which agents, or how they are computed and kept, but not what is trained."""


@dataclass
class Part:
    """Members of one run."""

    run: Run
    members: list[int]


@dataclass
class Line:
    """A variant: all members that differ in the seed only, of one run or of several."""

    name: str
    parts: list[Part]
    order: int = 0

    @property
    def runs(self) -> list[Run]:
        return [part.run for part in self.parts]

    @property
    def seeds(self) -> list[str]:
        return [part.run.members[i].name for part in self.parts for i in part.members]


@dataclass
class Together:
    """Variants that may be ranked against one another."""

    environment: str
    title: str
    threshold: float | None = None
    lines: list[Line] = field(default_factory=list)


def grouped(found: Found) -> list[Together]:
    """The groups, by environment in the order they were found: those of each comparison, then the other runs by agent."""
    groups: dict[tuple[str, str, str], Together] = {}
    for run in found.runs:
        comparison = found.of.get(run.path)
        if comparison is not None:
            group = run.path.resolve().parent.name
            key = (run.environment, str(comparison.path.resolve()), group)
            title = comparison.titles.get(group, shown(group, 100))
            made = groups.setdefault(key, Together(run.environment, title, comparison.threshold))
        else:
            key = (run.environment, "", run.agent)
            made = groups.setdefault(key, Together(run.environment, f"Agent {run.agent}"))
        made.lines += _lines(run, comparison)
    kept = list(groups.items())
    # A comparison's groups in its file's order, the others as they were found.
    places = {str(c.path.resolve()): list(c.titles) for c in found.of.values()}
    firsts = {key[1]: i for i, (key, _) in reversed(list(enumerate(kept)))}

    def place(item: tuple[tuple[str, str, str], Together]) -> tuple[int, int]:
        _, where, group = item[0]
        order = places.get(where, [])
        return firsts[where], order.index(group) if group in order else len(order)

    kept.sort(key=place)
    several = len({key[1] for key, _ in kept if key[1]}) > 1
    for key, made in kept:
        if several and key[1]:
            # Groups of two comparisons may have one title.
            made.title += f" · {shown(key[1].rsplit('/', 1)[-1], 100)}"
        made.lines = _named_apart(_pooled(made.lines))
        made.lines.sort(key=lambda line: line.order)
    environments = list(dict.fromkeys(key[0] for key, _ in kept))
    return [made for env in environments for key, made in kept if key[0] == env]


def _lines(run: Run, comparison: Comparison | None) -> list[Line]:
    """A line for every setting of the run's members."""
    here = run.path.resolve()
    name, order = _stem(here.name), 0
    if comparison is not None:
        name, key = here.name, (here.parent.name, here.name)
        order = comparison.order.index(key) if key in comparison.order else len(comparison.order)
    settings = dict.fromkeys(m.setting for m in run.members) or {"": None}
    return [
        Line(
            ", ".join(filter(None, [shown(name, 120), shown(setting, 120)])),
            [Part(run, [i for i, m in enumerate(run.members) if m.setting == setting])],
            order,
        )
        for setting in settings
    ]


def _stem(name: str) -> str:
    """A run folder's name without its date."""
    return re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", name) or name


def _pooled(lines: list[Line]) -> list[Line]:
    """Lines of equal settings and different seeds as one."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        run, members = line.runs[0], line.seeds
        same = f"{_identity(run)}|{run.members[line.parts[0].members[0]].setting if members else ''}"
        # A damaged config says nothing about equality, and one seed twice is a repetition, not a further seed.
        for other in found.get(same, []) if run.config and members else []:
            if not set(other.seeds) & set(members):
                other.parts += line.parts
                break
        else:
            found.setdefault(same if run.config else f"{id(line)}", []).append(line)
    kept = {id(line) for several in found.values() for line in several}
    return [line for line in lines if id(line) in kept]


def _identity(run: Run) -> str:
    plain = {k: v for k, v in flattened(run.config).items() if not any(k == p or k.startswith(f"{p}.") for p in PLACE)}
    return "|".join(f"{k}={shown_setting(v, 2000)}" for k, v in sorted(plain.items()))


def _named_apart(lines: list[Line]) -> list[Line]:
    """Lines whose names are equal get their folder's whole name, and else a number."""
    for rename in (lambda line, _: shown(line.runs[0].path.resolve().name, 120), lambda line, i: f"{line.name} ({i})"):
        names = [line.name for line in lines]
        for i, line in enumerate(lines):
            if names.count(line.name) > 1 and names[i] == line.name:
                setting = _setting(line)
                line.name = rename(line, names[: i + 1].count(names[i]))
                if setting and setting not in line.name:
                    line.name += f", {setting}"
    return lines


def _setting(line: Line) -> str:
    part = line.parts[0]
    return shown(part.run.members[part.members[0]].setting, 120) if part.members else ""


def settings_of(lines: Sequence[Line]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Settings that differ, name -> variant -> value, and those that are the same in all, name -> value."""
    values: dict[str, dict[str, str]] = {}
    for line in lines:
        for run in line.runs:
            for name, value in flattened(run.config).items():
                mine = values.setdefault(name, {})
                text = shown_setting(value)
                before = mine.get(line.name)
                mine[line.name] = text if before is None or text in before.split("; ") else f"{before}; {text}"
    every = {line.name for line in lines if any(run.config for run in line.runs)}
    differ = {k: v for k, v in values.items() if len(set(v.values())) > 1 or set(v) != every}
    return differ, {k: next(iter(v.values())) for k, v in values.items() if k not in differ}


def stacked(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Curves (x `[n]`, values `[n, P]`) of several runs on one axis: as they are where they agree, else interpolated to the
    points of the first within what all cover."""
    first = parts[0][0]
    if all(len(x) == len(first) and np.array_equal(x, first) for x, _ in parts):
        return first, np.concatenate([v for _, v in parts], axis=1)
    low, high = max(x[0] for x, _ in parts), min(x[-1] for x, _ in parts)
    grid = np.unique(np.clip(first, low, high)) if low <= high else first[:0]
    columns = [np.interp(grid, x, column) for x, values in parts for column in values.T]
    return grid, np.stack(columns, axis=1)
