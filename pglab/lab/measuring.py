"""What each estimator's gradient is worth at a frozen policy: the variance laboratory's main entry.

Letters: R replicates, J pairs, U units, n parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pglab.agents import ActorCriticAgent
from pglab.config import Config
from pglab.devices import keep_memory
from pglab.errors import PglabError
from pglab.lab.costs import evaluations
from pglab.lab.critic_errors import CriticErrors, critic_errors
from pglab.lab.exact_states import has_exact
from pglab.lab.intervals import Estimate
from pglab.lab.jacobian import Cotangents, Unit, sections
from pglab.lab.pairs import Pair, pairs_of
from pglab.lab.quality import Quality, efficiency, quality
from pglab.lab.reference import Reference
from pglab.lab.references import CHUNKS, true_gradient
from pglab.lab.replicates import Replicates
from pglab.lab.sampling import Estimated, Sampler, Scene, sampler_of
from pglab.lab.subject import Subject, of_config, of_run
from pglab.policy import CLASSES

FEWEST = 8
"""Replicates below which there is no interval."""
HELD = 256 * 2**20
"""Bytes of gradients that one product through the network gives; more pairs than fit are measured in turn. All pairs'
gradients of a few replicates take at most four times as much."""

GROUPED = 2**30
"""Bytes of sums over groups of replicates, for each of the two or three kinds of replicates."""

DEFINITION = (
    "All figures are of one training-size gradient before clipping. NSR: trace of its covariance over |E g|^2. MSE and bias: "
    "of its distance to the reference, over the reference's squared norm; sampling noise is subtracted, so a bias^2 below 0 "
    "is one that was not seen. Cosine: of one training-size gradient to the reference. 95 % intervals."
)


@dataclass(frozen=True)
class Cost:
    """Of one training-size gradient."""

    evaluations: float
    """Evaluations of f: those of the critic, and one per row where the value of the drawn action is read."""
    steps: float
    """Environment steps."""
    seconds: float
    """On this machine: its share of collecting and looking, the estimate, and the pull-back through the network."""


@dataclass
class Measured:
    """One subject: every pair at one frozen policy."""

    subject: Subject
    pairs: list[Pair]
    replicates: int
    quality: Quality
    """Of every pair against `reference` (ii), grad J; without statistics of distance where it supports none."""
    ratios: dict[str, dict[str, Estimate]]
    """Every pair's `trace_ratio` and `mse_ratio` to those of the first, by section: from columns where both have them."""
    reference: Reference
    to_critic: Quality | None
    """Of every pair's difference to the exact gradient of this critic at the same states, reference (i); None where the
    signal is a return, or that gradient has no exact form."""
    critic_norm: float
    """|E of the exact gradient of the critic|^2."""
    critic_cosine: Estimate | None
    """Cosine of one training-size gradient to the exact gradient of the critic at the same states."""
    costs: list[Cost]
    zeros: np.ndarray
    """`[J]`: the share of rows whose cotangent is exactly zero."""
    effective: np.ndarray
    """`[J]`: effective sample size, rows of independent draws that would give this variance; NaN where it is not known."""
    rows: float
    """Rows of one training-size gradient."""
    units: list[str]
    """What the replicate was, for every pair: column or batch."""
    head: np.ndarray
    """`[J, H, n]` float32: the first training-size gradients, whole."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    critic_errors: CriticErrors | None = None

    @property
    def places(self) -> dict[str, slice]:
        """Where each layer's parameters lie in a gradient."""
        return sections(self.subject.agent.policy_parameters)

    @property
    def names(self) -> list[str]:
        return [pair.name for pair in self.pairs]

    def total(self, statistic: str) -> Estimate | None:
        """A statistic of the whole gradient, against reference (ii) where it is one of distance."""
        return self.quality.estimates["total"].get(statistic)

    def efficiencies(self) -> dict[str, Estimate]:
        """1 / (MSE x cost) by cost; the MSE is that to the critic's exact gradient where there is one, an estimator's own
        error, else that to grad J."""
        mse = self.total("mse") if self.to_critic is None else self.to_critic.estimates["total"]["mse"]
        if mse is None:
            return {}
        costs = {name: np.array([getattr(c, name) for c in self.costs]) for name in ("evaluations", "steps", "seconds")}
        norm = self.reference.squared_norm if self.to_critic is None else self.critic_norm
        if not norm > 0:
            return {}
        relative = Estimate(mse.value / norm, mse.low / norm, mse.high / norm, mse.reliable)
        return {name: efficiency(relative, c) for name, c in costs.items() if (c > 0).all()}


