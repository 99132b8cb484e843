"""Replicates of the training gradient: through training's own functions, independent, and right in mean and variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pglab.config import Config, merge
from pglab.lab.variance import gradients, measure
from pglab.training import Trainer

BASE: dict[str, Any] = {"env": {"id": "CartPole-v1", "num_envs": 3}, "seeds": [4, 5], "total_steps": 1000}
CONFIGS = {
    "steps": merge(BASE, {"baseline": "value", "agent": {"steps": 6, "returns": {"name": "gae"}}}),
    "episodes": merge(BASE, {"baseline": "leave_one_out", "agent": {"collect": "episodes", "episodes": 2}}),
    "replay": merge(
        BASE,
        {
            "estimator": "gumbel_softmax",
            "agent": {"name": "actor_critic", "replay": {"batch_size": 8, "warmup": 30}},
            "entropy_weight": 0.01,
        },
    ),
}


def trained(name: str, updates: int = 12, **changes: Any) -> Trainer:
    trainer = Trainer(Config.read(merge(CONFIGS[name], changes)))
    for _ in range(updates):
        trainer._before_update()
        trainer._update()
    return trainer


def drawn(trainer: Trainer, replicates: int, snapshot: int = 0) -> np.ndarray:
    n = trainer.config.env.num_envs
    return gradients(trainer.agent, lambda members: trainer.environment(members, n), replicates, snapshot)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_replicates_are_a_function_of_their_number_and_differ(name: str) -> None:
    trainer = trained(name)
    few, many = drawn(trainer, 4), drawn(trainer, 6)
    assert few.shape[:2] == (2, 4)
    np.testing.assert_allclose(many[:, :4], few, rtol=2e-4, atol=1e-6)
    flat = many.reshape(12, -1)
    assert len({row.tobytes() for row in flat}) == 12
    assert not np.allclose(drawn(trainer, 4, snapshot=1), few)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_measuring_leaves_training_where_it_was(name: str) -> None:
    plain, measured = trained(name), trained(name)
    drawn(measured, 4)
    for trainer in (plain, measured):
        for _ in range(3):
            trainer.agent.update(trainer.env)
    for key, parameters in plain.agent.networks().items():
        assert torch.equal(parameters.flat, measured.agent.networks()[key].flat)


def test_a_replicate_is_the_gradient_that_training_would_apply_on_the_same_draws() -> None:
    """The training update's own gradient, before clipping, recomputed by a twin that is given training's noise."""
    trainer = trained("episodes")
    agent: Any = trainer.agent
    twin = agent.replicated(range(1), 0)
    twin.noise = agent.noise  # training's own draws
    twin.gradient(twin.prepare(twin.collect(trainer.environment(2, 3), (agent.updates,))))
    agent.gradient(agent.prepare(agent.collect(trainer.env, (agent.updates,))))
    assert torch.equal(agent.policy_parameters.grad, twin.policy_parameters.grad)


@pytest.mark.statistical
def test_whole_episode_replicates_have_the_mean_and_variance_of_a_plain_loop_of_backward_passes() -> None:
    """Bandit-length problem: CartPole cut after one step, so reward 1 for every action. With discount any, the score's
    mean is 0 and the trace of its covariance is that of the score of one step averaged over 6 rows, which autograd gives
    row by row. False-alarm rate 1e-6 in total."""
    changes = {"env": {"max_episode_steps": 1, "num_envs": 6}, "baseline": "none", "agent": {"episodes": 1}}
    trainer = trained("episodes", updates=0, **changes)
    g = drawn(trainer, 400).astype(np.float64)  # [P, R, n]
    agent: Any = trainer.agent
    policy = agent.policy
    for p in range(2):
        views = {k: v[p : p + 1].detach().requires_grad_() for k, v in agent.policy_parameters.views.items()}
        rng = torch.Generator().manual_seed(p)
        rows = 3000
        obs = (torch.rand(rows, 4, generator=rng) - 0.5) * 0.1
        traces = []
        for i in range(rows):
            logits = policy.network(views, obs[i].view(1, 1, 4)).view(2)
            action = int(torch.multinomial(logits.softmax(-1), 1, generator=rng))
            score = torch.autograd.grad(logits.log_softmax(-1)[action], list(views.values()))
            traces.append(sum(float(s.square().sum()) for s in score))
        exact, error = np.mean(traces) / 6, np.std(traces) / np.sqrt(rows) / 6
        squares = (g[p] ** 2).sum(-1)
        z = (squares.mean() - exact) / np.hypot(squares.std() / np.sqrt(len(squares)), error)
        assert abs(z) < stats.norm.isf(0.5e-6 / 4)
        mean = g[p].mean(0) @ np.ones(g.shape[-1])
        spread = (g[p] @ np.ones(g.shape[-1])).std() / np.sqrt(g.shape[1])
        assert abs(mean / spread) < stats.norm.isf(0.5e-6 / 4)


def test_measure_gives_a_number_per_member_with_its_interval() -> None:
    trainer = trained("steps")
    found = measure(trainer.agent, lambda members: trainer.environment(members, 3), 16, 0)
    for name in ("nsr", "low", "high", "trace_variance", "squared_norm"):
        assert len(found[name]) == 2
    for nsr, low, high in zip(found["nsr"], found["low"], found["high"], strict=True):
        assert 0 <= low <= nsr <= high
