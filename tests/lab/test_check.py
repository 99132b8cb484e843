"""`pglab check` finds the faults that are easy to make, and nothing where there is none."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from pglab.baselines import BASELINES
from pglab.distributions import FAMILIES, Bernoulli, Beta, Categorical, Gaussian, SquashedGaussian
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS, Estimator, ScoreFunction
from pglab.lab import check as checking
from pglab.lab.check import (
    THRESHOLD,
    check,
    check_baseline,
    check_distribution,
    check_estimator,
    compared,
    features,
    known_of,
    methods,
    named,
    percent,
)
from pglab.lab.check_distributions import density_rule, double_exponential, noise_rule, rows
from pglab.lab.check_episodes import LOGITS, exact_policy_gradient, expectations, gradients, layouts, scores
from pglab.noise import Purpose
from pglab.objectives import Problem
from pglab.registry import load_plugin

FAULTY = str(Path(__file__).with_name("faulty_methods.py"))


@functools.cache
def faulty():
    """The faulty methods, kept out of the registries that other tests go through."""
    import sys

    held = [(r, dict(r._classes)) for r in (ESTIMATORS, BASELINES)]
    load_plugin(FAULTY)
    for registry, classes in held:
        registry._classes.clear()
        registry._classes.update(classes)
    return sys.modules["pglab_plugin_faulty_methods"]


def verdicts(report) -> set[str]:
    return {r.verdict for r in report.rows}


# -- planted faults


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("family", "fault"),
    [(Bernoulli, f) for f in ("none", "noise detached", "all detached")]
    + [(Categorical, f) for f in ("none", "wrong maximum")],
)
def test_rebar_with_a_relaxed_draw_of_the_wrong_law_or_gradient(family, fault):
    report = check_estimator(faulty().SmallRebar(fault=fault), [family])
    if fault == "none":
        assert (report.verdict, report.failed, verdicts(report)) == ("unbiased: consistent", False, {"consistent"})
    else:
        assert (report.verdict, report.failed) == ("BIASED", True)
        assert sum(r.verdict == "BIASED" for r in report.rows) >= len(report.rows) - 2


@pytest.mark.statistical
@pytest.mark.parametrize("detach", [True, False])
def test_gumbel_rao_that_does_not_detach_has_another_mean(detach):
    report = check_estimator(faulty().SmallGumbelRao(detach=detach), [Bernoulli])
    if detach:
        assert report.verdict.startswith("the mean of straight_through_gumbel_softmax: consistent; measured bias")
        assert not report.failed
    else:
        assert report.verdict == "BIASED: not the mean of straight_through_gumbel_softmax"
        assert verdicts(report) == {"BIASED"}


@pytest.mark.statistical
@pytest.mark.parametrize("differentiate", [False, True])
def test_unordered_set_estimator_that_differentiates_its_ratio(differentiate):
    report = check_estimator(faulty().SmallSet(differentiate_ratio=differentiate), [Categorical])
    assert report.verdict == ("BIASED" if differentiate else "unbiased: consistent")
    # With two outcomes in all the set is everything, and the ratio is constant.
    assert report.rows[0].verdict == "consistent"


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "episodes", "bias"),
    [("OwnSample", 0.5, 0.5), ("BatchMean", 0.31, 0.25), ("Peeking", None, None)],
)
def test_a_baseline_that_contains_its_own_sample(name, episodes, bias):
    report = check_baseline(getattr(faulty(), name)(), [Categorical])
    assert report.verdict == "BIASED"
    assert report.failed
    exact, sampled = [r for r in report.rows if not r.estimates], [r for r in report.rows if r.estimates]
    assert {r.verdict for r in exact} == {"BIASED"}
    assert "BIASED" in {r.verdict for r in sampled}
    if bias is not None:
        assert exact[0].bias == pytest.approx(episodes, abs=0.01)
        assert all(r.bias == pytest.approx(bias, abs=0.02) for r in sampled)


def test_a_baseline_that_uses_the_batch_when_there_was_none_before():
    report = check_baseline(faulty().FirstBatch(), [])
    by_name = {r.problem: r.verdict for r in report.rows}
    assert by_name["2 episodes side by side"] == "BIASED"
    assert by_name["2 episodes side by side, after 24 batches"] == "consistent"
    assert report.verdict == "BIASED"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Mixing", "other members"),
        ("Undeclared", "couples_rows is False"),
        ("WrongShape", "predict gave [3, 6400, 1]"),
    ],
)
def test_a_baseline_that_breaks_the_protocol(name, said):
    report = check_baseline(getattr(faulty(), name)(), [])
    assert report.failed
    assert report.verdict.startswith("FAILED: ")
    assert any(said in r.note for r in report.rows)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("NakedSquashedGaussian", {"density integrates to 1", "draws have this density", "gradient of E[f - w log p]"}),
        ("WrongMaximum", {"noise_given has the conditional law"}),
        ("Detached", {"noise_given carries its gradient"}),
        ("Shifted", {"draws have this density", "noise_given makes the action", "gradient of E[f], pathwise"}),
    ],
)
def test_a_distribution_that_does_not_agree_with_itself(name, wrong):
    report = check_distribution(getattr(faulty(), name))
    found = {r.property for r in report.rows if r.verdict == "WRONG"}
    assert wrong <= found
    if name in ("WrongMaximum", "Detached"):
        assert found == wrong
    assert report.failed
    assert report.verdict.startswith("WRONG: ")


class Broken(Estimator):
    """Not finite in some rows, or not working at all."""

    how: str = "nan"
    needs = frozenset({"value"})
    kinds = frozenset({"binary"})
    unbiased = True
    evaluations = "1"
    paper = ""

    def surrogate(self, distribution, draw, signal, state):
        if self.how == "shape":
            return distribution.log_prob(draw.action)
        if self.how == "raises":
            raise ZeroDivisionError("by nothing")
        return distribution.log_prob(draw.action).sum(-1) * torch.log(signal.value - 0.2)


@pytest.mark.parametrize(
    ("how", "said"),
    [("nan", "not finite"), ("shape", "one number per row"), ("raises", "ZeroDivisionError: by nothing")],
)
def test_an_estimator_that_does_not_work(how, said):
    report = check_estimator(Broken(how=how), [Bernoulli])
    assert report.failed
    assert report.verdict.startswith("FAILED: ")
    assert said in report.verdict
    assert len(report.rows) == 7


class Normalised(ScoreFunction):
    """Divided by the mean size of all rows' values: with 4096 of them too little bias to be seen."""

    def surrogate(self, distribution, draw, signal, state):
        return super().surrogate(distribution, draw, signal, state) / signal.value.abs().mean()


