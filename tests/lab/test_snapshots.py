"""Networks kept along training: the right ones, at the right moments, whatever interrupts it; read without running code."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pglab import snapshots
from pglab.agents import ActorCriticAgent
from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.lab.subject import of_run
from pglab.tracking import RunFolder
from pglab.training import Trainer, resume, train
from pglab.watching import Watcher

CPU = torch.device("cpu")
STEPS: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 2, "max_episode_steps": 30},
    "seeds": 2,
    "total_steps": 120,
    "policy": {"hidden": [6]},
    "baseline": "moving_average",
    "preprocessing": {"normalize_observations": True},
    "agent": {"steps": 10, "value": {"hidden": [4]}},
    "snapshots": {"at": [0.0, 0.4, 1.0]},
    "evaluation": {"episodes": 1, "final_episodes": 1},
    "measurement": {"at": []},
    "checkpoint": {"every": 20, "keep": 10},
}
EPISODES: dict[str, Any] = merge(STEPS, {"agent": {"collect": "episodes"}, "total_steps": 400})
REPLAY: dict[str, Any] = {
    **{k: v for k, v in STEPS.items() if k not in ("agent", "baseline")},
    "agent": {
        "name": "actor_critic",
        "auto_entropy": True,
        "critic": {"hidden": [4]},
        "replay": {"batch_size": 4, "warmup": 20, "capacity": 50},
    },
    "snapshots": {"at": [0.0, 0.5, 1.0], "transitions": 30},
}


def kept(folder: Path) -> list[snapshots.Snapshot]:
    return [snapshots.load(path, CPU) for path in snapshots.files(folder / "snapshots")]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a == b


@pytest.mark.parametrize(("config", "due"), [(STEPS, [0, 3, 6]), (REPLAY, [10, 30, 60])])
def test_they_are_the_agents_networks_at_those_fractions(
    config: dict[str, Any], due: list[int], tmp_path: Path
) -> None:
    train(Config.read(config), tmp_path / "run")
    found = kept(tmp_path / "run")
    assert [s.at for s in found] == config["snapshots"]["at"]
    trainer, updates = Trainer(Config.read(config)), 0
    for snapshot, moment in zip(found, due, strict=True):
        while updates < moment:
            trainer._before_update()
            trainer._update()
            updates += 1
        assert snapshot.steps == trainer.steps.tolist()
        assert same(snapshot.agent, trainer.agent.frozen_state())
        if isinstance(trainer.agent, ActorCriticAgent):
            replay = trainer.agent.replay
            assert snapshot.transitions is not None
            assert snapshot.transitions.shape[1] == min(30, replay.size)
            rows = replay.rows(replay.count - replay.size, replay.count)
            index = torch.arange(snapshot.transitions.shape[1]) * replay.size // snapshot.transitions.shape[1]
            assert torch.equal(snapshot.transitions, rows[:, index])
    subjects = of_run(tmp_path / "run", members=[1])
    for subject, snapshot in zip(subjects, found, strict=True):
        for name, p in subject.agent.networks().items():
            assert torch.equal(p.flat, snapshot.agent["networks"][name][1:2]), name
        assert subject.agent.progress == [pytest.approx(min(1.0, snapshot.steps[1] / config["total_steps"]))]
        assert subject.member == "seed 1"
        if isinstance(subject.agent, ActorCriticAgent):
            assert torch.equal(subject.agent.log_alpha, snapshot.agent["log_alpha"][1:2])
            assert subject.agent.replay.size == snapshot.transitions.shape[1]  # type: ignore[union-attr]


def test_a_member_that_plays_whole_episodes_is_kept_when_it_gets_there_itself(tmp_path: Path) -> None:
    """Each member as though it had trained alone."""
    train(Config.read(EPISODES), tmp_path / "both")
    both = kept(tmp_path / "both")
    for member in range(2):
        train(Config.read({**EPISODES, "seeds": [member]}), tmp_path / str(member))
        for together, alone in zip(both, kept(tmp_path / str(member)), strict=True):
            assert together.steps[member] == alone.steps[0]
            torch.testing.assert_close(
                together.agent["networks"]["policy"][member], alone.agent["networks"]["policy"][0], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("config", [STEPS, EPISODES, REPLAY])
def test_an_interrupted_run_keeps_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    train(Config.read(config), tmp_path / "whole")
    asked = iter(range(1000))
    train(Config.read(config), tmp_path / "run", watcher=Watcher(stop=lambda: next(asked) >= 2))
    assert len(kept(tmp_path / "run")) < 3
    resume(tmp_path / "run")
    assert_same_files(tmp_path / "run", tmp_path / "whole")
    before = [path.read_bytes() for path in snapshots.files(tmp_path / "run" / "snapshots")]
    resume(tmp_path / "run")  # a run that is at its end
    assert [path.read_bytes() for path in snapshots.files(tmp_path / "run" / "snapshots")] == before


class Stop(Exception):
    """Stands for whatever ends a process without a chance to save."""


@pytest.mark.parametrize("config", [STEPS, REPLAY])
def test_a_run_that_is_killed_after_a_snapshot_goes_on_from_before_it_to_the_same_one(
    config: dict[str, Any], tmp_path: Path
) -> None:
    train(Config.read(config), tmp_path / "whole")
    read = Config.read(config)
    trainer = Trainer(read, RunFolder.create(tmp_path / "run", read.plain(), "test"))
    save, keep = trainer.save, trainer._keep
    held = {"saved": 0, "kept": 0}

    def saving() -> Path | None:
        held["saved"] += 1
        return save() if held["saved"] == 1 else None  # the disk has the first checkpoint only

    def keeping(*arguments: Any) -> None:
        keep(*arguments)
        held["kept"] += 1
        if held["kept"] == 2:
            raise Stop

    trainer.save, trainer._keep = saving, keeping  # type: ignore[method-assign]
    with pytest.raises(Stop):
        trainer.run()
    assert [s.at for s in kept(tmp_path / "run")] == config["snapshots"]["at"][:2]
    resume(tmp_path / "run")
    assert_same_files(tmp_path / "run", tmp_path / "whole")


def assert_same_files(a: Path, b: Path) -> None:
    found, wanted = kept(a), kept(b)
    assert len(found) == len(wanted)
    for x, y in zip(found, wanted, strict=True):
        assert (x.at, x.steps) == (y.at, y.steps)
        assert same(x.agent, y.agent)
        assert same(x.transitions, y.transitions)


def test_none_are_kept_where_none_are_asked_for(tmp_path: Path) -> None:
    train(Config.read(merge(STEPS, {"snapshots": {"at": []}})), tmp_path / "run")
    assert kept(tmp_path / "run") == []
    with pytest.raises(PglabError, match="no snapshots to measure at"):
        of_run(tmp_path / "run")


@pytest.mark.parametrize("data", ["replay", "on_policy"])
def test_the_kept_transitions_are_spread_evenly_over_what_updates_draw_from(data: str, tmp_path: Path) -> None:
    config = Config.read(merge(REPLAY, {"agent": {"replay": {"data": data}}}))
    agent = Trainer(config).agent
    assert isinstance(agent, ActorCriticAgent)
    size = agent.replay.data.shape[2]
    total = 133  # the ring has come round
    for i in range(total):
        row = torch.full((2, 1, size), float(i))
        agent.replay.write(row, i)
    agent.replay.count = total
    held = agent.replay.size if agent.newest is None else min(agent.newest, agent.replay.size)
    for wanted in (held + 5, held, max(1, held // 2), 1):
        path = snapshots.save(tmp_path, 0, 0.5, [1, 1], agent, wanted)
        rows = snapshots.load(path, CPU).transitions
        assert rows is not None
        numbers = rows[0, :, 0].tolist()
        assert len(numbers) == min(wanted, held)
        assert numbers[0] == total - held
        assert sorted(set(numbers)) == numbers
        gaps = [b - a for a, b in itertools.pairwise(numbers)]
        assert not gaps or max(gaps) - min(gaps) <= 1
    nothing = snapshots.load(snapshots.save(tmp_path, 1, 0.5, [1, 1], agent, 0), CPU)
    assert nothing.transitions is None


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.path,)


def test_reading_never_runs_code_and_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "000.pt"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=2))
    with pytest.raises(PglabError, match=r"000\.pt cannot be read"):
        snapshots.load(path, CPU)
    torch.save({"format": 1, "at": Payload(tmp_path / "ran")}, path)
    with pytest.raises(PglabError, match=r"000\.pt cannot be read"):
        snapshots.load(path, CPU)
    assert not (tmp_path / "ran").exists()
    torch.save({"format": 99}, path)
    with pytest.raises(PglabError, match=r"not one that this version of pglab reads \(format 1\)"):
        snapshots.load(path, CPU)
    torch.save({"format": 1, "at": 0.5, "steps": [1]}, path)
    with pytest.raises(PglabError, match="damaged: it has no agent, transitions"):
        snapshots.load(path, CPU)
    path.write_bytes(b"")
    with pytest.raises(PglabError, match="cannot be read"):
        snapshots.load(path, CPU)


def test_a_snapshot_of_another_network_is_refused(tmp_path: Path) -> None:
    train(Config.read(STEPS), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["policy"]["hidden"] = [7]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(PglabError, match="does not fit the run's config: its policy network is another"):
        of_run(tmp_path / "run")
