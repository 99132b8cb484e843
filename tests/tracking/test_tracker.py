"""The tracker's CSV and event files, read back by TensorBoard's own readers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pglab.errors import PglabError
from pglab.tracking.events import event_files
from pglab.tracking.log import read_log
from pglab.tracking.run_folder import RunFolder
from pglab.tracking.tracker import MemberLabel, Tracker

SEEDS = [MemberLabel(seed) for seed in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {}, "pglab")


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in EventAccumulator(str(run)).Reload().Scalars(tag)]


def write(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.log(step, {"charts/episodic_return": torch.arange(5.0) * step + 0.1, "charts/SPS": 100.0 * step})


def test_the_log_is_exact_and_leaves_out_nan(folder: RunFolder) -> None:
    values = torch.tensor([0.1, float("nan"), float("inf"), 1e-40, -3.0])
    with Tracker(folder, SEEDS, "reinforce", tensorboard=False) as tracker:
        tracker.log(7, {"losses/policy": values, "charts/SPS": np.float64(0.1), "eval/return": np.full(5, np.nan)})
        tracker.log(8, {"losses/policy": torch.zeros(5, dtype=torch.bfloat16)})
    lines = folder.log.read_text().splitlines()
    assert lines[:3] == ["step,member,tag,value", "7,all,charts/SPS,0.1", "7,seed0,losses/policy,0.10000000149011612"]
    log = read_log(folder.path)
    assert set(log) == {"charts/SPS", "losses/policy"}
    found = {name: series.values[0] for name, series in log["losses/policy"].items() if series.steps[0] == 7}
    expected = {f"seed{i}": float(value) for i, value in enumerate(values) if not value.isnan()}
    assert found == expected
    assert log["losses/policy"]["seed0"].steps.tolist() == [7, 8]


def test_one_run_per_member_and_an_aggregate(folder: RunFolder) -> None:
    returns = np.array([3.0, 100.0, 5.0, 4.0, np.nan])
    with Tracker(folder, SEEDS, "reinforce") as tracker:
        tracker.log(10, {"charts/episodic_return": returns, "losses/policy": returns, "charts/SPS": 5.0})
        tracker.text("about", "**bold**")
    runs = folder.tensorboard / "reinforce"
    assert sorted(path.name for path in runs.iterdir()) == ["aggregate", "seed0", "seed1", "seed2", "seed3"]
    assert scalars(runs / "seed1", "charts/episodic_return") == [(10, 100.0)]
    known = returns[:4]
    middle = [(10, pytest.approx(stats.trim_mean(known, 0.25)))]
    assert scalars(runs / "aggregate", "charts/episodic_return") == middle
    assert scalars(runs / "aggregate", "charts/episodic_return/low") == [(10, np.quantile(known, 0.25))]
    assert scalars(runs / "aggregate", "charts/episodic_return/high") == [(10, np.quantile(known, 0.75))]
    assert scalars(runs / "aggregate", "losses/policy") == [(10, known.mean())]
    assert scalars(runs / "aggregate", "charts/SPS") == [(10, 5.0)]
    assert "losses/policy/low" not in EventAccumulator(str(runs / "aggregate")).Reload().Tags()["scalars"]


def test_swept_settings_are_not_averaged(folder: RunFolder) -> None:
    members = [MemberLabel(seed, {"learning_rate": rate}) for rate in (1e-3, 1e-5) for seed in (0, 3)]
    assert members[1].name == "seed3_learning_rate=0.001"
    with Tracker(folder, members, "reinforce") as tracker:
        tracker.log(1, {"eval/return": np.array([1.0, 3.0, 10.0, 30.0]), "charts/SPS": 5.0})
    runs = folder.tensorboard / "reinforce"
    assert scalars(runs / "aggregate_learning_rate=0.001", "eval/return") == [(1, 2.0)]
    assert scalars(runs / "aggregate_learning_rate=1e-05", "eval/return") == [(1, 20.0)]
    assert scalars(runs / "aggregate", "charts/SPS") == [(1, 5.0)]


def test_labels_and_shapes_are_checked(folder: RunFolder) -> None:
    with pytest.raises(PglabError, match="same seed"):
        Tracker(folder, [MemberLabel(0), MemberLabel(0)], "reinforce")
    with pytest.raises(PglabError, match="cannot name a folder"):
        Tracker(folder, SEEDS, "../reinforce")
    with Tracker(folder, SEEDS, "reinforce", tensorboard=False) as tracker, pytest.raises(ValueError, match="shape"):
        tracker.log(0, {"tag": np.zeros(4)})
    near = [MemberLabel(0, {"rate": 0.1}), MemberLabel(0, {"rate": 0.1000000001})]
    assert near[0].name != near[1].name


def test_flush_reaches_the_files(folder: RunFolder) -> None:
    with Tracker(folder, SEEDS, "reinforce") as tracker:
        write(tracker, range(1, 200))
        positions = tracker.positions()
        for path in event_files(folder.tensorboard):
            assert positions[path.relative_to(folder.path).as_posix()] == path.stat().st_size
            assert len(list(EventFileLoader(str(path)).Load())) == 1 + 199  # the file's version, then one per step
        assert positions["log.csv"] == folder.log.stat().st_size
        assert read_log(folder.path)["charts/SPS"]["all"].values.tolist() == [100.0 * step for step in range(1, 200)]


def test_cut_back_leaves_exactly_the_checkpoint(folder: RunFolder, tmp_path: Path) -> None:
    whole = RunFolder.create(tmp_path / "whole", {}, "pglab")
    with Tracker(whole, SEEDS, "rebar") as tracker:
        write(tracker, range(1, 31))

    with Tracker(folder, SEEDS, "rebar") as tracker:
        write(tracker, range(1, 11))
        first = tracker.positions()
        write(tracker, range(11, 15))  # lost in the crash
    assert Tracker.cut_back(folder, first) == []
    assert [step for step, _ in scalars(folder.tensorboard / "rebar" / "seed1", "charts/episodic_return")] == [
        *range(1, 11)
    ]
    with Tracker(folder, SEEDS, "rebar") as tracker:
        write(tracker, range(11, 21))
        second = tracker.positions()
        write(tracker, range(21, 26))
    with Tracker(folder, SEEDS, "rebar") as tracker:  # a session that never came to a checkpoint
        write(tracker, range(26, 28))
    with folder.log.open("ab") as file:
        file.write(b"28,seed0,charts/epis")
    assert read_log(folder.path)["charts/SPS"]["all"].steps[-1] == 27
    assert Tracker.cut_back(folder, second) == []
    assert {p.relative_to(folder.path).as_posix() for p in event_files(folder.tensorboard)} | {"log.csv"} == set(second)
    with Tracker(folder, SEEDS, "rebar") as tracker:
        write(tracker, range(21, 31))

    assert folder.log.read_bytes() == whole.log.read_bytes()
    for run in ["aggregate", *(label.name for label in SEEDS)]:
        resumed, straight = (f.tensorboard / "rebar" / run for f in (folder, whole))
        for tag in EventAccumulator(str(straight)).Reload().Tags()["scalars"]:
            assert scalars(resumed, tag) == scalars(straight, tag)


def test_cut_back_touches_only_the_folder_s_logs_and_names_what_is_gone(folder: RunFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("precious")
    with Tracker(folder, SEEDS, "rebar", tensorboard=False) as tracker:
        write(tracker, range(2))
        positions = tracker.positions()
    folder.log.write_text("step\n")
    hostile = {**positions, "../outside.txt": 0, "config.yaml": 0, "tensorboard/rebar/gone.tfevents": 5}
    size = folder.config_path.stat().st_size
    assert Tracker.cut_back(folder, hostile) == [
        "../outside.txt",
        "config.yaml",
        "log.csv",
        "tensorboard/rebar/gone.tfevents",
    ]
    assert outside.read_text() == "precious"
    assert folder.config_path.stat().st_size == size
    assert folder.log.read_text() == "step\n"  # never filled up with zeros


def test_a_damaged_log_is_named(folder: RunFolder) -> None:
    with pytest.raises(PglabError, match=r"Cannot read .*log\.csv: No such file"):
        read_log(folder.path)
    folder.log.write_text("step,member,tag,value\n1,seed0,a,0.5\n2,seed0\n")
    with pytest.raises(PglabError, match="line 3 is '2,seed0'"):
        read_log(folder.path)


def test_a_full_disk_is_a_pglab_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    from pglab.tracking.log import LogFile

    log = LogFile(Path("/dev/full"))
    log.append(1, [("seed0", "a", 0.5)])
    with pytest.raises(PglabError, match="Cannot write /dev/full: No space left on device"):
        log.flush()
    with pytest.raises(PglabError, match="No space left"):
        log.close()


def test_tensorboard_is_imported_only_when_it_is_used(tmp_path: Path) -> None:
    code = f"""
import sys
from pglab.tracking import MemberLabel, RunFolder, Tracker
folder = RunFolder.create({str(tmp_path / "run")!r}, {{}}, "pglab")
with Tracker(folder, [MemberLabel(0)], "reinforce", tensorboard=False) as tracker:
    tracker.log(0, {{"a": 1.0}}); tracker.text("a", "b"); tracker.layout(); tracker.positions()
import pglab.lab
print([name for name in ("tensorboard", "torch", "matplotlib", "rich") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