def test_an_estimator_whose_rows_are_not_independent():
    report = check_estimator(Normalised(), [Bernoulli])
    assert report.failed
    assert "an estimate changes with the other rows of the batch" in report.verdict
    assert "changes with the other rows" not in check_estimator(ScoreFunction(), [Bernoulli]).verdict


def test_an_estimator_that_declares_too_little():
    cls = type("Silent", (Estimator,), {"surrogate": lambda *_: None, "kinds": frozenset({"binary"})})
    with pytest.raises(PglabError, match="does not declare needs, unbiased, evaluations, paper"):
        check_estimator(cls())


def test_an_estimator_that_serves_nothing():
    report = check_estimator(ScoreFunction(), [])
    assert report.failed
    assert report.verdict == "FAILED: it serves none of the problems"


# -- power and false alarms


class Tilted(ScoreFunction):
    """The score function with a constant added to every coordinate."""

    by: float

    def surrogate(self, distribution, draw, signal, state):
        first = getattr(distribution, distribution.parameters[0])
        return super().surrogate(distribution, draw, signal, state) + self.by * first.flatten(3).sum(-1)


@pytest.mark.statistical
@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
def test_a_bias_that_would_be_seen_is_seen(family):
    """At the size that the row says, the noise of the mean may hide a bias with probability 0.02 at most."""
    for known in known_of(family):
        size = float(known.exact.abs().max())
        honest = compared(known, Problem.of("score_function", known.case.distribution, known.case.f))
        assert honest.verdict == "consistent"
        assert honest.seen < 0.055
        tilted = Problem.of(Tilted(by=1.2 * honest.seen * size), known.case.distribution, known.case.f)
        assert compared(known, tilted).verdict == "BIASED"


