"""How good the gradient of a training batch is, judged from that batch itself.

A batch's gradient is the mean of its columns' gradients. For the on-policy agent a column is what one environment did:
given the policy, columns are independent in whole-episode collection; with blocks of steps they are as independent, and as
alike, as the states that the environments happen to be in. For the actor-critic agent, whose rows are drawn independently
from the buffer, a column is one of at most 16 equal parts of the minibatch. So with g_1 .. g_N the columns' gradients

    trace of the batch's covariance   T = sum_i |g_i - g_mean|^2 / (N - 1) / N
    squared norm of the mean          U = |g_mean|^2 - T                        (a U-statistic, may be negative)
    noise-to-signal ratio             T / U    inf where U is not positive, NaN where every gradient is exactly zero

**An approximation** where something computed from the whole batch couples its columns: baselines that compare columns
(`leave_one_out`, `time_dependent` with leave_one_out, `linear_features` with folds), divisors that are the batch's spread
(`whitened`, `group_normalised`, `normalize_advantages`), and, with whole episodes, `mean_over_steps`, which divides by a
number of rows that depends on the actions. A column's gradient is then taken with the batch's own coefficients held fixed, and what
columns have in common is left out. It is small where columns are many: with `leave_one_out` and one step an episode the
covariance of two columns is |E g|^2 / (N - 1)^2. `pglab variance` draws whole batches anew, couplings included.

What is judged is the whole batch before its first step, whatever epochs and minibatches it is then used in. Nothing here
waits for the device, and nothing that training reads is changed.

Letters: T time, P population, N columns, B minibatch rows, O observation, n parameters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pglab.agents import ActorCriticAgent, Agent, OnPolicyAgent
from pglab.agents.actor_critic import ActorRows
from pglab.agents.on_policy import Prepared, whitening
from pglab.baselines import baselined
from pglab.capabilities import equal_parts
from pglab.estimators import Signal
from pglab.gradients import RowGradients, row_gradients
from pglab.networks import Recorded, by_member

HELD = 2**20
"""Numbers of columns' gradients held at a time: a few members' where there are many."""


class Probe:
    """What `Agent.probe` is: looks at every so-manyth update's batch (of 50: at updates 50, 100, ... from 1) and keeps the
    figures until they are logged, or there are newer ones."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.found: dict[str, Tensor] = {}
        """Tag -> `[P]`, not yet logged."""
        self.seconds = 0.0
        """Wall time of all probes; on a GPU that of giving it the work."""

    def __call__(self, agent: Agent, rows: Any) -> None:
        """`rows` is a `Prepared` or an `ActorRows`, which the agent is about to estimate its gradient from."""
        if not self.due(agent):
            return
        began = time.perf_counter()
        self.found = figures(columns(agent, rows))
        self.seconds += time.perf_counter() - began

    def due(self, agent: Agent) -> bool:
        """Whether the agent's next update is looked at."""
        return (agent.updates + 1) % self.every == 0

    def take(self) -> dict[str, Tensor]:
        """What is to be logged; from here on it has been."""
        found, self.found = self.found, {}
        return found


