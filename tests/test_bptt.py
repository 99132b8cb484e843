"""Backpropagation through the environment: gradients and targets against plain loops, finite differences, closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pglab_envs.base import TorchVectorEnv
from pglab_envs.pendulum import Pendulum
from pglab_envs.registry import TORCH_ENVS
from spine import hermite
from test_training import assert_same, final_state, killed_after, logged
from torch import Tensor

import pglab
from pglab.agents import BpttAgent
from pglab.agents.bptt import Segment
from pglab.config import Config, merge
from pglab.environments.torch_native import TorchEnvironment
from pglab.errors import PglabError
from pglab.lab.variance import gradients
from pglab.networks import Parameters
from pglab.rollout import Position
from pglab.training import Trainer, resume, train

BASE: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "num_envs": 3},
    "agent": {"name": "bptt", "horizon": 6, "value": {"hidden": [4]}, "value_epochs": 2},
    "policy": {"hidden": [5], "output_gain": 1.0},
    "discount": 0.9,
    "seeds": 2,
    "total_steps": 36,
    "evaluation": {"episodes": 1, "final_episodes": 1},
}


def read(*more: dict[str, Any]) -> Config:
    data = BASE
    for extra in more:
        data = merge(data, extra)
    return Config.read(data)


def doubled(parameters: Parameters) -> Parameters:
    return Parameters(parameters.shapes, parameters.flat.double(), parameters.copies, parameters.trainable)


def agent_in(env_class: type[TorchVectorEnv], *more: dict[str, Any]) -> tuple[BpttAgent, TorchEnvironment]:
    """An agent and its environments in float64, just reset."""
    config = read(*more)
    agent = Trainer(config).agent
    assert isinstance(agent, BpttAgent)
    agent.take_networks({name: doubled(p) for name, p in agent.networks().items()})
    limit = config.env.max_episode_steps
    env = TorchEnvironment(
        env_class, len(agent.population), agent.num_envs, dtype=torch.float64, max_episode_steps=limit
    )
    agent.position = Position.start(env.reset(agent.noise, (0,)))
    return agent, env


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


# -- against a plain loop over rows


def plain_pendulum(state: Tensor, torque: Tensor) -> tuple[Tensor, Tensor, bool]:
    angle, speed = state
    wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    reward = -(wrapped**2 + 0.1 * speed**2 + 0.001 * torque**2)
    speed = torch.clamp(speed + 0.05 * (15 * torch.sin(angle) + 3 * torque), -8, 8)
    return torch.stack([angle + 0.05 * speed, speed]), reward, False


def seen_by_pendulum(state: Tensor) -> Tensor:
    return torch.stack([torch.cos(state[0]), torch.sin(state[0]), state[1]])


def mlp(parts: dict[str, Tensor], x: Tensor) -> Tensor:
    layers = sum(name.startswith("weight") for name in parts)
    for i in range(layers):
        x = x @ parts[f"weight{i}"] + parts[f"bias{i}"][0]
        x = torch.tanh(x) if i < layers - 1 else x
    return x


def parts_of(parameters: Parameters, flat: Tensor) -> dict[str, Tensor]:
    found, at = {}, 0
    for name, shape in parameters.shapes.items():
        found[name] = flat[at : at + math.prod(shape)].view(shape)
        at += math.prod(shape)
    return found


def plain_return(
    agent: BpttAgent, flat: Tensor, p: int, start: Tensor, elapsed: int, noise: Tensor, resets: Tensor, limit: int
) -> Tensor:
    """The segment's return of one row of member p with policy parameters `flat` `[n]`."""
    gamma, s = float(agent.hyper("discount")[p]), agent.settings
    policy = parts_of(agent.policy_parameters, flat)
    v = None if agent.value_target is None else parts_of(agent.value_target, agent.value_target.flat[p])
    state, total, k = start, torch.zeros((), dtype=torch.float64), 0
    for t in range(len(noise)):
        out = mlp(policy, normalised(agent, p, seen_by_pendulum(state)))
        log_std = out[1] if agent.policy.std_from_network else policy["log_std"][0, 0]
        z = out[0] if s.at_mode else out[0] + log_std.exp() * noise[t, 0]
        torque = 2 * (torch.tanh(z) if agent.policy.family == "squashed_gaussian" else z.clamp(-1, 1))
        state, reward, _ = plain_pendulum(state, torque)
        total = total + gamma**k * 0.5 * reward
        k, elapsed = k + 1, elapsed + 1
        if v is not None and (elapsed == limit or t == len(noise) - 1):
            total = total + gamma**k * mlp(v, normalised(agent, p, seen_by_pendulum(state)))[0]
        if elapsed == limit:
            state, elapsed, k = Pendulum.initial_state(resets[t]), 0, 0
    return total


