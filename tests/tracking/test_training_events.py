"""What training writes for TensorBoard: its beginning, histograms, the end, and the same after an interruption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata

from pglab.tracking.events import event_files
from pglab.training import resume, train
from pglab.watching import Watcher

CONFIG: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 2},
    "agent": {"name": "on_policy", "steps": 8, "epochs": 2, "minibatches": 2, "returns": {"name": "gae"}},
    "estimator": "ppo_clip",
    "baseline": "value",
    "learning_rate": [1e-3, 3e-3],
    "seeds": 2,
    "total_steps": 160,
    "log_every": 32,
    "threads": 1,
    "evaluation": {"every": 80, "episodes": 2, "final_episodes": 2},
    "measurement": {"at": [0, 1], "replicates": 4},
    "probe": {"every": 2},
    "checkpoint": {"every": 64},
}
TIMED = {"charts/SPS"}  # of the clock


def read(folder: Path) -> dict[str, list[tuple[int, str, bytes]]]:
    """Run -> (step, tag, value) in order, of all its event files."""
    found: dict[str, list[tuple[int, str, bytes]]] = {}
    for path in sorted(event_files(folder / "tensorboard"), key=lambda p: int(p.suffix[1:])):  # sessions in their order
        rows = found.setdefault(path.parent.name, [])
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag not in TIMED and value.metadata.plugin_data.plugin_name != "hparams":
                    rows.append((event.step, value.tag, value.tensor.SerializeToString()))
    return found


def sessions(folder: Path) -> dict[str, Counter[str]]:
    """Run -> how many HParams summaries of each tag it holds."""
    found: dict[str, Counter[str]] = {}
    for path in event_files(folder / "tensorboard"):
        tags = [value.tag for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
        found.setdefault(path.parent.name, Counter()).update(tag for tag in tags if tag.startswith("_hparams_/"))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(CONFIG, folder, ["pglab", "train", "<b>\x1b[31m"]).finished
    return folder


def test_the_aggregate_begins_with_layout_and_texts(whole: Path) -> None:
    rows = read(whole)["aggregate"]
    assert [tag for _, tag, _ in rows[:4]] == [
        "custom_scalars__config__",
        "config/text_summary",
        "command/text_summary",
        "versions/text_summary",
    ]
    said = {tag: value for _, tag, value in rows[:4]}
    assert b"ppo_clip" in said["config/text_summary"]
    assert b"\\x1b[31m" in said["command/text_summary"]
    assert b"\x1b[31m" not in said["command/text_summary"]
    assert b"torch" in said["versions/text_summary"]
    assert b"probe/nsr/median" in said["custom_scalars__config__"]


def test_each_member_has_one_session_and_the_aggregate_the_experiment(whole: Path) -> None:
    for run, found in sessions(whole).items():
        if run == "aggregate":
            assert found == {metadata.EXPERIMENT_TAG: 1}
        elif run.startswith("aggregate_"):
            assert not found
        else:
            assert found == {metadata.SESSION_START_INFO_TAG: 1, metadata.SESSION_END_INFO_TAG: 1}


def test_groups_are_the_swept_settings(whole: Path) -> None:
    groups: dict[str, list[str]] = {}
    for path in event_files(whole / "tensorboard"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == metadata.SESSION_START_INFO_TAG:
                    info = metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
                    groups.setdefault(info.group_name, []).append(path.parent.name)
                    assert info.hparams["estimator"].string_value == "ppo_clip"
                    assert info.hparams["baseline"].string_value == "value"
                    assert info.hparams["seeds"].string_value == "0, 1"
                    assert f"{info.hparams['learning_rate'].number_value:g}" in path.parent.name
    assert {name: sorted(runs) for name, runs in groups.items()} == {
        f"run_learning_rate={rate}": [f"seed{s}_learning_rate={rate}" for s in (0, 1)] for rate in ("0.001", "0.003")
    }


def test_histograms_of_norms_and_importance_weights_are_logged(whole: Path) -> None:
    for rate in ("0.001", "0.003"):
        tags = Counter(tag for _, tag, _ in read(whole)[f"aggregate_learning_rate={rate}"])
        assert tags["policy/importance_weights"] == tags["gradient/norm/members"] == tags["gradient/norm"] == 5
    assert "importance_weights" not in (whole / "log.csv").read_text()


def test_an_interrupted_run_has_the_same_events_and_each_beginning_once(whole: Path, tmp_path: Path) -> None:
    asked: list[bool] = []
    folder = tmp_path / "run"
    stopped = train(
        CONFIG,
        folder,
        ["pglab", "train", "<b>\x1b[31m"],
        Watcher(stop=lambda: bool(asked.append(True)) or len(asked) > 6),
    )
    assert not stopped.finished
    assert not any(found[metadata.SESSION_END_INFO_TAG] for found in sessions(folder).values())
    assert resume(folder).finished
    expected, found = read(whole), read(folder)
    assert found.keys() == expected.keys()
    for run in expected:
        assert [row[:2] for row in found[run]] == [row[:2] for row in expected[run]], run
        assert found[run] == expected[run], run
    assert sessions(folder) == sessions(whole)


def test_a_run_that_was_stopped_before_its_first_update_begins_once(tmp_path: Path) -> None:
    assert not train(CONFIG, tmp_path / "run", watcher=Watcher(stop=lambda: True)).finished
    assert resume(tmp_path / "run").finished
    assert sessions(tmp_path / "run")["aggregate"] == {metadata.EXPERIMENT_TAG: 1}
    assert sum(tag == "custom_scalars__config__" for _, tag, _ in read(tmp_path / "run")["aggregate"]) == 1


def test_looking_again_at_a_finished_run_writes_nothing(whole: Path) -> None:
    before = sessions(whole)
    assert resume(whole).finished
    assert sessions(whole) == before
