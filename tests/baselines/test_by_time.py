"""Baselines of time and features, and normalised ones, by hand and by loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from spine import assert_mean, generator, normal
from torch import Tensor

import pglab
from pglab.baselines import BASELINES, Batch, GroupNormalised, LinearFeatures, TimeDependent, Whitened, baselined
from pglab.distributions import Gaussian
from pglab.estimators import Signal


def batch(
    value: Tensor,
    valid: Tensor | None = None,
    time: Tensor | None = None,
    obs: Tensor | None = None,
    whole: bool = True,
) -> Batch:
    valid = torch.ones_like(value, dtype=torch.bool) if valid is None else valid
    time = torch.arange(len(value)).view(-1, 1, 1).expand(value.shape) if time is None else time
    obs = value.new_zeros(*value.shape, 0) if obs is None else obs
    return Batch(obs, torch.where(valid, value, 0.0), valid, time, whole_episodes=whole)


ENDING = torch.tensor([[[True, True, True]], [[True, False, True]], [[True, False, False]]])
VALUE = torch.tensor([[[1.0, 2.0, 6.0]], [[4.0, 99.0, 10.0]], [[7.0, 99.0, 99.0]]])

# -- time_dependent


def test_time_dependent_divides_by_the_episodes_alive():
    """Divided by all three, dead ones with their zeros among them, the last two would be 14/3 and 7/3."""
    baseline = TimeDependent()
    state, _ = baseline.update(baseline.initial(1, "cpu"), batch(VALUE, ENDING))
    found = baseline.predict(state, batch(torch.zeros(4, 1, 1)))
    assert found.flatten().tolist() == [3.0, 7.0, 7.0, 0.0]


def test_time_dependent_is_used_then_updated_and_weighs_the_past_by_its_rows():
    baseline = TimeDependent(decay=0.5)
    one = batch(VALUE, ENDING)
    state = baseline.initial(1, "cpu")
    assert not bool(baseline.predict(state, one).any())
    state, _ = baseline.update(state, one)
    # Two columns reach the second step, one the third: sums 9, 14, 7 of 3, 2, 1 rows are halved.
    valid = torch.tensor([[[True, True]], [[True, True]], [[False, False]]])
    state, _ = baseline.update(state, batch(torch.tensor([[[8.0, 0.0]], [[1.0, 2.0]], [[0.0, 0.0]]]), valid))
    found = baseline.predict(state, one)[:, 0, 0]
    torch.testing.assert_close(found, torch.tensor([(4.5 + 8) / 3.5, (7 + 3) / 3, 7.0]))


def test_a_step_that_is_rarely_reached_is_remembered():
    """Weights fall as batches reach a step, not as batches pass: 5,000 would leave nothing in float32."""
    baseline = TimeDependent()
    state, _ = baseline.update(baseline.initial(1, "cpu"), batch(VALUE, ENDING))
    short = batch(torch.ones(1, 1, 2))
    for _ in range(5000):
        state, _ = baseline.update(state, short)
    torch.testing.assert_close(baseline.predict(state, batch(VALUE))[:, 0, 0], torch.tensor([1.0, 7.0, 7.0]))


def test_later_steps_share_the_last_one_that_is_told_apart():
    baseline = TimeDependent(steps=2)
    for whole in (True, False):
        state, _ = baseline.update(
            baseline.initial(1, "cpu"), batch(torch.tensor([[[1.0]], [[2.0]], [[6.0]]]), whole=whole)
        )
        assert baseline.predict(state, batch(torch.zeros(4, 1, 1), whole=whole)).flatten().tolist() == [1, 4, 4, 4]


def test_blocks_of_steps_are_compared_by_the_step_of_the_episode():
    """Two columns whose episodes stand at different steps, the second far into one."""
    time = torch.tensor([[[0, 700]], [[1, 0]], [[0, 1]]])
    baseline = TimeDependent()
    state, _ = baseline.update(
        baseline.initial(1, "cpu"), batch(torch.arange(6.0).view(3, 1, 2), time=time, whole=False)
    )
    found = baseline.predict(state, batch(torch.zeros(3, 1, 2), time=time, whole=False))
    by_step = {0: (0 + 3 + 4) / 3, 1: (2 + 5) / 2, 700: 1.0}
    assert found.flatten().tolist() == pytest.approx([by_step[int(t)] for t in time.flatten()])


@pytest.mark.parametrize("whole", [True, False])
def test_leaving_a_columns_rows_out_equals_a_loop(whole):
    baseline = TimeDependent(leave_one_out=True)
    past = {
        "total": torch.tensor([[3.0, 8.0], [5.0, 0.0]]).double(),
        "count": torch.tensor([[1.0, 2.0], [1.0, 0.0]]).double(),
    }
    for key in range(6):
        t, p, n = 5, 2, 1 + key % 3
        time = torch.from_numpy(generator(key, 1).integers(0, 5 if whole else 8, (t, p, n)))
        valid = torch.from_numpy(generator(key, 2).random((t, p, n)) < 0.7)
        one = batch(normal(t, p, n, key=key), valid, time, whole=whole)
        found = baseline.predict(past, one)
        for i, m, j in valid.nonzero().tolist():
            others = valid[:, m] & (time[:, m] == time[i, m, j])
            others[:, j] = False
            alone = {0: [3.0, 4.0], 1: [5.0, 0.0]}[m][int(time[i, m, j])] if time[i, m, j] < 2 else 0.0
            expected = one.value[:, m][others].mean() if bool(others.any()) else alone
            assert float(found[i, m, j]) == pytest.approx(float(expected), abs=1e-12)


# -- linear_features


def design(one: Batch, member: int, columns: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Features and values of a member's valid rows, by numpy."""
    keep = one.valid[:, member].clone()
    if columns is not None:
        keep[:, [c for c in range(keep.shape[1]) if c not in columns]] = False
    s = one.obs[:, member][keep].numpy().clip(-10, 10)
    t = one.time[:, member][keep].numpy()[:, None] / 100
    x = np.concatenate([s, s**2, t, t**2, t**3, np.ones_like(t)], 1)
    return x, one.value[:, member][keep].numpy()


