"""Comparing variants: groups of configs that differ in estimator or baseline, trained on the same seeds.

A comparison file is a mapping with `name`, `threshold`, optionally `seeds`, and `groups`; a group has a `title`, a `base`
config and `variants`, each a mapping laid on the base. Groups are never ranked against one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError, model_validator

from pglab.config import Config, merge, override
from pglab.errors import PglabError, unknown
from pglab.lab.statistics import iqm, pooled_nsr, steps_to_threshold, stratified_bootstrap_interval
from pglab.lab.tables import Column
from pglab.population import swept_fields
from pglab.registry import Strict, first_error
from pglab.tracking.run_folder import path_name


class Group(Strict):
    """Variants that may be ranked against one another."""

    title: str = ""
    """What the variants share, in a few words."""
    base: dict[str, Any] = {}
    """Settings of all variants."""
    variants: dict[str, dict[str, Any]]
    """Name -> settings laid on the base."""


class ComparisonConfig(Strict):
    """A whole comparison."""

    name: str
    """Names the folder."""
    threshold: float | None = None
    """The return that counts as solved."""
    groups: dict[str, Group]
    """Name -> group."""
    tune: dict[str, list[float]] = {}
    """Field -> grid: every variant is tuned on seeds of its own before it is reported."""

    @model_validator(mode="after")
    def _names(self) -> ComparisonConfig:
        for name in [self.name, *self.groups, *(v for group in self.groups.values() for v in group.variants)]:
            try:
                path_name(name)
            except PglabError as error:
                raise ValueError(str(error)) from None
        return self

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str) -> ComparisonConfig:
        """From a file's mapping; PglabError on the first thing that is wrong."""
        try:
            return cls(**data)
        except ValidationError as error:
            raise PglabError(f"{where}: {first_error(error)}") from None


@dataclass(frozen=True)
class Variant:
    """One line of the table before it is trained."""

    group: str
    name: str
    data: dict[str, Any]

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}"

    def config(self) -> Config:
        return Config.read(self.data, where=f"variant {self.key}")


def variants_of(comparison: ComparisonConfig, overrides: list[tuple[str, Any]], only: list[str]) -> list[Variant]:
    """The comparison's variants with command-line overrides laid on each, in order; `only` keeps those whose name,
    group or group/name it lists. Raises PglabError for a name that is not there, and for configs that do not hold."""
    found = []
    for group_name, group in comparison.groups.items():
        for name, own in group.variants.items():
            data = merge(group.base, own)
            for path, value in overrides:
                data = override(data, path, value)
            found.append(Variant(group_name, name, data))
    known = {v.key for v in found} | {v.name for v in found} | {v.group for v in found}
    for wanted in only:
        if wanted not in known:
            raise unknown("variant", wanted, known)
    kept = [v for v in found if not only or {v.key, v.name, v.group} & set(only)]
    for variant in kept:
        for path, values in swept_fields(variant.config()).items():
            if len(values) > 1:
                raise PglabError(
                    f"variant {variant.key}: {path} has {len(values)} values; a line of a comparison has one. Tune it "
                    f"(--tune {path}=[...]), or make a variant of each value."
                )
    return kept


@dataclass
class Row:
    """One variant's line of the table."""

    group: str
    variant: str
    iqm: float
    interval: tuple[float, float]
    worst: float
    steps_to_threshold: float
    reached: int
    seeds: int
    seconds: float
    steps_per_second: float
    nsr: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    grid: dict[str, list[float]] = field(default_factory=dict)


def summarise(variant: Variant, results: Mapping[str, Any], threshold: float | None) -> Row:
    """The line of one trained variant from its `results.json`."""
    final = results["evaluations"][-1]
    returns = np.asarray(final["returns"], dtype=np.float64)  # [P, E]
    scores = returns.mean(1)
    _, curve = curve_of(results)
    reached = np.full(len(scores), np.inf)
    if threshold is not None:
        for p in range(len(scores)):
            own = np.array([e["steps"][p] for e in results["evaluations"]], dtype=np.float64)
            reached[p] = steps_to_threshold(own, curve[:, p : p + 1], threshold)[0]
    seconds = results["seconds"]
    trained = float(np.sum(final["steps"]))
    found = Row(
        group=variant.group,
        variant=variant.name,
        iqm=float(iqm(scores)),
        interval=stratified_bootstrap_interval(scores),
        worst=float(scores.min()),
        steps_to_threshold=float(np.median(reached)) if threshold is not None else float("nan"),
        reached=int(np.isfinite(reached).sum()),
        seeds=len(scores),
        seconds=seconds["total"],
        steps_per_second=trained / max(seconds["training"], 1e-9),
        chosen=results.get("chosen", {}),
        grid=results.get("grid", {}),
    )
    for m in results["measurements"]:
        found.nsr[m["stage"]] = pooled_nsr(m)["nsr"]
    return found


def curve_of(results: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean environment steps `[n]` and evaluation returns `[n, P]`."""
    evaluations = results["evaluations"]
    steps = np.array([np.mean(e["steps"]) for e in evaluations])
    return steps, np.array([np.mean(e["returns"], axis=1) for e in evaluations])


COLUMNS = (
    Column("variant"),
    Column("iqm", "IQM", ".1f"),
    Column("interval", "95 % interval", ".0f"),
    Column("worst", "worst", ".0f"),
    Column("steps_to_threshold", "steps to threshold", ",.0f"),
    Column("reached", "seeds there"),
    Column("seconds", "wall s", ".0f"),
    Column("steps_per_second", "steps/s", ",.0f"),
    Column("nsr_start", "NSR start"),
    Column("nsr_middle", "NSR middle"),
    Column("nsr_end", "NSR end"),
    Column("chosen", "tuned"),
)

CAPTION = (
    "IQM: interquartile mean over seeds of the last evaluation's return, with a 95 % stratified-bootstrap interval; worst: "
    "the worst seed's mean return; steps to threshold: median over seeds of the environment steps at the first evaluation "
    "at or above the threshold; steps/s: environment steps trained per second, all seeds together; NSR: noise-to-signal "
    "ratio of one training-size gradient (trace of its covariance / squared norm of its mean, pooled over seeds)."
)


def cells(row: Row) -> dict[str, Any]:
    """A row as the table's columns read it."""
    found: dict[str, Any] = {c.key: getattr(row, c.key, None) for c in COLUMNS}
    found |= {f"nsr_{stage}": row.nsr.get(stage) for stage in ("start", "middle", "end")}
    found["reached"] = f"{row.reached}/{row.seeds}"
    chosen = [f"{path}={value:g} of {row.grid.get(path, [])}" for path, value in row.chosen.items()]
    found["chosen"] = ", ".join(chosen) or None
    return found


def columns_of(rows: list[Row]) -> list[Column]:
    """The columns that say something for these rows."""
    shown = [cells(row) for row in rows]
    return [c for c in COLUMNS if any(r[c.key] is not None for r in shown)]
