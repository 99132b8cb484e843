"""Imported models of stable-baselines3 against stable-baselines3 itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_toys import SMALL, close, observations, trained, units
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env

from pglab.environments import make_environment
from pglab.integrations.sb3_models import Imported, imported, read_model
from pglab.lab.variance import gradients
from pglab.noise import Purpose
from pglab.returns import gae, n_step

NETS = {
    "default": {},
    "other": {"net_arch": {"pi": [8], "vf": [12, 5], "qf": [12, 5]}, "activation_fn": torch.nn.ELU},
    "linear": {"net_arch": {"pi": [], "vf": [], "qf": []}},
}
ON_POLICY = [(a, e, net) for a in (A2C, PPO) for e in ("CartPole-v1", "Pendulum-v1") for net in NETS]


def both(model, tmp_path: Path, env_id: str, **kwargs) -> Imported:
    """The model as imported from memory, which the one read from its file must equal."""
    model.save(tmp_path / "model")
    live, saved = imported(model, env_id), read_model(tmp_path / "model.zip", env_id, **kwargs)
    assert saved.algorithm == live.algorithm == type(model).__name__
    assert saved.config == live.config
    a, b = live.agent.networks(), saved.agent.networks()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name].flat, b[name].flat) for name in a)
    return live


def agrees(model, found: Imported, obs: torch.Tensor, encoded: torch.Tensor) -> None:
    """Distribution, densities of drawn actions, entropy and V of an on-policy model, at 1e-5."""
    agent, space = found.agent, model.action_space
    rows = encoded[None, None]  # [1, 1, n, O]
    mine = agent.policy.distribution(agent.policy_parameters, rows)
    theirs = model.policy.get_distribution(obs)
    close(agent.v(rows)[0, 0], model.policy.predict_values(obs).squeeze(1))
    drawn = theirs.get_actions()
    _, log_prob, entropy = model.policy.evaluate_actions(obs, drawn)
    shift = 0.0
    if isinstance(space, spaces.Box):
        middle, half = units(model)
        close(mine.mean[0, 0] * half + middle, theirs.distribution.mean)
        close(mine.log_std[0, 0].exp() * half, theirs.distribution.stddev)
        action, shift = (drawn - middle) / half, half.log().sum().item()
    elif isinstance(space, spaces.MultiBinary):
        close(mine.logits[0, 0], theirs.distribution.logits)
        action = drawn
    else:
        parts = theirs.distribution if isinstance(space, spaces.MultiDiscrete) else [theirs.distribution]
        for d, part in enumerate(parts):
            close(mine.probs()[0, 0, :, d, : part.probs.shape[1]], part.probs)
        action = torch.nn.functional.one_hot(drawn.reshape(len(obs), -1).long(), mine.logits.shape[-1])
    close(mine.log_prob(action.float()[None, None]).sum(-1)[0, 0], log_prob + shift, 2e-5)
    close(mine.entropy().sum(-1)[0, 0], entropy - shift)


@pytest.mark.parametrize(("kind", "env", "net"), ON_POLICY, ids=lambda x: getattr(x, "__name__", x))
def test_a2c_and_ppo(kind, env, net, tmp_path):
    model = trained(kind, env, policy_kwargs=dict(NETS[net]))
    found = both(model, tmp_path, env)
    obs = observations(model)
    agrees(model, found, obs, obs)
    settings = found.config.agent
    assert (settings.steps, settings.epochs, settings.minibatches) == (model.n_steps, 1, 1)
    assert (settings.returns.name, settings.normalize_advantages) == (
        ("n_step", False) if kind is A2C else ("gae", True)
    )
    assert ("elu" if net == "other" else "tanh") == found.config.policy.activation == settings.value.activation


@pytest.mark.parametrize("name", ["MultiDiscrete", "MultiBinary", "Lopsided"])
def test_other_spaces(name, tmp_path):
    env_id = f"sb3_toy/{name}-v0"
    model = trained(A2C, env_id, steps=50)
    obs = observations(model)
    encoded = torch.nn.functional.one_hot(obs, 4) if obs.ndim == 1 else obs
    found = both(model, tmp_path, env_id)
    agrees(model, found, obs, encoded.float())
    assert any("direction by direction" in note for note in found.notes) == (name == "Lopsided")


def test_gaussian_actions_clip_alike():
    model = trained(A2C, "sb3_toy/Lopsided-v0", steps=50)
    middle, half = units(model)
    drawn = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * 3
    clipped = np.clip(drawn.numpy(), model.action_space.low, model.action_space.high)
    close(((drawn - middle) / half).clamp(-1, 1) * half + middle, torch.from_numpy(clipped))


@pytest.mark.parametrize("net", NETS)
def test_sac(net, tmp_path):
    model = trained(SAC, "Pendulum-v1", policy_kwargs=dict(NETS[net]), gamma=0.98, tau=0.01)
    found = both(model, tmp_path, "Pendulum-v1")
    agent, obs = found.agent, observations(model)
    mine = agent.policy.distribution(agent.policy_parameters, obs[None, None])
    mean, log_std, _ = model.actor.get_action_dist_params(obs)
    close(mine.mean[0, 0], mean)
    close(mine.log_std[0, 0], log_std)
    theirs = model.actor.action_dist.proba_distribution(mean, log_std)
    u = mean + torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)) * log_std.exp()
    inside = u.abs().squeeze(1) < 1.5  # further out stable-baselines3's epsilon shows
    assert inside.sum() > 10
    log_prob = theirs.log_prob(torch.tanh(u), u)
    close(mine.log_prob(u[None, None]).sum(-1)[0, 0][inside], log_prob[inside], 2e-5)
    action = torch.tanh(u)
    for parameters, critic in ((agent.critic.parameters, model.critic), (agent.critic.target, model.critic_target)):
        q = agent.critic.all(parameters, obs[None], action[None])
        close(q[:, 0], torch.cat(critic(obs, action), 1).T)
    close(agent.log_alpha.squeeze(), model.log_ent_coef.squeeze())
    assert found.config.agent.auto_entropy
    assert (found.config.discount[0].start, found.config.agent.critic.target_rate) == (0.98, 0.01)


def test_sac_with_one_critic_and_a_fixed_entropy_weight(tmp_path):
    model = trained(SAC, "Pendulum-v1", steps=120, ent_coef=0.3, policy_kwargs={**SMALL, "n_critics": 1})
    found = both(model, tmp_path, "Pendulum-v1")
    assert (found.agent.critic.copies, found.config.agent.auto_entropy) == (1, False)
    assert found.config.entropy_weight[0].start == 0.3


def sb3_order(model, names: list[tuple[str, ...]], extra: str | None = None) -> np.ndarray:
    """Gradients of a torch policy in the order of pglab's flat tensor; several names are heads side by side."""
    grads = {name: p.grad for name, p in model.policy.named_parameters()}
    parts = []
    for heads in names:
        parts.append(torch.cat([grads[f"{h}.weight"] for h in heads]).T.reshape(-1))
        parts.append(torch.cat([grads[f"{h}.bias"] for h in heads]))
    return torch.cat(parts + ([grads[extra]] if extra else [])).numpy()


