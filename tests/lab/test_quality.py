"""Statistics of a training-size gradient: definitions, closed forms, enumeration, and how often intervals cover."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from pglab.errors import PglabError
from pglab.lab import quality as module
from pglab.lab.gradient_statistics import noise_to_signal
from pglab.lab.intervals import Estimate, hall
from pglab.lab.quality import efficiency, quality
from pglab.lab.replicates import Replicates

FALSE_ALARM = 4.892  # standard normal quantile of 1 - 1e-6 / 2
SECTIONS = {"first": slice(0, 4), "last": slice(4, 7)}
N = 7
SCALE = np.linspace(0.5, 1.5, N)
MEAN = np.linspace(-0.5, 1.0, N)
GOAL = MEAN + 0.3 * (-1.0) ** np.arange(N)


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(0, spawn_key=key))


def units(j: int, r: int, key: int = 0) -> np.ndarray:
    """[j, r, N] Gaussian units of mean MEAN and standard deviation SCALE, as float32 has them."""
    return (MEAN + SCALE * generator(key).standard_normal((j, r, N))).astype(np.float32)


def filled(x: np.ndarray, p: int = 1, groups: int = 256, head: int = 128, chunk: int | None = None) -> Replicates:
    found = Replicates(x.shape[0], x.shape[2], p, groups, head)
    for part in torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).split(chunk or x.shape[1], 1):
        found.add(part)
    return found


def total(x: np.ndarray, reference: np.ndarray | None = None, p: int = 1, groups: int = 256) -> dict[str, Estimate]:
    return quality(filled(x, p, groups), {}, reference).estimates["total"]


def same(a: np.ndarray, b: np.ndarray, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


def test_values_are_their_definitions() -> None:
    x, p = units(3, 48), 4
    found = quality(filled(x, p), SECTIONS, GOAL).estimates
    assert list(found) == ["first", "last", "total"]
    for name, part in {**SECTIONS, "total": slice(0, N)}.items():
        wide, goal, n = x[..., part].astype(np.float64), GOAL[part], part.stop - part.start
        mean, variance = wide.mean(1), wide.var(1, ddof=1)
        trace = variance.sum(-1)
        square = ((wide.sum(1) ** 2).sum(-1) - (wide**2).sum((1, 2))) / (48 * 47)
        bias = ((mean - goal) ** 2).sum(-1) - trace / 48
        value = {key: e.value for key, e in found[name].items()}
        same(value["trace"], trace / p)
        same(value["mean_variance"], trace / p / n)
        same(value["squared_norm"], square, 1e-9)
        same(value["nsr"], np.where(square > 0, trace / p / square, np.inf), 1e-9)
        same(value["bias_squared"], bias)
        same(value["mse"], bias + trace / p)
        g = wide.reshape(3, 12, p, n).mean(2)
        u = g / np.linalg.norm(g, axis=-1, keepdims=True)
        same(value["cosine"], (u @ goal / np.linalg.norm(goal)).mean(-1), 1e-6)
        same(value["pairwise_cosine"], [np.mean([a @ b for a, b in itertools.combinations(v, 2)]) for v in u], 1e-5)
        same(value["mean_cosine"], np.minimum(mean @ goal / np.sqrt(square) / np.linalg.norm(goal), 1.0))
        signal = np.abs(mean) / np.sqrt(variance / 48)
        same(value["snr"], ((signal - 1.29 * np.exp(-2 * signal**2)) / math.sqrt(12)).mean(-1))


def test_the_values_are_those_of_the_other_module() -> None:
    found, other = total(units(5, 40)), noise_to_signal(units(5, 40))
    for name, theirs in (("trace", "trace_variance"), ("squared_norm", "squared_norm"), ("nsr", "nsr")):
        same(found[name].value, other[theirs], 1e-9)


@pytest.mark.parametrize("groups", [256, 16])
def test_the_jackknife_leaves_groups_out(groups: int) -> None:
    """Against the statistics of the units that remain, with an incomplete last group (9 of 4 units, one of 2)."""
    x = units(2, 38)
    replicates = filled(x, groups=groups)
    counts = replicates.counts.numpy()
    assert counts[-1] == (1 if groups == 256 else 2)
    ends = np.cumsum(counts)
    share = 38 / counts
    kept = quality(replicates, {}, GOAL)._jackknifed["total"]

    def statistics(wide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        trace = wide.var(1, ddof=1).sum(-1)
        return trace, ((wide.mean(1) - GOAL) ** 2).sum(-1) - trace / wide.shape[1] + trace

    wide = x.astype(np.float64)
    without = [statistics(np.delete(wide, np.arange(e - c, e), axis=1)) for e, c in zip(ends, counts, strict=True)]
    for k, name in enumerate(("trace", "mse")):
        less = np.stack([w[k] for w in without], -1)
        pseudo = share * statistics(wide)[k][:, None] - (share - 1) * less
        mean = len(counts) * statistics(wide)[k] - ((1 - 1 / share) * less).sum(-1)
        variance = ((pseudo - mean[:, None]) ** 2 / (share - 1)).mean(-1)  # Busing et al. 1999, equation 4
        np.testing.assert_allclose(kept[name].variance, variance, rtol=1e-5)  # the groups' squares are float32


def test_merged_groups_have_the_same_values() -> None:
    x = units(2, 1000)
    fine, coarse = (quality(filled(x, 2, g), SECTIONS, GOAL).estimates for g in (1024, 16))
    for section in fine:
        for name in ("trace", "mean_variance", "squared_norm", "nsr", "snr", "bias_squared", "mse", "mean_cosine"):
            same(fine[section][name].value, coarse[section][name].value, 1e-12)
    a, b = (e["total"]["trace"] for e in (fine, coarse))
    assert (np.abs(np.log((a.high - a.low) / (b.high - b.low))) < 1).all()


def test_a_huge_mean_leaves_the_noise_as_it_is() -> None:
    x = (1000 + 1e-3 * generator(3).standard_normal((1, 400, N))).astype(np.float32)
    wide = x.astype(np.float64)
    found = quality(filled(x, groups=16, chunk=20), {}, np.full(N, 1000.0)).estimates["total"]
    trace = wide.var(1, ddof=1).sum(-1)
    same(found["trace"].value, trace, 1e-9)
    same(found["nsr"].value, trace / 1e6 / N, 1e-6)
    same(found["mse"].value, ((wide.mean(1) - 1000) ** 2).sum(-1) - trace / 400 + trace, 1e-6)
    assert found["trace"].low[0] < trace < found["trace"].high[0]
    assert found["mean_log_variance"].reliable[0]


def test_units_against_training_size_gradients() -> None:
    x = units(2, 64)
    one, four = total(x, GOAL), total(x, GOAL, p=4)
    same(four["trace"].value * 4, one["trace"].value)
    same(four["trace"].high * 4, one["trace"].high)
    same(four["nsr"].high * 4, one["nsr"].high)
    same(four["mean_log_variance"].value, one["mean_log_variance"].value - math.log(4))
    same(four["snr"].value, 2 * one["snr"].value)
    for name in ("squared_norm", "bias_squared", "mean_cosine"):
        same(four[name].value, one[name].value)
        same(four[name].low, one[name].low)
    same(four["mse"].value, one["bias_squared"].value + one["trace"].value / 4)
    assert (four["cosine"].value > one["cosine"].value).all()


POINTS = np.array([[1.0, 0.0], [-0.5, 2.0], [0.25, -0.75]])
CHANCES = np.array([0.5, 0.2, 0.3])


@pytest.mark.parametrize("r", [2, 3, 4])
def test_estimates_are_unbiased_by_enumeration(r: int) -> None:
    """Every sample of r draws of a law with three values is a pair, weighted by its probability."""
    picks = np.array(list(itertools.product(range(3), repeat=r)))
    chance = CHANCES[picks].prod(-1)
    goal = np.array([0.5, -1.0])
    found = quality(filled(POINTS[picks]), {}, goal, intervals=False).estimates["total"]
    mean = CHANCES @ POINTS
    trace = CHANCES @ (POINTS**2).sum(-1) - mean @ mean
    directions = POINTS / np.linalg.norm(POINTS, axis=-1, keepdims=True)
    exact = {
        "trace": trace,
        "squared_norm": mean @ mean,
        "bias_squared": (mean - goal) @ (mean - goal),
        "mse": (mean - goal) @ (mean - goal) + trace,
        "cosine": CHANCES @ directions @ goal / np.linalg.norm(goal),
        "pairwise_cosine": ((CHANCES @ directions) ** 2).sum(),
    }
    for name, value in exact.items():
        assert chance @ found[name].value == pytest.approx(value, abs=1e-6)
    assert (found["squared_norm"].value < 0).any()


def test_a_noisy_reference_is_allowed_for() -> None:
    """Enumeration over the samples and over the reference, a single draw of the same law."""
    picks = np.array(list(itertools.product(range(3), repeat=4)))
    chance = CHANCES[picks].prod(-1)
    mean = CHANCES @ POINTS
    trace = float(CHANCES @ (POINTS**2).sum(-1) - mean @ mean)
    found = quality(filled(POINTS[picks[:, :3]]), {}, POINTS[picks[:, 3]], {"total": trace}, intervals=False).estimates[
        "total"
    ]
    assert chance @ found["bias_squared"].value == pytest.approx(0.0, abs=1e-6)
    assert chance @ found["mse"].value == pytest.approx(trace, abs=1e-6)


def test_a_noisy_reference_widens_the_intervals() -> None:
    x = units(1, 64)
    known = quality(filled(x), {}, GOAL).estimates["total"]
    noisy = quality(filled(x), {}, GOAL, {"total": 0.1}).estimates["total"]
    for name in ("bias_squared", "mse", "mean_cosine"):
        assert noisy[name].high - noisy[name].low > known[name].high - known[name].low
    still = quality(filled(np.ones((1, 20, 3))), {}, np.ones(3), {"total": 0.1}).estimates["total"]["bias_squared"]
    assert still.low[0] < 0 < still.high[0]


@pytest.mark.statistical
def test_a_quadratic_toy_has_its_closed_form() -> None:
    """E z^2, z ~ N(t, s^2), differentiated in t. Pathwise: 2 z, variance 4 s^2. Score function: z^2 (z - t) / s^2,
    variance (t^4 + 18 t^2 s^2 + 15 s^4) / s^2 - 4 t^2. Both have mean 2 t. Six z-tests, each a false alarm in 1e6 runs."""
    t, s, r, p = 0.7, 0.5, 200_000, 5
    e = generator(4).standard_normal(r)
    z = t + s * e
    replicates = filled(np.stack([2 * z, z**2 * e / s])[..., None], p, chunk=5000)
    made = quality(replicates, {}, np.array([2 * t]))
    found = made.estimates["total"]
    for j, variance in enumerate((4 * s**2, (t**4 + 18 * t**2 * s**2 + 15 * s**4) / s**2 - 4 * t**2)):
        for name, exact in (("trace", variance / p), ("mse", variance / p), ("squared_norm", 4 * t**2)):
            value, low, high, reliable = found[name][j]
            assert abs(value - exact) < FALSE_ALARM * (high - low) / (2 * 1.96)
            assert reliable
    ratio = made.ratios(0)["total"]["trace_ratio"]
    assert ratio.low[1] > 1


@pytest.mark.statistical
def test_the_log_variance_is_debiased() -> None:
    # E ln s^2 is about ln v - 1 / (R - 1); what is left after the jackknife is of order 1 / R^2.
    found = total(units(4000, 32))["mean_log_variance"].value
    apart = found - np.log(SCALE**2).mean()
    assert abs(apart.mean()) < FALSE_ALARM * apart.std() / math.sqrt(4000) + 0.002
    assert FALSE_ALARM * apart.std() / math.sqrt(4000) < 0.3 / 31


def test_what_noise_leaves_in_the_signal_to_noise_ratio() -> None:
    """The stated bias, by integration: at most 0.22 standard errors whatever the signal, below 0.02 from three on."""
    z = np.linspace(-9, 9, 20_001)
    weight = stats.norm.pdf(z) * (z[1] - z[0])
    signal = np.linspace(0, 6, 61)
    bias = np.array([weight @ module._signal_to_noise(d + z, np.ones_like(z), 1.0) for d in signal]) - signal
    assert np.abs(bias).max() < 0.221
    assert np.abs(bias[signal >= 3]).max() < 0.02


def test_halls_transform_is_inverted() -> None:
    skewness, b = np.array([-3.0, -0.5, 0.0, 0.5, 3.0]), 25
    for quantile in (-2.0, 2.0):
        t, s = hall(quantile, skewness, b), skewness / 5
        np.testing.assert_allclose(t + s * t**2 / 3 + s / 6 + s**2 * t**3 / 27, quantile, atol=1e-5)


def test_dead_parameters() -> None:
    x = units(2, 32)
    x[..., :4] = 0
    found = quality(filled(x), SECTIONS).estimates
    same(found["first"]["mean_log_variance"].value, np.full(2, math.log(1e-20)))
    assert np.isnan(found["first"]["snr"].value).all()
    assert np.isnan(found["first"]["nsr"].value).all()
    assert (found["first"]["pairwise_cosine"].value == 0).all()
    same(found["total"]["snr"].value, found["last"]["snr"].value)
    logs = {name: e["mean_log_variance"].value for name, e in found.items()}
    same(7 * logs["total"], 3 * logs["last"] + 4 * math.log(1e-20))


def test_no_noise_and_no_signal() -> None:
    still = total(np.ones((1, 16, 3)), np.ones(3))
    for name, value in (("trace", 0), ("nsr", 0), ("squared_norm", 3), ("mse", 0), ("mean_cosine", 1), ("cosine", 1)):
        assert still[name][0][:3] == pytest.approx((value, value, value), abs=1e-6)
        assert still[name][0][3]
    opposite = total(np.tile([[[1.0], [-1.0]]], (1, 8, 1)), np.ones(1))
    assert opposite["squared_norm"].value[0] < 0
    assert opposite["nsr"][0][::2] == (math.inf, math.inf)
    assert math.isnan(opposite["mean_cosine"].value[0])
    assert not opposite["mean_cosine"].reliable[0]


def correlated(r: int) -> np.ndarray:
    """Three pairs: a, a with some noise more, and the same law as the second on draws of its own."""
    a, b, c = generator(5).standard_normal((3, r, N)) * SCALE
    return MEAN + np.stack([a, a + 0.5 * b, math.sqrt(1.25) * c])


def test_ratios_of_correlated_pairs_have_narrower_intervals() -> None:
    found = quality(filled(correlated(128)), SECTIONS, GOAL).ratios(0)
    assert list(found) == ["first", "last", "total"]
    for name in ("trace_ratio", "mse_ratio"):
        ratio = found["total"][name]
        assert ratio[0][:3] == (1, 1, 1)
        width = ratio.high - ratio.low
        assert width[1] < 0.7 * width[2]
        assert ratio.low[1] < ratio.value[1] < ratio.high[1]


def test_a_ratio_is_a_ratio_and_scales() -> None:
    x = correlated(64)
    x[1] = 3 * x[0]
    made = quality(filled(x), {})
    trace = made.estimates["total"]["trace"].value
    ratio = made.ratios(0)["total"]["trace_ratio"]
    same(ratio.value, trace / trace[0])
    np.testing.assert_allclose(ratio[1][:3], 9, rtol=1e-4)  # exactly in proportion, so nothing is uncertain
    assert set(made.ratios(2)["total"]) == {"trace_ratio"}
    with pytest.raises(PglabError, match="There is no pair 3"):
        made.ratios(3)


def test_efficiency() -> None:
    mse = Estimate(np.array([2.0, -1.0]), np.array([1.0, -2.0]), np.array([4.0, 0.5]), np.array([True, False]))
    found = efficiency(mse, [3.0, 2.0])
    np.testing.assert_allclose(found.value, [1 / 6, math.inf])
    np.testing.assert_allclose(found.low, [1 / 12, 1.0])
    np.testing.assert_allclose(found.high, [1 / 3, math.inf])
    assert found.reliable.tolist() == [True, False]
    with pytest.raises(PglabError, match="must be positive"):
        efficiency(mse, 0.0)


def test_blocks_of_pairs_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    replicates = filled(units(5, 40))
    whole = quality(replicates, SECTIONS, GOAL)
    monkeypatch.setattr(module, "_CHUNK", 2 * 40 * 47)
    parts = quality(replicates, SECTIONS, GOAL)
    for section, named in whole.estimates.items():
        for name, estimate in named.items():
            for field in ("value", "low", "high", "reliable"):
                same(getattr(estimate, field), getattr(parts.estimates[section][name], field))
    same(whole.ratios(3)["total"]["mse_ratio"].high, parts.ratios(3)["total"]["mse_ratio"].high)


def test_heavy_tails_are_marked_and_light_ones_are_not() -> None:
    light = total(units(200, 64), GOAL)
    heavy = np.exp(generator(6).standard_normal((200, 64, 1))) * (units(200, 64) - MEAN)
    assert light["trace"].reliable.mean() > 0.95
    marked = total(heavy, GOAL)
    for name in ("trace", "nsr", "mse", "mean_log_variance"):
        assert marked[name].reliable.mean() < 0.05
    assert marked["cosine"].reliable.all()  # bounded: a large gradient weighs no more than another


def test_few_replicates() -> None:
    with pytest.raises(PglabError, match="at least 2 replicates"):
        quality(filled(units(1, 1)), {}, intervals=False)
    with pytest.raises(PglabError, match="Too few replicates for an interval: there are 3, and at least 4 are needed"):
        quality(filled(units(1, 3)), {})
    for r, intervals in ((2, False), (3, False), (4, True), (7, True)):
        made = quality(filled(units(2, r)), SECTIONS, GOAL, intervals=intervals)
        for estimate in (*made.estimates["total"].values(), *made.ratios(0)["total"].values()):
            assert np.isfinite(estimate.value).any()
            assert np.isnan(estimate.high[1])
            assert not estimate.reliable.any()
    eight = quality(filled(units(2, 8)), SECTIONS, GOAL).estimates["total"]
    assert np.isfinite(eight["trace"].high).all()


def test_what_does_not_fit_is_refused() -> None:
    replicates = filled(units(2, 8))
    for part in (slice(0, 8), slice(3, 3), slice(0, 6, 2)):
        with pytest.raises(PglabError, match="Section 'x'"):
            quality(replicates, {"x": part})
    with pytest.raises(PglabError, match="not called 'total'"):
        quality(replicates, {"total": slice(0, 2)})
    with pytest.raises(PglabError, match="The reference has shape"):
        quality(replicates, {}, np.ones(3))
    with pytest.raises(PglabError, match="the sections are first, last, total"):
        quality(replicates, SECTIONS, GOAL, {"total": 0.1})


@pytest.mark.statistical
@pytest.mark.parametrize(("r", "groups"), [(64, 256), (300, 64)])
def test_intervals_cover(r: int, groups: int) -> None:
    """A smaller benchmarks/coverage.py. With a true coverage of 93.5 % or more, 1,000 repetitions show less than 89.5 %
    in less than one run of 1e6; and with 97.5 % or less, more than 99.7 %."""
    found = total(units(1000, r, key=r), GOAL, groups=groups)
    trace, square, bias = (SCALE**2).sum(), MEAN @ MEAN, ((MEAN - GOAL) ** 2).sum()
    exact = {"trace": trace, "squared_norm": square, "nsr": trace / square, "bias_squared": bias, "mse": bias + trace}
    exact["mean_log_variance"] = np.log(SCALE**2).mean()
    exact["mean_cosine"] = MEAN @ GOAL / math.sqrt(square * (GOAL @ GOAL))
    for name, value in exact.items():
        covered = ((found[name].low <= value) & (value <= found[name].high)).mean()
        assert 0.895 <= covered <= 0.997, (name, covered)


@pytest.mark.statistical
def test_intervals_cover_with_a_noisy_reference() -> None:
    """The reference's noise has another shape than the units', and a quarter of the units' number. As above."""
    r, m = 64, 16
    noise = math.sqrt((SCALE**2).mean() / m) * generator(7).standard_normal((1000, N))
    found = quality(filled(units(1000, r, key=8)), {}, GOAL + noise, {"total": (SCALE**2).sum() / m})
    bias = ((MEAN - GOAL) ** 2).sum()
    exact = {
        "bias_squared": bias,
        "mse": bias + (SCALE**2).sum(),
        "mean_cosine": MEAN @ GOAL / math.sqrt((MEAN @ MEAN) * (GOAL @ GOAL)),
    }
    for name, value in exact.items():
        estimate = found.estimates["total"][name]
        covered = ((estimate.low <= value) & (value <= estimate.high)).mean()
        assert 0.895 <= covered <= 0.997, (name, covered)


@pytest.mark.statistical
@pytest.mark.parametrize("groups", [64, 16])
def test_the_width_without_signal_is_not_counted_twice(groups: int) -> None:
    """Many directions of noise and no signal: the interval of |mu|^2 is as wide as t says. With the jackknife's own
    variance it would be 1.41 times that. 400 samples give the standard deviation to 3.6 %, so 17 % off is one run in
    1e6."""
    x = generator(9).standard_normal((400, 64, 100))
    found = quality(filled(x, groups=groups), {}).estimates["total"]["squared_norm"]
    wanted = 2 * stats.t.ppf(0.975, groups - 1) * math.sqrt(2 * 100 / (64 * 63))
    assert found.value.std() == pytest.approx(math.sqrt(2 * 100 / (64 * 63)), rel=0.18)
    assert 0.85 < np.median(found.high - found.low) / wanted < 1.2
