"""What a report holds, as plain objects: the page, the Markdown, the JSON and the tables of pandas are all made of these."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Curve:
    """One variant's returns over its seeds, along steps or time."""

    x: np.ndarray
    iqm: np.ndarray
    low: np.ndarray
    """25th percentile of the seeds."""
    high: np.ndarray
    """75th percentile of the seeds."""


@dataclass
class Noise:
    """Noise of one training-size gradient, all seeds as one."""

    stage: str
    step: float
    nsr: float
    low: float
    high: float


@dataclass
class VariantResult:
    """One line of a group's table."""

    name: str
    folders: list[str]
    seeds: list[str]
    finished: bool
    steps: float | None
    """Environment steps per seed at the last evaluation."""
    total_steps: int | None
    scores: list[float]
    """Each seed's mean return at the last evaluation."""
    iqm: float
    interval: tuple[float, float]
    worst: float
    areas: list[float]
    """Each seed's area under the curve, to the group's `until`."""
    area: float
    area_interval: tuple[float, float]
    steps_to_threshold: float
    """Median over seeds; infinite where half of them never get there."""
    reached: int
    seconds: float | None
    """Wall time of its runs together."""
    curve: Curve | None = None
    """Evaluations by environment steps."""
    time_curve: Curve | None = None
    """Evaluations by seconds."""
    training_curve: Curve | None = None
    """Mean return of training episodes by environment steps."""
    noise: list[Noise] = field(default_factory=list)


@dataclass
class Improvement:
    """P(better > worse): how often a seed of one variant ends above a seed of another."""

    better: str
    than: str
    probability: float
    low: float
    high: float


@dataclass
class VarianceResult:
    """A measurement of `pglab variance`: every pair of estimator and baseline at one frozen policy."""

    title: str
    definition: str
    pairs: list[dict[str, Any]]
    """`pair`, and `nsr`, `bias`, `mse`, `cosine` as (value, low, high), or None."""
    to: str
    """What bias and MSE are distances to."""


@dataclass
class GroupResult:
    """Variants that may be ranked against one another."""

    title: str
    threshold: float | None
    until: float | None
    """Environment steps to which areas are taken."""
    variants: list[VariantResult]
    improvements: list[Improvement]
    differ: dict[str, dict[str, str]]
    common: dict[str, str]
    notes: list[str]
    finding: str
    """What came out, in a sentence."""


@dataclass
class Section:
    """One environment."""

    environment: str
    groups: list[GroupResult]
    variance: list[VarianceResult] = field(default_factory=list)


@dataclass
class Origin:
    """Where one run came from, and what is missing of it."""

    folder: str
    environment: str
    finished: bool
    command: str | None
    commit: str | None
    dirty: bool | None
    versions: str
    problems: list[str]


@dataclass
class Report:
    """A whole report; `folder` holds its files when it was written."""

    title: str
    sources: list[str]
    summary: str
    sections: list[Section]
    origins: list[Origin]
    problems: list[tuple[str, str]]
    """(what, sentence) of things that are not one run's."""
    folder: Path | None = None

    def plain(self) -> dict[str, Any]:
        """Everything, as `report.json` holds it."""
        found = asdict(self)
        found.pop("folder")
        return {"kind": "pglab report", "version": 1, **found}

    def rows(self, table: str = "scores") -> list[dict[str, Any]]:
        """A table as mappings: `scores` (a row per seed), `variants`, `curves` (a row per point), `improvements`, `noise` or
        `variance`. Raises PglabError for another name."""
        from pglab.reporting.notebook import report_rows

        return report_rows(self, table)

    def to_pandas(self, table: str = "scores") -> Any:
        """`rows(table)` as a DataFrame. Raises PglabError where pandas is not installed."""
        from pglab.reporting.notebook import frame

        return frame(self.rows(table))

    def _repr_html_(self) -> str:
        from pglab.reporting.page import fragment

        return fragment(self)
