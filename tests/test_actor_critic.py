"""The actor-critic agent: replay, targets, blending and entropy weight against computations of their own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pglab.agents import ActorCriticAgent
from pglab.config import Config, CriticConfig, merge
from pglab.critics import QCritic, another, blended
from pglab.environments.contract import ActionSpec
from pglab.noise import ChunkedNoise, Noise, Purpose
from pglab.replay import Replay, Transitions
from pglab.training import Trainer

CARTPOLE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 2},
    "estimator": "enumeration",
    "agent": {
        "name": "actor_critic",
        "critic": {"target_action": "expectation"},
        "replay": {"batch_size": 6, "warmup": 20},
    },
    "entropy_weight": [0.3, 0.05],
    "discount": 0.9,
    "preprocessing": {"reward_scale": 0.5},
    "seeds": 1,
}
PENDULUM: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "num_envs": 2},
    "estimator": "pathwise",
    "agent": {"name": "actor_critic", "replay": {"batch_size": 6, "warmup": 20}},
    "entropy_weight": 0.2,
    "discount": 0.9,
    "seeds": 2,
}


def agent_after(config: dict[str, Any], rounds: int = 30) -> ActorCriticAgent:
    trainer = Trainer(Config.read(config))
    for _ in range(rounds):
        trainer.agent.update(trainer.env)
    assert isinstance(trainer.agent, ActorCriticAgent)
    return trainer.agent


def test_soft_actor_critic_with_a_beta_policy_keeps_its_actions_within_the_bounds():
    agent = agent_after(merge(PENDULUM, {"policy": {"distribution": "beta"}, "agent": {"auto_entropy": True}}))
    actions = agent.replay.sample(torch.rand(2, 50)).action
    assert float(actions.abs().max()) < 1
    assert float(actions.std()) > 0.2
    assert bool(torch.isfinite(agent.policy_parameters.flat).all())
    start = Trainer(Config.read(merge(PENDULUM, {"policy": {"distribution": "beta"}}))).agent.policy_parameters.flat
    assert not torch.equal(agent.policy_parameters.flat, start)


def plain_q(
    agent: ActorCriticAgent, views: dict[str, Tensor], member: int, copy: int, obs: Tensor, action: Tensor
) -> Tensor:
    """Q of one member's one copy at rows `[B, O]`, `[B, E]`, layer by layer."""
    x = torch.cat([obs, action], -1)
    i = member * agent.critic.copies + copy
    for layer in range(3):
        x = x @ views[f"weight{layer}"][i] + views[f"bias{layer}"][i]
        x = torch.relu(x) if layer < 2 else x
    return x.squeeze(-1)


def plain_policy(agent: ActorCriticAgent, member: int, obs: Tensor) -> Tensor:
    views = agent.policy_parameters.views
    for layer in range(3):
        obs = obs @ views[f"weight{layer}"][member] + views[f"bias{layer}"][member]
        obs = torch.tanh(obs) if layer < 2 else obs
    return obs


def sampled(agent: ActorCriticAgent) -> Transitions:
    u = agent.noise.uniform(Purpose.REPLAY, (99,), (6,))
    return agent.replay.sample(u)


def test_the_discrete_target_is_r_plus_gamma_times_the_soft_expectation_over_actions() -> None:
    agent = agent_after(CARTPOLE)
    rows = sampled(agent)
    with torch.no_grad():
        ours = agent.target(rows, None)
        for p, alpha in enumerate((0.3, 0.05)):
            obs = rows.final_obs[p]
            log_p = plain_policy(agent, p, obs).log_softmax(-1)
            q = [
                torch.minimum(
                    *(
                        plain_q(agent, agent.critic.target.views, p, c, obs, torch.eye(2)[a].expand(6, 2))
                        for c in range(2)
                    )
                )
                for a in range(2)
            ]
            soft = sum(log_p[:, a].exp() * (q[a] - alpha * log_p[:, a]) for a in range(2))
            wanted = 0.5 * rows.reward[p] + 0.9 * (1 - rows.terminated[p]) * soft
            torch.testing.assert_close(ours[p], wanted, rtol=1e-4, atol=1e-5)


