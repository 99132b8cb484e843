"""The benchmark of published experiments, run for a moment each: what must hold however short the run."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def experiment(name: str):
    return importlib.import_module(f"published.{name}")


def test_bernoulli_variances_are_the_closed_form_and_relax_beats_rebar():
    bernoulli = experiment("bernoulli")
    found = bernoulli.run(quick=True)
    for case in found["cases"].values():
        ways = case["ways"]
        assert set(ways) == set(bernoulli.WAYS)
        # The score function's variance over its closed form, of which 200 draws and 3 seeds know about 2 %.
        assert all(abs(x) < 0.3 for x in ways["score_function"]["over_plain"])
        assert bernoulli.late(ways["relax"]) < bernoulli.late(ways["rebar"]) - 1
        assert bernoulli.late(ways["score_function + moving_average"]) < bernoulli.late(ways["score_function"]) - 1
    text = bernoulli.page(found)
    assert text.count("| relax |") == 2


def test_the_closed_form_of_the_plain_variance():
    bernoulli = experiment("bernoulli")
    theta = torch.tensor([0.1, 0.5], dtype=torch.float64)
    assert bernoulli.plain_variance(theta, 0.499)[0].item() == pytest.approx(5.6611e-3, rel=1e-4)
    assert bernoulli.plain_variance(theta, 0.45)[1].item() == pytest.approx(1.5939e-2, rel=1e-4)


@pytest.fixture
def observations():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    return experiment("logistic_regression").signed(x, (x[:, 0] + rng.standard_normal(60) > 0).astype(float))


def test_logistic_regression_orders_pathwise_and_score_function(observations):
    blr = experiment("logistic_regression")
    found = blr.run(quick=True, x=observations)
    assert (found["observations"], found["dimensions"]) == (60, 4)
    for at in found["iterates"].values():
        for p in blr.PARAMETERS:
            v = {way: w[p]["variance"] for way, w in at["ways"].items()}
            assert v["pathwise"] < v["score_function"]
            assert v["score_function + moving_average"] < v["score_function"]
            assert v[blr.DELTA] <= v["delta_method"] * (1 + 1e-9)
            assert v[blr.EQUAL] == pytest.approx(v["score_function + moving_average"] / 16)
    assert "(v) coupling" in blr.page(found)


@pytest.mark.statistical
def test_uncoupled_measure_valued_estimates_have_the_pathwise_mean(observations):
    blr = experiment("logistic_regression")
    q = blr.Gaussian(torch.tensor([0.3, -0.2, 0.1, 0.0]).double(), torch.full((4,), -0.7).double())

    def f(z: torch.Tensor) -> torch.Tensor:
        return blr.log_likelihood(observations, z, 60)

    a, b = blr.uncoupled(q, f, 20_000, seed=3), blr.pglab.estimate_gradient("pathwise", q, f, 20_000)
    for p in blr.PARAMETERS:
        error = (a[p].var(0) / len(a[p]) + b[p].var(0) / len(b[p])).sqrt()
        assert ((a[p].mean(0) - b[p].mean(0)).abs() < 5.5 * error).all()


def test_training_on_minibatches_finds_the_posterior(observations):
    """Pathwise training ends where E[f] less the divergence has no slope."""
    blr = experiment("logistic_regression")
    mean, log_std = blr.train(observations, 3000, (3000,))[3000]
    q = blr.Gaussian(mean, log_std)
    g = blr.pglab.estimate_gradient("pathwise", q, lambda z: blr.log_likelihood(observations, z, 60), 20_000)
    slope = g["mean"].mean(0) - mean, g["log_std"].mean(0) + 1 - (2 * log_std).exp()
    start = blr.pglab.estimate_gradient(
        "pathwise", blr.Gaussian(0 * mean, 0 * mean), lambda z: blr.log_likelihood(observations, z, 60), 2000
    )
    assert slope[0].norm() < 0.1 * start["mean"].mean(0).norm()
    assert slope[1].norm() < 0.1 * start["log_std"].mean(0).norm()


def test_reinmax_goes_past_where_straight_through_rests():
    polynomial = experiment("polynomial")
    program = polynomial.Program(16)
    ends = {way: polynomial.train(program, way, 1200, 600) for way in ("straight_through", "reinmax", polynomial.EXACT)}
    for k, p in enumerate(polynomial.POWERS):
        rest = polynomial.resting_loss(p)
        assert ends["straight_through"]["final"][k] == pytest.approx(rest, abs=3e-3)
        assert ends["reinmax"]["final"][k] < rest - 0.005
        assert polynomial.TARGET**p < ends[polynomial.EXACT]["final"][k] < ends["reinmax"]["final"][k]


def test_the_program_s_losses_are_its_objective_s_expectation():
    polynomial = experiment("polynomial")
    program, logits = polynomial.Program(4), torch.linspace(-2, 2, 12).reshape(3, 4)
    far = torch.where(logits > 0, 50.0, -50.0)  # certain: the expectation is the value
    value = program.value((far > 0).float()[None, :, None])
    torch.testing.assert_close(-value[0, :, 0].double(), program.losses(far).mean(1))
    step = 1e-3
    slope = (program.losses(logits + step) - program.losses(logits - step)) / (2 * step * 4)
    torch.testing.assert_close(-program.exact(logits).double(), slope, rtol=2e-2, atol=1e-6)


def test_polynomial_page_has_every_estimator():
    polynomial = experiment("polynomial")
    found = polynomial.run(quick=True)
    assert all(f"| {way} |" in polynomial.page(found) for way in (*polynomial.WAYS, polynomial.EXACT))


def test_an_action_dependent_baseline_gains_with_the_dimension():
    bandit = experiment("norm_bandit")
    rows = bandit.run(quick=True)["rows"]
    gains = {(r["m"], r["mean"]): r["gradients"]["mean"]["gain, action_dependent"] for r in rows}
    for mean in bandit.MEANS:
        assert gains[50, mean] > 3 * gains[6, mean]
        assert gains[50, mean] == pytest.approx(bandit.leading(50, mean), rel=0.5)
    assert all(r["explained"] > 0.5 for r in rows)
    assert "gain" in bandit.page({"features": bandit.FEATURES, "rows": rows})


def test_gumbel_rao_has_less_variance_and_straight_through_gumbel_softmax_is_its_first():
    simplex = experiment("simplex")
    found = simplex.run(quick=True)
    for row in found["rows"]:
        plain, one, ten = (
            row[k] for k in ("straight_through_gumbel_softmax", "gumbel_rao, K = 1", "gumbel_rao, K = 10")
        )
        assert abs(plain[0] - one[0]) < 5 * math.hypot(plain[1], one[1])
        assert ten[0] < one[0]
    assert "log10 tr Cov" in simplex.page(found)


def test_the_script_writes_page_record_and_figure(tmp_path, monkeypatch, capsys):
    literature = importlib.import_module("literature")
    out, figure = tmp_path / "page", tmp_path / "figure.png"
    arguments = [
        "literature.py",
        "--quick",
        "--only",
        "polynomial",
        "simplex",
        "--out",
        str(out),
        "--figure",
        str(figure),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    literature.main()
    text = out.with_suffix(".md").read_text()
    assert "made with `--quick`" in text.lower()
    assert literature.polynomial.TITLE in text
    assert out.with_suffix(".json").stat().st_size > 1000
    assert figure.read_bytes().startswith(b"\x89PNG")