@dataclass
class Measurement:
    """What `measure` gives: a `Measured` for every subject, in the order of members and snapshots."""

    measured: list[Measured]
    seconds: float

    def __iter__(self) -> Any:
        return iter(self.measured)

    def to_pandas(self) -> Any:
        """Every statistic, a row per subject and pair; PglabError where pandas is not installed."""
        from pglab.reporting.notebook import frame, measured_rows

        return frame(measured_rows(self))

    def _repr_html_(self) -> str:
        from pglab.reporting.notebook import measured_html

        return measured_html(self)


def measure(
    source: str | Path | Config | dict[str, Any] | Sequence[Subject],
    *,
    pairs: Sequence[str] | None = None,
    replicates: int = 64,
    at: Sequence[float] | None = None,
    members: Sequence[int] | None = (0,),
    reference: int = 4096,
    fit: int = 32,
    progress: Callable[[str], None] | None = None,
) -> Measurement:
    """Measure every applicable estimator and baseline pair at frozen policies.

    Args:
        source: a run folder (its snapshots are measured), a config (measured at its initialisation), or subjects.
        pairs: names such as `score_function` or `score_function/value`, or `["all"]`; None: see `pairs_of`.
        replicates: independent training-size gradients of every pair, at least 8.
        at: fractions of training whose snapshots are measured; None: all that were kept.
        members: which members of the population; None: all.
        reference: episodes (on-policy) or states (actor-critic) that grad J is estimated from where it is not exact.
        fit: batches that what the pairs learn is fitted on at the frozen policy.
        progress: told what is being done.

    Raises:
        PglabError: too few replicates, a pair that does not fit, an agent that cannot be measured, a folder that is no run.
    """
    if replicates < FEWEST:
        raise PglabError(f"{replicates} replicates are too few for an interval: at least {FEWEST} are needed.")
    if fit < 1:
        raise PglabError(f"fit must be at least 1 batch, not {fit}.")
    if reference < CHUNKS:
        raise PglabError(f"The reference needs at least {CHUNKS} episodes or states, not {reference}.")
    began = time.perf_counter()
    keep_memory()
    subjects: Sequence[Subject]
    if isinstance(source, Config | dict):
        subjects = of_config(Config.read(source), members)
    elif isinstance(source, str | Path):
        subjects = of_run(source, at, members)
    else:
        subjects = source
    say = progress or (lambda _: None)
    found = []
    for subject in subjects:
        chosen = pairs_of(subject.config, subject.agent.spec, pairs)
        say(f"{subject.config.env.id}, {subject.member}, {subject.stage}: {len(chosen)} pairs")
        found.append(measure_subject(subject, chosen, replicates, reference, fit))
    return Measurement(found, time.perf_counter() - began)


def measure_subject(subject: Subject, pairs: Sequence[Pair], replicates: int, reference: int, fit: int) -> Measured:
    """Every pair at one frozen policy (see `measure`)."""
    before = torch.get_num_threads()
    # Unless a number is asked for, one thread: two gain a third here, and lose tenfold where another program runs.
    torch.set_num_threads(subject.config.threads if isinstance(subject.config.threads, int) else 1)
    try:
        return _measured(subject, pairs, replicates, reference, fit)
    finally:
        torch.set_num_threads(before)