def normalised(agent: BpttAgent, p: int, obs: Tensor) -> Tensor:
    if "obs" not in agent.preprocessor.state:
        return obs
    s = agent.preprocessor.state["obs"]
    return (obs - s["mean"][p].double()) / torch.sqrt(s["var"][p].double() + 1e-8)


VARIANTS = {
    "shac": {},
    "mode": {"agent": {"at_mode": True}},
    "clipped": {"policy": {"distribution": "gaussian", "log_std": -1.0}},
    "std": {"policy": {"state_dependent_std": True}},
    "no value": {"agent": {"terminal_value": False}},
    "normalised": {"preprocessing": {"normalize_observations": True}},
}


def played(variant: str, limit: int, noise: Tensor, resets: Tensor) -> tuple[BpttAgent, Segment, Any]:
    """A float64 agent's segment from environments in the midst of their episodes, and the gradient by a plain loop."""
    agent, env = agent_in(
        Pendulum, VARIANTS[variant], {"env": {"max_episode_steps": limit}, "preprocessing": {"reward_scale": 0.5}}
    )
    if "obs" in agent.preprocessor.state:
        statistics = agent.preprocessor.state["obs"]
        statistics["mean"], statistics["var"] = statistics["mean"].double() + 0.3, statistics["var"].double() * 4
    env.elapsed = torch.tensor([[0, 3, 1], [2, 0, 3]], dtype=torch.int32)
    states, elapsed = env.state.clone(), env.elapsed.clone()

    def plain(flat: Tensor, p: int) -> Tensor:
        rows = [
            plain_return(agent, flat, p, states[p, n], int(elapsed[p, n]), noise[:, p, n], resets[:, p, n], limit)
            for n in range(3)
        ]
        return torch.stack(rows)

    return agent, agent.segment(env, noise, resets), plain


@pytest.mark.parametrize("limit", [200, 7, 4], ids=lambda x: f"limit {x}")
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_gradient_is_a_plain_loops(variant: str, limit: int) -> None:
    """Limits of 7 and 4 cut episodes within the 6 steps, once or twice in a row."""
    noise, resets = normal(6, 2, 3, 1), uniform(6, 2, 3, 2)
    agent, segment, plain = played(variant, limit, noise, resets)
    agent.gradient(segment)
    assert agent.policy_parameters.grad is not None
    for p in range(2):
        flat = agent.policy_parameters.flat[p].clone().requires_grad_()
        rows = plain(flat, p)
        torch.testing.assert_close(segment.value[p], rows, rtol=1e-6, atol=1e-6)
        (wanted,) = torch.autograd.grad(-rows.mean(), flat, allow_unused=True)
        torch.testing.assert_close(agent.policy_parameters.grad[p], wanted, rtol=1e-6, atol=1e-7)
        assert float(wanted.abs().max()) > 1e-3


@pytest.mark.parametrize("variant", ["shac", "no value", "normalised"])
def test_the_gradient_is_the_finite_difference_with_the_noise_held_still(variant: str) -> None:
    noise, resets = normal(6, 2, 3, 1), uniform(6, 2, 3, 2)
    agent, segment, _ = played(variant, 7, noise, resets)
    agent.gradient(segment)
    assert agent.policy_parameters.grad is not None
    flat, direction, step = agent.policy_parameters.flat.clone(), normal(*agent.policy_parameters.flat.shape), 1e-5
    values = []
    for sign in (1, -1):
        twin, env = agent_in(
            Pendulum, VARIANTS[variant], {"env": {"max_episode_steps": 7}, "preprocessing": {"reward_scale": 0.5}}
        )
        twin.preprocessor.state = agent.preprocessor.state
        env.elapsed = torch.tensor([[0, 3, 1], [2, 0, 3]], dtype=torch.int32)
        twin.policy_parameters.flat.copy_(flat + sign * step * direction)
        values.append(twin.segment(env, noise, resets).value.detach().mean(1))
    slope = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(-(agent.policy_parameters.grad * direction).sum(1), slope, rtol=1e-6, atol=1e-7)