def test_the_continuous_target_is_that_of_sac() -> None:
    agent = agent_after(PENDULUM)
    rows = sampled(agent)
    noise = ChunkedNoise(agent.noise).take("normal", Purpose.TARGET, agent.updates, (6, 1))
    with torch.no_grad():
        ours = agent.target(rows, agent.draws(6).target)
        for p in range(2):
            obs = rows.final_obs[p]
            mean, std = plain_policy(agent, p, obs), agent.policy_parameters.views["log_std"][p].exp()
            u = mean + std * noise[p]
            normal = torch.distributions.Normal(mean.double(), std.double())
            log_pi = (normal.log_prob(u.double()) - torch.log(1 - torch.tanh(u.double()) ** 2)).sum(-1)
            q = torch.minimum(*(plain_q(agent, agent.critic.target.views, p, c, obs, torch.tanh(u)) for c in range(2)))
            wanted = rows.reward[p] + 0.9 * (1 - rows.terminated[p]) * (q - 0.2 * log_pi.float())
            torch.testing.assert_close(ours[p], wanted, rtol=1e-4, atol=1e-4)


def test_the_critic_loss_is_the_mean_over_rows_summed_over_twins_and_the_target_moves_by_its_rate() -> None:
    agent = agent_after(PENDULUM)
    rows = sampled(agent)
    with torch.no_grad():
        draws = agent.draws(6)
        y = agent.target(rows, draws.target)
        each = [
            torch.stack(
                [plain_q(agent, agent.critic.parameters.views, p, c, rows.obs[p], rows.action[p]) for c in range(2)]
            )
            for p in range(2)
        ]
    before, target = agent.critic.parameters.flat.clone(), agent.critic.target.flat.clone()
    metrics = agent.learn_critic(rows, draws)
    for p in range(2):
        torch.testing.assert_close(
            metrics["losses/critic_loss"]()[p], (0.5 * (each[p] - y[p]) ** 2).mean(), rtol=1e-4, atol=1e-5
        )
    assert not torch.equal(before, agent.critic.parameters.flat)
    agent.critic.move_target()
    torch.testing.assert_close(agent.critic.target.flat, target + 0.005 * (agent.critic.parameters.flat - target))


def test_the_actors_gradient_is_that_of_sac_by_plain_autograd() -> None:
    agent = agent_after(PENDULUM)
    rows = sampled(agent)
    noise = agent.noise.normal(Purpose.UPDATE, (7,), (6, 1))
    agent.gradient(agent.actor_rows(rows, noise, {}))
    assert agent.policy_parameters.grad is not None
    for p in range(2):
        views = {k: v.detach().clone().requires_grad_() for k, v in agent.policy_parameters.views.items()}
        real, agent.policy_parameters.views = agent.policy_parameters.views, views
        mean, log_std = plain_policy(agent, p, rows.obs[p]), views["log_std"][p]
        agent.policy_parameters.views = real
        u = mean + log_std.exp() * noise[p]
        q = torch.minimum(
            *(plain_q(agent, agent.critic.parameters.views, p, c, rows.obs[p], torch.tanh(u)) for c in range(2))
        )
        # The Gaussian's entropy in closed form and the log-determinant at the draw: the gradient of -log pi in expectation.
        entropy = log_std.expand_as(u) + torch.log(1 - torch.tanh(u) ** 2)
        loss = -(q + 0.2 * entropy.sum(-1)).mean()
        wanted = torch.cat([g[p].flatten() for g in torch.autograd.grad(loss, list(views.values()))])
        torch.testing.assert_close(agent.policy_parameters.grad[p], wanted, rtol=1e-3, atol=1e-5)


def test_blended_actions_lie_on_the_simplex_between_the_action_and_the_others() -> None:
    action = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    mixed = blended(action, torch.tensor([[0.2, 0.5]]), ActionSpec("discrete", (2,)), None)
    torch.testing.assert_close(mixed, torch.tensor([[[0.8, 0.2], [0.5, 0.5]]]))
    # Two of the other categories are not allowed: the weight goes to the one that is.
    masked = blended(
        torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]),
        torch.tensor([[0.3]]),
        ActionSpec("discrete", (4,)),
        torch.tensor([[True, False, True, False]]),
    )
    torch.testing.assert_close(masked, torch.tensor([[[0.7, 0.0, 0.3, 0.0]]]))


