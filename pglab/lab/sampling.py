"""Drawing replicates of a training-size gradient for many estimator and baseline pairs at once, on common random numbers.

All pairs see the same rollouts (or minibatches), the same actions and, where they ask for noise of the same kind, the same
further noise. What a pair makes of them goes through the functions that training calls: `prepare` or `signal`, and
`estimate`. What a pair learns (a moving average, an optimal constant, a control variate) is fitted before, at the frozen
policy, on a stream of batches of its own, and stands still while it is measured; so are a V and a Q that a pair needs and
the subject does not have.

Letters: T time, P replicates, N columns, B minibatch rows, O observation, J pairs.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pglab.agents import ActorCriticAgent, OnPolicyAgent
from pglab.agents.actor_critic import ActorRows
from pglab.agents.on_policy import Prepared, Seen
from pglab.capabilities import outcomes
from pglab.distributions.categorical import MAX_OUTCOMES
from pglab.lab.exact_states import exact_cotangents
from pglab.lab.jacobian import Cotangents, Jacobian, pair_cotangents
from pglab.lab.least_squares import LeastSquares
from pglab.lab.pairs import Pair
from pglab.lab.subject import Subject, with_pair
from pglab.lab.variance import random_phases
from pglab.networks import by_member
from pglab.noise import Purpose
from pglab.replay import Transitions
from pglab.rollout import Rollout

ROWS = 60_000
"""Rows `[T x P x N]` held at a time."""
INSTANCES = 4096
"""Environments at a time."""
WIDE = 64
"""Outcomes of an action beyond which fewer rows are held at a time."""
FIT_STEPS = 8
"""Gradient steps of V and Q on each batch that they are fitted on."""
MEASURE, FIT, REFERENCE, DECOMPOSE = 0, 1, 2, 3
"""Keep the noise of a snapshot's measurements, fits, references and decompositions apart."""


@dataclass(frozen=True)
class Estimated:
    """What one pair makes of a scene."""

    cotangents: Cotangents
    """Weights multiplied in."""
    one: Cotangents | None = None
    """The same for the value 1, where the baseline is a coefficient for every parameter."""
    coefficient: Tensor | None = None
    """`[n]`, that coefficient: the gradient is that of `cotangents` less it times that of `one`."""
    zero: float = 0.0
    """The share of rows whose cotangent is exactly zero."""


class Scene(ABC):
    """Replicates `[P]` of one batch at a frozen policy, and what every pair makes of them."""

    jacobian: Jacobian
    valid: Tensor  # [T, P, N] bool
    seconds: float
    """What collecting and looking took, for all replicates."""

    @abstractmethod
    def estimated(self, pair: int) -> Estimated:
        """Pair number `pair`'s estimate at these rows."""

    def exact(self) -> Cotangents | None:
        """The exact gradient of the critic's expected value at these states; None where the signal is a return."""
        return None


def _zeros(grads: Sequence[Tensor], valid: Tensor) -> float:
    dead = torch.ones_like(valid)
    for g in grads:
        dead &= (g == 0).flatten(3).all(3)
    return float((dead & valid).sum() / valid.sum().clamp_min(1))