def test_sac_gradient_is_that_of_stable_baselines3():
    model = trained(SAC, "Pendulum-v1", policy_kwargs=dict(NETS["other"]))
    agent = imported(model).agent
    rows = agent.replay.sample(agent.noise.uniform(Purpose.REPLAY, (0,), (64,)))
    noise = agent.noise.of_kind("normal", Purpose.UPDATE, (0,), (64, 1))
    agent.gradient(agent.actor_rows(rows, noise, {}))
    obs = rows.obs[0]
    mean, log_std, _ = model.actor.get_action_dist_params(obs)
    u = mean + log_std.exp() * noise[0]
    log_prob = model.actor.action_dist.proba_distribution(mean, log_std).log_prob(torch.tanh(u), u)
    q = torch.cat(model.critic(obs, torch.tanh(u)), 1).min(1).values
    model.policy.zero_grad()
    (model.log_ent_coef.exp().detach() * log_prob - q).mean().backward()
    wanted = sb3_order(model, [("actor.latent_pi.0",), ("actor.mu", "actor.log_std")])
    np.testing.assert_allclose(agent.policy_parameters.grad[0].numpy(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [A2C, PPO])
def test_on_policy_gradient_is_that_of_stable_baselines3(kind):
    """The same rollout, played by pglab, through stable-baselines3's buffer and loss."""
    model = trained(
        kind,
        make_vec_env("Pendulum-v1", 3, seed=0),
        ent_coef=0.01,
        n_steps=20,
        policy_kwargs=dict(SMALL),
        **({"batch_size": 30} if kind is PPO else {}),
    )
    agent = imported(model, "Pendulum-v1").agent
    env = make_environment("Pendulum-v1", 1, 3)
    rollout = agent.collect(env, (0,))
    prepared = agent.prepare(rollout)
    agent.gradient(prepared)
    middle, half = units(model)
    buffer = RolloutBuffer(20, model.observation_space, model.action_space, "cpu", model.gae_lambda, model.gamma, 3)
    for t in range(20):
        obs, action = rollout.obs[t, 0], rollout.action[t, 0] * half + middle
        values, log_prob, _ = model.policy.evaluate_actions(obs, action)
        buffer.add(
            obs.numpy(), action.numpy(), rollout.reward[t, 0].numpy(), np.zeros(3), values.detach(), log_prob.detach()
        )
    buffer.compute_returns_and_advantage(model.policy.predict_values(rollout.final_obs[-1, 0]).detach(), np.zeros(3))
    (data,) = buffer.get()
    _, log_prob, entropy = model.policy.evaluate_actions(data.observations, data.actions)
    a = data.advantages
    a = (a - a.mean()) / (a.std() + 1e-8) if model.normalize_advantage else a
    model.policy.zero_grad()
    (-(a * log_prob).mean() - model.ent_coef * entropy.mean()).backward()
    wanted = sb3_order(model, [("mlp_extractor.policy_net.0",), ("action_net",)], "log_std")
    np.testing.assert_allclose(agent.policy_parameters.grad[0].numpy(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [A2C, SAC])
def test_noise_of_the_gradient_can_be_measured(kind):
    model = trained(kind, "Pendulum-v1", policy_kwargs=dict(NETS["linear"]))
    found = imported(model)
    n = found.config.env.num_envs
    g = gradients(found.agent, lambda members: make_environment("Pendulum-v1", members, n), 4, 0)
    assert g.shape == (1, 4, found.agent.policy_parameters.size)
    assert np.isfinite(g).all()
    assert (g.std(1) > 0).any()


def test_lambda_one_is_a_return_of_as_many_steps_as_the_rollout():
    g = torch.Generator().manual_seed(0)
    r, v, after = (torch.randn(12, 5, generator=g) for _ in range(3))
    ended = torch.rand(12, 5, generator=g) < 0.2
    terminated = ended & (torch.rand(12, 5, generator=g) < 0.5)
    # Where nothing ends, what a transition led to is the next row.
    after[:-1] = torch.where(ended[:-1], after[:-1], v[1:])
    close(v + gae(r, v, after, terminated, ended, 0.9, 1.0), n_step(r, after, terminated, ended, 0.9, 12))


@pytest.mark.parametrize("size", [1000, 90])
def test_replay_is_taken_over_in_order(size):
    model = trained(SAC, make_vec_env("Pendulum-v1", 2, seed=0), steps=450, buffer_size=size, policy_kwargs=dict(SMALL))
    replay, b = imported(model, "Pendulum-v1").agent.replay, model.replay_buffer
    n = min(450, size)
    assert replay.count == n
    order = np.roll(np.arange(b.size()), -b.pos if b.full else 0)
    obs, action, reward, terminated, after, valid = replay.data[0, :n].split([3, 1, 1, 1, 3, 1], -1)
    for mine, theirs in ((obs, b.observations), (action, b.actions), (after, b.next_observations)):
        np.testing.assert_array_equal(mine.numpy(), theirs[order].reshape(n, -1))
    np.testing.assert_array_equal(reward.numpy(), b.rewards[order].reshape(n, 1))
    assert float(action.abs().max()) <= 1
    assert bool(valid.all())
    assert b.dones[order].any()  # all of them by the time limit
    assert not bool(terminated.any())
    # One environment's episodes go on in every other row, where they were not cut.
    goes_on = b.dones[order].reshape(-1)[:-2] == 0
    assert torch.equal(after[:-2][goes_on], obs[2:][goes_on])