def test_another_action_is_one_of_the_other_allowed_ones_evenly() -> None:
    n = 30_000
    action = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]).expand(1, n, 8)  # two factors of four
    allowed = torch.tensor([[True, False, True, True], [False, True, False, False]])
    noise = torch.from_numpy(np.random.default_rng(0).standard_exponential((1, n, 2, 4))).float()
    drawn = another(action, noise, ActionSpec("discrete", (4, 4)), allowed)
    share = drawn.mean((0, 1))
    # Six standard errors of a fair coin: a false alarm in 1e-9.
    torch.testing.assert_close(share[:4], torch.tensor([0.0, 0.0, 0.5, 0.5]), atol=6 * 0.5 / n**0.5, rtol=0)
    assert share[4:].tolist() == [0.0, 1.0, 0.0, 0.0]  # there is no other
    assert another(torch.tensor([[[1.0, 0.0]]]), noise, ActionSpec("binary", (2, 2)), None).tolist() == [[[0.0, 1.0]]]


def test_an_interpolated_action_is_worth_what_lies_between(monkeypatch) -> None:
    more = {"agent": {"critic": {"blend": 0.999, "blend_target": "interpolated"}}}
    agent = agent_after(merge(CARTPOLE, more), rounds=3)
    rows = agent.replay.sample(torch.rand(len(agent.population), 64), None)
    seen = {}

    def regression(obs, action, y, weight):
        seen.update(obs=obs, action=action, y=y)
        return torch.zeros(1, *y.shape), torch.zeros_like(agent.critic.parameters.flat)

    monkeypatch.setattr(agent.critic, "regression", regression)
    agent.learn_critic(rows, agent.draws(64))
    (plain, mixed), (y, worth) = seen["action"].chunk(2, 1), seen["y"].chunk(2, 1)
    assert torch.equal(plain, rows.action)
    w = (mixed * (1 - plain)).sum(-1)  # what went to the other of the two actions
    assert bool(((w > 0) & (w < 1)).all())
    other = agent.critic.reduced(agent.critic.target, seen["obs"].chunk(2, 1)[0], 1 - plain)
    torch.testing.assert_close(worth, (1 - w) * y + w * other)


def test_the_entropy_weight_rises_below_the_target_and_falls_above() -> None:
    agent = agent_after(merge(PENDULUM, {"agent": {"auto_entropy": True}}), rounds=1)
    assert agent.target_entropy == -1
    before = agent.log_alpha.clone()
    agent.tune_entropy(torch.tensor([-5.0, 3.0]))
    assert agent.log_alpha[0] > before[0]
    assert agent.log_alpha[1] < before[1]
    assert agent_after(CARTPOLE, rounds=1).target_entropy == pytest.approx(0.5 * math.log(2))


def rows_of(values: range) -> Transitions:
    x = torch.tensor([float(v) for v in values])
    return Transitions(
        x.view(1, -1, 1), -x.view(1, -1, 1), x.view(1, -1), x.view(1, -1) * 0, x.view(1, -1, 1), x.view(1, -1) * 0 + 1
    )


def test_the_ring_keeps_the_newest_and_samples_all_of_them_evenly() -> None:
    replay = Replay(1, 5, 1, 1, masked=False, device=torch.device("cpu"))
    replay.add(rows_of(range(3)))
    assert replay.size == 3
    replay.add(rows_of(range(3, 7)))
    assert replay.size == 5
    u = (torch.arange(5.0).view(1, -1) + 0.5) / 5
    assert sorted(replay.sample(u).reward[0].tolist()) == [2, 3, 4, 5, 6]
    assert sorted(replay.sample(u, newest=2).reward[0].tolist()) == [5, 5, 5, 6, 6]
    replay.add(rows_of(range(7, 30)))  # more than fit
    assert sorted(replay.sample(u).reward[0].tolist()) == [25, 26, 27, 28, 29]
    found = replay.sample(u)
    torch.testing.assert_close(found.action[..., 0], -found.reward)
    torch.testing.assert_close(found.obs[..., 0], found.reward)
    torch.testing.assert_close(replay.rows(26, 29)[0, :, 0], torch.tensor([26.0, 27.0, 28.0]))


