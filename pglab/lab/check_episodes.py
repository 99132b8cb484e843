"""A tiny problem of several steps, small enough that every pair of episodes can be written down.

Three states, two binary action factors, at most three steps; the joint action (1, 1) ends an episode. The policy is a
table of logits by state. The members of one population are *all* pairs of episodes, so the mean of an estimate, weighted
by their probabilities, is its expectation: whatever a baseline reads, its bias is found without sampling.

Letters: T time, P pairs of episodes, N environments, S states, D factors, K categories, n = S * D * K parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pglab.baselines import Baseline, Batch, Scores, baselined
from pglab.distributions import Categorical
from pglab.errors import PglabError
from pglab.estimators import Draw, ScoreFunction, Signal
from pglab.gradients import cotangents
from pglab.lab.check_problems import numbers
from pglab.trees import as_dtype, repeat_members

STATES, FACTORS, STEPS, DISCOUNT = 3, 2, 3, 0.9
ACTIONS = tuple(itertools.product((0, 1), repeat=FACTORS))
LAST = len(ACTIONS) - 1  # the joint action that ends an episode
START = (0.6, 0.4, 0.0)
REWARD = 1.5 * numbers(STEPS, STATES, len(ACTIONS), phase=5.0) + 1
LOGITS = 0.8 * numbers(STATES, FACTORS, 2, phase=6.0)
V = numbers(STATES, phase=7.0)
Q = numbers(STATES, FACTORS, 2, phase=8.0)
"""The critic: any function of state and action, since no baseline's mean may depend on how good it is."""

UPDATES = 24
"""Batches that a baseline has seen when it is checked a second time."""


@dataclass(frozen=True)
class Step:
    """One row of a column: what was seen and done there, and whether the episode went on."""

    time: int
    state: int
    action: int
    value: float
    """The discounted return from here to the end of the episode (or of the block)."""


@dataclass(frozen=True)
class Layout:
    """All outcomes of one way of collecting, as members of a population."""

    name: str
    whole_episodes: bool
    state: Tensor  # [T, P, N] int64
    time: Tensor  # [T, P, N] int64
    value: Tensor  # [T, P, N]
    valid: Tensor  # [T, P, N] bool
    action: Tensor  # [T, P, N, D, K]
    probability: Tensor  # [P]
    episodes: int
    """Episodes in a batch, or 1 where the whole batch counts."""

    def __len__(self) -> int:
        return len(self.probability)

    def weight(self) -> Tensor:
        """What a row's score counts for, `[T, P, N]`."""
        return self.valid * DISCOUNT ** self.time.double() / self.episodes

    def taken(self, members: Tensor) -> Layout:
        """Some of the outcomes."""
        rows = {k: getattr(self, k)[:, members] for k in ("state", "time", "value", "valid", "action")}
        p = self.probability[members]
        return Layout(self.name, self.whole_episodes, **rows, probability=p / p.sum(), episodes=self.episodes)


def _paths(length: int, restart: bool) -> list[tuple[list[tuple[int, int, int, bool]], float]]:
    """Every sequence of (time, state, action, ends) of one column with its probability. With `restart` a column goes on
    with another episode, from state 0, until it has `length` steps."""
    log_p = torch.log_softmax(LOGITS, -1)
    found = []

    def walk(path: list[tuple[int, int, int, bool]], time: int, state: int, p: float) -> None:
        if len(path) == length:
            found.append((path, p))
            return
        for i, action in enumerate(ACTIONS):
            q = p * float(torch.stack([log_p[state, d, a] for d, a in enumerate(action)]).sum().exp())
            ends = i == LAST or time + 1 == STEPS
            here = [*path, (time, state, i, ends)]
            if not ends:
                walk(here, time + 1, (state + i + 1) % STATES, q)
            elif restart:
                walk(here, 0, 0, q)
            else:
                found.append((here, q))

    for state, p in enumerate(START):
        if p:
            walk([], 0, state, p)
    return found


def _with_returns(path: list[tuple[int, int, int, bool]]) -> list[Step]:
    steps: list[Step] = []
    value = 0.0
    for time, state, action, ends in reversed(path):
        value = float(REWARD[time, state, action]) + (0.0 if ends else DISCOUNT * value)
        steps.append(Step(time, state, action, value))
    return steps[::-1]


