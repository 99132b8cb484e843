"""Statistics of a report against values worked out by hand, and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pglab.lab.statistics import iqm
from pglab.reporting.scores import area_under_curve, band, horizon, probability_of_improvement


def test_probability_of_improvement_by_hand() -> None:
    # 3>2, 3>0, 1<2, 1>0: three of four pairs.
    assert probability_of_improvement([3, 1], [2, 0])[0] == 0.75
    # Ties count half: (1,1) half, (1,2) no, (2,1) yes, (2,2) half.
    assert probability_of_improvement([1, 2], [1, 2])[0] == 0.5
    assert probability_of_improvement([5, 6, 7], [1, 2]) == (1.0, 1.0, 1.0)
    assert probability_of_improvement([4], [1, 2])[0] == 1.0
    assert math.isnan(probability_of_improvement([4], [1, 2])[1])
    assert all(map(math.isnan, probability_of_improvement([], [1, 2])))
    assert all(map(math.isnan, probability_of_improvement([1, math.nan], [1, 2])))


def test_its_interval_is_the_bootstrap_over_seeds_of_both() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.7, 1, 8), rng.normal(0, 1, 6)
    point, low, high = probability_of_improvement(x, y, resamples=4000)
    drawn = []
    for _ in range(4000):
        a, b = rng.choice(x, 8), rng.choice(y, 6)
        drawn.append(np.mean([(p > q) + 0.5 * (p == q) for p in a for q in b]))
    assert point == np.mean([p > q for p in x for q in y])
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    back, back_low, back_high = probability_of_improvement(y, x)
    assert back == pytest.approx(1 - point)
    assert (back_low, back_high) == pytest.approx((1 - high, 1 - low), abs=0.03)


def test_the_area_is_the_mean_height_of_straight_lines() -> None:
    assert area_under_curve([0, 10], [0, 10], 10) == 5
    assert area_under_curve([0, 10], [0, 10], 5) == 2.5  # cut between evaluations
    assert area_under_curve([0, 10, 30], [0, 10, 10], 30) == pytest.approx((50 + 200) / 30)
    assert area_under_curve([10, 20], [4, 6], 20) == 5  # from the first evaluation
    assert math.isnan(area_under_curve([0, 10], [0, 10], 11))
    assert math.isnan(area_under_curve([0], [3], 0))
    assert math.isnan(area_under_curve([0, 10], [0, math.nan], 10))


def test_areas_are_taken_as_far_as_all_finished_variants_go() -> None:
    assert horizon([(100, True), (80, True), (20, False)]) == 80
    assert horizon([(30, False), (20, False)]) == 20
    assert horizon([]) is None


def test_a_band_leaves_out_what_is_missing() -> None:
    values = np.array([[1.0, 2, 3, 10], [math.nan, 1, 2, 3], [math.nan] * 4])
    middle, low, high = band(values)
    assert middle[:2].tolist() == [2.5, 2.0]
    assert math.isnan(middle[2])
    assert [low[1], high[1]] == [1.5, 2.5]
    whole = np.random.default_rng(0).normal(size=(5, 7))
    assert band(whole)[0] == pytest.approx([float(iqm(row)) for row in whole])
    assert band(whole)[1] == pytest.approx(np.percentile(whole, 25, axis=1))
