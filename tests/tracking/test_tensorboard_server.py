"""TensorBoard's own server, asked over HTTP about a folder that two variants were logged to."""

from __future__ import annotations

import urllib.error

import numpy as np
import pytest
from board_server import ask, serve

from pglab.tracking.run_folder import RunFolder
from pglab.tracking.tracker import MemberLabel, Tracker

VARIANTS = ("reinforce", "rebar")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("runs")
    for i, variant in enumerate(VARIANTS):
        log(RunFolder.create(root / variant, {}, "pglab"), variant, 10.0 * i)
    return serve(root, len(VARIANTS) * 3)


def log(folder: RunFolder, variant: str, level: float) -> None:
    with Tracker(folder, [MemberLabel(0), MemberLabel(1)], variant) as tracker:
        tracker.layout()
        tracker.text("config", "`x: 1`")
        for step in (100, 200):
            tracker.log(step, {"charts/episodic_return": level + np.array([1.0, 3.0]), "gradient/nsr": np.ones(2)})


def run_name(variant: str, run: str) -> str:
    return f"{variant}/tensorboard/{variant}/{run}"


def test_one_run_per_variant_and_seed(server: str) -> None:
    runs = {run_name(variant, run) for variant in VARIANTS for run in ("aggregate", "seed0", "seed1")}
    assert set(ask(server, "data/runs")) == runs


def test_the_scalars_come_back(server: str) -> None:
    query = {"tag": "charts/episodic_return", "run": run_name("rebar", "seed1")}
    points = ask(server, "data/plugin/scalars/scalars", **query)
    assert [(step, value) for _, step, value in points] == [(100, 13.0), (200, 13.0)]


def test_the_layouts_of_the_variants_merge_into_one(server: str) -> None:
    layout = ask(server, "data/plugin/custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == [
        "Over seeds: return and gradient noise",
        "Learning",
        "Gradient",
        "Losses",
        "Speed",
    ]
    charts = {chart["title"]: chart for category in layout["category"] for chart in category["chart"]}
    assert sum(len(category["chart"]) for category in layout["category"]) == len(charts)  # none twice
    (margin,) = charts["Return: IQM, quartiles"]["margin"]["series"]
    aggregate = run_name("rebar", "aggregate")
    for key, expected in {"value": 12.0, "lower": 11.5, "upper": 12.5}.items():
        points = ask(server, "data/plugin/scalars/scalars", tag=margin[key], run=aggregate)
        assert [value for _, _, value in points] == [expected, expected]
    # A line chart's pattern takes its tag and not the band's beside it.
    (pattern,) = charts["Return"]["multiline"]["tag"]
    found = ask(server, "data/plugin/custom_scalars/scalars", tag=pattern, run=aggregate)
    assert list(found["tag_to_events"]) == ["charts/episodic_return"]


def test_the_text_comes_back(server: str) -> None:
    assert ask(server, "data/plugin/text/tags")[run_name("rebar", "aggregate")] == ["config/text_summary"]


def test_an_unknown_run_is_an_error(server: str) -> None:
    with pytest.raises(urllib.error.HTTPError):
        ask(server, "data/plugin/scalars/scalars", tag="gradient/nsr", run="nobody")
