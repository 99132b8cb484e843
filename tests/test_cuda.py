"""On a CUDA device the same functions give the same training, up to rounding. Skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pglab.config import Config, merge
from pglab.training import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CARTPOLE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 8},
    "baseline": "value",
    "agent": {"steps": 16, "returns": {"name": "gae"}},
    "seeds": 4,
}
SAC: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "num_envs": 2},
    "estimator": "pathwise",
    "agent": {"name": "actor_critic", "auto_entropy": True, "replay": {"batch_size": 32, "warmup": 20}},
    "seeds": 4,
}


@pytest.mark.parametrize("config", [CARTPOLE, SAC], ids=["cartpole", "sac"])
def test_ten_updates_agree_with_the_cpu(config: dict[str, Any]) -> None:
    cpu, cuda = Trainer(Config.read(config)), Trainer(Config.read(merge(config, {"device": "cuda"})))
    for _ in range(15):
        cpu.agent.update(cpu.env)
        cuda.agent.update(cuda.env)
    for name, parameters in cpu.agent.networks().items():
        other = cuda.agent.networks()[name].flat.cpu()
        assert torch.allclose(parameters.flat, other, rtol=1e-2, atol=1e-4), name


def test_a_captured_rollout_gives_the_same_training() -> None:
    eager, graph = (
        Trainer(Config.read(merge(CARTPOLE, {"device": "cuda", "executor": e}))) for e in ("eager", "cudagraph")
    )
    for _ in range(15):
        eager.agent.update(eager.env)
        graph.agent.update(graph.env)
    for name, parameters in eager.agent.networks().items():
        torch.testing.assert_close(parameters.flat, graph.agent.networks()[name].flat, rtol=1e-3, atol=1e-5, msg=name)
