import io

import numpy as np
import pytest
import torch
from pglab_envs.registry import TORCH_ENVS

from pglab.environments import make_environment
from pglab.environments.gymnasium_vector import GymnasiumEnvironment
from pglab.environments.torch_native import TorchEnvironment
from pglab.errors import PglabError
from pglab.noise import Noise, Purpose

P, N = 2, 3
NOISE = Noise.of_seeds([5, 11])
IDS = ["CartPole-v1", "Pendulum-v1"]


def make(env_id, limit=None, dtype=torch.float32, members=P):
    return TorchEnvironment(TORCH_ENVS[env_id], members, N, dtype=dtype, max_episode_steps=limit)


def draw_action(env, rng):
    if env.spec.action.kind == "discrete":
        index = rng.integers(2, size=(env.num_members, N, 1))
        return torch.from_numpy(np.eye(2, dtype=np.float32)[index])
    return torch.from_numpy(rng.uniform(-1.5, 1.5, (env.num_members, N, 1)).astype(np.float32))


def play(env, steps, rng, noise=NOISE, begin=0):
    size = (N, env.spec.reset_noise_size)
    return [env.step(draw_action(env, rng), noise.uniform(Purpose.RESET, (1, begin + t), size)) for t in range(steps)]


@pytest.mark.parametrize("env_id", IDS)
def test_steps_keep_the_contract(env_id):
    env = make(env_id, limit=14)
    pure = env.env
    first = env.reset(NOISE, (0,))
    start = pure.initial_state(NOISE.uniform(Purpose.RESET, (0,), (N, env.spec.reset_noise_size)))
    assert torch.equal(first.obs, pure.observe(start))
    state, elapsed, rng, terminations, truncations = start, np.zeros((P, N), dtype=int), np.random.default_rng(0), 0, 0
    for t in range(90):
        action = draw_action(env, rng)
        noise = NOISE.uniform(Purpose.RESET, (1, t), (N, env.spec.reset_noise_size))
        step = env.step(action, noise)
        if env_id == "CartPole-v1":
            env_action = action[..., 0, :].argmax(-1)
        else:
            env_action = 2 * action.clamp(-1, 1)
        following, reward, terminated = pure.transition(state, env_action)
        elapsed += 1
        truncated = torch.from_numpy(elapsed >= 14)
        done = terminated | truncated
        assert torch.equal(step.reward, reward)
        assert torch.equal(step.terminated, terminated)
        assert torch.equal(step.truncated, truncated)
        torch.testing.assert_close(step.final_obs, pure.observe(following), rtol=0, atol=0)
        state = torch.where(done[..., None], pure.initial_state(noise), following)
        elapsed[done.numpy()] = 0
        torch.testing.assert_close(step.obs, pure.observe(state), rtol=0, atol=0)
        assert torch.equal(step.obs[~done], step.final_obs[~done])
        assert step.valid.all()
        assert step.action_mask is None
        assert step.obs.dtype == step.reward.dtype == torch.float32
        assert step.obs.shape == (P, N, env.spec.observation_size)
        terminations += int(terminated.sum())
        truncations += int(truncated.sum())
    assert truncations > 0
    assert terminations > 0 or env_id == "Pendulum-v1"


@pytest.mark.parametrize("env_id", IDS)
def test_the_twin_of_gymnasiums(env_id):
    gym = GymnasiumEnvironment(env_id, P, N, max_episode_steps=12)
    env = make(env_id, limit=12, dtype=torch.float64)
    gym.reset(NOISE, (0,))
    states = np.stack([e.unwrapped.state for e in gym.vector.envs]).reshape(P, N, -1)
    env.reset(NOISE, (0,))
    env.set_state(env.get_state() | {"state": torch.from_numpy(states)})
    rng, open_ = np.random.default_rng(0), torch.ones(P, N, dtype=torch.bool)
    for _ in range(12):
        action = draw_action(env, rng)
        if env_id == "CartPole-v1":  # always to the same side, so that it falls
            action = torch.tensor([0.0, 1.0]).expand(P, N, 1, 2)
        a, b = gym.step(action), env.step(action, torch.full((P, N, env.spec.reset_noise_size), 0.5))
        for x, y in ((a.final_obs, b.final_obs), (a.reward, b.reward)):
            torch.testing.assert_close(x[open_], y[open_].float(), rtol=1e-5, atol=1e-5)
        assert torch.equal(a.terminated[open_], b.terminated[open_])
        assert torch.equal(a.truncated[open_], b.truncated[open_])
        open_ &= ~(a.terminated | a.truncated)
    assert not open_.any()


