"""`pglab variance`: what it writes, and every mistake of its user as one clear sentence."""

from __future__ import annotations

import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pglab.__main__ import main
from pglab.config import Config, merge
from pglab.lab.variance_events import SCALARS
from pglab.tracking.files import read_json
from pglab.training import train

BASE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 2, "max_episode_steps": 20},
    "seeds": 2,
    "total_steps": 80,
    "policy": {"hidden": [6]},
    "baseline": "value",
    "agent": {"steps": 10, "value": {"hidden": [4]}, "critic": {"hidden": [4]}},
    "snapshots": {"at": [0.0, 1.0]},
    "evaluation": {"episodes": 1, "final_episodes": 1},
    "measurement": {"at": []},
}
RUNS: dict[str, dict[str, Any]] = {
    "good": BASE,
    "bare": merge(BASE, {"snapshots": {"at": []}}),
    "evolution": {**{k: v for k, v in BASE.items() if k != "baseline"}, "agent": "evolution", "snapshots": {}},
    "bptt": {
        **{k: v for k, v in BASE.items() if k != "baseline"},
        "env": {"id": "Pendulum-v1", "num_envs": 2},
        "agent": {"name": "bptt", "value": {"hidden": [4]}},
    },
    "gymnasium": merge(BASE, {"env": {"backend": "gymnasium"}, "seeds": 1}),
    "replay": {
        **{k: v for k, v in BASE.items() if k != "baseline"},
        "agent": {"name": "actor_critic", "critic": {"hidden": [4]}, "replay": {"batch_size": 4, "warmup": 20}},
        "snapshots": {"at": [1.0], "transitions": 0},
    },
}
FEW = ["--pairs", "score_function", "score_function/value", "--replicates", "8", "--reference", "32", "--fit", "2"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small run of every sort."""
    root = tmp_path_factory.mktemp("kept")
    for name, config in RUNS.items():
        train(Config.read(config), root / name)
    damaged, code, foreign = root / "damaged", root / "code", root / "foreign"
    for folder in (damaged, code, foreign):
        shutil.copytree(root / "good", folder)
    (damaged / "snapshots" / "001.pt").write_bytes((root / "good" / "snapshots" / "001.pt").read_bytes()[:-100])
    (code / "snapshots" / "001.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    torch.save({"format": 1, "at": 1.0}, foreign / "snapshots" / "001.pt")
    (root / "notes").mkdir()
    (root / "file").write_text("no folder\n")
    return root


class Payload:
    """Makes a folder when it is unpickled by whoever does that."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, ("ran",)


@pytest.fixture
def here(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(kept)
    return kept


def test_it_writes_a_report_figures_and_events(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        main(
            [
                "variance",
                "good",
                *FEW,
                "--members",
                "all",
                "--decompose",
                "8",
                "--out",
                str(out),
                "--json",
                str(tmp_path / "copy.json"),
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "CartPole-v1, seed 1, end" in said
    assert str(out / "report.md") in said.replace("\n", "")
    data = read_json(out / "report.json")
    assert data == read_json(tmp_path / "copy.json")
    assert data["command"].startswith("pglab variance good --pairs score_function score_function/value")
    assert [(m["member"], m["stage"]) for m in data["measured"]] == [
        (f"seed {s}", x) for s in (0, 1) for x in ("start", "end")
    ]
    assert len(data["decompositions"]) == 4
    page = (out / "report.md").read_text()
    assert "nan" not in page
    pictures = sorted(p.name for p in out.glob("*.png"))
    assert {"noise_and_bias.png", "nsr_along_training.png", "batch_size.png", "decomposition.png"} <= set(pictures)
    for name in pictures:
        assert f"]({name})" in page
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    compared = 0
    for member in ("seed 0", "seed 1"):
        measured = [m for m in data["measured"] if m["member"] == member]
        for i, pair in enumerate(("score_function", "score_function / value")):
            folder = out / "tensorboard" / pair.replace(" / ", "+") / member.replace(" ", "")
            events = EventAccumulator(str(folder), size_guidance={"histograms": 0})
            events.Reload()
            for name in SCALARS:
                wanted = {}
                for m in measured:
                    value = m["pairs"][i].get(name)
                    value = value[0] if isinstance(value, list) else value
                    if value is not None and math.isfinite(value):
                        wanted[m["steps"]] = value
                tag = f"variance/{name}"
                assert (tag in events.Tags()["scalars"]) == bool(wanted), name
                if wanted:
                    found = {e.step: e.value for e in events.Scalars(tag)}
                    assert found.keys() == wanted.keys()
                    for step, value in wanted.items():
                        assert found[step] == pytest.approx(value, rel=1e-6)
                        compared += 1
            assert "gradient/norm" in events.Tags()["histograms"]
    assert compared > 20
    images = EventAccumulator(str(out / "tensorboard" / "figures"))
    images.Reload()
    assert {t.removeprefix("figures/") + ".png" for t in images.Tags()["images"]} == set(pictures)


def test_a_run_keeps_its_measurement_and_a_later_one_takes_its_place(here: Path) -> None:
    for replicates in ("8", "9"):
        few = [*FEW[:4], replicates, *FEW[5:]]
        assert main(["variance", "good", *few, "--at", "1", "--quiet"]) == 0
        data = read_json(here / "good" / "variance" / "report.json")
        assert data["measured"][0]["replicates"] == int(replicates)
    events = list((here / "good" / "variance" / "tensorboard" / "score_function").glob("events*"))
    assert len(events) == 1
    assert (here / "good" / "tensorboard").is_dir()  # of the training


def test_a_config_with_settings_and_a_gymnasium_environment(here: Path, tmp_path: Path) -> None:
    for i, arguments in enumerate(
        ([], ["--env.backend", "gymnasium", "--env.id", "Acrobot-v1", "--env.max_episode_steps", "12"])
    ):
        out = tmp_path / str(i)
        settings = ["--policy.hidden", "[4]", "--env.num_envs", "2", "--agent.steps", "4"]
        assert main(["variance", "cartpole/value", *FEW, *settings, *arguments, "--out", str(out), "--quiet"]) == 0
        assert (out / "report.md").exists()


FINE = ["--replicates", "8"]
MISTAKES: dict[str, tuple[list[str], str, str]] = {
    "nothing to measure": (["variance"], "run folder or config", "--sb3"),
    "too few replicates": (["variance", "good", "--replicates", "7"], "7 replicates are too few", "at least 8"),
    "unknown estimator": (["variance", "good", "--pairs", "score_funtion"], "score_funtion", "'score_function'"),
    "unknown baseline": (["variance", "good", "--pairs", "score_function/vlaue"], "vlaue", "'value'"),
    "pair for other actions": (["variance", "good", "--pairs", "pathwise"], "pathwise", "score_function"),
    "baseline that is not used": (["variance", "good", "--pairs", "enumeration/value"], "uses no baseline", "score_function"),
    "baseline without its signal": (["variance", "cartpole/value", "--agent", "actor_critic", "--baseline", "none", "--pairs", "score_function/value"], "needs v", "critic_mean"),
    "folder that is no run": (["variance", "notes"], "notes", "not a run folder"),
    "config that is not there": (["variance", "nowhere.yaml"], "nowhere.yaml", ""),
    "run without snapshots": (["variance", "bare"], "no snapshots", "snapshots.at"),
    "run without transitions": (["variance", "replay"], "no transitions", "snapshots.transitions"),
    "no such snapshot": (["variance", "good", "--at", "0.5"], "no snapshot at 0.5", "it has 0, 1"),
    "snapshot that is no number": (["variance", "good", "--at", "end"], "end", ""),
    "no such member": (["variance", "good", "--members", "2"], "members 0 to 1, not 2", ""),
    "member below zero": (["variance", "good", "--members", "-1"], "-1", ""),
    "member that is no number": (["variance", "good", "--members", "one"], "--members takes numbers, or all, not one", ""),
    "evolution": (["variance", "evolution"], "'evolution'", "estimator of its own"),
    "bptt": (["variance", "bptt"], "'bptt'", "estimator of its own"),
    "model without its environment": (["variance", "--sb3", "model.zip"], "--env", "CartPole-v1"),
    "model that is not there": (["variance", "--sb3", "model.zip", "--env", "CartPole-v1"], "model.zip", ""),
    "environment without a model": (["variance", "good", "--env", "CartPole-v1"], "--env goes with --sb3", ""),
    "a run and a model": (["variance", "good", "--sb3", "model.zip"], "run folder or config", "--sb3"),
    "snapshots of a model": (["variance", "--sb3", "model.zip", "--env", "CartPole-v1", "--at", "1"], "--at", "leave them out"),
    "settings of a run": (["variance", "good", "--discount", "0.5"], "--discount", "a run has its own"),
    "snapshots of a config": (["variance", "cartpole/value", "--at", "0"], "--at", "initialisation"),
    "decomposing gymnasium's": (["variance", "gymnasium", *FEW, "--decompose", "8"], "cannot be put into a given state", "torch-native"),
    "few episodes to decompose": (["variance", "good", *FEW, "--decompose", "7"], "at least 8 episodes, not 7", ""),
    "unwritable folder": (["variance", "good", *FEW, "--out", "file/out"], "file/out", "Cannot write"),
    "folder of a run": (["variance", "good", *FEW, "--out", "good"], "would be replaced", "good/variance"),
    "damaged snapshot": (["variance", "damaged"], "001.pt", "cannot be read"),
    "snapshot of something else": (["variance", "foreign"], "001.pt", "damaged"),
    "snapshot that would run code": (["variance", "code"], "001.pt", "cannot be read"),
    "small reference": (["variance", "good", *FINE, "--reference", "5"], "at least 32 episodes or states, not 5", ""),
    "nothing to fit on": (["variance", "good", *FINE, "--fit", "0"], "at least 1 batch, not 0", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", list(MISTAKES))
def test_a_mistake_is_one_clear_sentence(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, *parts = MISTAKES[case]
    before = sorted(here.rglob("*"))
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    said = [line for line in err.splitlines() if line.startswith("pglab: error: ")]
    assert len(said) == 1
    for part in parts:
        assert part in said[0]
    assert not (here / "ran").exists()
    # Nothing new is left, but for the folder that runs are kept in.
    assert [p for p in sorted(here.rglob("*")) if p not in before and p.name != "runs"] == []
