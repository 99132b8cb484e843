"""From run folders to the report's numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pglab.lab.statistics import iqm, steps_to_threshold, stratified_bootstrap_interval
from pglab.reporting.files import name_of
from pglab.reporting.finding import Found, find
from pglab.reporting.grouping import Line, Together, grouped, settings_of, stacked
from pglab.reporting.model import Curve, GroupResult, Improvement, Origin, Report, Section, VariantResult
from pglab.reporting.noise import noise_of, variance_of
from pglab.reporting.runs import Run
from pglab.reporting.scores import area_under_curve, band, horizon, probability_of_improvement
from pglab.reporting.text import shown

MATRIX = 8
"""Finished variants up to which all pairs are compared; of more, each against the first."""


def build(sources: Sequence[str | os.PathLike[str]], title: str | None = None) -> Report:
    """Read the sources and work out everything that is shown. Raises PglabError where there is nothing to read."""
    sections: dict[str, Section] = {}
    with np.errstate(all="ignore"):  # a run that diverged has returns that are infinite or not there
        found = find(sources)
        for together in grouped(found):
            section = sections.setdefault(together.environment, Section(together.environment, []))
            section.groups.append(_group(together))
        _add_variance(found, sections)
    names = [shown(Path(s).resolve().name or "runs", 80) for s in sources]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Report(
        title=shown(title, 120) if title else " and ".join(names[:3]) + more,
        sources=[name_of(Path(s)) for s in sources],
        summary=_summary(found, sections),
        sections=list(sections.values()),
        origins=[_origin(run) for run in found.runs],
        problems=found.problems,
    )


def _summary(found: Found, sections: dict[str, Section]) -> str:
    runs, variants = len(found.runs), sum(len(g.variants) for s in sections.values() for g in s.groups)
    agents, finished = sum(len(run.members) for run in found.runs), sum(run.finished for run in found.runs)
    parts = [
        _count(runs, "run"),
        _count(variants, "variant"),
        _count(agents, "agent"),
        _count(len(sections), "environment"),
    ]
    state = "" if not runs else "; all finished" if finished == runs else f"; {finished} of {runs} runs finished"
    return f"{', '.join(parts)}{state}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _origin(run: Run) -> Origin:
    commit, dirty = run.git.get("commit"), run.git.get("dirty")
    versions = ", ".join(f"{shown(k, 60)} {shown(v, 120)}" for k, v in run.versions.items() if v is not None)
    return Origin(
        folder=name_of(run.path),
        environment=run.environment,
        finished=run.finished,
        command=None if run.command is None else shown(run.command, 1000),
        commit=None if commit is None else shown(commit, 80),
        dirty=dirty if isinstance(dirty, bool) else None,
        versions=versions[:2000],
        problems=run.problems,
    )


def _add_variance(found: Found, sections: dict[str, Section]) -> None:
    reports = [(run.path, run.variance, run.problems) for run in found.runs if run.variance is not None]
    for path, data, problems in reports:
        measured, bad = variance_of(data, name_of(Path(path.name)))
        if bad:
            problems.append("variance/report.json is damaged: some of its measurements are not as pglab writes them.")
        for environment, result in measured:
            sections.setdefault(environment, Section(environment, [])).variance.append(result)
    for path, data in found.measurements:
        measured, bad = variance_of(data, name_of(Path(path.name)))
        if bad:
            found.problems.append(
                (name_of(path), "report.json is damaged: some measurements are not as pglab writes them.")
            )
        for environment, result in measured:
            sections.setdefault(environment, Section(environment, [])).variance.append(result)


def _group(together: Together) -> GroupResult:
    lines = together.lines
    curves = {line.name: _evaluations(line) for line in lines}
    until = horizon(
        [
            (float(x[-1]), all(r.finished for r in line.runs))
            for line in lines
            for x, _ in [curves[line.name] or ([], [])]
            if len(x) > 1
        ]
    )
    notes: list[str] = []
    variants = [_variant(line, curves[line.name], together.threshold, until, notes) for line in lines]
    budgets = sorted({v.total_steps for v in variants if v.total_steps is not None})
    if len(budgets) > 1:
        notes.append(
            f"The variants train for different numbers of steps ({budgets[0]:,} to {budgets[-1]:,}): last scores are not at "
            "equal effort."
        )
    if all(v.time_curve is None for v in variants) and any(v.curve is not None for v in variants):
        notes.append("There is no panel by wall time: see what the logs lack.")
    ranked = sorted(variants, key=lambda v: (not v.finished, -v.iqm if not math.isnan(v.iqm) else math.inf))
    improvements = _improvements(ranked)
    differ, common = settings_of(lines)
    finding = _finding(ranked, improvements)
    if sum(v.finished for v in variants) < 2 <= len(variants):
        notes.append("Probability of improvement is between finished variants, and there are not two.")
    return GroupResult(
        together.title, together.threshold, until, ranked, improvements, differ, common, notes, finding
    )  # fmt: skip


def _evaluations(line: Line) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean steps `[n]` and returns `[n, P]` of the line's evaluations."""
    parts = [
        (e.steps[:, p.members].mean(1), e.returns[:, p.members])
        for p in line.parts
        if (e := p.run.evaluations) is not None and p.members
    ]
    return stacked(parts) if parts else None