@pytest.mark.statistical
def test_z_is_that_of_a_normal_and_no_larger():
    """Over many seeds on a peaked problem, the hardest for standard errors."""
    known = known_of(Bernoulli)[5]
    z = [
        compared(known, Problem.of("score_function", known.case.distribution, known.case.f, seed=s)).z
        for s in range(40)
    ]
    assert 0.8 < np.median(z) < 2.4  # the largest of five, somewhat reduced by the allowance for rare values
    assert max(z) < 5


@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
def test_the_features_of_a_draw_have_mean_zero(family):
    for known in known_of(family):
        problem = Problem.of("score_function", known.case.distribution, known.case.f, 2)
        _, draw = problem._rows(problem.noise.apart(Purpose.MEASUREMENT, 77), 0, 20_000, 2)
        h = features(problem, draw)
        assert len(h) == 20_000
        z = h.mean(0) / (h.std(0) / len(h) ** 0.5)
        assert float(z.abs().max()) < 5


def test_references_have_the_variance_that_enumeration_gives():
    known = known_of(Bernoulli)[0]
    d, f = known.case.distribution, known.case.f
    p = float(torch.sigmoid(d.logits))
    values = [float(f(torch.tensor([[z]]).double())) for z in (0.0, 1.0)]
    second = (1 - p) * (values[0] * p) ** 2 + p * (values[1] * (1 - p)) ** 2
    assert known.score_function == pytest.approx(second - float(known.exact) ** 2, rel=0.05)


# -- the episodes


def test_the_score_function_has_the_exact_policy_gradient():
    for e in expectations(None):
        torch.testing.assert_close(e.mean, e.exact, rtol=1e-12, atol=1e-12)


def test_the_exact_policy_gradient_is_the_slope_of_the_expected_return():
    """The return written out as a recursion over states, and differences."""
    from pglab.lab.check_episodes import ACTIONS, DISCOUNT, LAST, REWARD, START, STATES, STEPS

    def value(logits: torch.Tensor) -> float:
        p = torch.softmax(logits, -1)
        v = torch.zeros(STATES, dtype=torch.float64)
        for t in reversed(range(STEPS)):
            new = torch.zeros(STATES, dtype=torch.float64)
            for s, (i, a) in itertools.product(range(STATES), enumerate(ACTIONS)):
                later = 0.0 if i == LAST or t == STEPS - 1 else DISCOUNT * float(v[(s + i + 1) % STATES])
                new[s] += p[s, 0, a[0]] * p[s, 1, a[1]] * (REWARD[t, s, i] + later)
            v = new
        return float(v @ torch.tensor(START).double())

    numeric = torch.zeros_like(LOGITS)
    for index in np.ndindex(*LOGITS.shape):
        moved = [LOGITS.clone(), LOGITS.clone()]
        moved[0][index] += 1e-5
        moved[1][index] -= 1e-5
        numeric[index] = (value(moved[0]) - value(moved[1])) / 2e-5
    torch.testing.assert_close(exact_policy_gradient(), numeric.flatten(), rtol=1e-8, atol=1e-8)


def test_probabilities_of_all_outcomes_sum_to_1_and_rows_past_the_end_are_not_valid():
    for layout in layouts():
        assert float(layout.probability.sum()) == pytest.approx(1, abs=1e-12)
        assert not bool(layout.value[~layout.valid].any())
    side, column, block = layouts()
    assert torch.equal(side.valid.sum((0, 2)), column.valid.sum((0, 2)))
    assert bool(block.valid.all())


def test_the_columns_gradients_that_baselines_see_have_the_estimate_as_their_mean():
    for layout in layouts():
        seen = scores(layout)
        torch.testing.assert_close(seen.value.mean(1), gradients(None, {}, layout)[0])
        along, square = seen.along(torch.full_like(layout.value, 0.4))
        assert along.shape == square.shape == layout.value.shape
        # A column's rows' products with the column's own gradient add up to that of its score.
        torch.testing.assert_close(along.sum(0), ((seen.value - 0.4 * seen.one) * seen.one).sum(-1))


# -- the rules