@dataclass
class Sampler(ABC):
    """Draws scenes for a subject and its pairs."""

    subject: Subject
    pairs: Sequence[Pair]
    notes: list[str] = field(default_factory=list)
    agents: list[Any] = field(default_factory=list)
    """One for every pair."""

    @property
    def per_batch(self) -> int:
        """Columns of a batch: so many units are one training-size gradient where a column is one."""
        return self.subject.agent.num_envs

    @property
    @abstractmethod
    def rows(self) -> int:
        """At most so many rows has one replicate."""

    @property
    def at_once(self) -> int:
        """Replicates drawn together."""
        n = max(1, self.subject.agent.num_envs)
        return max(1, min(ROWS // max(1, self.rows), INSTANCES // n))

    @abstractmethod
    def fit(self, batches: int) -> None:
        """Fit what the pairs learn on so many batches."""

    @abstractmethod
    def draw(self, replicates: range) -> Scene:
        """The replicates of these numbers; the same numbers give the same scene."""


# -- on-policy


@dataclass
class OnPolicyScene(Scene):
    jacobian: Jacobian
    valid: Tensor
    seconds: float
    twins: list[OnPolicyAgent]
    seen: Seen

    def estimated(self, pair: int) -> Estimated:
        twin = self.twins[pair]
        prepared = first_step(twin, self.seen)
        grads, _ = twin.estimate(prepared, self.jacobian.distribution)
        weighted = pair_cotangents(grads, prepared.weight)
        zero = _zeros(grads, self.valid)
        if not twin.config.baseline.per_parameter:
            return Estimated(weighted, zero=zero)
        coefficient = twin.config.baseline.coefficient(twin.baseline_state)[0]
        if not len(coefficient):
            return Estimated(weighted, zero=zero)
        one = pair_cotangents(twin.estimate_of_one(prepared, self.jacobian.distribution), prepared.weight)
        return Estimated(weighted, one, coefficient, zero)


def first_step(twin: OnPolicyAgent, seen: Seen) -> Prepared:
    """The rows of an update's first step: all of them, or the first minibatch."""
    return twin.minibatches(twin.prepare(seen.rollout, seen), 0)[0]


class OnPolicySampler(Sampler):
    """Batches of the frozen policy's own experience. Whole-episode collection starts afresh, as training does; step-wise
    collection goes on from environments that are at random phases of their episodes."""

    def __init__(self, subject: Subject, pairs: Sequence[Pair]) -> None:
        super().__init__(subject, pairs)
        assert isinstance(subject.agent, OnPolicyAgent)
        self.host: OnPolicyAgent = subject.agent
        for pair in pairs:
            agent = with_pair(subject, pair.config, pair.own)
            assert isinstance(agent, OnPolicyAgent)
            self.agents.append(agent)
        self._fits_v = self._fits_q = False
        if self.host.value_parameters is None:
            self._fits_v = self._share("value_parameters")
        if self.host.critic is None:
            self._fits_q = self._share("critic")
        has_v = [a for a in self.agents if a.value_parameters is not None]
        s = self.host.settings
        if s.collect == "episodes" and s.reduction == "mean_over_steps":
            self.notes.append(
                "mean_over_steps divides by the batch's own number of steps: every estimate has a bias of O(1 / batch) to the ratio of "
                "expectations that grad J is."
            )
        self.looker = self.host if self.host.value_parameters is not None or not has_v else has_v[0]

    def _share(self, name: str) -> bool:
        """Let all agents that have this network have the same one; whether there is any."""
        having = [a for a in self.agents if getattr(a, name) is not None]
        for agent in having[1:]:
            setattr(agent, name, getattr(having[0], name))
        return bool(having)

    @property
    def rows(self) -> int:
        host = self.host
        if (steps := host.steps_per_update) is not None:
            return steps
        return (host.spec.max_episode_steps or 1000) * host.settings.episodes * host.num_envs

    def _collected(self, twin: OnPolicyAgent, members: int) -> Rollout:
        with closing(self.subject.environment(members)) as env:
            if twin.steps_per_update is not None:
                twin.position = random_phases(twin, env, twin.act)
            return twin.collect(env, (2,))

    def fit(self, batches: int) -> None:
        """V and Q first, where the subject has none, then what pairs learn, each on so many batches."""
        learns = [a.config.baseline.adapts or a.config.estimator.learns for a in self.agents]
        fitted = [a for a, p, x in zip(self.agents, self.pairs, learns, strict=True) if x and not p.own]
        steps = 0
        if self._fits_v or self._fits_q:
            steps += self._fit_networks(batches)
        if fitted:
            steps += self._fit_pairs(fitted, batches)
        if not steps:
            return
        names = [p.name for a, p in zip(self.agents, self.pairs, strict=True) if a in fitted]
        also = [n for n, w in (("V", self._fits_v), ("Q", self._fits_q)) if w]
        self.notes.insert(
            0,
            f"Fitted at the frozen policy on {steps:,} steps of its own before measuring: {', '.join([*also, *names])}.",
        )

    def _batches(self, count: int, purpose: int) -> Iterator[tuple[OnPolicyAgent, int, Rollout, Seen]]:
        """Batches of a stream that nothing is measured on."""
        stream = self.host.replicated(range(1), self.subject.number, FIT, purpose)
        with closing(self.subject.environment(1)) as env:
            if stream.steps_per_update is not None:
                stream.position = random_phases(stream, env, stream.act)
            for i in range(count):
                rollout = stream.collect(env, (3, i))
                yield stream, i, rollout, self.looker.look(rollout)

    def _fit_networks(self, batches: int) -> int:
        """V and Q by gradient steps, then their output layers by least squares, which finds their scale. Returns the
        environment steps it took."""
        fitters = {}
        for name, wanted in (("value_parameters", self._fits_v), ("critic", self._fits_q)):
            if wanted:
                one = next(a for a in self.agents if getattr(a, name) is not None)
                fitters[name] = one.at_progress([0.0])  # with the learning rates that training starts with
        steps, sums = 0, {name: LeastSquares() for name in fitters}
        for stream, i, rollout, _ in self._batches(2 * batches, 0):
            steps += int(rollout.valid.sum())
            for name, fitter in fitters.items():
                fitter.noise, fitter.updates = stream.noise, i
                prepared = fitter.prepare(rollout, fitter.look(rollout))
                if i < batches:
                    for _ in range(FIT_STEPS):
                        fitter.learn_critic(prepared) if name == "critic" else fitter.learn_value(prepared)
                    continue
                if name == "critic":
                    assert fitter.critic is not None
                    taken = fitter.policy.present(fitter.policy.executed(prepared.draw.action)).flatten(3)
                    x = torch.cat([by_member(prepared.obs), by_member(taken)], -1)
                    sums[name].add(fitter.critic.network, fitter.critic.parameters, x, prepared)
                else:
                    assert fitter.value_parameters is not None
                    sums[name].add(fitter.value_network, fitter.value_parameters, by_member(prepared.obs), prepared)
        for name, found in sums.items():
            explained = found.solve()
            letter = "Q" if name == "critic" else "V"
            if not math.isnan(explained):
                self.notes.append(f"The fitted {letter} explains {explained:.0%} of the returns' variance.")
        return steps

    def _fit_pairs(self, fitted: Sequence[OnPolicyAgent], batches: int) -> int:
        steps = 0
        for stream, i, rollout, seen in self._batches(batches, 1):
            steps += int(rollout.valid.sum())
            for agent in fitted:
                agent.noise, agent.updates = stream.noise, i
                prepared = agent.prepare(rollout, seen)
                if agent.config.estimator.learns:
                    agent.gradient(prepared)
                    agent.learn_estimator()
                agent.baseline_state = agent.baseline_after(prepared, rollout.valid)[0]
        return steps

    def draw(self, replicates: range) -> OnPolicyScene:
        began = time.perf_counter()
        members = len(replicates)
        host = self.host.replicated(replicates, self.subject.number, MEASURE)
        rollout = self._collected(host, members)
        looker = host if self.looker is self.host else self.looker.replicated(replicates, self.subject.number, MEASURE)
        seen = looker.look(rollout)
        twins = [a.replicated(replicates, self.subject.number, MEASURE) for a in self.agents]
        obs, mask, valid = seen.obs, rollout.action_mask, rollout.valid
        if host.settings.minibatches > 1:
            first = first_step(twins[0], seen)
            obs, mask, valid = first.obs, first.action_mask, first.batch.valid
        jacobian = Jacobian(host.policy, self.host.policy_parameters, obs, mask)
        return OnPolicyScene(jacobian, valid, time.perf_counter() - began, twins, seen)


# -- actor-critic


@dataclass
class ActorCriticScene(Scene):
    jacobian: Jacobian
    valid: Tensor
    seconds: float
    twins: list[ActorCriticAgent]
    rows: ActorRows
    extra: Callable[[int, str, tuple[int, ...]], Tensor]

    def estimated(self, pair: int) -> Estimated:
        twin = self.twins[pair]
        wanted = twin.extra_noise(self.extra)
        rows = replace(self.rows, extra={name: x.unsqueeze(0) for name, x in wanted.items()})
        draw, signal = twin.signal(self.jacobian.distribution, rows)
        grads, _ = twin.estimate(self.jacobian.distribution, draw, signal)
        return Estimated(pair_cotangents(grads, rows.weight), zero=_zeros(grads, self.valid))

    def exact(self) -> Cotangents:
        found = exact_cotangents(self.twins[0], self.jacobian.distribution, self.rows.obs)
        return pair_cotangents(found, self.rows.weight)


class ActorCriticSampler(Sampler):
    """Minibatches redrawn from the frozen buffer, actions drawn anew."""

    def __init__(self, subject: Subject, pairs: Sequence[Pair]) -> None:
        super().__init__(subject, pairs)
        assert isinstance(subject.agent, ActorCriticAgent)
        self.host: ActorCriticAgent = subject.agent
        for pair in pairs:
            agent = with_pair(subject, pair.config, pair.own)
            assert isinstance(agent, ActorCriticAgent)
            self.agents.append(agent)

    @property
    def rows(self) -> int:
        return self.host.settings.replay.batch_size

    @property
    def at_once(self) -> int:
        # An enumeration has a log-probability of every outcome at every row.
        width = outcomes(self.host.policy.action)
        few = ROWS // 4 // (max(1, width // WIDE) if width <= MAX_OUTCOMES else 1)
        return max(1, few // max(1, self.rows))

    def _minibatches(self, twin: ActorCriticAgent, replicates: int, counter: int) -> Transitions:
        b = self.host.settings.replay.batch_size
        u = twin.noise.uniform(Purpose.REPLAY, (counter,), (b,))  # [P, B]
        drawn = self.host.replay.sample(u.view(1, -1), self.host.newest)  # [1, P*B, ...]
        parts: dict[str, Any] = {
            name: None if x is None else x.view(replicates, b, *x.shape[2:]) for name, x in vars(drawn).items()
        }
        return Transitions(**parts)

    def fit(self, batches: int) -> None:
        learns = [a.config.baseline.adapts or a.config.estimator.learns for a in self.agents]
        fitted = [a for a, p, x in zip(self.agents, self.pairs, learns, strict=True) if x and not p.own]
        if not fitted:
            return
        stream = self.host.replicated(range(1), self.subject.number, FIT)
        (kind, shape), b = self.host.event, self.host.settings.replay.batch_size
        for i in range(batches):
            rows = self._minibatches(stream, 1, i)
            noise = stream.noise.of_kind(kind, Purpose.UPDATE, (i,), (b, *shape))
            for agent in fitted:

                def extra(k: int, kind: str, shape: tuple[int, ...], i: int = i) -> Tensor:
                    return stream.noise.of_kind(kind, Purpose.EXTRA, (i, k), (b, *shape))

                agent.gradient(agent.actor_rows(rows, noise, agent.extra_noise(extra)))
                agent.learn_estimator()
                if agent.config.estimator.uses_baseline:
                    agent.learn_baseline()
        names = ", ".join(p.name for a, p in zip(self.agents, self.pairs, strict=True) if a in fitted)
        self.notes.append(
            f"Fitted at the frozen policy on {batches} minibatches of their own before measuring: {names}."
        )

    def draw(self, replicates: range) -> ActorCriticScene:
        began = time.perf_counter()
        members = len(replicates)
        host = self.host.replicated(replicates, self.subject.number, MEASURE)
        (kind, shape), b = self.host.event, self.host.settings.replay.batch_size
        noise = host.noise.of_kind(kind, Purpose.UPDATE, (0,), (b, *shape))
        rows = host.actor_rows(self._minibatches(host, members, 0), noise, {})

        def extra(k: int, kind: str, shape: tuple[int, ...]) -> Tensor:
            return host.noise.of_kind(kind, Purpose.EXTRA, (0, k), (b, *shape))

        mask = None if rows.action_mask is None else rows.action_mask.unsqueeze(0)
        jacobian = Jacobian(host.policy, self.host.policy_parameters, rows.obs.unsqueeze(0), mask)
        seconds = time.perf_counter() - began
        twins = [a.replicated(replicates, self.subject.number, MEASURE) for a in self.agents]
        return ActorCriticScene(jacobian, rows.weight > 0, seconds, twins, rows, extra)


def sampler_of(subject: Subject, pairs: Sequence[Pair]) -> Sampler:
    """What draws this subject's replicates."""
    if isinstance(subject.agent, ActorCriticAgent):
        return ActorCriticSampler(subject, pairs)
    return OnPolicySampler(subject, pairs)
