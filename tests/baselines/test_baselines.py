"""Baselines: used before they are updated, free of the sample they multiply, and right by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from spine import Quadratic, generator, make, noise_of, normal

from pglab.baselines import BASELINES, Batch, CriticMean, LeaveOneOut, MovingAverage, NoBaseline, Scores, Value
from pglab.distributions import Bernoulli
from pglab.errors import PglabError
from pglab.estimators import Draw, ScoreFunction, Signal
from pglab.gradients import cotangents


def batch(value: torch.Tensor, valid: torch.Tensor | None = None, **more) -> Batch:
    valid = torch.ones_like(value, dtype=torch.bool) if valid is None else valid
    time = torch.arange(len(value)).view(-1, 1, 1).expand(value.shape)
    return Batch(normal(*value.shape, 2), torch.where(valid, value, 0.0), valid, time, **more)


def everything(key: int = 1, rows: tuple[int, int, int] = (4, 2, 3)) -> dict:
    """All that a batch can offer beside values."""
    d = make("categorical", rows)
    scores = Scores(
        normal(*rows[1:], 5, key=key + 30),
        normal(*rows[1:], 5, key=key + 31),
        lambda b: (normal(*rows, key=key + 32) - b, normal(*rows, key=key + 33).square()),
    )
    action = d.sample(noise_of("exponential", tuple(d.noise_shape), key))
    return {
        "v": normal(*rows, key=key),
        "distribution": d,
        "critic": Quadratic(d),
        "action": action,
        "scores": lambda: scores,
    }


@pytest.mark.parametrize("name", BASELINES.names())
def test_every_baseline_predicts_one_number_per_row_and_updates_its_state(name):
    baseline = BASELINES.get(name)()
    one = batch(normal(4, 2, 3), **everything())
    state = baseline.initial(2, "cpu")
    found = baseline.predict(state, one)
    assert found is None or found.shape == ((4, 2, 3, 2) if baseline.per_factor else (4, 2, 3))
    assert baseline.scale(state, one).shape == (4, 2, 3)
    state, info = baseline.update(state, one)
    assert all(x.shape == (2,) for x in info.values())
    again = baseline.predict(state, one)
    assert again is None or again.shape == found.shape


@pytest.mark.parametrize("name", [n for n in BASELINES.names() if not BASELINES.get(n).couples_rows])
def test_a_baseline_that_does_not_couple_rows_reads_no_other_rows_value(name):
    baseline = BASELINES.get(name)()
    value, more = normal(4, 2, 3), everything()
    moved = value.clone()
    moved[1, 0, 2] += 5
    state, _ = baseline.update(baseline.initial(2, "cpu"), batch(normal(4, 2, 3, key=2), **more))
    a, b = (baseline.predict(state, batch(v, **more)) for v in (value, moved))
    assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n in BASELINES.names() if BASELINES.get(n).unbiased])
def test_an_unbiased_baseline_does_not_contain_the_value_that_it_is_subtracted_from(name):
    baseline = BASELINES.get(name)()
    value, more = normal(4, 2, 3), everything()
    state, _ = baseline.update(baseline.initial(2, "cpu"), batch(normal(4, 2, 3, key=2), **more))
    for t, p, n in [(0, 0, 0), (1, 1, 2), (3, 0, 1)]:
        moved = value.clone()
        moved[t, p, n] += 5
        a, b = (baseline.predict(state, batch(v, **more)) for v in (value, moved))
        assert a is None or torch.allclose(a[t, p, n], b[t, p, n], atol=1e-12)


def test_none_is_none():
    assert NoBaseline().predict({}, batch(normal(2, 1, 3))) is None


def test_value_returns_v():
    v = normal(2, 1, 3)
    assert torch.equal(Value().predict({}, batch(normal(2, 1, 3, key=1), v=v)), v)


def test_moving_average_is_used_then_updated():
    baseline = MovingAverage(decay=0.8)
    state = baseline.initial(2, "cpu")
    values = [torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), torch.tensor([[[6.0, 8.0], [0.0, 0.0]]])]
    assert torch.equal(baseline.predict(state, batch(values[0])), torch.zeros(1, 2, 2))
    state, info = baseline.update(state, batch(values[0]))
    assert torch.equal(baseline.predict(state, batch(values[1])), torch.tensor([[[2.0, 2.0], [20.0, 20.0]]]))
    assert info["baseline/moving_average"].tolist() == [2.0, 20.0]
    state, _ = baseline.update(state, batch(values[1]))
    torch.testing.assert_close(
        baseline.predict(state, batch(values[0])), torch.tensor([[[3.0, 3.0], [16.0, 16.0]]])
    )  # 0.8 x 2 + 0.2 x 7, 0.8 x 20


def test_moving_average_counts_valid_rows_only():
    value = torch.tensor([[[1.0, 3.0]], [[5.0, 99.0]]])
    valid = torch.tensor([[[True, True]], [[True, False]]])
    state, _ = MovingAverage().update(MovingAverage().initial(1, "cpu"), batch(value, valid))
    assert state["mean"].tolist() == [3.0]


def test_moving_average_keeps_its_state_until_a_member_has_rows():
    baseline = MovingAverage(decay=0.5)
    state, _ = baseline.update(baseline.initial(1, "cpu"), batch(torch.tensor([[[4.0]]])))
    state, _ = baseline.update(state, batch(torch.tensor([[[9.0]]]), torch.tensor([[[False]]])))
    assert state["mean"].tolist() == [4.0]


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2])
def test_moving_average_refuses_decays_outside_0_to_1(decay):
    with pytest.raises(ValueError, match="decay"):
        BASELINES.build({"name": "moving_average", "decay": decay})


def test_leave_one_out_by_hand_with_ended_episodes():
    value = torch.tensor([[[1.0, 2.0, 6.0]], [[4.0, 99.0, 10.0]], [[7.0, 99.0, 99.0]]])
    valid = torch.tensor([[[True, True, True]], [[True, False, True]], [[True, False, False]]])
    baseline = LeaveOneOut()
    state = baseline.initial(1, "cpu")
    found = baseline.predict(state, batch(value, valid))
    assert found[0, 0].tolist() == [4.0, 3.5, 1.5]
    assert found[1, 0, [0, 2]].tolist() == [10.0, 4.0]
    assert float(found[2, 0, 0]) == 0  # alone, and no earlier batch
    state, _ = baseline.update(state, batch(value, valid))
    assert state["by_time"].tolist() == [[3.0, 7.0, 7.0]]
    alone = batch(normal(4, 1, 2).abs(), torch.tensor([[[True, False]]]).expand(4, 1, 2))
    assert baseline.predict(state, alone)[:, 0, 0].tolist() == [3.0, 7.0, 7.0, 0.0]


def test_leave_one_out_keeps_an_earlier_mean_where_the_new_batch_did_not_reach():
    baseline = LeaveOneOut()
    state, _ = baseline.update(baseline.initial(1, "cpu"), batch(torch.tensor([[[1.0]], [[2.0]], [[3.0]]])))
    valid = torch.tensor([[[True]], [[False]]])
    state, _ = baseline.update(state, batch(torch.tensor([[[10.0]], [[0.0]]]), valid))
    assert state["by_time"].tolist() == [[10.0, 2.0, 3.0]]


def test_leave_one_out_keeps_members_apart():
    value = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]])
    found = LeaveOneOut().predict(LeaveOneOut().initial(2, "cpu"), batch(value))
    assert found.tolist() == [[[3.0, 1.0], [30.0, 10.0]]]


@pytest.mark.parametrize("past", [False, True])
def test_leave_one_out_is_unbiased_over_all_outcomes_of_two_environments(past):
    """Two environments, two steps; action 1 at the first step may end the episode, so survival depends on the actions.

    The return of step t is the reward-to-go. The exact gradient is the derivative of the summed episode returns.
    """
    logits = torch.tensor([[0.4], [-0.7]]).double()  # one per step
    reward = torch.tensor([[1.0, 2.5], [-1.0, 3.0]]).double()  # [step, action]
    baseline = LeaveOneOut()
    state = baseline.initial(1, "cpu")
    if past:
        state = {"by_time": torch.tensor([[5.0, -3.0]]).double()}

    def episode(a0: int, a1: int) -> tuple[list[float], list[bool]]:
        ends = a0 == 1  # the episode ends after a first action of 1
        r0, r1 = float(reward[0, a0]), 0.0 if ends else float(reward[1, a1])
        return [r0 + r1, r1], [True, not ends]

    total = torch.zeros(2, 1).double()
    for a in itertools.product((0, 1), repeat=4):
        action = torch.tensor(a).double().view(2, 1, 2, 1)  # [T, P, N, D]
        columns = [episode(int(action[0, 0, n]), int(action[1, 0, n])) for n in range(2)]
        value = torch.tensor([c[0] for c in columns]).double().T.reshape(2, 1, 2)
        valid = torch.tensor([c[1] for c in columns]).T.reshape(2, 1, 2)
        d = Bernoulli(logits.view(2, 1, 1, 1).expand(2, 1, 2, 1))
        b = baseline.predict(state, batch(value, valid))
        (g,), _ = cotangents(ScoreFunction(), d, Draw(action), Signal(value, b))
        p = d.log_prob(action).sum().exp()
        total += p * (g[..., 0] * valid).sum((1, 2))[:, None] / 2
    theta = logits[:, 0].clone().requires_grad_()
    p0, p1 = torch.sigmoid(theta).unbind()
    later = (1 - p1) * reward[1, 0] + p1 * reward[1, 1]
    objective = p0 * reward[0, 1] + (1 - p0) * (reward[0, 0] + later)
    torch.testing.assert_close(total[:, 0], torch.autograd.grad(objective, theta)[0], rtol=1e-12, atol=1e-12)


def in_sequence(columns: list[list[list[float]]], steps: int) -> Batch:
    """One member's whole episodes as they are collected: `columns[n]` lists the values of an environment's episodes, which
    lie one after another; rows past the last are not valid, but numbered on."""
    envs = len(columns)
    value, valid = torch.zeros(steps, 1, envs).double(), torch.zeros(steps, 1, envs, dtype=torch.bool)
    time = torch.zeros(steps, 1, envs, dtype=torch.int64)
    for n, episodes in enumerate(columns):
        rows = [(t, x) for episode in episodes for t, x in enumerate(episode)]
        for i, (t, x) in enumerate(rows):
            value[i, 0, n], valid[i, 0, n], time[i, 0, n] = x, True, t
        time[len(rows) :, 0, n] = torch.arange(steps - len(rows)) + 7
    return Batch(normal(steps, 1, envs, 2), value, valid, time, whole_episodes=True)


def test_leave_one_out_over_whole_episodes_equals_a_loop_over_them():
    """Several episodes a column, of unequal lengths: compared by their own times with all other episodes."""
    baseline = LeaveOneOut()
    past = torch.tensor([[5.0, -3.0, 2.0]]).double()
    for key in range(10):
        g = generator(key)
        columns = [[g.standard_normal(g.integers(1, 7)).tolist() for _ in range(3)] for _ in range(1 + key % 3)]
        steps = max(sum(map(len, c)) for c in columns)
        batch = in_sequence(columns, steps)
        found = baseline.predict({"by_time": past}, batch)
        state, _ = baseline.update({"by_time": past}, batch)
        episodes = [(n, i, e) for n, c in enumerate(columns) for i, e in enumerate(c)]
        for n, i, mine in episodes:
            start = sum(map(len, columns[n][:i]))
            for t in range(len(mine)):
                others = [e[t] for m, j, e in episodes if (m, j) != (n, i) and len(e) > t]
                alone = float(past[0, t]) if t < 3 else 0.0
                expected = sum(others) / len(others) if others else alone
                assert float(found[start + t, 0, n]) == pytest.approx(expected, abs=1e-12)
        for t in range(max(steps, 3)):
            alive = [e[t] for *_, e in episodes if len(e) > t]
            expected = sum(alive) / len(alive) if alive else (float(past[0, t]) if t < 3 else 0.0)
            assert float(state["by_time"][0, t]) == pytest.approx(expected, abs=1e-12)


def test_leave_one_out_over_whole_episodes_keeps_members_apart():
    """One member's column holds episodes of 1 and 2 steps, the other's of 2 and 1."""
    value = torch.tensor([[[1.0], [10.0]], [[2.0], [20.0]], [[3.0], [30.0]]])
    time = torch.tensor([[[0], [0]], [[0], [1]], [[1], [0]]])
    valid = torch.ones_like(value, dtype=torch.bool)
    one = Batch(normal(3, 2, 1, 2), value, valid, time, whole_episodes=True)
    found = LeaveOneOut().predict(LeaveOneOut().initial(2, "cpu"), one)
    assert found[:, 0, 0].tolist() == [2.0, 1.0, 0.0]
    assert found[:, 1, 0].tolist() == [30.0, 0.0, 10.0]


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("columns", [1, 2], ids=["one after another", "side by side"])
def test_leave_one_out_is_unbiased_over_all_outcomes_of_two_whole_episodes(past, columns):
    """The toy of the test above, its two episodes one after another in one column or side by side in two."""
    logits = torch.tensor([0.4, -0.7]).double()  # one per step
    reward = torch.tensor([[1.0, 2.5], [-1.0, 3.0]]).double()  # [step, action]
    state = {"by_time": torch.tensor([[5.0, -3.0] if past else [0.0, 0.0]]).double()}
    total = torch.zeros(2).double()
    for outcome in itertools.product((0, 1), repeat=4):
        drawn = [a[:1] if a[0] == 1 else a for a in (outcome[:2], outcome[2:])]  # a first action of 1 ends it
        episodes = [[sum(float(reward[u, a[u]]) for u in range(t, len(a))) for t in range(len(a))] for a in drawn]
        probability = Bernoulli(logits).log_prob(torch.tensor(outcome).double().view(2, 2)).sum().exp()
        laid = [episodes] if columns == 1 else [[e] for e in episodes]
        one = in_sequence(laid, 4 if columns == 1 else 2)
        b = LeaveOneOut().predict(state, one)
        where = [
            (sum(map(len, drawn[:i])) + t, 0, i, t) if columns == 1 else (t, i, i, t)
            for i, a in enumerate(drawn)
            for t in range(len(a))
        ]
        for row, column, i, t in where:
            score = drawn[i][t] - torch.sigmoid(logits[t])
            total[t] += probability * score * (one.value[row, 0, column] - b[row, 0, column]) / 2
    theta = logits.clone().requires_grad_()
    p0, p1 = torch.sigmoid(theta).unbind()
    later = (1 - p1) * reward[1, 0] + p1 * reward[1, 1]
    objective = p0 * reward[0, 1] + (1 - p0) * (reward[0, 0] + later)
    torch.testing.assert_close(total, torch.autograd.grad(objective, theta)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_critic_mean_is_the_sum_over_all_joint_actions(family):
    d = make(family, (2, 3, 4))
    f = Quadratic(d)
    found = CriticMean().predict({}, batch(normal(2, 3, 4), distribution=d, critic=f))
    p = (
        d.probs()
        if family == "categorical"
        else torch.stack([1 - torch.sigmoid(d.logits), torch.sigmoid(d.logits)], -1)
    )
    exact = torch.zeros(2, 3, 4).double()
    for z in itertools.product(range(p.shape[-1]), repeat=2):
        index = torch.tensor(z)
        action = torch.nn.functional.one_hot(index, 3) if family == "categorical" else index
        exact += p[..., 0, z[0]] * p[..., 1, z[1]] * f(action.double().expand(d.noise_shape))
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("family", ["gaussian", "squashed_gaussian"])
def test_critic_mean_of_a_gaussian_is_q_at_the_mode(family):
    d = make(family, (2, 3, 4))
    f = Quadratic(d)
    at = d.mean if family == "gaussian" else torch.tanh(d.mean)
    torch.testing.assert_close(CriticMean().predict({}, batch(normal(2, 3, 4), distribution=d, critic=f)), f(at))


def test_critic_mean_refuses_a_critic_that_would_broadcast():
    d = make("categorical", (2, 3, 4))
    with pytest.raises(PglabError, match="critic"):
        CriticMean().predict({}, batch(normal(2, 3, 4), distribution=d, critic=lambda a: Quadratic(d)(a).mean(1)))