def _measured(subject: Subject, pairs: Sequence[Pair], replicates: int, reference: int, fit: int) -> Measured:
    began = time.perf_counter()
    sampler = sampler_of(subject, pairs)
    sampler.fit(fit)
    goal = true_gradient(subject, reference)
    tally = _Tally(subject, sampler, replicates)
    each = 4 * len(pairs) * subject.agent.policy_parameters.size * max(1, sampler.per_batch)
    few = max(1, min(sampler.at_once, 4 * HELD // each))
    for start in range(0, replicates, few):
        tally.add(sampler.draw(range(start, min(start + few, replicates))))
    found = tally.finished(goal)
    if isinstance(subject.agent, ActorCriticAgent):
        found.critic_errors = critic_errors(subject, max(CHUNKS, reference // 4))
    found.notes[:0] = [*subject.notes, *sampler.notes]
    found.seconds = time.perf_counter() - began
    return found


class _Tally:
    """Streams scenes into replicates."""

    def __init__(self, subject: Subject, sampler: Sampler, replicates: int) -> None:
        self.subject, self.sampler, self.pairs = subject, sampler, list(sampler.pairs)
        agent = subject.agent
        n, j = agent.policy_parameters.size, len(self.pairs)
        self.places = sections(agent.policy_parameters)
        self.alone = [i for i, p in enumerate(self.pairs) if not p.couples]
        # At 12 bytes per pair, group and parameter; fewer groups make rougher intervals.
        groups = max(16, min(256, GROUPED // (12 * j * n)))
        self.batches = Replicates(j, n, groups=groups)
        self.columns = Replicates(len(self.alone), n, sampler.per_batch, groups) if self.alone else None
        exact = isinstance(agent, ActorCriticAgent) and has_exact(CLASSES[agent.policy.family], agent.policy.action)
        self.differences = Replicates(j, n, groups=groups) if exact else None
        self.critics = Replicates(1, n) if exact else None
        self.count = 0
        self.seconds, self.zeros, self.squares = np.zeros(j), np.zeros(j), np.zeros(j)
        self.shared, self.rows = 0.0, 0.0
        self.evaluations: list[float] | None = None

    def add(self, scene: Scene) -> None:
        r = scene.valid.shape[1]
        if self.evaluations is None:
            agents = self.sampler.agents
            self.evaluations = [evaluations(a, scene.jacobian.distribution) for a in agents]
        self.shared += scene.seconds
        self.rows += float(scene.valid.sum())
        self.count += r
        batches = scene.valid.new_empty(len(self.pairs), r, self.batches.size, dtype=torch.float32)
        columns = None
        if self.columns is not None:
            columns = batches.new_empty(len(self.alone), r * scene.valid.shape[2], self.batches.size)
        coupled = [i for i in range(len(self.pairs)) if i not in self.alone]
        for unit, members in (("column", self.alone), ("batch", coupled)):
            few = max(1, HELD // (4 * self.batches.size * max(1, r * scene.valid.shape[2])))
            for start in range(0, len(members), few):
                now = members[start : start + few]
                g = self._pulled(scene, now, unit)  # type: ignore[arg-type]  # [j, U, n]
                if unit == "column" and columns is not None:
                    mine = g * scene.valid.shape[2]  # so that the mean over columns is the batch's gradient
                    columns[start : start + len(now)] = mine
                    g = mine.view(len(now), r, -1, g.shape[-1]).mean(2)
                batches[now] = g
        self.batches.add(batches)
        if self.columns is not None and columns is not None:
            self.columns.add(columns)
        if self.differences is not None and self.critics is not None:
            exact = scene.exact()
            assert exact is not None
            target = scene.jacobian.pull([exact], "batch")  # [1, R, n]
            self.critics.add(target)
            self.differences.add(batches - target)

    def _pulled(self, scene: Scene, which: Sequence[int], unit: Unit) -> Tensor:
        estimates: list[Estimated] = []
        for i in which:
            start = time.perf_counter()
            estimates.append(scene.estimated(i))
            self.seconds[i] += time.perf_counter() - start
            self.zeros[i] += estimates[-1].zero * scene.valid.shape[1]
        sets: list[Cotangents] = [e.cotangents for e in estimates]
        corrected = [k for k, e in enumerate(estimates) if e.one is not None]
        for k in corrected:
            one = estimates[k].one
            assert one is not None
            sets.append(one)
        start = time.perf_counter()
        g = scene.jacobian.pull(sets, unit)
        for at, k in enumerate(corrected):
            coefficient = estimates[k].coefficient
            assert coefficient is not None
            g[k] -= coefficient * g[len(estimates) + at]
        self.seconds[list(which)] += (time.perf_counter() - start) / len(which)
        squares = scene.jacobian.squared_norms(sets[: len(estimates)]).double().sum((1, 2, 3)).cpu().numpy()
        self.squares[list(which)] += squares
        self.squares[[which[k] for k in corrected]] = np.nan
        return g[: len(estimates)]

    def finished(self, goal: Reference) -> Measured:
        reference = goal.gradient if goal.supported else None
        noise = {name: goal.noise.get(name, 0.0) for name in (*self.places, "total")} if goal.supported else None
        both = quality(self.batches, self.places, reference, noise)
        ratios = both.ratios(0)
        if self.columns is not None:
            finer = quality(self.columns, self.places, reference, noise)
            _replace(both.estimates, finer.estimates, self.alone)
            if self.alone[0] == 0:
                _replace(ratios, finer.ratios(0), self.alone)
        to_critic, norm, cosine = None, float("nan"), None
        if self.differences is not None and self.critics is not None:
            to_critic = quality(self.differences, self.places, np.zeros(self.batches.size))
            norm = float(quality(self.critics, self.places).estimates["total"]["squared_norm"].value[0])
            cosine = _cosines(self.batches.head, self.critics.head)
        agent, r = self.subject.agent, self.count
        rows = self.rows / r
        trace = both.estimates["total"]["trace"].value
        mean_square = (self.batches.mean.double() ** 2).sum(-1).cpu().numpy()
        iid = self.squares / r - mean_square / rows  # of as many independent rows, each with this distribution
        with np.errstate(divide="ignore", invalid="ignore"):
            effective = rows * iid / trace
        steps = rows
        if isinstance(agent, ActorCriticAgent):
            steps = agent.round_rows / agent.settings.updates_per_round
        assert self.evaluations is not None
        costs = [
            Cost(e * rows, steps, (self.shared + s) / r) for e, s in zip(self.evaluations, self.seconds, strict=True)
        ]
        return Measured(
            self.subject,
            self.pairs,
            r,
            both,
            ratios,
            goal,
            to_critic,
            norm,
            cosine,
            costs,
            self.zeros / r,
            effective,
            rows,
            ["column" if i in self.alone else "batch" for i in range(len(self.pairs))],
            self.batches.head.cpu().numpy(),
        )


def _cosines(gradients: Tensor, targets: Tensor) -> Estimate:
    """The mean cosine of `[J, H, n]` to `[1, H, n]`, replicate by replicate, with Student's interval."""
    c = torch.nn.functional.cosine_similarity(gradients.double(), targets.double(), dim=-1).cpu().numpy()  # [J, H]
    mean, half = c.mean(-1), stats.t.ppf(0.975, c.shape[-1] - 1) * c.std(-1, ddof=1) / np.sqrt(c.shape[-1])
    return Estimate(
        mean, np.maximum(mean - half, -1), np.minimum(mean + half, 1), np.full(len(c), c.shape[-1] >= FEWEST)
    )


def _replace(into: dict[str, dict[str, Estimate]], finer: dict[str, dict[str, Estimate]], which: Sequence[int]) -> None:
    """Put the estimates from finer replicates in the place of those from whole batches, except where single training-size
    gradients are asked for, which both know."""
    for section, statistics in finer.items():
        for name, estimate in statistics.items():
            target = into[section][name]
            for part in ("value", "low", "high", "reliable"):
                getattr(target, part)[list(which)] = getattr(estimate, part)
