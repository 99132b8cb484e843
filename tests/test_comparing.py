"""A comparison from end to end: tables, figures, TensorBoard, resume, tuning, failures."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from pglab.__main__ import main
from pglab.comparing import compare, resume_comparison
from pglab.config import read_yaml
from pglab.errors import PglabError
from pglab.jobs import TUNING_SEEDS
from pglab.lab.comparison import Variant, pooled_nsr, summarise

TINY: dict[str, Any] = {
    "name": "tiny",
    "threshold": 15,
    "groups": {
        "monte_carlo": {
            "title": "Monte-Carlo returns",
            "base": {
                "env": {"id": "CartPole-v1", "num_envs": 2},
                "agent": {"name": "on_policy", "collect": "episodes"},
                "seeds": [100, 101],
                "total_steps": 300,
                "log_every": 100,
                "evaluation": {"every": 100, "episodes": 2, "final_episodes": 3},
                "measurement": {"at": [0, 0.5, 1], "replicates": 4},
            },
            "variants": {"none": {}, "leave_one_out": {"baseline": "leave_one_out"}},
        },
        "critic": {
            "title": "Learned critic",
            "base": {
                "env": {"id": "CartPole-v1", "num_envs": 2},
                "agent": {
                    "name": "actor_critic",
                    "critic": {"target_action": "expectation"},
                    "replay": {"batch_size": 8, "warmup": 50},
                },
                "seeds": [100, 101],
                "total_steps": 200,
                "log_every": 50,
                "evaluation": {"every": 100, "episodes": 2, "final_episodes": 3},
                "measurement": {"at": [0, 1], "replicates": 4},
            },
            "variants": {"enumeration": {"estimator": "enumeration"}},
        },
    },
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compare(TINY, root=tmp_path_factory.mktemp("runs"), workers=2, quiet=True)


def test_every_variant_is_in_the_table_with_its_numbers(tiny: Any) -> None:
    assert [(r.group, r.variant) for r in tiny.rows] == [
        ("monte_carlo", "none"),
        ("monte_carlo", "leave_one_out"),
        ("critic", "enumeration"),
    ]
    assert not tiny.failed
    assert not tiny.stopped
    for row in tiny.rows:
        final = json.loads((tiny.folder / row.group / row.variant / "results.json").read_text())["evaluations"][-1]
        scores = np.mean(final["returns"], axis=1)
        assert row.seeds == 2
        assert row.iqm == pytest.approx(scores.mean())  # the middle half of two is both
        assert row.worst == scores.min()
        assert "start" in row.nsr
        assert "end" in row.nsr
    table = (tiny.folder / "table.md").read_text()
    assert "leave\\_one\\_out" in table
    assert table.index("Monte-Carlo returns") < table.index("Learned critic")
    for figure in ("learning_curves.png", "gradient_variance.png"):
        assert (tiny.folder / figure).read_bytes()[:4] == b"\x89PNG"


def test_the_same_comparison_in_one_process_gives_the_same_numbers(tiny: Any, tmp_path: Path) -> None:
    again = compare(TINY, root=tmp_path, workers=1, quiet=True)
    for a, b in zip(tiny.rows, again.rows, strict=True):
        assert (a.variant, a.iqm, a.nsr) == (b.variant, b.iqm, b.nsr)


def test_variants_share_their_seeds_noise(tiny: Any) -> None:
    """Common random numbers: before the first update all variants of a group play the same episodes."""
    first = [
        json.loads((tiny.folder / "monte_carlo" / v / "results.json").read_text())["evaluations"][0]
        for v in ("none", "leave_one_out")
    ]
    assert first[0] == first[1]


def test_tensorboards_own_endpoints_give_back_layout_scalars_and_a_run_per_variant_and_seed(tiny: Any) -> None:
    from tensorboard import program
    from tensorboard.backend import application
    from tensorboard.backend.event_processing.data_ingester import LocalDataIngester
    from werkzeug.serving import make_server

    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(tiny.folder), "--load_fast", "false", "--reload_interval", "0"])
    ingester = LocalDataIngester(board.flags)
    ingester.start()
    plugins, assets = board.plugin_loaders, board.assets_zip_provider
    wsgi = application.TensorBoardWSGIApp(board.flags, plugins, ingester.data_provider, assets)
    server = make_server("127.0.0.1", 0, wsgi)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/data/{path}", timeout=30) as answer:
            return json.load(answer)

    try:
        runs: list[str] = []
        deadline = time.monotonic() + 60
        while len(runs) < 9 and time.monotonic() < deadline:
            runs = get("runs")
            time.sleep(0.05)
        wanted = {
            f"{v}/tensorboard/{m}"
            for v in ("monte_carlo/none", "monte_carlo/leave_one_out", "critic/enumeration")
            for m in ("seed100", "seed101", "aggregate")
        }
        assert set(runs) == {*wanted, "tensorboard/comparison"}
        tags = get("plugin/scalars/tags")
        for run in wanted:
            assert {"charts/episodic_return", "eval/return", "losses/policy_loss", "gradient/nsr"} <= set(tags[run])
        run = "critic/enumeration/tensorboard/seed101"
        points = get(f"plugin/scalars/scalars?run={quote(run, safe='')}&tag={quote('eval/return', safe='')}")
        results = json.loads((tiny.folder / "critic/enumeration/results.json").read_text())
        assert [p[2] for p in points] == pytest.approx([np.mean(e["returns"][1]) for e in results["evaluations"]])
        layout = get("plugin/custom_scalars/layout")
        charts = [chart["title"] for category in layout["category"] for chart in category["chart"]]
        assert "Return" in charts
        assert any("Noise" in title for title in charts)
    finally:
        server.shutdown()


def test_a_stopped_comparison_is_resumed_to_the_same_end(tiny: Any, tmp_path: Path) -> None:
    import pglab.jobs as jobs

    calls: list[str] = []
    asked: list[bool] = []
    real = jobs.run_job

    def once(job: Any, report: Any, stop: Any = lambda: False) -> str:
        """The second variant is asked to stop before its fifth update."""
        calls.append(job.key)
        return real(job, report, stop if len(calls) != 2 else lambda: bool(asked.append(True)) or len(asked) > 4)

    jobs.run_job = once  # type: ignore[assignment]
    try:
        broken = compare(TINY, root=tmp_path, workers=1, quiet=True)
    finally:
        jobs.run_job = real  # type: ignore[assignment]
    assert len(broken.rows) == 1
    assert len(broken.stopped) == 2
    whole = resume_comparison(broken.folder, workers=1, quiet=True)
    assert [(r.variant, r.iqm, r.nsr) for r in whole.rows] == [(r.variant, r.iqm, r.nsr) for r in tiny.rows]


def test_tuning_takes_other_seeds_than_the_report_and_both_stand_in_the_results(tmp_path: Path) -> None:
    grid = [1e-5, 3e-2]
    found = compare(TINY, root=tmp_path, only=["enumeration"], tune={"learning_rate": grid}, quiet=True)
    (row,) = found.rows
    assert row.grid == {"learning_rate": grid}
    assert row.chosen["learning_rate"] in grid
    results = json.loads((found.folder / "critic/enumeration/results.json").read_text())
    assert {m["seed"] for m in results["members"]} == {100, 101}
    assert min(results["members"], key=lambda m: m["seed"])["seed"] < TUNING_SEEDS
    assert f"{row.chosen['learning_rate']:g}" in (found.folder / "table.md").read_text()


def test_one_variant_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """A folder that cannot be made stands for whatever goes wrong late."""
    import pglab.jobs as jobs

    real = jobs.run_job

    def failing(job: Any, report: Any, stop: Any = lambda: False) -> str:
        if job.key.endswith("none"):
            raise RuntimeError("something unexpected")
        return real(job, report, stop)

    jobs.run_job = failing  # type: ignore[assignment]
    try:
        found = compare(TINY, root=tmp_path, only=["monte_carlo"], quiet=True)
    finally:
        jobs.run_job = real  # type: ignore[assignment]
    assert [r.variant for r in found.rows] == ["leave_one_out"]
    assert "something unexpected" in found.failed["monte_carlo/none"]


def test_tuning_keeps_schedules_knows_single_values_and_survives_a_resume(tmp_path: Path) -> None:
    data = json.loads(json.dumps(TINY))
    base = data["groups"]["critic"]["base"]
    base["learning_rate"] = {"kind": "linear", "start": 1e-3, "end": 0.0}
    import pglab.jobs as jobs

    real = jobs.run_job
    jobs.run_job = lambda job, report, stop=None: "stopped"  # type: ignore[assignment]
    try:
        stopped = compare(data, root=tmp_path, only=["critic"], tune={"learning_rate": [0.02]}, quiet=True)
    finally:
        jobs.run_job = real  # type: ignore[assignment]
    found = resume_comparison(stopped.folder, quiet=True)
    assert found.rows[0].chosen == {"learning_rate": 0.02}
    kept = read_yaml(found.folder / "critic" / "enumeration" / "config.yaml")["learning_rate"]
    assert (kept["kind"], kept["start"], kept["end"]) == ("linear", 0.02, 0.0)
    assert kept == read_yaml(found.folder / "critic" / "enumeration" / "config.yaml")["learning_rate"]


def test_what_is_wrong_in_a_comparison_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    data = json.loads(json.dumps(TINY))
    data["groups"]["critic"]["variants"]["wrong"] = {"learning_rat": 1}
    with pytest.raises(PglabError, match=r"critic/wrong.*learning_rate"):
        compare(data, root=tmp_path / "runs", quiet=True)
    with pytest.raises(PglabError, match=r"field to tune.*learning_rate"):
        compare(TINY, root=tmp_path / "runs", tune={"learning_rat": [1.0]}, quiet=True)
    with pytest.raises(PglabError, match=r"learning_rate must be at least 0"):
        compare(TINY, root=tmp_path / "runs", tune={"learning_rate": [-1.0]}, quiet=True)
    data = json.loads(json.dumps(TINY))
    data["groups"]["critic"]["variants"]["wrong"] = {"estimator": "pathwise"}
    with pytest.raises(PglabError, match=r"critic/wrong.*discrete actions"):
        compare(data, root=tmp_path / "runs", quiet=True)
    data = json.loads(json.dumps(TINY))
    data["groups"]["critic"]["variants"]["../../escaped"] = {}
    with pytest.raises(PglabError, match="cannot name a folder"):
        compare(data, root=tmp_path / "runs", quiet=True)
    with pytest.raises(PglabError, match="a line of a comparison has one"):
        compare(TINY, root=tmp_path / "runs", overrides=[("learning_rate", [1e-3, 1e-2])], quiet=True)
    assert not (tmp_path / "runs").exists()


def test_the_command_line_writes_json_and_says_where_everything_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    arguments = ["compare", str(tmp_path / "tiny.yaml"), "--only", "none", "--runs", str(tmp_path / "runs")]
    assert main([*arguments, "--json", str(tmp_path / "out.json"), "--total_steps", "150"]) == 0
    said = capsys.readouterr().out
    assert "Monte-Carlo returns" in said
    assert (
        max(len(line) for line in said.splitlines() if "tables" not in line.lower() and str(tmp_path) not in line) <= 80
    )
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["rows"][0]["variant"] == "none"
    kept = read_yaml(Path(out["folder"]) / "comparison.yaml")
    assert kept["groups"]["monte_carlo"]["variants"]["none"]["total_steps"] == 150


def test_summaries_by_hand() -> None:
    results = {
        "evaluations": [
            {"steps": [0, 0], "returns": [[1, 3], [5, 5]]},
            {"steps": [10, 12], "returns": [[10, 20], [1, 1]]},
            {"steps": [20, 22], "returns": [[30, 30], [16, 18]]},
        ],
        "measurements": [{"stage": "end", "trace_variance": [4.0, 8.0], "squared_norm": [1.0, -0.5]}],
        "seconds": {"total": 3.0, "training": 2.0},
    }
    row = summarise(Variant("g", "v", {}), results, 15)
    assert row.iqm == 23.5
    assert row.worst == 17
    assert row.steps_to_threshold == 16  # median of 10 and 22
    assert row.reached == 2
    assert row.steps_per_second == 21
    assert row.nsr["end"] == pytest.approx(6 / 0.25)
    assert pooled_nsr({"trace_variance": [1.0], "squared_norm": [-1.0]})["nsr"] == float("inf")
