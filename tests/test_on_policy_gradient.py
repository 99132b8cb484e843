"""The on-policy agent's gradient: minibatches, epochs and waves of episodes, for every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pglab.agents import OnPolicyAgent
from pglab.config import Config, merge
from pglab.networks import MLP
from pglab.returns import v_trace
from pglab.training import Trainer, train

BASE = {
    "env": {"id": "Pendulum-v1", "num_envs": 3},
    "agent": {"name": "on_policy", "steps": 6},
    "policy": {"hidden": [4]},
    "seeds": 2,
    "total_steps": 36,
    "evaluation": {"episodes": 1, "final_episodes": 1},
}


@pytest.mark.parametrize("distribution", ["gaussian", "squashed_gaussian", "beta"])
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


def on_policy(*more: dict[str, Any]) -> tuple[OnPolicyAgent, Trainer]:
    data = BASE
    for extra in more:
        data = merge(data, extra)
    trainer = Trainer(Config.read(data))
    assert isinstance(trainer.agent, OnPolicyAgent)
    return trainer.agent, trainer


VALUED = {"agent": {"returns": {"name": "gae"}}, "baseline": "value", "learning_rate": 0.05}
GYMNASIUM = {"backend": "gymnasium", "autoreset_mode": "next_step"}


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("steps", [1, 7, 15, 16, 40], ids=lambda s: f"block {s}")
@pytest.mark.parametrize("more", [{}, GYMNASIUM], ids=["torch", "gymnasium"])
def test_v_of_the_next_observation_is_v_asked_there(env, normalised, steps, more):
    """Episodes of at most 15 steps: blocks below, at and above the limit, which begin anywhere in an episode."""
    agent, trainer = on_policy(
        VALUED,
        {
            "env": {"id": env, "num_envs": 6, "max_episode_steps": 15, **more},
            "agent": {"steps": steps},
            "preprocessing": {"normalize_observations": normalised},
        },
    )
    cut = terminated = 0
    for update in range(3 if steps >= 15 else 7):
        rollout = agent.collect(trainer.env, (update,))
        with torch.no_grad():
            seen = agent.preprocessor.observations(rollout.obs)
            found = agent.v_next(rollout, agent.v(seen))
            direct = agent.v(agent.preprocessor.observations(rollout.final_obs))
        rows = rollout.valid & ~rollout.terminated
        torch.testing.assert_close(found[rows], direct[rows], rtol=1e-5, atol=1e-5)
        assert bool(torch.isfinite(found).all())
        cut += int((rollout.ended & rows).sum())
        terminated += int(rollout.terminated.sum())
        agent.preprocessor.update(
            rollout.obs, rollout.reward, rollout.ended, rollout.valid, torch.full((2, 1), 0.9)
        )  # so that the statistics are no longer those of no observation
    trainer.env.close()
    assert steps == 1 or cut > 0
    assert env == "Pendulum-v1" or steps == 1 or terminated > 0


@pytest.mark.parametrize("block", [4, 10, 32])
def test_v_of_the_next_observation_in_whole_episodes(block):
    agent, trainer = on_policy(
        VALUED,
        {
            "env": {"id": "CartPole-v1", "max_episode_steps": 12},
            "agent": {"collect": "episodes", "episodes": 2, "block": block},
        },
    )
    rollout = agent.collect(trainer.env, (0,))
    with torch.no_grad():
        found, direct = agent.v_next(rollout, agent.v(rollout.obs)), agent.v(rollout.final_obs)
    rows = rollout.valid & ~rollout.terminated
    torch.testing.assert_close(found[rows], direct[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("hidden", [[4], [20, 5]], ids=str)
def test_passes_made_before_the_update_give_what_passes_made_in_it_give(env, activation, hidden):
    """Policy and value steps of three updates, with the rollout's forward pass and V's graph kept, or thrown away."""
    more = {
        "env": {"id": env},
        "policy": {"hidden": hidden, "activation": activation},
        "preprocessing": {"normalize_observations": True},
        "entropy_weight": 0.01,
    }
    agents = [on_policy(VALUED, more) for _ in range(2)]
    for update in range(3):
        grads = []
        for (agent, trainer), keeps in zip(agents, (True, False), strict=True):
            rollout = agent.collect(trainer.env, (update,))
            prepared = agent.prepare(rollout)
            assert prepared.recorded is not None
            assert prepared.recorded.holds(agent.policy_parameters)
            assert prepared.v is not None
            if not keeps:
                prepared = replace(prepared, recorded=None, v=None)
            agent.gradient(prepared)
            grads.append(agent.policy_parameters.grad.clone())
            agent.step_policy()
            agent.learn_value(prepared)
            grads.append(agent.value_parameters.grad.clone())
            agent.preprocessor.update(
                rollout.obs, rollout.reward, rollout.ended, rollout.valid, agent.hyper("discount")
            )
            agent.updates += 1
        torch.testing.assert_close(grads[0], grads[2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grads[1], grads[3], rtol=1e-4, atol=1e-5)
    kept, again = (agent for agent, _ in agents)
    torch.testing.assert_close(kept.policy_parameters.flat, again.policy_parameters.flat, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept.value_parameters.flat, again.value_parameters.flat, rtol=1e-4, atol=1e-4)


def test_one_update_makes_the_policys_pass_once(monkeypatch):
    """Steps of the rollout apart; V is asked at the observations and at what v_next lacks."""
    agent, trainer = on_policy(VALUED, {"policy": {"hidden": [5, 4]}})
    rows = []
    run = MLP.run
    monkeypatch.setattr(
        MLP, "run", lambda self, w, x, into=None: rows.append((self.stream, x.shape[1])) or run(self, w, x, into)
    )
    agent.update(trainer.env)
    assert rows == [(0, 3)] * 6 + [(1, 18), (1, 6)]


@pytest.mark.parametrize("change", ["moved", "another object", "another rollout"])
def test_a_recorded_pass_that_no_longer_holds_is_made_again(change):
    agent, trainer = on_policy(VALUED)
    prepared = agent.prepare(agent.collect(trainer.env, (0,)))
    assert prepared.recorded is not None
    agent.gradient(prepared)
    before = agent.policy_parameters.grad.clone()
    if change == "moved":
        with torch.no_grad():
            agent.policy_parameters.flat.mul_(1.5)
    elif change == "another object":
        agent.policy_parameters = agent.policy_parameters.repeated(1)
        with torch.no_grad():
            agent.policy_parameters.flat.add_(0.1)
    else:
        agent.collect(trainer.env, (1,))
    agent.gradient(prepared)
    found = agent.policy_parameters.grad.clone()
    agent.gradient(replace(prepared, recorded=None))
    torch.testing.assert_close(found, agent.policy_parameters.grad)
    assert torch.allclose(found, before, rtol=1e-4, atol=1e-5) == (change == "another rollout")


def test_values_graph_is_not_used_once_v_has_moved():
    agent, trainer = on_policy(VALUED)
    prepared = agent.prepare(agent.collect(trainer.env, (0,)))
    with torch.no_grad():
        agent.value_parameters.flat.mul_(1.5)
    twin, _ = on_policy(VALUED)
    with torch.no_grad():
        twin.value_parameters.flat.copy_(agent.value_parameters.flat)
    agent.learn_value(prepared)
    twin.learn_value(replace(prepared, v=None))
    torch.testing.assert_close(agent.value_parameters.grad, twin.value_parameters.grad)


def test_v_trace_looks_again_before_every_epoch(monkeypatch):
    """From the second epoch on, values and targets are V-trace's at the policy's ratios and V as they are then."""
    agent, trainer = on_policy(VALUED, {"agent": {"returns": {"name": "v_trace", "lam": 0.9}, "epochs": 3}})
    seen = []
    retraced = type(agent).retraced

    def look(self, prepared, rollout):
        with torch.no_grad():
            now = self.policy.distribution(self.policy_parameters, prepared.obs).log_prob(rollout.action).sum(-1)
            v = self.v(prepared.obs)
            ends = rollout.terminated, rollout.ended
            ratio = torch.exp(now - prepared.signal.behaviour_log_prob)
            wanted = v_trace(rollout.reward, v, self.v_next(rollout, v), ratio, *ends, 0.99, 0.9, 1.0, 1.0)
        found = retraced(self, prepared, rollout)
        seen.append((ratio, v, wanted, found))
        return found

    monkeypatch.setattr(type(agent), "retraced", look)
    agent.update(trainer.env)
    assert len(seen) == 2
    for ratio, v, (target, value), found in seen:
        assert bool((ratio != 1).any())
        torch.testing.assert_close(found.target, target)
        torch.testing.assert_close(found.signal.value, value)
        torch.testing.assert_close(found.signal.baseline, v)
    assert not torch.equal(seen[0][3].target, seen[1][3].target)
