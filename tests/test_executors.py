"""Executors give the same training, whichever runs it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from spine import normal

from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.executors import Eager
from pglab.graphs import compiled_recording
from pglab.preprocessing import Preprocessor
from pglab.programs import Recording
from pglab.repeating import Compiled, Programs
from pglab.training import Trainer, resume, train
from pglab.watching import Watcher

CARTPOLE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 4},
    "agent": {"name": "on_policy", "steps": 16, "returns": {"name": "gae"}},
    "policy": {"hidden": [16]},
    "baseline": "value",
    "learning_rate": 0.01,
    "entropy_weight": 0.01,
    "seeds": 2,
    "executor": "eager",
    "evaluation": {"episodes": 1, "final_episodes": 1},
}
PENDULUM = merge(
    CARTPOLE, {"env": {"id": "Pendulum-v1"}, "agent": {"steps": 20}, "policy": {"distribution": "gaussian"}}
)
SHORT = merge(CARTPOLE, {"env": {"max_episode_steps": 5}})

compiler = pytest.mark.skipif(
    not any(shutil.which(c) for c in (os.environ.get("CXX"), "g++", "clang++") if c), reason="no C++ compiler"
)


def updated(config: dict[str, Any], executor: str, updates: int = 4) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """A trainer after some updates (in the fourth all of it is repeated), and all that it collected."""
    trainer = Trainer(Config.read(merge(config, {"executor": executor})))
    rollouts = [trainer.agent.executor.kept(trainer.agent.update(trainer.env)[1]) for _ in range(updates)]
    names = ("obs", "action", "reward", "ended", "terminated", "final_obs", "valid", "time")
    return trainer, {name: torch.cat([getattr(r, name) for r in rollouts]) for name in names}


def assert_same_networks(a: Any, b: Any) -> None:
    for name, parameters in a.networks().items():
        torch.testing.assert_close(b.networks()[name].flat, parameters.flat, rtol=0, atol=1e-5)


@compiler
@pytest.mark.parametrize("config", [CARTPOLE, PENDULUM], ids=["CartPole", "Pendulum"])
def test_compiled_training_is_eager_training(config: dict[str, Any]) -> None:
    (eager, expected), (compiled, found) = updated(config, "eager"), updated(config, "compile")
    assert isinstance(eager.agent.executor, Eager)
    assert isinstance(compiled.agent.executor, Compiled)
    if config is CARTPOLE:
        assert torch.equal(found["action"], expected["action"])
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-4, atol=1e-4)
    assert_same_networks(eager.agent, compiled.agent)


@compiler
def test_one_compiled_agent_does_not_run_anothers_code() -> None:
    """Two agents in one process whose tensors have the same shapes, and whose environments cut at different times."""
    updated(CARTPOLE, "compile")
    (eager, expected), (compiled, found) = updated(SHORT, "eager"), updated(SHORT, "compile")
    assert torch.equal(found["ended"], expected["ended"])
    assert_same_networks(eager.agent, compiled.agent)


@compiler
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_layers_narrower_than_blas_likes_compile(activation: str) -> None:
    config = merge(CARTPOLE, {"policy": {"hidden": [4], "activation": activation}})
    (eager, _), (compiled, _) = updated(config, "eager"), updated(config, "compile")
    assert_same_networks(eager.agent, compiled.agent)


@compiler
def test_one_environment_of_one_member_compiles() -> None:
    """Nine steps, in none of which an episode is cut: where it is, is looked for among equals."""
    config = merge(CARTPOLE, {"env": {"num_envs": 1}, "seeds": 1, "agent": {"steps": 9}, "policy": {"hidden": [8]}})
    (eager, expected), (compiled, found) = updated(config, "eager", 6), updated(config, "compile", 6)
    assert torch.equal(found["action"], expected["action"])
    assert_same_networks(eager.agent, compiled.agent)


@compiler
def test_a_run_may_be_gone_on_with_by_another_executor(tmp_path: Path) -> None:
    """Five updates of 64 steps: all of them eager, or the last four compiled."""
    whole = train(merge(CARTPOLE, {"total_steps": 320}), tmp_path / "whole")
    train(merge(CARTPOLE, {"total_steps": 64}), tmp_path / "run")
    went_on = resume(tmp_path / "run", overrides={"total_steps": 320, "executor": "compile"})
    assert isinstance(went_on.agent.executor, Compiled)
    assert went_on.agent.updates == whole.agent.updates == 5  # type: ignore[attr-defined]
    assert_same_networks(whole.agent, went_on.agent)


def test_compiling_a_gymnasium_environment_is_refused_in_one_sentence() -> None:
    config = merge(CARTPOLE, {"env": {"backend": "gymnasium"}, "executor": "compile"})
    with pytest.raises(PglabError) as caught:
        Trainer(Config.read(config))
    message = str(caught.value)
    assert message == "executor 'compile' needs a torch-native environment, not CartPole-v1: choose eager."


def test_compiling_without_a_compiler_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(PglabError, match=r"needs a C\+\+ compiler .* choose program\.$"):
        Trainer(Config.read(merge(CARTPOLE, {"executor": "compile"})))


@pytest.mark.parametrize("name", ["program", "compile", "cudagraph"])
def test_a_beta_policy_is_drawn_from_eagerly_only(name: Any) -> None:
    config = {"env": {"id": "Pendulum-v1"}, "policy": {"distribution": "beta"}}
    with pytest.raises(PglabError, match="'beta', which scipy does: choose eager"):
        Trainer(Config.read(config | {"executor": name}))
    assert isinstance(Trainer(Config.read(config)).agent.executor, Eager)


def test_a_cuda_graph_without_a_gpu_is_refused_in_one_sentence() -> None:
    with pytest.raises(PglabError, match=r"^executor 'cudagraph' needs device cuda, not cpu: choose [^.]*\.$"):
        Trainer(Config.read(merge(CARTPOLE, {"executor": "cudagraph", "device": "cpu"})))


@pytest.mark.parametrize("name", ["auto", "program"])
def test_on_a_cpu_auto_is_program(name: Any) -> None:
    trainer = Trainer(Config.read(merge(CARTPOLE, {"executor": name})))
    assert isinstance(trainer.agent.executor, Programs)
    assert not isinstance(trainer.agent.executor, Compiled)


@compiler
def test_a_rollout_that_reads_numbers_is_called_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled, but the same training, and its parts of 8 steps are put together again."""
    plain = Preprocessor.observations

    def reading(self: Any, obs: torch.Tensor) -> torch.Tensor:
        return plain(self, obs) * float(obs.sum() != torch.inf)

    monkeypatch.setattr(Preprocessor, "observations", reading)
    config = merge(CARTPOLE, {"agent": {"steps": 20, "epochs": 2}, "total_steps": 320})
    found, notes = [], []
    for name in ("eager", "compile"):
        trainer = Trainer(Config.read(merge(config, {"executor": name})), watcher=Watcher(note=notes.append))
        found.append(trainer.run().agent)
    assert_same_networks(*found)
    assert [n for n in notes if "'play'" in n] == [
        "Part 'play' runs operation by operation: it reads numbers from tensors (_local_scalar_dense)."
    ]


@compiler
def test_compiled_code_reads_and_writes_what_it_is_given_wherever_it_lies() -> None:
    """Parts of one memory, each beside the others, with gaps; another part than the one that was recorded."""
    memory, out = normal(2, 12, 3).float(), torch.zeros(2, 12, 3)

    def function(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        a.copy_(x[:, :1] + x[:, 1:])
        b.copy_(a * 2)

    parts = [(memory[:, t : t + 2], out[:, t : t + 1], out[:, t + 1 : t + 2]) for t in range(0, 12, 2)]
    run = compiled_recording(Recording.of(function, *parts[0]), parts[0])
    out.zero_()
    for part in parts[1:]:
        run(part)
    assert not out[:, :2].any()
    sums = memory[:, 2::2] + memory[:, 3::2]
    torch.testing.assert_close(out[:, 2::2], sums)
    torch.testing.assert_close(out[:, 3::2], 2 * sums)
