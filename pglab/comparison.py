"""Comparing variants: groups of configs that differ in estimator or baseline, trained on the same seeds.

A comparison file is a mapping with `name`, `threshold`, optionally `seeds`, and `groups`; a group has a `title`, a `base`
config and `variants`, each a mapping laid on the base. Groups are never ranked against one another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pglab.config import Config, merge, override
from pglab.errors import PglabError
from pglab.lab.statistics import iqm, steps_to_threshold, stratified_bootstrap_interval
from pglab.registry import Strict, first_error

TUNING_SEEDS = 10_000  # tuning takes seeds from here on, so that no reported seed was tuned on


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
    final_episodes: int = 20
    """Episodes per seed of the final evaluation, from which the table's returns come."""
    groups: dict[str, Group]
    """Name -> group."""

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
            from pglab.errors import unknown

            raise unknown("variant", wanted, known)
    kept = [v for v in found if not only or {v.key, v.name, v.group} & set(only)]
    for variant in kept:
        variant.config()
    return kept


# -- results


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
    steps, curve = curve_of(results)
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


def pooled_nsr(measurement: Mapping[str, Any]) -> dict[str, float]:
    """The seeds' noise-to-signal ratios as one: mean trace variance / mean squared norm over seeds, so that a seed whose
    signal is not told from zero does not decide it; the interval is the bootstrap over seeds of that ratio."""
    trace = np.asarray(measurement["trace_variance"], dtype=np.float64)  # [P]
    signal = np.asarray(measurement["squared_norm"], dtype=np.float64)
    rng = np.random.default_rng(np.random.SeedSequence(0))
    index = rng.integers(len(trace), size=(2000, len(trace)))

    def ratio(t: np.ndarray, s: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(s > 0, t / s, np.inf)

    drawn = np.sort(ratio(trace[index].mean(1), signal[index].mean(1)))
    low, high = drawn[round(0.025 * (len(drawn) - 1))], drawn[round(0.975 * (len(drawn) - 1))]
    point = ratio(trace.mean(keepdims=True), signal.mean(keepdims=True))[0]
    return {"nsr": float(point), "low": float(low), "high": float(high), "trace_variance": float(trace.mean())}


# -- training all variants


@dataclass
class Job:
    """One variant's training, in a form that another process can take."""

    key: str
    data: dict[str, Any]
    folder: str
    command: str
    plugins: list[str]
    resume: bool = False
    tune: dict[str, list[float]] = field(default_factory=dict)


Report = Callable[[tuple[Any, ...]], None]


def run_job(job: Job, report: Report) -> str:
    """Train one variant (after tuning it, where a grid is given) and write its folder. Returns `done` or `stopped`."""
    from pglab.registry import load_plugin
    from pglab.training import Watcher, resume, train

    for plugin in job.plugins:
        load_plugin(plugin)
    watcher = Watcher(
        progress=lambda *state: report(("progress", job.key, *state)), note=lambda text: report(("note", job.key, text))
    )
    if job.resume:
        trained = resume(job.folder, watcher)
        return "done" if trained.finished else "stopped"
    data, chosen = job.data, {}
    if job.tune:
        chosen = tune(job, watcher)
        for path, value in chosen.items():
            data = override(data, path, value)
    trained = train(data, job.folder, job.command, watcher, variant=job.key.replace("/", "-"))
    if trained.finished and chosen:
        from pglab.tracking import RunFolder

        folder = RunFolder.open(job.folder)
        folder.write_results({**trained.results(), "chosen": chosen, "grid": job.tune})
    return "done" if trained.finished else "stopped"


def tune(job: Job, watcher: Any) -> dict[str, float]:
    """The grid's best combination by IQM over tuning seeds (as many as are reported, but others) at the end of training."""
    from pglab.training import train

    config = Config.read(job.data)
    seeds = [TUNING_SEEDS + i for i in range(len(config.seed_list))]
    data = override(job.data, "seeds", seeds)
    data = override(data, "measurement.at", [])
    for path, values in job.tune.items():
        data = override(data, path, values)
    trained = train(data, watcher=watcher)
    if not trained.finished:
        raise KeyboardInterrupt
    final = np.mean(trained.evaluations[-1]["returns"], axis=1)  # [P]
    scores: dict[tuple[tuple[str, float], ...], list[float]] = {}
    for member, score in zip(trained.members, final.tolist(), strict=True):
        setting = tuple((path, member[path]) for path in job.tune if path in member)
        scores.setdefault(setting, []).append(score)
    best = max(scores, key=lambda setting: float(iqm(np.array(scores[setting]))))
    watcher.note(f"tuned: {', '.join(f'{k}={v:g}' for k, v in best)} (IQM {float(iqm(np.array(scores[best]))):.1f})")
    return dict(best)


def folder_of(root: Path, variant: Variant) -> Path:
    return root / variant.group / variant.name


def now() -> float:
    return time.perf_counter()
