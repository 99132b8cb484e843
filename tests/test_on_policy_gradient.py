"""The on-policy agent's gradient: minibatches, epochs and waves of episodes, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pglab.agents import OnPolicyAgent
from pglab.config import Config, merge
from pglab.training import Trainer, train

BASE = {
    "env": {"id": "Pendulum-v1", "num_envs": 3},
    "agent": {"name": "on_policy", "steps": 6},
    "policy": {"hidden": [4]},
    "seeds": 2,
    "total_steps": 36,
    "evaluation": {"episodes": 1, "final_episodes": 1},
}


@pytest.mark.parametrize("distribution", ["gaussian", "squashed_gaussian"])
@pytest.mark.parametrize("agent", [{"epochs": 2}, {"minibatches": 2}, {"epochs": 2, "minibatches": 3}], ids=str)
@pytest.mark.parametrize("entropy_weight", [0.0, 0.01])
def test_epochs_and_minibatches_serve_every_continuous_family(tmp_path: Path, distribution, agent, entropy_weight):
    more = {"policy": {"distribution": distribution}, "agent": agent, "entropy_weight": entropy_weight}
    train(Config.read(merge(BASE, more)), tmp_path / "run")


def test_several_whole_episodes_per_update(tmp_path: Path):
    more = {
        "env": {"id": "CartPole-v1"},
        "agent": {"collect": "episodes", "episodes": 2},
        "preprocessing": {"normalize_returns": True},
        "total_steps": 400,
    }
    train(Config.read(merge(BASE, more)), tmp_path / "run")


@pytest.mark.parametrize("minibatches", [2, 4, 5, 16])
@pytest.mark.parametrize("reduction", ["mean_over_steps", "mean_over_episodes"])
def test_the_parts_of_a_batch_average_to_the_whole_batchs_gradient(minibatches, reduction):
    """18 rows: 4, 5 and 16 do not divide them, and 16 makes 9 parts of 2."""
    more = {"agent": {"minibatches": minibatches, "reduction": reduction}, "entropy_weight": 0.1}
    trainer = Trainer(Config.read(merge(BASE, more)))
    agent = trainer.agent
    assert isinstance(agent, OnPolicyAgent)
    prepared = agent.prepare(agent.collect(trainer.env, (0,)))
    agent.gradient(prepared)
    whole = agent.policy_parameters.grad.clone()
    mean = torch.zeros_like(whole)
    for part in agent.minibatches(prepared, 0):
        agent.gradient(part)
        mean += agent.policy_parameters.grad * part.weight.shape[2] / 18
    torch.testing.assert_close(mean, whole, rtol=1e-3, atol=1e-4)