def _variant(
    line: Line,
    curve: tuple[np.ndarray, np.ndarray] | None,
    threshold: float | None,
    until: float | None,
    notes: list[str],
) -> VariantResult:
    looked = [p for p in line.parts if p.run.evaluations is not None and p.members]
    scores, areas, reached = np.array([]), np.array([]), np.array([])
    steps = None
    if looked:
        evaluations = [(p.run.evaluations, p.members) for p in looked]
        scores = np.concatenate([e.returns[-1, m] for e, m in evaluations if e is not None])
        steps = float(np.mean([e.steps[-1, m].mean() for e, m in evaluations if e is not None]))
        columns = [(e.steps[:, m].mean(1), e.steps[:, i], e.returns[:, i]) for e, m in evaluations if e for i in m]
        areas = np.array([area_under_curve(x, y, until) if until else math.nan for x, _, y in columns])
        if threshold is not None:
            reached = np.array([steps_to_threshold(own, y[:, None], threshold)[0] for _, own, y in columns])
    finished = all(run.finished for run in line.runs)
    seconds = [run.seconds for run in line.runs]
    return VariantResult(
        name=line.name,
        folders=[name_of(run.path) for run in line.runs],
        seeds=[shown(name, 120) for name in line.seeds],
        finished=finished,
        steps=steps,
        total_steps=line.runs[0].total_steps,
        scores=scores.tolist(),
        iqm=_middle(scores),
        interval=_interval(scores),
        worst=float(scores.min()) if scores.size else math.nan,
        areas=areas.tolist(),
        area=_middle(areas),
        area_interval=_interval(areas),
        steps_to_threshold=float(np.median(reached)) if reached.size else math.nan,
        reached=int(np.isfinite(reached).sum()),
        seconds=sum(s for s in seconds if s is not None) if any(s is not None for s in seconds) else None,
        curve=_curve(*curve) if curve is not None else None,
        time_curve=_by_time(line, notes),
        training_curve=_training(line),
        noise=noise_of(line),
    )


def _middle(values: np.ndarray) -> float:
    return float(iqm(values)) if values.size else math.nan


def _interval(values: np.ndarray) -> tuple[float, float]:
    return stratified_bootstrap_interval(values) if values.size and np.isfinite(values).all() else (math.nan, math.nan)


def _curve(x: np.ndarray, values: np.ndarray) -> Curve:
    return Curve(x, *band(values))


def _by_time(line: Line, notes: list[str]) -> Curve | None:
    """Evaluations by wall time: an evaluation's time is that at which training had come to its steps."""
    parts = []
    for p in line.parts:
        e, clock = p.run.evaluations, p.run.clock
        if e is None or not p.members:
            continue
        if clock is None:
            notes.append(f"{line.name} has no curve by wall time: {p.run.no_clock}.")
            return None
        x = e.steps.mean(1)  # the clock is of all members of the run
        known = x <= clock.steps[-1] * 1.01
        if known.any():
            parts.append((clock.at(x[known]), e.returns[known][:, p.members]))
    return _curve(*stacked(parts)) if parts else None


def _training(line: Line) -> Curve | None:
    """Returns of training episodes; kept where evaluations make no curve."""
    if any(r.evaluations is not None and len(r.evaluations.steps) > 1 for r in line.runs):
        return None
    parts = [
        (t.steps[:, 0], t.returns[:, p.members]) for p in line.parts if (t := p.run.training) is not None and p.members
    ]
    return _curve(*stacked(parts)) if parts else None


def _improvements(ranked: list[VariantResult]) -> list[Improvement]:
    known = [v for v in ranked if v.finished and v.scores]
    pairs = [(a, b) for a in known for b in known if a is not b]
    if len(known) > MATRIX:
        pairs = [(known[0], b) for b in known[1:]]
    return [Improvement(a.name, b.name, *probability_of_improvement(a.scores, b.scores)) for a, b in pairs]


def _finding(ranked: list[VariantResult], improvements: list[Improvement]) -> str:
    """Which variant ended highest, and whether it is told from the others."""
    known = [v for v in ranked if v.finished and not math.isnan(v.iqm)]
    if not known:
        return "No variant is finished yet." if ranked else ""
    first = known[0]
    low, high = first.interval
    interval = "" if math.isnan(low) else f", 95 % interval {low:.1f} to {high:.1f}"
    said = f"{first.name} ends {'highest' if len(known) > 1 else 'at'} {'with ' if len(known) > 1 else ''}IQM {first.iqm:.1f}{interval}"
    near = [i.than for i in improvements if i.better == first.name and not i.low > 0.5]
    if not near:
        return f"{said}{'; every other variant is told from it' if len(known) > 1 else ''}."
    listed = ", ".join(near[:4]) + (f" and {len(near) - 4} more" if len(near) > 4 else "")
    return f"{said}; not told apart from {listed}."