def ridge(parts: list[tuple[float, np.ndarray, np.ndarray]], penalty: float) -> np.ndarray:
    """argmin of the weighted squared error plus penalty x sum over features of (mean square x weight^2): a least-squares
    problem with rows added for the penalty."""
    x = np.concatenate([math.sqrt(c) * x for c, x, _ in parts])
    y = np.concatenate([math.sqrt(c) * y for c, _, y in parts])
    size = np.sqrt((x**2).sum(0))
    return np.linalg.lstsq(np.concatenate([x, math.sqrt(penalty) * np.diag(size)]), np.r_[y, 0 * size], rcond=None)[0]


def block(key: int, n: int = 5, t: int = 9, p: int = 2, o: int = 2) -> Batch:
    valid = torch.from_numpy(generator(key, 3).random((t, p, n)) < 0.8)
    time = torch.from_numpy(generator(key, 4).integers(0, 300, (t, p, n)))
    return batch(3 + normal(t, p, n, key=key), valid, time, 4 * normal(t, p, n, o, key=key + 1), whole=False)


def test_linear_features_are_the_ridge_regression_on_the_decayed_past():
    baseline = LinearFeatures(ridge=1e-3, decay=0.6)
    first, second, third = (block(k) for k in (0, 10, 20))
    state = baseline.initial(2, "cpu")
    assert not bool(baseline.predict(state, first).any())
    for one in (first, second):
        state, _ = baseline.update(state, one)
    found = baseline.predict(state, third)
    for p in range(2):
        w = ridge([(0.6, *design(first, p)), (1.0, *design(second, p))], 1e-3)
        np.testing.assert_allclose(found[:, p][third.valid[:, p]], design(third, p)[0] @ w, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("folds", [2, 3, 5, 8])
def test_cross_fitted_features_are_the_regression_on_the_past_and_the_other_folds(folds):
    baseline = LinearFeatures(ridge=1e-2, decay=0.5, folds=folds)
    first, second = block(0), block(10)
    state, _ = baseline.update(baseline.initial(2, "cpu"), first)
    found = baseline.predict(state, second)
    for p in range(2):
        for column in range(5):
            others = [c for c in range(5) if (c - column) % min(folds, 5)]
            w = ridge([(0.5, *design(first, p)), (1.0, *design(second, p, others))], 1e-2)
            mine, _ = design(second, p, [column])
            np.testing.assert_allclose(found[:, p, column][second.valid[:, p, column]], mine @ w, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_a_fold_reads_none_of_its_own_values(folds):
    """Not in its last digit: sums of the other folds are made without it, not by subtraction."""
    baseline = LinearFeatures(folds=folds)
    one = block(0)
    before = baseline.predict(baseline.initial(2, "cpu"), one)
    for fold in range(folds):
        mine = [c for c in range(5) if c % folds == fold]
        moved = one.value.clone()
        moved[:, :, mine] += 1e6
        after = baseline.predict(baseline.initial(2, "cpu"), replace(one, value=moved * one.valid))
        for column in range(5):
            assert torch.equal(after[:, :, column], before[:, :, column]) == (column in mine)


def test_values_that_are_linear_in_the_features_are_found():
    one = block(0, n=40)
    s, t = one.obs.clamp(-10, 10), one.time / 100.0
    value = 2 * s[..., 0] - 0.5 * s[..., 1].square() + 3 * t - t.pow(2) + 0.2 * t.pow(3) - 7
    exact = batch(value, one.valid, one.time, one.obs, whole=False)
    for baseline in (LinearFeatures(ridge=1e-12), LinearFeatures(ridge=1e-12, folds=4)):
        state, _ = baseline.update(baseline.initial(2, "cpu"), exact)
        found = baseline.predict(state, exact)
        torch.testing.assert_close(found[one.valid], value[one.valid], rtol=1e-6, atol=1e-6)


def test_without_observations_it_is_a_function_of_time():
    value = torch.tensor([[[4.0, 6.0]], [[1.0, 3.0]]]).double()
    baseline = LinearFeatures(ridge=1e-10)
    state, _ = baseline.update(baseline.initial(1, "cpu"), batch(value))
    assert state["gram"].shape == (1, 4, 4)
    torch.testing.assert_close(
        baseline.predict(state, batch(value))[:, 0, 0], torch.tensor([5.0, 2.0]).double(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("given", [{}, {"folds": 2}], ids=str)
def test_extreme_features_stay_finite(given):
    """A component that is always 0, one beyond the clip, two that are equal, steps beyond all limits."""
    baseline = LinearFeatures(**given)
    obs = torch.stack([torch.zeros(4, 1, 4), torch.full((4, 1, 4), 1e30), torch.full((4, 1, 4), 1e20)], -1)
    time = torch.full((4, 1, 4), 10**7) + torch.arange(4).view(-1, 1, 1)
    value = normal(4, 1, 4).float() + 5
    one = batch(value, time=time, obs=obs, whole=False)
    state, _ = baseline.update(baseline.initial(1, "cpu"), one)
    found = baseline.predict(state, one)
    assert found.dtype == torch.float32
    assert bool(((found - 5).abs() < 3).all())


@pytest.mark.parametrize("given", [{"folds": 1}, {"folds": -1}, {"ridge": 0.0}, {"decay": 1.0}], ids=str)
def test_options_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        BASELINES.build({"name": "linear_features", **given})


# -- normalised


def test_groups_are_the_rows_alive_at_a_step():
    baseline = GroupNormalised(eps=1e-9)
    one = batch(VALUE, ENDING)
    signal = baselined(baseline, {}, one, Signal(value=one.value))
    left = signal.value - signal.baseline
    std = math.sqrt((4 + 1 + 9) / 2)
    torch.testing.assert_close(left[0, 0], torch.tensor([-2 / std, -1 / std, 3 / std]))
    torch.testing.assert_close(left[1, 0, [0, 2]], torch.tensor([-1 / math.sqrt(2), 1 / math.sqrt(2)]))
    assert float(left[2, 0, 0]) == 0  # a group of one


def test_groups_of_whole_episodes_are_of_one_step_of_theirs_and_of_blocks_of_one_row():
    """Columns of two episodes, of 1 and 2 steps and of 2 and 1."""
    value = torch.tensor([[[1.0, 10.0]], [[2.0, 20.0]], [[3.0, 30.0]]])
    time = torch.tensor([[[0, 0]], [[0, 1]], [[1, 0]]])
    baseline = GroupNormalised()
    whole = baseline.predict({}, batch(value, time=time))
    assert whole[:, 0].tolist() == [[10.75, 10.75], [10.75, 11.5], [11.5, 10.75]]
    steps = baseline.predict({}, batch(value, time=time, whole=False))
    assert steps[:, 0].tolist() == [[5.5, 5.5], [11.0, 11.0], [16.5, 16.5]]


@pytest.mark.parametrize("name", ["group_normalised", "whitened"])
def test_equal_values_give_no_gradient(name):
    baseline = BASELINES.build(name)
    for x, limit in ((3.0, 0.0), (0.1, 1e-3 if name == "group_normalised" else 1.0)):  # 0.1 has a mean that is rounded
        one = batch(torch.full((2, 1, 7), x))
        signal = baselined(baseline, {}, one, Signal(value=one.value))
        assert float((signal.value - signal.baseline).abs().max()) <= limit


def test_whitened_by_hand():
    one = batch(VALUE, ENDING)
    rows = torch.tensor([1.0, 2.0, 6.0, 4.0, 10.0, 7.0])
    signal = baselined(Whitened(), {}, one, Signal(value=one.value))
    torch.testing.assert_close((signal.value - signal.baseline)[ENDING], (rows - rows.mean()) / rows.std())


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["group_normalised", "whitened"])
def test_four_normalised_draws_of_a_gaussian_give_0_691_of_the_gradient(name):
    """z ~ N(mu, 1), f = z: (3/4) E[S], the mean of the standard deviation of four, sqrt(2/3) Gamma(2) / Gamma(3/2)."""
    d = Gaussian(torch.tensor([0.7], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    found = pglab.estimate_gradient("score_function", d, lambda z: z[:, 0], 100_000, draws=4, baseline=name)["mean"]
    expected = 0.75 * math.sqrt(2 / 3) / math.gamma(1.5)
    assert expected == pytest.approx(0.691, abs=1e-4)
    eps = BASELINES.build(name).eps  # adds at most eps to what the deviation is divided by
    assert_mean(found, torch.tensor([expected - 0.75 * eps], dtype=torch.float64), resolution=0.02)
    half = pglab.estimate_gradient(
        "score_function", d, lambda z: z[:, 0], 100_000, draws=4, baseline={"name": name, "std": False}
    )["mean"]
    assert_mean(half, torch.tensor([0.75], dtype=torch.float64), resolution=0.02)