@dataclass(frozen=True)
class Columns:
    """Gradients of a batch's columns, each times N so that their mean is the batch's, for ascent: the estimate less, where a
    baseline is a coefficient per parameter, that coefficient times the estimate of the value 1."""

    estimate: RowGradients
    without: RowGradients | None = None
    """Of the same with nothing subtracted from the values; None where nothing is."""
    ones: RowGradients | None = None
    coefficient: Tensor | None = None  # [P, n]

    def by_members(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Of a few members at a time, the gradients that training applies, `[p, N, n]`, and those without the baseline.

        Inner products of columns could be had from the rows' factors without writing the columns' gradients out, but a
        matrix of all pairs of rows costs more than N x n numbers: 3 times as much with 16 steps, 30 and more with episodes.
        """
        n, size = self.estimate.columns, self.estimate.parameters.size
        members, few = len(self.estimate.inputs[0]) // n, max(1, HELD // (n * size))
        for some in (slice(i, i + few) for i in range(0, members, few)):
            with_b = _sums(self.estimate, some)
            without = None if self.without is None else _sums(self.without, some)
            if self.ones is not None and self.coefficient is not None:
                without = with_b
                with_b = with_b - self.coefficient[some].unsqueeze(1) * _sums(self.ones, some)
            yield with_b, without


def _sums(rows: RowGradients, members: slice) -> Tensor:
    """`RowGradients.column_sums` of some members."""
    at = slice(members.start * rows.columns, members.stop * rows.columns)
    extra = {name: x[at] for name, x in rows.extra.items()}
    return replace(
        rows, inputs=[x[at] for x in rows.inputs], deltas=[d[at] for d in rows.deltas], extra=extra
    ).column_sums()


def columns(agent: Agent, rows: Any) -> Columns:
    """The columns' gradients at the agent's parameters, which must still be those that acted."""
    with torch.no_grad():
        if isinstance(agent, OnPolicyAgent):
            return _of_environments(agent, rows)
        assert isinstance(agent, ActorCriticAgent)
        return _of_minibatch(agent, rows)


def figures(found: Columns) -> dict[str, Tensor]:
    """What is logged, `[P]` each. `probe/baseline_gain` is how many times as large the trace is without the baseline."""
    parts: list[dict[str, Tensor]] = []
    for applied, without in found.by_members():
        part = _figures(applied)
        if without is not None:
            trace = _spread(without)[1]
            part |= {"probe/trace_without_baseline": trace, "probe/baseline_gain": trace / part["probe/trace"]}
        parts.append(part)
    return {tag: torch.cat([part[tag] for part in parts]) for tag in parts[0]}


def _spread(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of columns' gradients `[p, N, n]`: their mean `[p, n]`, the trace of its covariance `[p]`, and what each differs from
    it. Differences are taken before squares, so that nothing cancels."""
    count = g.shape[1]
    mean = g.mean(1)
    off = g - mean.unsqueeze(1)
    return mean, torch.linalg.vector_norm(off.flatten(1), dim=1).square() / ((count - 1) * count), off


def _figures(g: Tensor) -> dict[str, Tensor]:
    mean, trace, off = _spread(g)
    signal = torch.linalg.vector_norm(mean, dim=1).square() - trace
    none = torch.where((trace == 0) & (signal == 0), torch.nan, torch.inf)
    even, odd = (mean + off[:, i::2].mean(1) for i in (0, 1))
    lengths = torch.linalg.vector_norm(even, dim=1) * torch.linalg.vector_norm(odd, dim=1)
    return {
        "probe/nsr": torch.where(signal > 0, trace / signal, none.to(trace.dtype)),
        "probe/cosine_halves": (even * odd).sum(1) / lengths,
        "probe/trace": trace,
    }


# -- the two agents


def _of_environments(agent: OnPolicyAgent, prepared: Prepared) -> Columns:
    policy, parameters, mask, obs = agent.policy, agent.policy_parameters, prepared.action_mask, prepared.obs
    recorded = prepared.recorded
    if recorded is None or not recorded.holds(parameters):
        # One forward pass for all that follows.
        weights = [parameters.views[name] for name in policy.network.layer_names]
        recorded = Recorded(*policy.network.run(weights, by_member(obs)), lambda _: True)
    distribution = policy.distribution(parameters, obs, mask, recorded).detach()
    weight = prepared.weight * agent.num_envs

    def apart(grads: list[Tensor]) -> RowGradients:
        return row_gradients(policy, parameters, obs, grads, weight, mask, recorded)

    estimate = apart(agent.estimate(prepared, distribution)[0])
    if agent.config.baseline.per_parameter:
        b = agent.config.baseline.coefficient(agent.baseline_state)
        if not b.shape[1]:  # before the first batch
            return Columns(estimate, estimate)
        return Columns(estimate, None, apart(agent.estimate_of_one(prepared, distribution)), b)
    plain = _nothing_subtracted(agent, prepared)
    if plain is None:
        return Columns(estimate)
    return Columns(estimate, apart(agent.estimate(replace(prepared, signal=plain), distribution)[0]))


def _nothing_subtracted(agent: OnPolicyAgent, prepared: Prepared) -> Signal | None:
    """The signal without a baseline, its values divided by what training divides them by, so that both are in the same
    units; None where nothing is subtracted in training."""
    part, signal, whitens = agent.config.baseline, prepared.signal, agent.settings.normalize_advantages
    if not agent.config.estimator.uses_baseline or (part.name == "none" and not whitens):
        return None
    if not whitens:
        return replace(signal, baseline=None)
    raw = baselined(part, agent.baseline_state, prepared.batch, Signal(value=prepared.batch.value))
    assert raw.value is not None
    advantage = raw.value if raw.baseline is None else raw.value - raw.baseline
    return replace(signal, value=raw.value * whitening(advantage, prepared.batch.valid)[1])


def _of_minibatch(agent: ActorCriticAgent, rows: ActorRows) -> Columns:
    policy, parameters, obs = agent.policy, agent.policy_parameters, rows.obs.unsqueeze(0)
    mask = None if rows.action_mask is None else rows.action_mask.unsqueeze(0)
    weights = [parameters.views[name] for name in policy.network.layer_names]
    recorded = Recorded(*policy.network.run(weights, rows.obs), lambda _: True)
    distribution = policy.distribution(parameters, obs, mask, recorded).detach()
    draw, signal = agent.signal(distribution, rows)
    parts = equal_parts(rows.obs.shape[1])

    def apart(signal: Signal) -> RowGradients:
        grads = agent.estimate(distribution, draw, signal)[0]
        each = row_gradients(policy, parameters, obs, grads, rows.weight * parts, mask, recorded)

        def by_part(x: Tensor) -> Tensor:
            """`[P*B, 1, X]` as `[P*parts, B/parts, X]`."""
            return x.reshape(len(rows.obs) * parts, -1, x.shape[2])

        return replace(
            each,
            inputs=[by_part(x) for x in each.inputs],
            deltas=[by_part(d) for d in each.deltas],
            extra={name: by_part(x) for name, x in each.extra.items()},
            columns=parts,
        )

    uses = agent.config.estimator.uses_baseline and agent.config.baseline.name != "none"
    return Columns(apart(signal), apart(replace(signal, baseline=None)) if uses else None)
