"""The linear-quadratic regulator: its law, both interfaces, its arguments, training."""

from __future__ import annotations

import math
import os
import shutil
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from pglab_envs import LQR, TORCH_ENVS
from spine import assert_law, assert_mean, normal

from pglab.config import Config
from pglab.environments import make_environment
from pglab.environments.torch_native import TorchEnvironment
from pglab.errors import PglabError
from pglab.noise import Noise, Purpose
from pglab.training import Trainer

P, N = 2, 3
NOISE = Noise.of_seeds([5, 11])
CASES: list[dict[str, Any]] = [{}, {"preset": "point_mass"}, {"noise": 0, "start_noise": 0.0, "horizon": 7}]


def ids(value: Any) -> str:
    return ",".join(map(str, value.values())) or "default"


def test_point_mass_is_that_of_the_paper() -> None:
    env, eye, zero = LQR(preset="point_mass"), torch.eye(2).double(), torch.zeros(2, 2).double()
    assert torch.equal(env.A, torch.cat([torch.cat([eye, 0.05 * eye], 1), torch.cat([zero, eye], 1)]))
    assert torch.equal(env.B, torch.cat([zero, 0.05 * eye]))
    assert torch.equal(env.Q, torch.eye(4).double())
    assert torch.equal(env.R, 0.01 * eye)
    assert env.mean.tolist() == [3.0, 4.0, 0.5, -0.5]
    assert env.max_episode_steps == 100
    assert env.noise**2 == pytest.approx(1e-5)
    assert env.start_noise**2 == pytest.approx(1e-5)


@pytest.mark.parametrize("kwargs", CASES, ids=ids)
def test_a_step_by_hand(kwargs: dict[str, Any]) -> None:
    env = LQR(**kwargs)
    a, b, q, r = (x.numpy() for x in (env.A, env.B, env.Q, env.R))
    size, actions = b.shape
    s, u = normal(3, 4, size), normal(3, 4, actions, key=1)
    noise = torch.from_numpy(np.random.default_rng(0).random((3, 4, size))) if env.step_noise_size else None
    found, reward, terminated = env.transition(s, u) if noise is None else env.transition(s, u, noise)
    w = 0.0 if noise is None else env.noise * torch.special.ndtri(noise).numpy()
    np.testing.assert_allclose(found, np.einsum("ij,...j", a, s) + np.einsum("ij,...j", b, u) + w, atol=1e-12)
    cost = np.einsum("...i,ij,...j", s, q, s) + np.einsum("...i,ij,...j", u, r, u)
    np.testing.assert_allclose(reward, -cost, atol=1e-12)
    assert not terminated.any()
    assert torch.equal(env.observe(s), s)
    # in the state's precision, whatever the noise's
    single = (s.float(), u.float()) if noise is None else (s.float(), u.float(), noise)
    for x, y in zip(env.transition(*single)[:2], (found, reward), strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4)
    inputs = (s, u) if noise is None else (s, u, noise)
    for x, y in zip(torch.vmap(torch.vmap(env.transition))(*inputs), (found, reward, terminated), strict=True):
        torch.testing.assert_close(x, y)
    s.requires_grad_(), u.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, u: env.transition(s, u, *inputs[2:])[:2], (s, u))


@pytest.mark.statistical
def test_states_have_their_law() -> None:
    env, n = LQR(horizon=4, noise=0.3), 40_000
    rng = np.random.default_rng(0)
    start = env.initial_state(torch.from_numpy(rng.random((n, 2))))
    assert_law((start[:, 1] - env.mean[1]) / env.start_noise, "norm")
    assert_mean(start, env.mean, 0.02)
    zero = torch.zeros(n, 1, dtype=torch.float64)
    after = env.transition(0 * start, zero, torch.from_numpy(rng.random((n, 2))))[0]
    assert_law(after[:, 0] / 0.3, "norm")
    assert_mean(after[:, :1] * after[:, 1:], torch.zeros(1).double(), 0.01)  # independent components


