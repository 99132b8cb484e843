"""What can be measured, what is refused, and what becomes of it in reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.lab import measuring
from pglab.lab.measuring import measure
from pglab.lab.pairs import pairs_of
from pglab.lab.sampling import sampler_of
from pglab.lab.subject import of_config, of_run
from pglab.lab.variance_report import markdown, plain, rows_of
from pglab.tracking.files import read_json, write_json
from pglab.training import train

RUN: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 2, "max_episode_steps": 30},
    "seeds": 2,
    "total_steps": 240,
    "learning_rate": [0.001, 0.1],
    "policy": {"hidden": [8]},
    "baseline": "moving_average",
    "agent": {"steps": 10, "value": {"hidden": [4]}},
    "snapshots": {"at": [0.0, 0.5, 1.0]},
    "evaluation": {"episodes": 1, "final_episodes": 1},
    "measurement": {"at": []},
}
FEW: dict[str, Any] = {
    "pairs": ["score_function/moving_average", "score_function"],
    "replicates": 8,
    "reference": 32,
    "fit": 2,
}


SMALL: dict[str, Any] = {"replicates": 8, "reference": 64, "fit": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(Config.read(RUN), folder)
    return folder


def test_a_run_is_measured_at_its_snapshots_and_members_are_told_apart(run: Path) -> None:
    everything = measure(run, members=None, **FEW)
    assert len(everything.measured) == 4 * 3
    assert [m.subject.stage for m in everything][:3] == ["start", "middle", "end"]
    assert [m.subject.at for m in everything][:3] == [0.0, 0.5, 1.0]
    members = [m.subject.member for m in everything][::3]
    assert len(set(members)) == 4  # two seeds, and two learning rates each
    assert {m.split(",")[0] for m in members} == {"seed 0", "seed 1"}
    assert all("learning_rate" in m for m in members)
    assert [m.subject.steps for m in everything][:3] == [0, 120, 240]
    (one,) = measure(run, members=[2], at=[0.5], **FEW).measured
    same = everything.measured[2 * 3 + 1]
    assert one.subject.member == same.subject.member
    np.testing.assert_allclose(
        one.quality.estimates["total"]["trace"].value, same.quality.estimates["total"]["trace"].value
    )
    own = one.pairs[0]
    assert own.own
    assert one.pairs[1].own is False
    # Measured again it is the same, to the last bit.
    again = measure(run, members=[2], at=[0.5], **FEW).measured[0]
    assert np.array_equal(again.head, one.head)
    assert not np.array_equal(everything.measured[0].head, everything.measured[2].head)


def test_the_report_as_json_round_trips(run: Path, tmp_path: Path) -> None:
    measurement = measure(run, at=[0.0, 1.0], **FEW)
    data = plain(measurement)
    write_json(tmp_path / "report.json", data)
    back = read_json(tmp_path / "report.json")
    write_json(tmp_path / "again.json", back)
    assert (tmp_path / "again.json").read_text() == (tmp_path / "report.json").read_text()
    for m, held in zip(measurement, back["measured"], strict=True):
        for row, kept in zip(rows_of(m), held["pairs"], strict=True):
            assert row.keys() == kept.keys()
            value, low, high, reliable = kept["trace"]
            assert (value, low, high, reliable) == row["trace"]
            assert kept["pair"] in ("score_function / moving_average", "score_function")
    page = markdown(measurement, "title", "command", ["machine"])
    assert "seed 0, learning_rate=0.001, start (0 steps of training)" in page
    assert "nan" not in page
    json.dumps(back)


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        ({}, ["score_function", "enumeration", "gumbel_softmax"]),
        (
            {"env": {"id": "Pendulum-v1", "max_episode_steps": 20}, "agent": {"auto_entropy": True}},
            ["pathwise", "score_function"],
        ),
        ({"agent": {"replay": {"data": "on_policy"}}}, ["score_function/leave_one_out", "enumeration"]),
    ],
)
def test_an_actor_critic_config(changes: dict[str, Any], pairs: list[str]) -> None:
    agent = {"name": "actor_critic", "replay": {"batch_size": 8, "warmup": 64}, "critic": {"hidden": [8]}}
    base = {"env": {"id": "CartPole-v1", "num_envs": 2, "max_episode_steps": 30}, "seeds": [1], "total_steps": 300,
            "discount": 0.9, "policy": {"hidden": [8], "output_gain": 1.0}, "agent": agent}  # fmt: skip
    config = merge(base, changes)
    if config["env"]["id"] == "Pendulum-v1":
        config["estimator"] = "pathwise"
    (m,) = measure(config, pairs=pairs, replicates=8, reference=64, fit=2).measured
    assert m.names == [p.replace("/", " / ") for p in pairs]
    assert m.to_critic is not None
    assert m.critic_errors is not None
    assert m.units == ["batch"] * len(pairs)
    assert "a replicate is a minibatch." in markdown(measure(config, pairs=pairs[:1], **SMALL), "title", "command", [])
    assert m.rows == 8
    i = pairs.index("enumeration") if "enumeration" in pairs else None
    rows = rows_of(m)
    if i is not None:  # it is the exact gradient
        assert rows[i]["critic_mse"] == (0.0, 0.0, 0.0, True)
        assert rows[i]["per_evaluations"][0] == math.inf
    assert rows[0]["critic_mse"][0] > 0
    assert any("transitions of the initial policy" in note for note in m.notes)
    assert m.efficiencies().keys() == {"evaluations", "steps", "seconds"}
    m.critic_norm = -1e-3  # not resolved: nothing is relative to it
    assert m.efficiencies() == {}


def test_the_first_minibatch_of_an_update() -> None:
    measurement = measure(merge(RUN, {"agent": {"minibatches": 2}}), pairs=["score_function"], **SMALL)
    assert measurement.measured[0].rows == 10
    assert "a replicate is the first minibatch of a batch." in markdown(measurement, "title", "command", [])


def test_many_joint_actions_are_enumerated_a_few_rows_at_a_time() -> None:
    config = {
        "env": {"id": "pglab/BinaryQuadratic-v0", "num_envs": 2, "kwargs": {"D": 9}},
        "seeds": [1],
        "total_steps": 300,
        "policy": {"hidden": [4]},
        "agent": {"name": "actor_critic", "replay": {"batch_size": 32, "warmup": 64}, "critic": {"hidden": [4]}},
    }
    (subject,) = of_config(Config.read(config))
    sampler = sampler_of(subject, pairs_of(subject.config, subject.agent.spec, ["enumeration"]))
    assert sampler.at_once == 60_000 // 4 // (512 // 64) // 32
    (m,) = measure([subject], pairs=["score_function", "enumeration"], **SMALL).measured
    assert m.to_critic is not None
    assert rows_of(m)[1]["critic_mse"] == (0.0, 0.0, 0.0, True)


def test_too_many_joint_actions_have_no_exact_gradient() -> None:
    """Eighteen binary actions cannot be enumerated, and what does not need that is measured all the same."""
    config = {
        "env": {"id": "pglab/BinaryQuadratic-v0", "num_envs": 2, "kwargs": {"D": 18}},
        "seeds": [1],
        "total_steps": 300,
        "policy": {"hidden": [4]},
        "agent": {"name": "actor_critic", "replay": {"batch_size": 4, "warmup": 16}, "critic": {"hidden": [4]}},
    }
    (m,) = measure(config, pairs=["score_function", "disarm"], replicates=8, reference=32, fit=1).measured
    assert m.to_critic is None
    assert m.reference.critic_share is None


def test_one_environment_of_gymnasium_whose_every_gradient_is_zero() -> None:
    """Episodes of one step, all of reward 1: nothing is to be learned, and nothing is made of that."""
    config = {"env": {"id": "CartPole-v1", "num_envs": 1, "max_episode_steps": 1, "backend": "gymnasium"}, "seeds": [1],
              "total_steps": 100, "agent": {"steps": 1, "value": {"hidden": [4]}}, "policy": {"hidden": [4]}}  # fmt: skip
    measurement = measure(
        config,
        pairs=["score_function", "score_function/moving_average", "enumeration"],
        replicates=8,
        reference=32,
        fit=1,
    )
    page = markdown(measurement, "title", "command", [])
    assert "nan" not in page
    assert measurement.measured[0].rows == 1
    episodes = merge(config, {"agent": {"collect": "episodes"}, "env": {"num_envs": 2}})
    measurement = measure(episodes, pairs=["score_function/leave_one_out"], replicates=8, reference=32, fit=1)
    assert measurement.measured[0].zeros.tolist() == [1.0]
    page = markdown(measurement, "title", "command", [])
    assert "nan" not in page
    assert "No signal is resolved" in page


def test_what_it_refuses(run: Path, tmp_path: Path) -> None:
    for arguments, says in (
        ({"replicates": 7}, "7 replicates are too few for an interval: at least 8"),
        ({"fit": 0}, "fit must be at least 1 batch, not 0"),
        ({"reference": 31}, "at least 32 episodes or states, not 31"),
        ({"members": [4]}, "There are members 0 to 3, not 4"),
        ({"members": [-1]}, "There are members 0 to 3, not -1"),
        ({"at": [0.25]}, "has no snapshot at 0.25 of training: it has 0, 0.5, 1"),
        ({"pairs": ["pathwise"]}, "pathwise"),
    ):
        with pytest.raises(PglabError, match=says):
            measure(run, **{**FEW, **arguments})  # type: ignore[arg-type]
    with pytest.raises(PglabError, match="not a run folder"):
        measure(tmp_path)
    for name in ("evolution", "bptt"):
        with pytest.raises(PglabError, match=f"{name}.*estimator of its own"):
            of_config(Config.read({"env": {"id": "Pendulum-v1"}, "agent": name}))
    with pytest.raises(PglabError, match="snapshot"):
        of_run(run, at=[0.3])


def test_gradients_are_held_for_a_few_pairs_at_a_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few fit, the numbers are the same."""
    arguments: dict[str, Any] = {
        **FEW,
        "pairs": [
            "score_function",
            "score_function/leave_one_out",
            "gumbel_softmax",
            "score_function/optimal_per_parameter",
        ],
    }
    (whole,) = measure(run, at=[1.0], **arguments).measured
    monkeypatch.setattr(measuring, "HELD", 1)
    (parts,) = measure(run, at=[1.0], **arguments).measured
    assert sorted(set(whole.units)) == ["batch", "column"]
    np.testing.assert_allclose(parts.head, whole.head, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(parts.zeros, whole.zeros)
    np.testing.assert_allclose(parts.effective, whole.effective, rtol=1e-3)


def test_the_callers_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        config = {"env": {"id": "LQR-v0"}, "policy": {"hidden": []}, "agent": {"collect": "episodes"}, "seeds": 1}
        measure(config, pairs=["score_function"], replicates=8, fit=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