def test_each_member_samples_its_own_rows() -> None:
    replay = Replay(3, 4, 1, 1, masked=False, device=torch.device("cpu"))
    x = torch.arange(12.0).view(3, 4)
    replay.add(Transitions(x.unsqueeze(-1), x.unsqueeze(-1), x, x * 0, x.unsqueeze(-1), x * 0 + 1))
    found = replay.sample(torch.rand(3, 50, generator=torch.Generator().manual_seed(0)))
    for p in range(3):
        assert set(found.reward[p].tolist()) == {4.0 * p, 4 * p + 1, 4 * p + 2, 4 * p + 3}


def test_on_policy_data_is_only_what_was_collected_since_the_last_round() -> None:
    config = merge(CARTPOLE, {"agent": {"replay": {"data": "on_policy", "batch_size": 8}, "steps_per_round": 3}})
    trainer = Trainer(Config.read(config))
    agent: Any = trainer.agent
    for _ in range(8):
        _, rollout = agent.update(trainer.env)
        obs = agent.replay.sample(torch.linspace(0.01, 0.99, 50).expand(2, -1), agent.newest).obs
        fresh = rollout.obs.transpose(0, 1).flatten(1, 2)  # [P, T*N, O]
        for p in range(2):
            assert {tuple(o) for o in obs[p].tolist()} == {tuple(o) for o in fresh[p].tolist()}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {
                "estimator": {"name": "pathwise", "at_mode": True},
                "agent": {"critic": {"target_action": "mode"}},
                "policy": {"learn_std": False, "log_std": -1.0},
                "entropy_weight": 0.0,
            },
            id="ddpg",
        ),
        pytest.param({"entropy_weight": 0.0, "policy": {"state_dependent_std": True}}, id="svg0"),
        pytest.param({"policy": {"distribution": "gaussian"}, "agent": {"auto_entropy": True}}, id="clipped"),
        pytest.param({"estimator": "score_function", "baseline": "moving_average"}, id="score_function"),
        pytest.param({"agent": {"critic": {"twin": False, "target_rate": 1.0}}}, id="single-no-target"),
    ],
)
def test_known_algorithms_are_settings_and_stay_finite(changes: dict[str, Any]) -> None:
    agent = agent_after(merge(PENDULUM, changes), rounds=60)
    assert agent.updates > 40
    for parameters in agent.networks().values():
        assert torch.isfinite(parameters.flat).all()
    if changes.get("policy", {}).get("learn_std") is False:
        assert torch.equal(agent.policy_parameters.views["log_std"], torch.full((2, 1, 1), -1.0))


def test_automatic_entropy_starts_from_1_where_no_weight_is_given() -> None:
    config = merge(PENDULUM, {"agent": {"auto_entropy": True}, "entropy_weight": 0.0})
    assert torch.equal(agent_after(config, rounds=1).log_alpha, torch.zeros(2, 1))


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("hidden", [[5], [20, 4]], ids=str)
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_the_regressions_gradient_is_autograds_of_half_the_weighted_squared_error(twin, hidden, activation):
    """Summed over rows and copies; members and copies have their own rows, inputs and weights."""
    config = CriticConfig(hidden=hidden, activation=activation, twin=twin)
    critic = QCritic(config, 3, 2, Noise.of_seeds([0, 5, 1]))
    g = torch.Generator().manual_seed(3)
    obs, action = torch.randn(3, 7, 3, generator=g), torch.randn(3, 7, 2, generator=g)
    y, weight = torch.randn(3, 7, generator=g), torch.rand(3, 7, generator=g)
    weight[1, 2:5] = 0
    with torch.no_grad():
        q, grad = critic.regression(obs, action, y, weight)
    copies = 2 if twin else 1
    assert q.shape == (copies, 3, 7)
    x = torch.cat([obs, action], -1).repeat_interleave(copies, 0)  # [P*C, B, O+E]
    views = critic.parameters.views
    out = critic.network.plain([views[name] for name in critic.network.layer_names], x)
    theirs = out.reshape(3, copies, 7).transpose(0, 1)  # [C, P, B]
    torch.testing.assert_close(q, theirs.detach())
    torch.testing.assert_close(critic.all(critic.parameters, obs, action), theirs.detach())
    expected = critic.parameters.backward([(0.5 * (theirs - y).square() * weight).sum()])
    assert grad.shape == expected.shape == (3, copies * critic.parameters.size)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)