@cache
def layouts() -> tuple[Layout, ...]:
    """Two whole episodes side by side; the same two one after another in one column; two columns of a block of steps."""
    episodes = [(_with_returns(path), p) for path, p in _paths(STEPS, restart=False)]
    pairs = [((a, b), p * q) for (a, p), (b, q) in itertools.product(episodes, episodes)]
    columns = [(_with_returns(path), p) for path, p in _paths(STEPS, restart=True)]
    blocks = [((a, b), p * q) for (a, p), (b, q) in itertools.product(columns, columns)]
    return (
        _laid("2 episodes side by side", [([a, b], p) for (a, b), p in pairs], STEPS, True, 2),
        _laid("2 episodes in one column", [([a + b], p) for (a, b), p in pairs], 2 * STEPS, True, 2),
        _laid("blocks of 3 steps", [([a, b], p) for (a, b), p in blocks], STEPS, False, 1),
    )


def _laid(name: str, outcomes: list[tuple[list[list[Step]], float]], steps: int, whole: bool, episodes: int) -> Layout:
    shape = (steps, len(outcomes), len(outcomes[0][0]))
    state, time, action = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    value, valid = np.zeros(shape), np.zeros(shape, dtype=bool)
    for p, (columns, _) in enumerate(outcomes):
        for n, column in enumerate(columns):
            for t, step in enumerate(column):
                at = (t, p, n)
                state[at], time[at], action[at], value[at], valid[at] = (
                    step.state,
                    step.time,
                    step.action,
                    step.value,
                    True,
                )
            time[len(column) :, p, n] = np.arange(steps - len(column))  # rows past the end are numbered on
    one_hot = torch.eye(2, dtype=torch.float64)[torch.tensor(ACTIONS)][torch.from_numpy(action)]  # [T, P, N, D, K]
    rows = {k: torch.from_numpy(x) for k, x in (("state", state), ("time", time), ("value", value), ("valid", valid))}
    probability = torch.tensor([p for _, p in outcomes], dtype=torch.float64)
    return Layout(name, whole, **rows, action=one_hot, probability=probability, episodes=episodes)


@cache
def exact_policy_gradient() -> Tensor:
    """The gradient of the expected discounted return at the table of logits, `[n]`: the probability of every episode,
    written as a product of softmaxes, times its return."""
    logits = LOGITS.clone().requires_grad_()
    p = torch.softmax(logits, -1)
    total = torch.zeros((), dtype=torch.float64)
    for path, _ in _paths(STEPS, restart=False):
        probability = torch.tensor(START[path[0][1]], dtype=torch.float64)
        gain = 0.0
        for time, state, action, _ in path:
            for d, a in enumerate(ACTIONS[action]):
                probability = probability * p[state, d, a]
            gain += DISCOUNT**time * float(REWARD[time, state, action])
        total = total + probability * gain
    return torch.autograd.grad(total, logits)[0].flatten()


def policy(layout: Layout) -> Categorical:
    return Categorical(LOGITS[layout.state])


def by_parameter(layout: Layout, rows: Tensor) -> Tensor:
    """Gradients at the rows' logits `[T, P, N, D, K]` at the table, one per column, `[P, N, n]`."""
    one_hot = torch.eye(STATES, dtype=rows.dtype)[layout.state]  # [T, P, N, S]
    return torch.einsum("tpns,tpndk->pnsdk", one_hot, rows).flatten(2)


def scores(layout: Layout) -> Scores:
    """The columns' gradients, as a baseline sees them."""
    columns = layout.value.shape[2]  # the gradient is the columns' mean
    rows = (layout.action - policy(layout).probs()) * (layout.weight() * columns)[..., None, None]
    value = by_parameter(layout, rows * layout.value[..., None, None])

    def along(baseline: Tensor) -> tuple[Tensor, Tensor]:
        p, n = value.shape[:2]
        member, column = torch.arange(p)[:, None], torch.arange(n)
        left = by_parameter(layout, rows * (layout.value - baseline)[..., None, None])
        there = left.unflatten(2, LOGITS.shape)[member, column, layout.state]  # [T, P, N, D, K]
        return (rows * there).sum((-1, -2)), rows.square().sum((-1, -2))

    return Scores(value, by_parameter(layout, rows), along)


def batch_of(part: Baseline, layout: Layout) -> Batch:
    """What the on-policy agent shows a baseline: no more than it declares."""

    def critic(action: Tensor) -> Tensor:
        return (action * Q[layout.state]).sum((-1, -2)) + action.prod(-2).sum(-1)

    needs = part.needs
    return Batch(
        obs=torch.eye(STATES, dtype=torch.float64)[layout.state],
        value=layout.value,
        valid=layout.valid,
        time=layout.time,
        v=V[layout.state] if "v" in needs else None,
        distribution=policy(layout) if "distribution" in needs else None,
        critic=critic if any(need.startswith("critic") for need in needs) else None,
        action=layout.action if "action" in needs else None,
        scores=(lambda: scores(layout)) if "scores" in needs else None,
        whole_episodes=layout.whole_episodes,
    )