def test_noise_is_finite_at_its_ends() -> None:
    env = LQR()
    for dtype in (torch.float32, torch.float64):
        ends = torch.tensor([0.0, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
        assert env.initial_state(ends).isfinite().all()
        assert env.transition(torch.zeros(2, dtype=dtype), torch.zeros(1, dtype=dtype), ends)[0].isfinite().all()


# -- gymnasium's interface


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kwargs", CASES, ids=ids)
def test_a_batch_is_gymnasiums_vector_of_single_ones(kwargs: dict[str, Any], mode: AutoresetMode) -> None:
    kwargs = {**kwargs, "horizon": 4}
    ours = gymnasium.make_vec("pglab/LQR-v0", num_envs=3, autoreset_mode=mode, **kwargs)
    assert type(ours) is LQR is TORCH_ENVS["LQR-v0"]
    theirs = SyncVectorEnv([lambda: gymnasium.make("pglab/LQR-v0", **kwargs)] * 3, autoreset_mode=mode)
    assert ours.single_action_space == theirs.single_action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert np.array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.standard_normal(ours.action_space.shape).astype(np.float32)
        got, wanted = ours.step(actions), theirs.step(actions)
        np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-5, atol=1e-5)
        assert np.array_equal(got[3], wanted[3])
        ended = got[2] | got[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            ours.reset(options={"reset_mask": ended})
            theirs.reset(options={"reset_mask": ended.copy()})


def test_step_noise_is_a_function_of_the_seed() -> None:
    def play(seeds: list[int], reset_first: bool = False) -> np.ndarray:
        env = LQR(len(seeds), dtype=torch.float64)
        if reset_first:  # what was drawn before a seeded reset does not matter
            env.reset(seed=99)
            env.step(np.zeros((len(seeds), 1)))
        rows = [env.reset(seed=seeds)[0]]
        rows += [env.step(np.zeros((len(seeds), 1)))[0] for _ in range(45)]  # two episodes and a half
        return np.stack(rows)

    whole = play([3, 4, 3])
    assert np.array_equal(whole[:, 0], whole[:, 2])
    assert not np.isclose(whole[1:, 0], whole[1:, 1]).any()
    assert np.array_equal(whole[:, 1:2], play([4]))  # nor does who else is there
    assert np.array_equal(whole, play([3, 4, 3], reset_first=True))
    # in double precision, from the environment's own generator
    env, rng = LQR(1, dtype=torch.float64), np.random.default_rng(7)
    env.reset(seed=0)
    env.np_random = (np.random.default_rng(7),)
    env.set_state(np.zeros((1, 2)))
    env.step(np.zeros((1, 1)))
    torch.testing.assert_close(env.get_state()[0], 0.1 * torch.special.ndtri(torch.from_numpy(rng.random(2))))


def test_a_single_ones_generator_holds_all_its_randomness() -> None:
    env: Any = gymnasium.make("pglab/LQR-v0").unwrapped
    env.reset(seed=0)
    state, obs = env.np_random.bit_generator.state, env.batch.get_state()
    first = [env.step(np.zeros(1, dtype=np.float32))[0] for _ in range(3)]
    env.np_random.bit_generator.state = state
    env.batch.set_state(obs)
    assert np.array_equal(first, [env.step(np.zeros(1, dtype=np.float32))[0] for _ in range(3)])
    gym = make_environment("pglab/LQR-v0", P, N, "gymnasium")  # which restores an episode by playing it again
    gym.reset(NOISE, (0,))
    actions = normal(8, P, N, 1).float()
    for a in actions[:4]:
        gym.step(a)
    saved = gym.get_state()
    rest = [gym.step(a) for a in actions[4:]]
    again = make_environment("pglab/LQR-v0", P, N, "gymnasium")
    assert not again.set_state(saved).lost.any()
    for a, step in zip(actions[4:], rest, strict=True):
        assert torch.equal(again.step(a).obs, step.obs)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kwargs", CASES, ids=ids)
def test_a_single_one_passes_gymnasiums_check(kwargs: dict[str, Any]) -> None:
    check_env(gymnasium.make("pglab/LQR-v0", **kwargs).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "acrobot"}, "preset must be one of stable, point_mass, got 'acrobot'"),
        ({"horizon": 0}, "horizon must be an integer of at least 1, got 0"),
        ({"noise": -0.1}, "noise must not be negative, got -0.1"),
        ({"noise": math.inf}, "noise must be a finite number"),
        ({"start_noise": "none"}, "start_noise must be a finite number, got 'none'"),
    ],
)
def test_wrong_values_are_said(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LQR(**kwargs)
    with pytest.raises(PglabError, match=message):
        make_environment("LQR-v0", P, N, kwargs=kwargs)


# -- for a population


@pytest.mark.parametrize("kwargs", CASES, ids=ids)
def test_steps_of_a_population(kwargs: dict[str, Any]) -> None:
    env = TorchEnvironment(LQR, P, N, dtype=torch.float64, max_episode_steps=3, kwargs=kwargs)
    pure, spec = env.env, env.spec
    resets, steps = pure.reset_noise_size, pure.step_noise_size
    assert not spec.action.bounded
    assert spec.differentiable
    assert not spec.terminates
    assert spec.reset_noise_size == resets + steps
    state = pure.initial_state(NOISE.uniform(Purpose.RESET, (0,), (N, resets)).double())
    assert torch.equal(env.reset(NOISE, (0,)).obs, state)  # a reset draws what it needs, and no more
    for t in range(8):
        noise = NOISE.uniform(Purpose.RESET, (1, t), (N, resets + steps)).double()
        action = normal(P, N, pure.B.shape[1], key=t)
        step = env.step(action, noise) if spec.reset_noise_size else env.step(action)
        inputs = (state, action, noise[..., resets:]) if steps else (state, action)
        state, reward, _ = pure.transition(*inputs)
        assert torch.equal(step.final_obs, state)
        assert torch.equal(step.reward, reward)
        assert (step.truncated == (t % 3 == 2)).all()
        if t % 3 == 2:
            state = pure.initial_state(noise[..., :resets])
        assert torch.equal(step.obs, state)


def test_missing_noise_is_said() -> None:
    env = TorchEnvironment(LQR, P, N, kwargs={"start_noise": 0})
    env.reset(NOISE, (0,))
    with pytest.raises(PglabError, match="reset_noise"):
        env.step(torch.zeros(P, N, 1))


@pytest.mark.parametrize(
    "config",
    [
        {"baseline": "leave_one_out", "agent": {"name": "on_policy", "collect": "episodes"}},
        {"baseline": "value", "agent": {"name": "on_policy", "steps": 8, "returns": {"name": "gae"}}},
        {"estimator": "pathwise", "agent": {"name": "actor_critic"}},
        {"agent": {"name": "bptt", "horizon": 8}},
        {"agent": {"name": "evolution"}},
    ],
    ids=["episodes", "steps", "actor_critic", "bptt", "evolution"],
)
def test_every_agent_trains_on_it(config: dict[str, Any]) -> None:
    base = {"env": {"id": "LQR-v0", "num_envs": 4}, "seeds": 2, "policy": {"distribution": "gaussian", "hidden": [8]}}
    trainer = Trainer(Config.read({**base, **config}))
    before = trainer.agent.policy_parameters.flat.detach().clone()
    for _ in range(3):
        trainer.agent.update(trainer.env)
    after = trainer.agent.policy_parameters.flat.detach()
    assert after.isfinite().all()
    assert not torch.equal(before, after) or config["agent"]["name"] == "actor_critic"  # which first fills its replay


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(c) for c in (os.environ.get("CXX"), "g++", "clang++") if c), reason="no C++ compiler"
)
@pytest.mark.parametrize("env_id", ["LQR-v0", "FrozenLakeTable-v1"])
def test_compiled_rollouts_are_eager_rollouts(env_id: str) -> None:
    """Whose step noise goes through the executor beside the initial states."""
    config = {
        "env": {"id": env_id, "num_envs": 4, "max_episode_steps": 5},
        "agent": {"name": "on_policy", "steps": 8, "returns": {"name": "gae"}},
        "policy": {"hidden": [8]},
        "baseline": "value",
        "seeds": 2,
    }
    eager, compiled = (Trainer(Config.read({**config, "executor": name})) for name in ("eager", "compile"))
    expected, found = (trainer.agent.update(trainer.env)[1] for trainer in (eager, compiled))
    assert expected.ended.any()
    for name in ("obs", "action", "reward", "ended", "final_obs"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("executor", ["eager", "cudagraph"])
@pytest.mark.parametrize("env_id", ["LQR-v0", "FrozenLakeTable-v1"])
def test_cuda_plays_like_the_cpu(env_id: str, executor: str) -> None:
    config = {"env": {"id": env_id, "num_envs": 4, "max_episode_steps": 5}, "baseline": "value", "seeds": 2}
    config |= {"agent": {"name": "on_policy", "steps": 8, "returns": {"name": "gae"}}, "policy": {"hidden": [8]}}
    cpu = Trainer(Config.read({**config, "executor": "eager"}))
    gpu = Trainer(Config.read({**config, "executor": executor, "device": "cuda"}))
    expected, found = (trainer.agent.update(trainer.env)[1] for trainer in (cpu, gpu))
    for name in ("obs", "action", "reward", "ended", "final_obs"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=1e-3, atol=1e-3)