@pytest.mark.parametrize("env_id", IDS)
def test_resuming_is_exact(env_id):
    env = make(env_id, limit=7)
    assert env.spec.resume == "exact"
    env.reset(NOISE, (0,))
    seen = play(env, 10, np.random.default_rng(0))[-1]
    file = io.BytesIO()
    torch.save(env.get_state(), file)
    file.seek(0)
    rest = play(env, 20, np.random.default_rng(1), begin=10)
    saved = torch.load(file, weights_only=True)
    other = make(env_id, limit=7)
    assert torch.equal(other.set_state(saved).obs, seen.obs)
    for a, b in zip(rest, play(other, 20, np.random.default_rng(1), begin=10), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if x is not None)


def test_a_saved_state_is_a_copy():
    env = make("CartPole-v1")
    env.reset(NOISE, (0,))
    saved = env.get_state()
    before = saved["state"].clone()
    env.state.zero_()
    assert torch.equal(saved["state"], before)
    env.set_state(saved)
    env.state.zero_()
    assert torch.equal(saved["state"], before)


def test_a_member_does_not_depend_on_the_others():
    def stream(seeds, member):
        noise, env = Noise.of_seeds(seeds), make("CartPole-v1", members=len(seeds))
        rows = [env.reset(noise, (0,)).obs[member]]
        for t in range(60):
            action = torch.eye(2)[torch.tensor([t % 2, 1, (t // 3) % 2])].expand(len(seeds), N, 2)[:, :, None]
            step = env.step(action, noise.uniform(Purpose.RESET, (1, t), (N, 4)))
            rows += [step.obs[member], step.reward[member]]
        return rows

    for alone, together in zip(stream([7], 0), stream([4, 1, 0, 7], 3), strict=True):
        assert torch.equal(alone, together)


def test_reset_where_resets_only_there():
    env = make("Pendulum-v1")
    all_new = env.reset(NOISE, (9,)).obs
    env.reset(NOISE, (0,))
    before = play(env, 4, np.random.default_rng(0))[-1].obs
    mask = torch.tensor([[True, False, True], [False, False, True]])
    after = env.reset_where(mask, NOISE, (9,)).obs
    assert torch.equal(after, torch.where(mask[..., None], all_new, before))
    assert torch.equal(env.elapsed, torch.where(mask, 0, 4).int())


def test_gradients_flow_through_the_dynamics():
    env = make("Pendulum-v1")
    env.reset(NOISE, (0,))
    action = torch.zeros(P, N, 1, requires_grad=True)
    env.step(action, torch.full((P, N, 2), 0.5))
    second = env.step(torch.zeros(P, N, 1), torch.full((P, N, 2), 0.5))
    second.reward.sum().backward()
    assert (action.grad != 0).all()
    assert not env.get_state()["state"].requires_grad


def test_mistakes_are_said():
    env = make("CartPole-v1")
    env.reset(NOISE, (0,))
    with pytest.raises(PglabError, match="reset_noise"):
        env.step(draw_action(env, np.random.default_rng(0)))
    with pytest.raises(PglabError, match="saved state"):
        env.set_state(make("Pendulum-v1").get_state())
    with pytest.raises(PglabError, match="num_envs"):
        TorchEnvironment(TORCH_ENVS["CartPole-v1"], 1, 0)


@pytest.mark.parametrize(
    ("env_id", "options", "kind"),
    [
        ("CartPole-v1", {}, TorchEnvironment),
        ("pglab/CartPole-v1", {"backend": "torch"}, TorchEnvironment),
        ("CartPole-v1", {"backend": "gymnasium"}, GymnasiumEnvironment),
        ("CartPole-v1", {"kwargs": {"sutton_barto_reward": True}}, GymnasiumEnvironment),
        ("FrozenLake-v1", {"autoreset_mode": "same_step"}, GymnasiumEnvironment),
    ],
)
def test_the_factory(env_id, options, kind):
    env = make_environment(env_id, P, N, max_episode_steps=33, **options)
    assert type(env) is kind
    assert env.spec.max_episode_steps == 33
    assert env.reset(NOISE, (0,)).obs.shape == (P, N, env.spec.observation_size)


@pytest.mark.parametrize(
    ("env_id", "options", "says"),
    [
        ("FrozenLake-v1", {"backend": "torch"}, "Unknown torch-native environment 'FrozenLake-v1'.*CartPole-v1"),
        ("CartPole-v1", {"backend": "jax"}, "backend 'jax'"),
        ("CartPole-v1", {"backend": "torch", "kwargs": {"a": 1}}, "no arguments"),
        ("CartPol-v1", {}, "Did you mean 'CartPole-v1'"),
        ("pglab/CartPole-v1", {"backend": "gymnasium"}, "pglab/CartPole-v1"),
    ],
)
def test_what_the_factory_refuses(env_id, options, says):
    with pytest.raises(PglabError, match=says):
        make_environment(env_id, P, N, **options)
