"""Baselines in the on-policy agent: columns' gradients, a coefficient per parameter, when states move, what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pglab.agents import OnPolicyAgent
from pglab.baselines import BASELINES, baselined
from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.estimators import Signal
from pglab.gradients import cotangents, push
from pglab.lab.variance import gradients
from pglab.training import Trainer, train
from pglab.trees import repeat_members

BASE = {
    "env": {"id": "CartPole-v1", "num_envs": 4, "max_episode_steps": 12},
    "agent": {"name": "on_policy", "steps": 7},
    "policy": {"hidden": [5], "output_gain": 1.0},
    "seeds": 2,
    "total_steps": 84,
    "learning_rate": 0.05,
    "evaluation": {"episodes": 1, "final_episodes": 1},
}
EPISODES = {"agent": {"collect": "episodes"}, "env": {"max_episode_steps": 30}}
MORE = [
    {},
    EPISODES,
    {"agent": {"discount_states": True, "reduction": "mean_over_episodes"}, "discount": 0.9},
    {"env": {"id": "Pendulum-v1"}, "entropy_weight": 0.1},
]
EVERY = [{"name": n} for n in BASELINES.names()] + [
    {"name": "time_dependent", "leave_one_out": True},
    {"name": "linear_features", "folds": 2},
]


def agent_of(*more: dict[str, Any]) -> tuple[OnPolicyAgent, Trainer]:
    data = BASE
    for extra in more:
        data = merge(data, extra)
    trainer = Trainer(Config.read(data))
    assert isinstance(trainer.agent, OnPolicyAgent)
    return trainer.agent, trainer


@pytest.mark.parametrize("more", MORE, ids=str)
def test_columns_average_to_the_gradient_without_a_baseline(more):
    agent, trainer = agent_of(more, {"baseline": "optimal", "entropy_weight": 0.0})
    prepared = agent.prepare(agent.collect(trainer.env, (0,)))
    scores = agent.scores(prepared)
    assert scores.value.shape == (2, 4, agent.policy_parameters.size)
    agent.gradient(prepared)  # the baseline is 0 before the first batch
    torch.testing.assert_close(scores.value.mean(1), -agent.policy_parameters.grad, rtol=1e-4, atol=1e-5)
    for b in (0.0, 3.0):
        along, square = scores.along(torch.full_like(prepared.batch.value, b))
        expected = ((scores.value - b * scores.one) * scores.one).sum(-1)
        torch.testing.assert_close(along.sum(0), expected, rtol=1e-3, atol=1e-3)
    assert not bool(along[~prepared.batch.valid].any())
    assert bool((square >= 0).all())
    if "collect" in more.get("agent", {}):
        assert not bool(prepared.batch.valid.all())


@pytest.mark.parametrize("more", MORE, ids=str)
def test_a_coefficient_per_parameter_is_taken_times_the_scores(more):
    agent, trainer = agent_of(more, {"baseline": "optimal_per_parameter"})
    prepared = agent.prepare(agent.collect(trainer.env, (0,)))
    agent.gradient(prepared)
    without = agent.policy_parameters.grad.clone()
    scores = agent.scores(prepared)
    agent.baseline_state, _ = agent.config.baseline.update(
        agent.baseline_state, replace(prepared.batch, scores=lambda: scores)
    )
    b = agent.config.baseline.coefficient(agent.baseline_state)
    assert bool((b != 0).any())
    agent.gradient(prepared)
    torch.testing.assert_close(agent.policy_parameters.grad, without + b * scores.one.mean(1), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(agent.policy_parameters.grad, without)


def test_a_coefficient_per_parameter_by_plain_autograd():
    """One member, every parameter: grad of sum w value log p less b x grad of sum w log p."""
    agent, trainer = agent_of({"baseline": "optimal_per_parameter", "seeds": 1})
    for _ in range(2):
        agent.update(trainer.env)
    prepared = agent.prepare(agent.collect(trainer.env, (9,)))
    agent.gradient(prepared)
    parameters = agent.policy_parameters
    found = []
    for value in (prepared.batch.value, torch.ones_like(prepared.batch.value)):
        d = agent.policy.distribution(parameters, prepared.obs)
        total = (d.log_prob(prepared.draw.action).sum(-1) * value * prepared.weight).sum()
        grads = torch.autograd.grad(total, list(parameters.views.values()))
        found.append(torch.cat([g.flatten() for g in grads]))
    b = agent.config.baseline.coefficient(agent.baseline_state)[0]
    torch.testing.assert_close(-parameters.grad[0], found[0] - b * found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean_over_steps", "mean_over_episodes"])
def test_minibatches_average_to_the_whole_batchs_gradient(reduction):
    agent, trainer = agent_of(
        {
            "baseline": "optimal_per_parameter",
            "agent": {"minibatches": 3, "reduction": reduction},
            "learning_rate": 1e-3,
        }
    )
    agent.update(trainer.env)
    prepared = agent.prepare(agent.collect(trainer.env, (9,)))
    agent.gradient(prepared)
    whole = agent.policy_parameters.grad.clone()
    mean = torch.zeros_like(whole)
    for part in agent.minibatches(prepared, 0):
        agent.gradient(part)
        mean += agent.policy_parameters.grad * part.weight.shape[2] / 28
    torch.testing.assert_close(mean, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["optimal", "optimal_per_parameter", "optimal_per_time"])
@pytest.mark.parametrize("agent", [{}, {"epochs": 2, "minibatches": 2}, {"collect": "episodes"}], ids=str)
def test_scores_are_those_of_the_policy_that_acted(name, agent):
    """What an update leaves is what scores taken before its step give, from the state before it."""
    one, trainer = agent_of({"baseline": name, "agent": agent})
    two, other = agent_of({"baseline": name, "agent": agent})
    for update in range(2):
        prepared = two.prepare(two.collect(other.env, (update,)))
        scores = two.scores(prepared)
        batch = replace(prepared.batch, scores=lambda found=scores: found)
        expected, _ = two.config.baseline.update(two.baseline_state, batch)
        one.update(trainer.env)
        for key, x in expected.items():
            torch.testing.assert_close(one.baseline_state[key], x, rtol=1e-3, atol=1e-4)
        two.load_state(one.state())
        assert not torch.allclose(two.scores(prepared).one, scores.one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("given", EVERY, ids=str)
def test_members_train_as_they_would_alone(given):
    """Their baselines too: two seeds together and each by itself."""
    together, trainer = agent_of({"baseline": given}, EPISODES)
    for _ in range(3):
        together.update(trainer.env)
    for seed in range(2):
        alone, other = agent_of({"baseline": given, "seeds": [seed]}, EPISODES)
        for _ in range(3):
            alone.update(other.env)
        torch.testing.assert_close(
            alone.policy_parameters.flat[0], together.policy_parameters.flat[seed], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("given", EVERY, ids=str)
def test_measured_replicates_are_what_training_applies(given):
    """A twin with three replicates of each member computes with the members' baselines."""
    agent, trainer = agent_of({"baseline": given}, EPISODES)
    for _ in range(2):
        agent.update(trainer.env)
    found = gradients(agent, lambda p: trainer.environment(p, 4, training=False), 3, 0)
    twin = agent.replicated(range(3), 0)
    env = trainer.environment(6, 4, training=False)
    prepared = twin.prepare(twin.collect(env, (2,)))
    twin.gradient(prepared)
    np.testing.assert_allclose(found.reshape(6, -1), twin.policy_parameters.grad, rtol=1e-5, atol=1e-6)
    # By hand from the values and what the members have learned.
    part, b = agent.config.baseline, None
    if not part.per_parameter:
        b = part.predict(repeat_members(agent.baseline_state, 3), prepared.batch)
    signal = baselined(part, repeat_members(agent.baseline_state, 3), prepared.batch, Signal(prepared.batch.value))
    d = twin.policy.distribution(twin.policy_parameters, prepared.obs)
    push(twin.policy_parameters, d, cotangents(agent.config.estimator, d, prepared.draw, signal)[0], prepared.weight)
    if part.per_parameter:
        ones = twin.scores(prepared).one.mean(1)
        grad = twin.policy_parameters.grad + part.coefficient(agent.baseline_state).repeat_interleave(3, 0) * ones
    else:
        grad = twin.policy_parameters.grad
        assert (b is None) == (part.name == "none")
    np.testing.assert_allclose(found.reshape(6, -1), grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("given", EVERY, ids=str)
def test_training_is_resumed_where_it_stopped(given, tmp_path: Path):
    agent, trainer = agent_of({"baseline": given})
    agent.update(trainer.env)
    twin, _ = agent_of({"baseline": given})
    twin.load_state(agent.state())
    for name, x in agent.baseline_state.items():
        torch.testing.assert_close(twin.baseline_state[name], x)
    train(Config.read(merge(BASE, {"baseline": given})), tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"agent": {"name": "actor_critic"}, "baseline": "optimal"}, "needs scores"),
        ({"agent": {"name": "actor_critic"}, "baseline": "optimal_per_parameter"}, "needs scores"),
        ({"agent": {"name": "actor_critic"}, "baseline": "time_dependent"}, "needs time"),
        ({"agent": {"normalize_advantages": True}, "baseline": "optimal_per_parameter"}, "per parameter"),
        ({"agent": {"normalize_advantages": True}, "baseline": "action_dependent"}, "per action factor"),
        ({"estimator": "rebar", "baseline": "optimal"}, "linear in the value"),
        ({"estimator": "enumeration", "baseline": "optimal"}, "uses no baseline"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(more, message):
    data = {k: v for k, v in BASE.items() if k != "agent"} if more.get("agent", {}).get("name") else BASE
    with pytest.raises(PglabError, match=message):
        Trainer(Config.read(merge(data, more)))


SETTINGS = {
    "CartPole-v1": {"env": {"max_episode_steps": 100}},  # values by time fall and rise, the best constant hardly moves
    "Pendulum-v1": {"env": {"id": "Pendulum-v1", "max_episode_steps": 60}},  # values fall steadily
}


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("env", list(SETTINGS))
def test_optimal_constants_leave_less_variance(env):
    """Whole episodes of a policy that does not move, 16 a batch, baselines fitted on 60 batches."""
    found = {}
    for name in ("none", "optimal", "optimal_per_time", "optimal_per_parameter", "time_dependent"):
        more = {"seeds": 1, "learning_rate": 0.0, "env": {"num_envs": 16}, "baseline": name}
        rows = {"agent": {"collect": "episodes", "reduction": "mean_over_episodes"}}
        agent, trainer = agent_of(SETTINGS[env], more, rows)
        for _ in range(60):
            agent.update(trainer.env)
        g = gradients(agent, partial(trainer.environment, num_envs=16, training=False), 200, 0)[0]
        found[name] = float(np.var(g, 0, ddof=1).sum())
    assert found["optimal"] < 0.5 * found["none"]
    assert found["optimal_per_parameter"] < 1.2 * found["optimal"]
    assert found["optimal_per_time"] < 1.2 * min(found["optimal"], found["time_dependent"])