# -- expectations of linear dynamics and quadratic costs


class Linear(TorchVectorEnv):
    """x' = 0.8 x + 0.5 u from x uniform on (0, 1), with reward -(x^2 + 0.1 u^2); never terminates."""

    id = "test/Linear-v0"
    max_episode_steps = 50
    state_size = reset_noise_size = observation_size = 1
    differentiable = True
    terminates = False
    single_observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    single_action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def initial_state(self, noise: Tensor) -> Tensor:
        return noise

    def transition(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reward = -(state.square() + 0.1 * action.square()).squeeze(-1)
        return 0.8 * state + 0.5 * action, reward, self.over(state)

    def over(self, state: Tensor) -> Tensor:
        return torch.zeros_like(state.squeeze(-1), dtype=torch.bool)


class Falling(Linear):
    """The same; an episode in which x comes below 0.4 terminates."""

    id = "test/Falling-v0"
    terminates = True

    def over(self, state: Tensor) -> Tensor:
        return state.squeeze(-1) < 0.4


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> None:
    for env in (Linear, Falling):
        monkeypatch.setitem(TORCH_ENVS, env.id, env)


LQ: dict[str, Any] = {
    "env": {"id": "test/Linear-v0", "num_envs": 1},
    "agent": {"horizon": 3, "value": {"hidden": []}},
    "policy": {"hidden": [], "distribution": "gaussian"},
}


def test_the_expected_gradient_is_that_of_the_exact_expectation(linear: None) -> None:
    """u = K x + c + e^l eps: means and variances follow a recursion. The noise of 3 steps is integrated out by quadrature,
    every node a member with the same parameters and V(x) = w x + d at the end."""
    x, w = hermite(5)
    nodes = torch.cartesian_prod(x, x, x)  # [Q, 3]
    weights = torch.cartesian_prod(w, w, w).prod(1)
    agent, env = agent_in(Linear, LQ, {"seeds": len(nodes)})
    parameters = torch.tensor([-0.6, 0.2, -0.4], dtype=torch.float64)  # K, c, l
    agent.policy_parameters.flat.copy_(parameters.expand(len(nodes), 3))
    agent.value_target.flat.copy_(torch.tensor([-1.5, 0.7], dtype=torch.float64).expand(len(nodes), 2))
    env.state = torch.full_like(env.state, 0.9)
    agent.position = Position(env.state.clone(), agent.position.time, None)
    segment = agent.segment(env, nodes.t()[:, :, None, None], torch.zeros(3, len(nodes), 1, 1, dtype=torch.float64))
    agent.gradient(segment)
    k, c, log_std = leaves = [z.clone().requires_grad_() for z in parameters]
    mean, variance, total, gamma = (
        torch.tensor(0.9),
        torch.tensor(0.0),
        torch.tensor(0.0),
        float(agent.hyper("discount")[0]),
    )
    for t in range(3):
        u, u2 = k * mean + c, k**2 * variance + (2 * log_std).exp()
        total = total - gamma**t * (mean**2 + variance + 0.1 * (u**2 + u2))
        mean, variance = 0.8 * mean + 0.5 * u, (0.8 + 0.5 * k) ** 2 * variance + 0.25 * (2 * log_std).exp()
    total = total + gamma**3 * (-1.5 * mean + 0.7)
    assert float(weights @ segment.value[:, 0].detach()) == pytest.approx(total.item(), abs=1e-6)
    wanted = torch.stack(torch.autograd.grad(total, leaves)).double()
    torch.testing.assert_close(-(weights @ agent.policy_parameters.grad), wanted, rtol=1e-6, atol=1e-6)


def test_a_termination_ends_the_return_without_v(linear: None) -> None:
    """Rows that terminate at once, later and never, against the sum written out."""
    more = {"env": {"id": "test/Falling-v0", "num_envs": 3}, "agent": {"allow_termination": True, "at_mode": True}}
    agent, env = agent_in(Falling, LQ, more, {"seeds": 1})
    agent.policy_parameters.flat.zero_()  # u = 0
    agent.value_target.flat.copy_(torch.tensor([[0.0, 7.0]]))  # V = 7
    env.state = torch.tensor([[[0.3], [0.45], [2.0]]], dtype=torch.float64)
    agent.position = Position(env.state.clone(), agent.position.time, None)
    resets = torch.full((3, 1, 3, 1), 0.35, dtype=torch.float64)  # new episodes terminate at once as well
    segment = agent.segment(env, torch.zeros(3, 1, 3, 1, dtype=torch.float64), resets)
    g = 0.9
    wanted = [
        -(0.3**2) - 0.35**2 - 0.35**2,
        -(0.45**2) - g * 0.36**2 - 0.35**2,
        -(2.0**2) - g * 1.6**2 - g**2 * 1.28**2 + g**3 * 7,
    ]
    torch.testing.assert_close(segment.value[0], torch.tensor(wanted).double(), rtol=1e-5, atol=1e-5)
    assert segment.rollout.terminated[:, 0].t().tolist() == [[True] * 3, [False, True, True], [False] * 3]


# -- V


def test_targets_are_the_papers_mixture_of_k_step_returns() -> None:
    """(1 - lam) sum_k lam^(k-1) G_k + lam^(h-t-1) G_(h-t), with V of the target network (Xu et al. 2022, eq. 7)."""
    agent, env = agent_in(Pendulum, {"agent": {"returns": {"lam": 0.7}}})
    agent.value_parameters.flat.add_(0.3)  # V itself plays no part
    segment = agent.segment(env, normal(6, 2, 3, 1), uniform(6, 2, 3, 2))
    rollout, h, lam = segment.rollout, 6, 0.7
    target = agent.value_target
    for p in range(2):
        gamma = float(agent.hyper("discount")[p])
        v = mlp(parts_of(target, target.flat[p]), torch.cat([rollout.obs[:, p], rollout.final_obs[-1:, p]]))[..., 0]
        for t in range(h):
            returns = []
            for k in range(1, h - t + 1):
                g = sum(gamma**i * rollout.reward[t + i, p] for i in range(k))
                returns.append(g + gamma**k * v[t + k])
            mixed = lam ** (h - t - 1) * returns[-1]
            mixed = mixed + (1 - lam) * sum(lam ** (k - 1) * returns[k - 1] for k in range(1, h - t))
            torch.testing.assert_close(segment.target[t, p], mixed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("returns", [{"name": "gae", "lam": 0.8}, {"name": "n_step", "n": 2}, {"name": "monte_carlo"}])
def test_of_reward_1_v_learns_1_over_1_minus_gamma(monkeypatch: pytest.MonkeyPatch, returns: dict[str, Any]) -> None:
    """Episodes are cut after 7 steps and segments after 5: both are gone on from with V."""

    class Constant(Linear):
        id = "test/Constant-v0"

        def initial_state(self, noise: Tensor) -> Tensor:
            return torch.ones_like(noise)

        def transition(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return state, torch.ones_like(state.squeeze(-1)) + 0 * action.squeeze(-1), self.over(state)

    monkeypatch.setitem(TORCH_ENVS, Constant.id, Constant)
    more = {
        "env": {"id": Constant.id, "max_episode_steps": 7, "num_envs": 8},
        "agent": {
            "horizon": 5,
            "returns": returns,
            "value": {"learning_rate": 3e-2, "max_grad_norm": None},
            "value_epochs": 4,
            "value_minibatches": 1,
        },
    }
    trainer = Trainer(read(LQ, more))
    agent: Any = trainer.agent
    for _ in range(120):
        agent.update(trainer.env)
    v = agent.v(agent.value_target, torch.ones(1, 2, 1, 1))
    torch.testing.assert_close(v, torch.full((1, 2, 1), 10.0), atol=0.1, rtol=0)


def test_one_step_of_v_is_that_of_half_the_mean_squared_error_and_the_target_follows() -> None:
    options = {"value_epochs": 1, "value_minibatches": 1, "target_rate": 0.25, "value": {"max_grad_norm": None}}
    agent, env = agent_in(Pendulum, {"agent": options, "optimizer": {"name": "sgd"}})
    segment = agent.segment(env, normal(6, 2, 3, 1), uniform(6, 2, 3, 2))
    before = agent.value_parameters.flat.clone()
    wanted = []
    for p in range(2):
        flat = before[p].clone().requires_grad_()
        v = mlp(parts_of(agent.value_parameters, flat), segment.obs[:, p])[..., 0]
        loss = 0.5 * (v - segment.target[:, p]).square().mean()
        wanted.append(flat.detach() - 1e-3 * torch.autograd.grad(loss, flat)[0])
    metrics = agent.learn_value(segment)
    torch.testing.assert_close(agent.value_parameters.flat, torch.stack(wanted), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(agent.value_target.flat, before + 0.25 * (agent.value_parameters.flat - before))
    assert metrics["losses/value_loss"]().shape == (2,)


def test_every_row_is_in_one_minibatch_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"agent": {"value_minibatches": 4, "value_epochs": 1}, "optimizer": {"name": "sgd"}}
    agent, env = agent_in(Pendulum, options)
    segment = agent.segment(env, normal(6, 2, 3, 1), uniform(6, 2, 3, 2))
    seen: list[Tensor] = []
    network = type(agent.value_network)
    run = network.__call__
    monkeypatch.setattr(network, "__call__", lambda self, views, x: seen.append(x) or run(self, views, x))
    agent.learn_value(segment)
    assert [x.shape[1] for x in seen] == [5, 5, 4, 4]
    for p in range(2):
        found = torch.cat([x[p] for x in seen])
        assert {tuple(o) for o in found.tolist()} == {tuple(o) for o in segment.obs[:, p].flatten(0, 1).tolist()}


# -- as an agent among the others


RUN: dict[str, Any] = {
    "env": {"max_episode_steps": 20},
    "preprocessing": {"normalize_observations": True, "normalize_returns": True},
    "learning_rate": {"kind": "linear", "start": 3e-3, "end": 0.0},
    "max_grad_norm": 0.5,
    "seeds": 3,
    "total_steps": 900,
    "log_every": 90,
    "evaluation": {"every": 300, "episodes": 2, "final_episodes": 2},
    "checkpoint": {"every": 180, "keep": 10},
    "measurement": {"at": [0, 0.5, 1], "replicates": 4},
}


@pytest.mark.parametrize("more", [{}, {"agent": {"at_mode": True, "terminal_value": False}}], ids=["shac", "plain"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(more: dict[str, Any], tmp_path: Path) -> None:
    config = merge(merge(BASE, RUN), more)
    whole = train(config, tmp_path / "whole")
    killed_after(config, tmp_path / "broken", checkpoints=2)
    again = resume(tmp_path / "broken")
    assert again.finished
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "broken"))
    assert logged(tmp_path / "whole") == logged(tmp_path / "broken")
    assert whole.evaluations == again.evaluations
    assert whole.measurements == again.measurements


def test_a_member_alone_equals_the_same_member_in_a_population() -> None:
    config = merge(merge(BASE, RUN), {"total_steps": 100_000})
    many = Trainer(Config.read(merge(config, {"seeds": [5, 9], "agent": {"returns": {"lam": [0.9, 0.5]}}})))
    one = Trainer(Config.read(merge(config, {"seeds": [9], "agent": {"returns": {"lam": 0.5}}})))
    index = next(
        i for i, m in enumerate(many.population.members) if (m.seed, m.overrides["agent.returns.lam"]) == (9, 0.5)
    )
    for _ in range(12):
        for trainer in (many, one):
            trainer._before_update()
        _, crowd = many._update()
        _, single = one._update()
    torch.testing.assert_close(crowd.obs[:, index], single.obs[:, 0], rtol=1e-4, atol=1e-4)
    for name, parameters in one.agent.networks().items():
        ours, theirs = parameters.flat[0], many.agent.networks()[name].flat[index]
        assert torch.linalg.vector_norm(ours - theirs) <= 1e-4 * torch.linalg.vector_norm(ours), name


@pytest.mark.parametrize("at_mode", [False, True])
def test_replicates_are_a_function_of_their_number_and_leave_training_alone(at_mode: bool) -> None:
    (agent, trainer), (other, undisturbed) = (
        (t.agent, t) for t in (Trainer(read(RUN, {"agent": {"at_mode": at_mode}})) for _ in range(2))
    )

    def drawn(replicates: int, snapshot: int) -> np.ndarray:
        return gradients(agent, lambda members: trainer.environment(members, 3), replicates, snapshot)

    agent.update(trainer.env)
    other.update(undisturbed.env)
    few, many = drawn(4, 0), drawn(6, 0)
    np.testing.assert_allclose(many[:, :4], few, rtol=2e-3, atol=1e-5)
    assert len({row.tobytes() for row in many.reshape(18, -1)}) == 18
    assert not np.allclose(drawn(4, 1), few)
    for _ in range(2):
        agent.update(trainer.env)
        other.update(undisturbed.env)
    assert_same(agent.state(), other.state())


def test_segments_follow_one_another_as_the_environment_would_go_on() -> None:
    """Two segments of 6 are one of 12, in what was played; gradients stop at the seam."""
    agent, env = agent_in(Pendulum, {"env": {"max_episode_steps": 8}})
    noise, resets = normal(12, 2, 3, 1), uniform(12, 2, 3, 2)
    parts = [agent.segment(env, noise[i : i + 6], resets[i : i + 6]).rollout for i in (0, 6)]
    other, env = agent_in(Pendulum, {"env": {"max_episode_steps": 8}, "agent": {"horizon": 12}})
    whole = other.segment(env, noise, resets).rollout
    for name in ("obs", "action", "reward", "final_obs", "time", "ended"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name)), name
    assert not agent.position.obs.requires_grad
    assert not env.state.requires_grad


def test_a_trained_agent_is_exported_and_predicts(tmp_path: Path) -> None:
    trained = train(merge(BASE, RUN), tmp_path / "run")
    loaded = pglab.load_agent(tmp_path / "run", 1)
    obs = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    mode = trained.agent.act(torch.from_numpy(obs).expand(3, -1, -1), None).mode()[1]
    np.testing.assert_allclose(
        loaded.predict(obs, deterministic=True)[0], 2 * torch.tanh(mode).detach().numpy(), rtol=1e-5
    )


REFUSED = {
    "discrete": ({"env": {"id": "CartPole-v1"}}, "actions are discrete"),
    "gymnasium": ({"env": {"backend": "gymnasium"}}, "not differentiable"),
    "terminates": ({"env": {"id": "MountainCarContinuous-v0"}}, "may terminate"),
    "estimator": ({"estimator": "pathwise"}, "estimator of its own"),
    "baseline": ({"baseline": "value"}, "uses no baseline"),
    "entropy": ({"entropy_weight": 0.01}, "entropy_weight to 0"),
    "executor": ({"executor": "cudagraph"}, "choose executor auto or eager"),
    "lambda": ({"agent": {"returns": {"lam": 1.5}}}, "agent.returns.lam"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_does_not_fit_is_refused_in_a_sentence(case: str) -> None:
    more, said = REFUSED[case]
    with pytest.raises(PglabError, match=said):
        Trainer(read(more))


def test_termination_may_be_allowed_and_is_declared() -> None:
    more = {"env": {"id": "MountainCarContinuous-v0"}, "agent": {"allow_termination": True}}
    agent = read(more).agent
    assert "terminations" in agent.declared_bias
    assert "terminations" not in read().agent.declared_bias
    assert agent.estimator == "pathwise through 6 steps and V"
    trainer = Trainer(read(more))
    for _ in range(3):
        trainer.agent.update(trainer.env)
    assert bool(torch.isfinite(trainer.agent.policy_parameters.flat).all())
    assert Config.read(read(more).plain()) == read(more)


@pytest.mark.slow
def test_it_learns_pendulum() -> None:
    trained = train(
        {
            "env": {"id": "Pendulum-v1", "num_envs": 8},
            "agent": {
                "name": "bptt",
                "horizon": 8,
                "value": {"learning_rate": 3e-3, "max_grad_norm": 1.0},
                "value_epochs": 8,
                "value_minibatches": 2,
            },
            "policy": {"activation": "elu"},
            "preprocessing": {"observation_scale": [1, 1, 0.125], "reward_scale": 0.1},
            "learning_rate": {"kind": "linear", "start": 3e-3, "end": 3e-4},
            "max_grad_norm": 1.0,
            "discount": 0.95,
            "seeds": 4,
            "total_steps": 100_000,
            "threads": 1,
        }
    )
    assert np.median(np.mean(trained.evaluations[-1]["returns"], 1)) > -200
