"""The HParams page as TensorBoard's own server fills it: a row per variant, its seeds averaged, no run but the members'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from board_server import ask, experiment, metrics, rows, serve

from pglab.tracking.hparams import Field, fields_of
from pglab.tracking.run_folder import RunFolder
from pglab.tracking.tracker import MemberLabel, Tracker


def test_columns_are_of_numbers_or_texts_and_say_whether_they_differ() -> None:
    trials = [
        {"estimator": "rebar", "learning_rate": 1e-3, "discount": 0.9, "seeds": "0, 1"},
        {
            "estimator": "relax",
            "learning_rate": "linear 0.1 to 0",
            "discount": 0.9,
            "temperature": 1.0,
            "seeds": "0, 1",
        },
    ]
    assert fields_of(trials, ["discount"]) == [
        Field("estimator", False, True),
        Field("learning_rate", False, True),
        Field("discount", True, True),  # tuned: each will have a value of its own
        Field("seeds", False, False),
        Field("temperature", True, True),
    ]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("runs")
    trials = {"reinforce": {"estimator": "reinforce", "rate": 1e-3}, "rebar": {"estimator": "rebar", "rate": 1e-2}}
    fields = fields_of(list(trials.values()))
    for i, (variant, trial) in enumerate(trials.items()):
        with Tracker(RunFolder.create(root / variant, {}, "pglab"), [MemberLabel(0), MemberLabel(1)]) as tracker:
            tracker.begin([trial, trial], variant, fields)
            tracker.log(100, {"eval/return": np.array([1.0, 2.0])})
            tracker.log(200, {"eval/return": 10.0 * i + np.array([1.0, 3.0]), "gradient/nsr": np.array([1.0, 2.0])})
            if variant == "rebar":
                tracker.end()
    swept = [MemberLabel(s, {"rate": r}) for r in (0.1, 0.2) for s in (0, 1)]
    with Tracker(RunFolder.create(root / "swept", {}, "pglab"), swept) as tracker:
        tracker.begin([{"estimator": "<b>relax</b>\x1b[31m", "rate": m.overrides["rate"]} for m in swept], "swept")
        tracker.log(100, {"eval/return": np.array([1.0, 2.0, 3.0, 5.0])})
    return serve(root, 2 * 3 + 4 + 3)


def test_there_is_one_row_per_variant_and_setting_with_its_seeds_averaged(url: str) -> None:
    found = {row["name"]: row for row in rows(url)}
    assert set(found) == {"reinforce", "rebar", "swept_rate=0.1", "swept_rate=0.2"}
    assert found["rebar"]["hparams"] == {"estimator": "rebar", "rate": 1e-2}
    assert metrics(found["reinforce"]) == {"eval/return": 2.0, "gradient/nsr": 1.5}
    assert metrics(found["rebar"])["eval/return"] == 12.0
    assert [s["name"] for s in found["rebar"]["sessions"]] == ["rebar/tensorboard/seed0", "rebar/tensorboard/seed1"]
    assert {s["status"] for s in found["rebar"]["sessions"]} == {"STATUS_SUCCESS"}
    assert all(s.get("status", "STATUS_UNKNOWN") == "STATUS_UNKNOWN" for s in found["reinforce"]["sessions"])
    assert metrics(found["swept_rate=0.2"])["eval/return"] == 4.0
    assert found["swept_rate=0.2"]["hparams"]["rate"] == 0.2


def test_the_columns_and_metrics_are_named_and_hide_no_row(url: str) -> None:
    found = experiment(url)
    assert {info["name"] for info in found["hparamInfos"]} == {"estimator", "rate"}
    assert not any("domainDiscrete" in info for info in found["hparamInfos"])
    tags = [info["name"]["tag"] for info in found["metricInfos"]]
    assert tags == ["charts/episodic_return", "eval/return", "gradient/nsr"]


def test_control_characters_of_a_value_are_escaped(url: str) -> None:
    (row, _) = (r for r in rows(url) if r["name"].startswith("swept"))
    assert row["hparams"]["estimator"] == "<b>relax</b>\\x1b[31m"  # as text: the page never reads it as HTML


def test_no_run_is_made_for_it(url: str) -> None:
    runs = {Path(run).name for run in ask(url, "data/runs")}
    settings = ("rate=0.1", "rate=0.2")
    swept = {f"{run}_{setting}" for run in ("seed0", "seed1", "aggregate") for setting in settings}
    assert runs == {"aggregate", "seed0", "seed1"} | swept
