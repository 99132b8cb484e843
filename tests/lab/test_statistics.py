"""Statistics against scipy, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pglab.lab.gradient_statistics import _student_quantile, noise_to_signal, trace_variance
from pglab.lab.statistics import iqm, steps_to_threshold, stratified_bootstrap_interval

FALSE_ALARM = 4.892  # standard normal quantile of 1 - 1e-6 / 2


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(0, spawn_key=key))


def gaussian(key: int, batch: int, replicates: int, n: int, ratio: float) -> np.ndarray:
    """[batch, R, n] replicates around a mean of norm 1, with unequal scales and tr S = ratio."""
    scale = np.linspace(0.5, 1.5, n)
    scale *= math.sqrt(ratio / (scale**2).sum())
    return generator(key).standard_normal((batch, replicates, n)) * scale + math.sqrt(1 / n)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 10, 101])
def test_iqm_is_scipys_trimmed_mean(n: int) -> None:
    x = generator(n).standard_normal((3, n))
    np.testing.assert_allclose(iqm(x), stats.trim_mean(x, 0.25, axis=1), rtol=1e-12)
    np.testing.assert_allclose(iqm(x.T, axis=0), iqm(x), rtol=1e-12)
    np.testing.assert_allclose(iqm(x, axis=None), stats.trim_mean(x, 0.25, axis=None), rtol=1e-12)


def test_iqm_does_not_hide_nan_or_nothing() -> None:
    assert math.isnan(iqm([1.0, 2.0, 3.0, np.nan]))
    assert iqm([0.0, 1.0, 2.0, np.inf]) == 1.5
    with pytest.raises(ValueError, match="no values"):
        iqm([])


def test_the_bootstrap_of_a_mean_has_its_closed_form() -> None:
    # The bootstrap distribution of a mean is normal with standard deviation sd / sqrt(n) (sd of the sample, ddof 0).
    scores = generator(1).standard_normal(200) * 3 + 10
    low, high = stratified_bootstrap_interval(scores, np.mean, 0.9, resamples=20_000)
    half = 1.6449 * scores.std() / math.sqrt(200)
    assert low == pytest.approx(scores.mean() - half, abs=0.03 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.03 * half)


def test_the_bootstrap_draws_seeds_and_keeps_their_episodes() -> None:
    seeds = np.arange(8.0)
    episodes = seeds[:, None] + np.array([-1.0, 0.0, 1.0])  # [8, 3]
    assert stratified_bootstrap_interval(episodes) == stratified_bootstrap_interval(seeds)
    same = np.array([[-5.0, 5.0], [-5.0, 5.0]])  # episodes differ, seeds do not
    assert stratified_bootstrap_interval(same) == (0.0, 0.0)
    assert np.isnan(stratified_bootstrap_interval(np.ones((1, 100)))).all()


def test_the_bootstrap_draws_within_strata() -> None:
    # Drawn across strata, the mean would vary; drawn within them it cannot.
    assert stratified_bootstrap_interval([np.zeros(5), np.full(5, 10.0)], np.mean) == (5.0, 5.0)
    assert stratified_bootstrap_interval([1.0, 2.0, 3.0]) == stratified_bootstrap_interval(np.array([1.0, 2.0, 3.0]))


def test_steps_to_threshold() -> None:
    returns = np.array([[0.0, 5.0, np.nan, 0.0], [5.0, 0.0, 9.0, 0.0], [0.0, 9.0, 0.0, 4.9]])  # [3, 4]
    assert steps_to_threshold([100, 200, 300], returns, 5.0).tolist() == [200.0, 100.0, 200.0, np.inf]
    assert steps_to_threshold([], np.zeros((0, 2)), 5.0).tolist() == [np.inf, np.inf]


def test_the_formulas_are_the_definitions() -> None:
    g = generator(2).standard_normal((3, 6, 11)).astype(np.float32) + 0.5
    found = noise_to_signal(g)
    wide = g.astype(np.float64)
    trace = ((wide - wide.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2)) / 5
    square = ((wide.sum(axis=1) ** 2).sum(axis=1) - (wide**2).sum(axis=(1, 2))) / 30
    np.testing.assert_allclose(found["trace_variance"], trace, rtol=1e-12)
    np.testing.assert_allclose(found["squared_norm"], square, rtol=1e-10)
    value, se = trace_variance(g)
    np.testing.assert_allclose(value, trace, rtol=1e-12)
    without = [np.delete(wide, i, axis=1) for i in range(6)]
    left_out = np.stack([w.var(axis=1, ddof=1).sum(axis=1) for w in without], axis=-1)
    np.testing.assert_allclose(se, np.sqrt(5 * left_out.var(axis=-1)), rtol=1e-10)
    for p in range(3):  # a batch is its members
        one = noise_to_signal(g[p])
        assert {key: float(v[p]) for key, v in found.items()} == pytest.approx({k: float(v) for k, v in one.items()})


def test_chunks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    g = gaussian(3, 2, 8, 50, 3.0)
    whole = noise_to_signal(g)
    monkeypatch.setattr("pglab.lab.gradient_statistics._CHUNK", 7 * 16)
    for key, value in noise_to_signal(g).items():
        np.testing.assert_allclose(value, whole[key], rtol=1e-9)


@pytest.mark.statistical
def test_trace_and_squared_norm_are_unbiased() -> None:
    # Five tests of z < 4.892: a false alarm in 2e5 runs, and the seed is fixed.
    for key, ratio in enumerate((0.5, 50.0)):
        found = noise_to_signal(gaussian(10 + key, 20_000, 4, 6, ratio))
        for name, exact in (("trace_variance", ratio), ("squared_norm", 1.0)):
            sample = found[name]
            assert abs(sample.mean() - exact) < FALSE_ALARM * sample.std() / math.sqrt(len(sample))
    # Var U = 4 mu'S mu / R + 2 tr S^2 / (R (R - 1)); here mu = 0 and S = I.
    sample = noise_to_signal(generator(12).standard_normal((20_000, 4, 6)))["squared_norm"] ** 2
    assert abs(sample.mean() - 2 * 6 / 12) < FALSE_ALARM * sample.std() / math.sqrt(len(sample))


@pytest.mark.statistical
def test_the_standard_error_of_the_trace() -> None:
    value, se = trace_variance(gaussian(20, 5000, 32, 10, 1.0))
    assert math.sqrt((se**2).mean()) == pytest.approx(value.std(), rel=0.08)


@pytest.mark.statistical
@pytest.mark.parametrize(("n", "ratio", "replicates"), [(20, 1.0, 16), (20, 10.0, 64), (200, 0.1, 16), (200, 10.0, 16)])
def test_the_interval_covers_where_there_is_signal(n: int, ratio: float, replicates: int) -> None:
    found = noise_to_signal(gaussian(n + replicates, 1000, replicates, n, ratio))
    covered = ((found["low"] <= ratio) & (ratio <= found["high"])).mean()
    assert 0.90 <= covered <= 0.98
    assert np.isfinite(found["high"]).mean() > 0.6


@pytest.mark.statistical
def test_the_interval_covers_where_the_signal_drowns() -> None:
    # Nothing bounds the ratio from above, so all misses would be on one side: at least the nominal coverage.
    found = noise_to_signal(gaussian(30, 1000, 16, 200, 1e4))
    assert ((found["low"] <= 1e4) & (found["high"] >= 1e4)).mean() >= 0.95
    assert np.isinf(found["high"]).mean() > 0.9
    assert (np.isinf(found["nsr"]) == (found["squared_norm"] <= 0)).all()
    assert np.isinf(found["high"][np.isinf(found["nsr"])]).all()
    assert np.isfinite(found["low"]).all()


def test_the_edges() -> None:
    equal = noise_to_signal(np.ones((5, 3)))
    assert (equal["nsr"], equal["low"], equal["high"], equal["squared_norm"]) == (0.0, 0.0, 0.0, 3.0)
    nothing = noise_to_signal(np.zeros((5, 3)))
    assert math.isnan(nothing["nsr"])
    assert nothing["high"] == np.inf
    opposite = noise_to_signal(np.array([[1.0], [-1.0], [1.0], [-1.0]]))
    assert (opposite["nsr"], opposite["high"]) == (np.inf, np.inf)
    few = noise_to_signal(np.array([[1.0, 2.0], [1.5, 2.5]]))
    assert (few["low"], few["high"]) == (0.0, np.inf)
    assert few["nsr"] > 0
    assert math.isnan(trace_variance(np.array([[1.0], [2.0]]))[1])
    with pytest.raises(ValueError, match="at least R = 2"):
        noise_to_signal(np.ones((1, 3)))


def test_student_quantiles_are_scipys() -> None:
    for freedom in (3, 7, 15, 63):
        assert _student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.02)