def subtracted(part: Baseline | None, state: Mapping[str, Any], layout: Layout) -> Signal:
    """Values and baseline. `state` is that of all members."""
    signal = Signal(value=layout.value)
    return signal if part is None else baselined(part, dict(state), batch_of(part, layout), signal)


def gradients(part: Baseline | None, state: Mapping[str, Any], layout: Layout) -> tuple[Tensor, Signal]:
    """One estimate for every member, `[P, n]`, and the signal. `state` is that of all members."""
    d, draw = policy(layout), Draw(layout.action)
    signal, plain = subtracted(part, state, layout), Signal(value=torch.ones_like(layout.value))
    if part is not None:
        found = signal.baseline
        if found is not None and found.shape not in (layout.value.shape, (*layout.value.shape, FACTORS)):
            raise PglabError(
                f"predict gave {list(found.shape)}; rows are {list(layout.value.shape)} (or with {FACTORS} factors behind)."
            )
    (rows,), _ = cotangents(ScoreFunction(), d, draw, signal)
    if part is not None and part.per_parameter:
        b = part.coefficient(dict(state))  # [P, n], or none before the first batch
        if b.shape[1]:
            (ones,), _ = cotangents(ScoreFunction(), d, draw, plain)
            member = torch.arange(len(layout))[:, None]
            rows = rows - b.unflatten(1, LOGITS.shape)[member, layout.state] * ones  # [T, P, N, D, K]
    return by_parameter(layout, rows * layout.weight()[..., None, None]).sum(1), signal


def states(part: Baseline, layout: Layout) -> list[tuple[str, dict[str, Any]]]:
    """One member's state before any batch, and, for one that adapts, after some."""
    fresh = as_dtype(part.initial(1, torch.device("cpu")), torch.float64)
    found = [("", fresh)]
    if type(part).update is not Baseline.update:
        g = np.random.Generator(np.random.SFC64(0))
        state, p = fresh, (layout.probability / layout.probability.sum()).numpy()
        for member in g.choice(len(layout), size=UPDATES, p=p):
            one = layout.taken(torch.tensor([int(member)]))
            state, _ = part.update(state, batch_of(part, one))
        found.append((f", after {UPDATES} batches", as_dtype(state, torch.float64)))
    return found


@dataclass(frozen=True)
class Expectation:
    """What a baseline makes of the estimate, over all outcomes."""

    name: str
    mean: Tensor  # [n]
    exact: Tensor  # [n]
    variance: float
    """Trace of the covariance."""
    fault: str = ""
    """A declaration that does not hold."""


def expectations(part: Baseline | None) -> list[Expectation]:
    """One per layout and state. Raises PglabError on shapes that do not fit."""
    found = []
    for layout in layouts():
        made: list[tuple[str, dict[str, Any]]] = [("", {})] if part is None else states(part, layout)
        for when, state in made:
            g, signal = gradients(part, repeat_members(state, len(layout)), layout)
            p = layout.probability
            mean = p @ g
            variance = float(p @ (g - mean).square().sum(-1))
            exact = exact_policy_gradient() if layout.whole_episodes else _without(layout)
            fault = "" if part is None else _fault(part, state, layout, signal)
            found.append(Expectation(f"{layout.name}{when}", mean, exact, variance, fault))
    return found


def _without(layout: Layout) -> Tensor:
    """The expectation without a baseline: what a block of steps estimates, from which nothing may move it."""
    return layout.probability @ gradients(None, {}, layout)[0]


def _fault(part: Baseline, state: Mapping[str, Any], layout: Layout, signal: Signal) -> str:
    for member in (0, len(layout) // 2, len(layout) - 1):
        alone = subtracted(part, state, layout.taken(torch.tensor([member])))
        for one, all_ in ((alone.value, signal.value), (alone.baseline, signal.baseline)):
            if one is not None and all_ is not None and not torch.allclose(one[:, 0], all_[:, member], rtol=1e-6):
                return "a member's prediction changes with the other members of the population"
    b = signal.baseline
    if b is None or part.couples or layout.value.shape[2] < 2:
        return ""
    outcomes = round(len(layout) ** 0.5)
    first = b[:, :, 0].reshape(len(b), outcomes, outcomes, -1)  # [T, episode of column 0, episode of column 1, D]
    moved = (first - first[:, :, :1]).abs().amax(-1)
    valid = layout.valid[:, :, 0].unflatten(1, (outcomes, outcomes))
    if bool((moved * valid > 1e-9).any()):
        return "couples_rows is False, but a prediction changes with the other environments' rows"
    return ""