def test_quadratures_integrate_what_they_are_made_for():
    x, w = double_exponential(0.0, 1.0, 61)
    assert float(w @ x.rsqrt()) == pytest.approx(2, rel=1e-7)  # singular at an end
    for kind, moments in {"normal": (0, 1), "uniform": (1 / 2, 1 / 3), "exponential": (1, 2)}.items():
        z, w = noise_rule(kind, 2)
        assert [float(w @ z[:, 0]), float(w @ z[:, 1].square())] == pytest.approx(moments, abs=1e-10)
    one = Beta(torch.tensor([1.2], dtype=torch.float64), torch.tensor([2.5], dtype=torch.float64))
    x, w = density_rule(one, 16)
    p = rows(one, x.shape[1]).log_prob(x.T).exp()[:, 0]
    assert float(w[0] @ p) == pytest.approx(1, abs=1e-12)
    assert float((w[0] * x[0]) @ p) == pytest.approx(1.2 / 3.7, abs=1e-12)


# -- what is shipped


@pytest.mark.statistical
@pytest.mark.parametrize("family", [Categorical, Bernoulli, SquashedGaussian, Gaussian], ids=lambda c: c.__name__)
def test_shipped_distributions_agree_with_themselves(family):
    report = check_distribution(family)
    assert (report.verdict, report.failed) == ("consistent", False)
    assert len(report.rows) > 6 * 6


@pytest.mark.statistical
def test_estimators_and_baselines_that_are_what_they_say():
    exact = check_estimator("enumeration")
    assert exact.verdict == "unbiased: consistent"
    assert exact.z < 1e-3
    assert all(r.variance < 1e-20 for r in exact.rows)
    biased = check_estimator({"name": "gumbel_softmax", "temperature": 0.5}, [Bernoulli])
    assert biased.verdict.startswith("declared biased: measured bias")
    assert not biased.failed
    assert "declared" in verdicts(biased)
    value = check_baseline("value")
    assert value.verdict == "unbiased: consistent"
    assert len(value.rows) == 3
    assert "V(s)" in value.notes[0]
    left_out = check_baseline("leave_one_out", [Bernoulli])
    assert left_out.verdict == "unbiased: consistent"
    assert all(r.to_leave_one_out == pytest.approx(1, abs=0.15) for r in left_out.rows)


@pytest.mark.slow
def test_everything_that_is_shipped_is_what_it_says(capsys):
    from pglab.__main__ import main

    status = main(["check"])
    assert status == 0, capsys.readouterr().out


def test_every_kind_has_at_least_six_problems_with_different_names():
    for family in FAMILIES:
        found = [k.case.name for k in known_of(family)]
        assert len(found) == len(set(found)) >= 6
        assert any(k.case.shared for k in known_of(family))


# -- names


def test_names():
    assert {part for part, _ in methods()} == {"estimator", "baseline", "distribution"}
    assert ("distribution", "squashed_gaussian") in methods()
    assert ("estimator", "score_function") in methods()
    faulty()
    assert ("distribution", "wrong_maximum") not in methods()
    assert ("distribution", "wrong_maximum") in methods([FAULTY])
    assert ("estimator", "score_function") not in methods([FAULTY])
    assert named("SquashedGaussian") == [("distribution", "squashed_gaussian")]
    assert named("leave_one_out") == [("baseline", "leave_one_out")]
    with pytest.raises(PglabError, match="Did you mean 'score_function'"):
        named("score_functoin")
    with pytest.raises(PglabError, match="temprature"):
        check("estimator", "gumbel_softmax", {"temprature": 1})
    with pytest.raises(PglabError, match="takes no options"):
        check("distribution", "beta", {"alpha": 1})
    with pytest.raises(PglabError, match="Did you mean 'beta'"):
        check_distribution("betta")


def test_a_family_may_give_its_own_examples():
    made = [Gaussian(torch.zeros(1).double(), torch.zeros(1).double())]
    cls = type("WithExamples", (Gaussian,), {"examples": staticmethod(lambda: made)})
    report = check_distribution(cls)
    assert {r.problem for r in report.rows} == {"example 1"}
    assert not report.failed


def test_percentages():
    assert [percent(x) for x in (0.0, 1e-12, 0.00123, 0.5, 17.3)] == ["0 %", "0 %", "0.12 %", "50 %", "1,730 %"]


def test_the_threshold_is_that_of_one_false_alarm_in_a_million():
    from scipy import stats

    assert 2 * stats.norm.sf(THRESHOLD) * checking.COMPARISONS == pytest.approx(1e-6, rel=1e-6)
