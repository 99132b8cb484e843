"""The numbers of a report: equal in page and JSON, and to what the runs' files say by another path."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import changed, make_comparison, make_run
from pages import sound
from scipy import stats

from pglab.reporting import report


def numbers_of(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for item in value.values() for x in numbers_of(item)]
    if isinstance(value, list):
        return [x for item in value for x in numbers_of(item)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [float(value)]
    return [float(value)] if value in ("inf", "-inf") else []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("runs")
    make_comparison(root / "made-20260101-120000", {"none": 80.0, "value": 100.0, "leave_one_out": 99.0})
    out = root / "report"
    return root, out, report(root / "made-20260101-120000", out)


def test_every_number_of_the_page_is_in_the_json(made: Any) -> None:
    _, out, _ = made
    known = set(numbers_of(json.loads((out / "report.json").read_text())))
    page = sound((out / "report.html").read_text())
    assert len(page.numbers) > 40
    assert not [x for x in page.numbers if x not in known]


def test_scores_are_those_of_the_results(made: Any) -> None:
    root, _, found = made
    (section,) = found.sections
    (group,) = section.groups
    assert (section.environment, group.title, group.threshold) == ("CartPole-v1", "Monte-Carlo", 95)
    assert len(group.variants) == 3
    for v in group.variants:
        data = json.loads((root / "made-20260101-120000" / "mc" / v.name / "results.json").read_text())
        returns = np.array([e["returns"] for e in data["evaluations"]]).mean(-1)  # [n, P]
        steps = np.array([e["steps"][0] for e in data["evaluations"]])
        assert v.iqm == pytest.approx(stats.trim_mean(returns[-1], 0.25))
        assert v.worst == returns[-1].min()
        assert v.interval[0] <= v.iqm <= v.interval[1]
        weights = np.diff(steps)[:, None] / steps[-1]
        areas = (weights * (returns[1:] + returns[:-1]) / 2).sum(0)
        assert v.areas == pytest.approx(areas.tolist())
        assert v.area == pytest.approx(stats.trim_mean(areas, 0.25))
        firsts = [
            min([s for s, r in zip(steps, column, strict=True) if r >= 95], default=math.inf) for column in returns.T
        ]
        assert v.steps_to_threshold == np.median(firsts)
        assert v.reached == np.isfinite(firsts).sum()
        start = data["measurements"][0]
        assert v.noise[0].nsr == pytest.approx(np.mean(start["trace_variance"]) / np.mean(start["squared_norm"]))
        assert v.noise[0].low <= v.noise[0].nsr <= v.noise[0].high


def test_curves_are_those_of_the_log(made: Any) -> None:
    root, _, found = made
    for v in found.sections[0].groups[0].variants:
        with open(root / "made-20260101-120000" / "mc" / v.name / "log.csv") as file:
            rows = list(csv.DictReader(file))
        steps = sorted({int(r["step"]) for r in rows if r["tag"] == "eval/return"})
        values = np.array(
            [[float(r["value"]) for r in rows if r["tag"] == "eval/return" and int(r["step"]) == s] for s in steps]
        )
        assert v.curve.x.tolist() == steps
        assert v.curve.iqm == pytest.approx([stats.trim_mean(row, 0.25) for row in values])
        assert v.curve.high == pytest.approx(np.percentile(values, 75, axis=1))
        # 4 members, 500 steps a second: 100 steps of each take 0.8 s.
        assert v.time_curve.x == pytest.approx([s * 4 / 500 for s in steps])
        assert v.time_curve.iqm == pytest.approx(v.curve.iqm)


def test_probabilities_are_over_all_pairs_of_seeds(made: Any) -> None:
    group = made[2].sections[0].groups[0]
    scores = {v.name: v.scores for v in group.variants}
    assert len(group.improvements) == 6
    for i in group.improvements:
        u = stats.mannwhitneyu(scores[i.better], scores[i.than]).statistic
        assert i.probability == pytest.approx(u / (len(scores[i.better]) * len(scores[i.than])))
        assert i.low <= i.probability <= i.high
    assert group.finding.startswith(group.variants[0].name)


def test_settings_that_differ_stand_apart_from_those_that_do_not(made: Any) -> None:
    group = made[2].sections[0].groups[0]
    assert group.differ == {"baseline.name": {n: n for n in ("none", "value", "leave_one_out")}}
    assert group.common["env.id"] == "CartPole-v1"
    assert group.common["seeds"] == "[0, 1, 2, 3]"


def test_the_markdown_has_tables_of_even_width_and_its_figures(made: Any) -> None:
    _, out, _ = made
    text = (out / "report.md").read_text()
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            widths = {len(row.replace("\\|", "").strip("|").split("|")) for row in block}
            assert len(widths) == 1, block
            assert set(block[1]) <= set("|:- ")
            block = []
    for name in ("report-curves-1.png", "report-noise-1.png"):
        assert f"]({name})" in text
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    assert "leave\\_one\\_out" in text


def test_measurements_of_gradients_are_shown_with_what_they_are_distances_to(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    pairs = [
        {"pair": "score_function", "nsr": [4.0, 2.0, "inf", False], "critic_mse": [0.5, 0.4, 0.6, True],
         "critic_bias_squared": [1e-6, -1e-6, 2e-6, True], "critic_cosine": [0.71, 0.6, 0.8, True], "milliseconds": 12.5},
        {"pair": "gumbel_softmax", "nsr": [0.25, 0.2, 0.3, True], "critic_mse": [0.125, 0.1, 0.2, True],
         "critic_bias_squared": [0.1, 0.05, 0.2, True], "critic_cosine": None, "milliseconds": 3.0},
    ]  # fmt: skip
    measured = {"environment": "CartPole-v1", "member": "seed 0", "stage": "end", "steps": 1000, "pairs": pairs}
    data = {"definition": "NSR: trace over norm.", "measured": [measured]}
    (tmp_path / "run" / "variance").mkdir()
    (tmp_path / "run" / "variance" / "report.json").write_text(json.dumps(data))
    (tmp_path / "alone").mkdir()
    measured["environment"] = "Elsewhere-v0"
    (tmp_path / "alone" / "report.json").write_text(json.dumps(data))
    found = report(tmp_path, tmp_path / "out")
    assert [s.environment for s in found.sections] == ["CartPole-v1", "Elsewhere-v0"]
    for section in found.sections:
        (v,) = section.variance
        assert [p["nsr"] for p in v.pairs] == [(4.0, 2.0, math.inf), (0.25, 0.2, 0.3)]
        assert [p["mse"][0] for p in v.pairs] == [0.5, 0.125]
        assert "critic's exact gradient" in v.to
    page = sound((tmp_path / "out" / "report.html").read_text())
    assert {4.0, 0.25, 0.5, 0.1, 0.71, 12.5, math.inf} <= set(page.numbers)
    assert page.text.count("NSR: trace over norm.") == 2
    assert len(found.rows("variance")) == 4


def test_seeds_of_several_runs_are_pooled_and_repetitions_are_not(tmp_path: Path) -> None:
    for i, seeds in enumerate(([0, 1], [2, 3], [0, 1])):
        make_run(tmp_path / f"a-2026010{i + 1}-120000", changed(seeds=seeds), seed=i)
    make_run(tmp_path / "b-20260101-120000", changed(learning_rate=0.01), 50.0)
    make_run(tmp_path / "c", changed(env={"id": "Pendulum-v1"}), 50.0)
    make_run(tmp_path / "d", changed(agent={"name": "actor_critic"}), 50.0)
    found = report(tmp_path)
    assert [s.environment for s in found.sections] == ["CartPole-v1", "Pendulum-v1"]
    assert [g.title for g in found.sections[0].groups] == ["Agent on_policy", "Agent actor_critic"]
    variants = {v.name: v for v in found.sections[0].groups[0].variants}
    assert {name: (len(v.scores), len(v.folders)) for name, v in variants.items()} == {
        "a-20260101-120000": (4, 2),
        "a-20260103-120000": (2, 1),
        "b": (4, 1),
    }
    assert found.sections[0].groups[0].differ["learning_rate"]["b"] == "0.01"


def test_swept_values_are_variants_of_their_own(tmp_path: Path) -> None:
    results = make_run(tmp_path / "sweep", changed(seeds=[0, 1]))
    data = json.loads((tmp_path / "sweep" / "results.json").read_text())
    data["members"] = [{"seed": 0, "learning_rate": 0.1}, {"seed": 0, "learning_rate": 0.2}]
    (tmp_path / "sweep" / "results.json").write_text(json.dumps(data))
    (group,) = report(tmp_path).sections[0].groups
    finals = np.mean(results["evaluations"][-1]["returns"], axis=1)
    assert {v.name: v.iqm for v in group.variants} == {
        "sweep, learning_rate=0.1": pytest.approx(finals[0]),
        "sweep, learning_rate=0.2": pytest.approx(finals[1]),
    }


def test_a_run_that_trained_gives_the_time_it_took(tmp_path: Path) -> None:
    import pglab

    config = {"env": {"id": "CartPole-v1", "num_envs": 2}, "seeds": 2, "total_steps": 600, "log_every": 100}
    config |= {"evaluation": {"every": 200, "episodes": 2, "final_episodes": 2}, "baseline": "none"}
    trained = pglab.train(config, tmp_path / "run")
    (v,) = report(tmp_path / "run").sections[0].groups[0].variants
    assert v.iqm == pytest.approx(np.mean(trained.evaluations[-1]["returns"]))
    assert 0.3 * trained.seconds["total"] < v.time_curve.x[-1] <= trained.seconds["total"]
    assert "<table>" in trained._repr_html_()
