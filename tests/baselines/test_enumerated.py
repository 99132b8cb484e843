"""Means over all joint outcomes of two columns: no unbiased baseline moves them, and biased ones do.

The toy: an action of 1 at the first step of an episode may end it, so how many rows there are, and when, depends on what
was drawn. Values are rewards to go.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from spine import normal

from pglab.baselines import BASELINES, Baseline, Batch, baselined
from pglab.estimators import Signal

LOGITS = torch.tensor([0.4, -0.7], dtype=torch.float64)  # one per step of an episode
REWARD = torch.tensor([[1.0, 2.5], [-1.0, 3.0]], dtype=torch.float64)  # [step, action]
STEPS = 3
COLUMNS = 2
EVERY = [
    {"name": "time_dependent"},
    {"name": "time_dependent", "leave_one_out": True},
    {"name": "leave_one_out"},
    {"name": "linear_features"},
    {"name": "linear_features", "folds": 2},
    {"name": "linear_features", "folds": 2, "decay": 0.0},
    {"name": "moving_average"},
]
BIASED = [{"name": "group_normalised"}, {"name": "whitened"}, {"name": "group_normalised", "std": False}]


def column(drawn: tuple[int, ...], whole: bool) -> tuple[list[float], list[bool], list[int]]:
    """Values, validity and steps of a column of three rows: one episode, or a block of several one after another."""
    reward, time, valid = [], [], []
    t, over = 0, False
    for a in drawn:
        reward.append(0.0 if over else float(REWARD[t, a]))
        time.append(t)
        valid.append(not over)
        ends = t == 1 or a == 1
        over = over or (whole and ends)
        t = 0 if ends else t + 1
    value = list(reward)
    for i in range(STEPS - 2, -1, -1):
        if time[i + 1] > 0 and valid[i + 1]:
            value[i] += value[i + 1]
    return value, valid, time


def batch_of(outcome: tuple[int, ...], whole: bool) -> Batch:
    columns = [column(outcome[i * STEPS : (i + 1) * STEPS], whole) for i in range(COLUMNS)]
    value, valid, time = (torch.tensor([c[j] for c in columns]).T.unsqueeze(1) for j in range(3))
    obs = torch.stack([time, time.square() * 0.3 - 1], -1).double()
    return Batch(obs, value.double(), valid, time, whole_episodes=whole)


def mean_gradient(baseline: Baseline | None, state: dict, whole: bool) -> torch.Tensor:
    """E[sum of score x (value - baseline) over the rows of the first column], at the logit of every step."""
    p = torch.sigmoid(LOGITS)
    total = torch.zeros(2, dtype=torch.float64)
    mass = 0.0
    for outcome in itertools.product((0, 1), repeat=STEPS * COLUMNS):
        one = batch_of(outcome, whole)
        action = torch.tensor(outcome, dtype=torch.float64).view(COLUMNS, STEPS).T
        at = one.time[:, 0]
        likelihood = torch.where(action > 0.5, p[at], 1 - p[at])
        probability = likelihood[one.valid[:, 0]].prod()
        # Outcomes that differ in rows that do not exist are one: each has its share of the probability.
        probability = probability * 0.5 ** float((~one.valid).sum())
        signal = Signal(value=one.value)
        if baseline is not None:
            signal = baselined(baseline, state, one, signal)
        left = signal.value if signal.baseline is None else signal.value - signal.baseline
        score = (action - p[at]) * one.valid[:, 0]
        total.scatter_add_(0, at[:, 0], probability * (score * left[:, 0])[:, 0])
        mass += float(probability)
    assert mass == pytest.approx(1, abs=1e-12)
    return total


def learned(baseline: Baseline, whole: bool) -> dict:
    """A state of two batches with values of their own."""
    state = baseline.initial(1, "cpu")
    for key, outcome in enumerate([(0, 1, 0, 1, 1, 0), (0, 0, 1, 0, 0, 0)]):
        one = batch_of(outcome, whole)
        noisy = torch.where(one.valid, one.value + normal(*one.value.shape, key=key), 0.0)
        state, _ = baseline.update(state, Batch(one.obs, noisy, one.valid, one.time, whole_episodes=whole))
    return state


@pytest.mark.parametrize("whole", [True, False], ids=["whole episodes", "steps"])
@pytest.mark.parametrize("past", [True, False], ids=["later batch", "first batch"])
@pytest.mark.parametrize("given", EVERY, ids=str)
def test_no_unbiased_baseline_moves_the_mean(given, past, whole):
    baseline = BASELINES.build(given)
    assert baseline.unbiased
    state = learned(baseline, whole) if past else baseline.initial(1, "cpu")
    found = mean_gradient(baseline, state, whole)
    torch.testing.assert_close(found, mean_gradient(None, {}, whole), rtol=0, atol=1e-10)
    # It does subtract something.
    b = baseline.predict(state, batch_of((0, 1, 0, 0, 0, 0), whole))
    assert bool((b[0] != 0).any()) or not (past or baseline.couples or baseline.couples_rows)


@pytest.mark.parametrize("whole", [True, False], ids=["whole episodes", "steps"])
@pytest.mark.parametrize("given", BIASED, ids=str)
def test_a_baseline_that_contains_its_sample_moves_it(given, whole):
    baseline = BASELINES.build(given)
    assert not baseline.unbiased
    assert baseline.bias
    off = (mean_gradient(baseline, {}, whole) - mean_gradient(None, {}, whole)).abs().max()
    assert float(off) > 0.02


def test_the_objective_in_whole_episodes_is_the_mean_return():
    """The reference itself, by the derivative of the expected return."""
    theta = LOGITS.clone().requires_grad_()
    p = torch.sigmoid(theta)
    later = (1 - p[1]) * REWARD[1, 0] + p[1] * REWARD[1, 1]
    objective = p[0] * REWARD[0, 1] + (1 - p[0]) * (REWARD[0, 0] + later)
    (exact,) = torch.autograd.grad(objective, theta)
    torch.testing.assert_close(mean_gradient(None, {}, True), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["group_normalised", "whitened"])
@pytest.mark.parametrize("rows", [(1, 4), (2, 2)], ids=str)
def test_a_mean_with_its_own_sample_leaves_one_less_of_n(name, rows):
    """One Bernoulli, four independent rows: 3/4 of the gradient over the batch of four, 1/2 within groups of two."""
    baseline = BASELINES.build({"name": name, "std": False})
    steps, columns = rows
    phi = torch.tensor(-0.6, dtype=torch.float64)
    p, f = torch.sigmoid(phi), (2.0, 5.0)
    total = torch.zeros((), dtype=torch.float64)
    for outcome in itertools.product((0, 1), repeat=4):
        action = torch.tensor(outcome, dtype=torch.float64).view(steps, 1, columns)
        value = torch.where(action > 0.5, f[1], f[0])
        time = torch.arange(steps)[:, None, None].expand(value.shape)
        one = Batch(value.new_zeros(*value.shape, 0), value, torch.ones_like(value, dtype=torch.bool), time)
        left = value - baseline.predict({}, one)
        total += torch.where(action > 0.5, p, 1 - p).prod() * ((action - p) * left).mean()
    compared = 4 if name == "whitened" else columns
    exact = p * (1 - p) * (f[1] - f[0])
    torch.testing.assert_close(total, exact * (compared - 1) / compared, rtol=1e-12, atol=0)
    assert compared != 4 or float(total / exact) == pytest.approx(0.75)
