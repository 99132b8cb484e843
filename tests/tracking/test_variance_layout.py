"""`pglab variance` in TensorBoard: one layout, whose charts have data, pairs side by side."""

from __future__ import annotations

from pathlib import Path

from board_server import ask, serve

from pglab.__main__ import main
from pglab.lab.variance_events import SCALARS
from pglab.tracking.layout import INTERVALS, lines, variance_layout

SMALL = ["--env.num_envs", "2", "--agent.steps", "4", "--policy.hidden", "[4]", "--agent.value.hidden", "[4]"]
FEW = ["--pairs", "score_function", "score_function/value", "--replicates", "8", "--reference", "32", "--fit", "2"]


def test_every_chart_is_of_something_that_is_measured() -> None:
    for charts in variance_layout().values():
        for kind, tags in charts.values():
            if kind == "Margin":
                assert {tag.rpartition("/")[0] for tag in tags} <= set(INTERVALS)
            else:
                assert tags in [lines(f"variance/{name}")[1] for name in SCALARS]


def test_a_measurement_opens_with_pairs_side_by_side(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["variance", "cartpole/value", *FEW, *SMALL, "--out", str(out), "--quiet"]) == 0
    url = serve(out, 3)
    layout = ask(url, "data/plugin/custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == list(variance_layout())
    tags = ask(url, "data/plugin/scalars/tags")
    pairs = [f"tensorboard/{pair}" for pair in ("score_function", "score_function+value")]
    for pair in pairs:
        assert {"variance/trace", "variance/milliseconds"} <= set(tags[pair])
        for tag in INTERVALS:
            bounds = [
                {step for _, step, _ in ask(url, "data/plugin/scalars/scalars", run=pair, tag=f"{tag}/{end}")}
                for end in ("value", "low", "high")
                if f"{tag}/{end}" in tags[pair]
            ]
            assert bounds in ([], [bounds[0]] * 3 if bounds else [])
    assert any(f"{tag}/low" in tags[pair] for pair in pairs for tag in INTERVALS)
