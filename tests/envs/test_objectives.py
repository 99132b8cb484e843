"""Objectives as environments of one step: rewards, closed-form gradients, both interfaces, training."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from pglab_envs import (
    TORCH_ENVS,
    BinaryQuadratic,
    Cosine,
    NormBandit,
    PolynomialProgram,
    Quadratic,
    SharedLogit,
    SimplexProgram,
    TorchVectorEnv,
    random_fourier_features,
)
from scipy import special, stats
from spine import assert_mean, normal
from torch import Tensor

from pglab import estimate_gradient, exact_gradient
from pglab.cli.list import main as list_main
from pglab.config import Config, merge
from pglab.distributions import Bernoulli, Categorical, Gaussian, SquashedGaussian
from pglab.environments import make_environment
from pglab.errors import PglabError
from pglab.gradients import push
from pglab.integrations.stable_baselines3 import evaluate_run
from pglab.lab.variance import gradients
from pglab.noise import Noise
from pglab.training import Trainer, train

CASES: list[tuple[type[TorchVectorEnv], dict[str, Any]]] = [
    (BinaryQuadratic, {}),
    (BinaryQuadratic, {"D": 4, "t": [0.1, 0.45, 0.6, 0.499], "sign": -1}),
    (SharedLogit, {}),
    (SharedLogit, {"p": [0.2, 0.9], "sign": 1}),
    (PolynomialProgram, {}),
    (PolynomialProgram, {"D": 3, "t": 0.3, "p": 1.5}),
    (SimplexProgram, {}),
    (SimplexProgram, {"K": 5, "c": [0.1, 0.2, 0.3, 0.4, 0.0]}),
    (Quadratic, {}),
    (Quadratic, {"D": 3, "t": [1.0, -2.0, 0.5], "sign": 1, "bound": 2.0}),
    (Cosine, {}),
    (Cosine, {"D": 2, "k": [1.0, 3.0]}),
    (NormBandit, {}),
    (NormBandit, {"m": 2, "bound": 3.0}),
]
ONE_STEP = [case for case in CASES if case[0] is not SharedLogit]
CLASSES = list(dict.fromkeys(cls for cls, _ in CASES))
P, N = 2, 3
NOISE = Noise.of_seeds([5, 11])


def name(value: Any) -> str | None:
    return value.__name__ if isinstance(value, type) else ",".join(value) or "default" if value == {} else None


def draw(space: gymnasium.Space, n: int, key: int) -> np.ndarray:
    """n actions as the space has them; beyond the bounds, where it is a Box."""
    rng = np.random.default_rng(key)
    if isinstance(space, spaces.Box):
        return (3 * rng.standard_normal((n, *space.shape))).astype(np.float32)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.nvec, size=(n, *space.shape))
    return rng.integers(space.n if isinstance(space, spaces.Discrete) else 2, size=(n, *space.shape))


def formula(cls: type[TorchVectorEnv], a: np.ndarray, kwargs: dict[str, Any]) -> np.ndarray:
    """The reward of actions of the space, in numpy and from the papers' formulas."""
    a = a.astype(np.float64)
    if cls is BinaryQuadratic:
        return kwargs.get("sign", 1) * ((a - np.array(kwargs.get("t", 0.45))) ** 2).sum(-1)
    if cls is PolynomialProgram:
        d, t, p = a.shape[-1], kwargs.get("t", 0.45), kwargs.get("p", 2.0)
        return -(np.linalg.norm(a - t, p, axis=-1) ** p) / d
    if cls is SimplexProgram:
        k = kwargs.get("K", 3)
        q = np.array([[math.exp(-2 * abs(i - j)) for j in range(k)] for i in range(k)])
        z = np.eye(k)[a.astype(int)] - np.array(kwargs.get("c", 1 / k))
        return -np.einsum("ni,ij,nj->n", z, q, z)
    bound = kwargs.get("bound")
    a = a if bound is None else np.clip(a, -bound, bound)
    if cls is Quadratic:
        return kwargs.get("sign", -1) * ((a - np.array(kwargs.get("t", 1.0))) ** 2).sum(-1)
    if cls is Cosine:
        return np.cos(np.array(kwargs.get("k", 1.0)) * a).sum(-1)
    return -np.sqrt((a**2).sum(-1))


# -- gymnasium's interface


@pytest.mark.parametrize(("cls", "kwargs"), ONE_STEP, ids=name)
def test_make_vec_rewards_by_the_formula(cls: type[TorchVectorEnv], kwargs: dict[str, Any]) -> None:
    env = gymnasium.make_vec(cls.id, num_envs=40, autoreset_mode="SameStep", **kwargs)
    assert type(env) is cls is TORCH_ENVS[cls.id] is TORCH_ENVS[cls.id.removeprefix("pglab/")]
    obs, info = env.reset(seed=0)
    assert info == {}
    for key in range(3):
        assert obs.dtype == np.float32
        assert np.array_equal(obs, np.ones((40, 1)))
        assert env.observation_space.contains(obs)
        actions = draw(env.single_action_space, 40, key)
        obs, reward, terminated, truncated, _ = env.step(actions)
        np.testing.assert_allclose(reward, formula(cls, actions, kwargs), rtol=2e-6, atol=2e-6)
        assert terminated.all()
        assert not truncated.any()
    env.action_space.seed(0)
    env.step(env.action_space.sample())


@pytest.mark.parametrize("kwargs", [{}, {"p": [0.2, 0.9], "sign": 1}], ids=["default", "p,sign"])
def test_shared_logit_rewards_all_bits_with_the_last(kwargs: dict[str, Any]) -> None:
    p = np.array(kwargs.get("p", [0.6, 0.51, 0.48]))
    bits = np.array(list(itertools.product((0, 1), repeat=len(p))))  # [2^D, D]
    env = gymnasium.make_vec("pglab/SharedLogit-v0", num_envs=len(bits), autoreset_mode="Disabled", **kwargs)
    wanted = kwargs.get("sign", -1) * ((bits - p) ** 2).sum(1)
    obs, _ = env.reset(seed=0)
    for i in range(len(p)):
        assert np.array_equal(obs, np.ones((len(bits), 1)))
        obs, reward, terminated, truncated, _ = env.step(bits[:, i : i + 1])
        last = i + 1 == len(p)
        assert (terminated == last).all()
        assert not truncated.any()
        np.testing.assert_allclose(reward, wanted * last, rtol=1e-6)
    np.testing.assert_allclose(env.objective(torch.from_numpy(bits).double()), wanted, rtol=1e-12)
    np.testing.assert_allclose(env.objective(torch.from_numpy(bits).double()[:, :, None].squeeze(-1)), wanted)


@pytest.mark.parametrize("cls", CLASSES, ids=name)
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_batch_is_gymnasiums_vector_of_single_ones(cls: type[TorchVectorEnv], mode: AutoresetMode) -> None:
    ours = gymnasium.make_vec(cls.id, num_envs=3, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: gymnasium.make(cls.id)] * 3, autoreset_mode=mode)
    assert ours.single_action_space == theirs.single_action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert np.array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    for key in range(8):
        actions = draw(ours.single_action_space, 3, key)
        got, wanted = ours.step(actions), theirs.step(actions)
        for a, b in zip(got[:4], wanted[:4], strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
        assert got[4].keys() == wanted[4].keys()
        ended = got[2] | got[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            ours.reset(options={"reset_mask": ended})
            theirs.reset(options={"reset_mask": ended.copy()})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("cls", "kwargs"), CASES, ids=name)
def test_a_single_one_passes_gymnasiums_check(cls: type[TorchVectorEnv], kwargs: dict[str, Any]) -> None:
    check_env(gymnasium.make(cls.id, **kwargs).unwrapped, skip_render_check=True)


def test_a_single_one_waits_for_its_reset() -> None:
    env = gymnasium.make("pglab/BinaryQuadratic-v0").unwrapped
    env.reset(seed=0)
    env.step(np.array([1]))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([1]))
    with pytest.raises(TypeError, match="cannot be rendered"):
        gymnasium.make("pglab/BinaryQuadratic-v0", render_mode="rgb_array")


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (BinaryQuadratic, {"D": 0}, "D must be an integer of at least 1, got 0"),
        (BinaryQuadratic, {"D": 2.0}, "D must be an integer"),
        (BinaryQuadratic, {"D": True}, "D must be an integer"),
        (BinaryQuadratic, {"D": 3, "t": [0.1, 0.2]}, "t must be a list of 3 finite numbers, got 2"),
        (BinaryQuadratic, {"t": "half"}, "t must be a finite number, got 'half'"),
        (BinaryQuadratic, {"t": math.nan}, "t must be a finite number"),
        (BinaryQuadratic, {"sign": 0}, "sign must be 1"),
        (SharedLogit, {"p": []}, "p must be a list of finite numbers, got 0"),
        (SharedLogit, {"p": 0.5}, "p must be a list"),
        (PolynomialProgram, {"p": 0.5}, "p must be at least 1"),
        (SimplexProgram, {"K": 1}, "K must be an integer of at least 2"),
        (SimplexProgram, {"c": [1.0]}, "c must be a list of 3"),
        (Quadratic, {"bound": -1.0}, "bound must be positive"),
        (Quadratic, {"bound": math.inf}, "bound must be a finite number"),
        (Cosine, {"k": [1.0, math.inf], "D": 2}, "k must be a finite number"),
        (NormBandit, {"m": -3}, "m must be an integer"),
    ],
)
def test_wrong_values_are_said(cls: type[TorchVectorEnv], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gymnasium.make_vec(cls.id, num_envs=2, **kwargs)
    with pytest.raises(PglabError, match=message):
        make_environment(cls.id, P, N, kwargs=kwargs)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "backend", "message"),
    [
        ("pglab/BinaryQuadratic-v0", {"d": 3}, "auto", "Unknown argument of pglab/BinaryQuadratic-v0 'd'.* D, sign, t"),
        ("BinaryQuadratic-v0", {"dtype": "float64"}, "auto", "Unknown argument"),
        ("pglab/CartPole-v1", {"a": 1}, "auto", "takes no arguments"),
        ("CartPole-v1", {"a": 1}, "torch", "takes no arguments"),
    ],
)
def test_wrong_names_are_said(env_id: str, kwargs: dict[str, Any], backend: Any, message: str) -> None:
    with pytest.raises(PglabError, match=message):
        make_environment(env_id, P, N, backend, kwargs=kwargs)


@pytest.mark.parametrize("actions", [np.array([[0, 2]]), np.array([[-1, 0]]), np.array([[0.0, 1.0]]), np.array([0, 1])])
@pytest.mark.parametrize("cls", [BinaryQuadratic, PolynomialProgram])
def test_bad_actions_are_said(cls: type[TorchVectorEnv], actions: np.ndarray) -> None:
    env = gymnasium.make_vec(cls.id, num_envs=1, D=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must"):
        env.step(actions)


def test_options_are_the_arguments() -> None:
    for env_id in sorted(set(TORCH_ENVS)):
        cls = TORCH_ENVS[env_id]
        own = set(inspect.signature(cls).parameters) - set(inspect.signature(TorchVectorEnv).parameters) - {"vector"}
        assert set(cls.options) == own
    with_objective = {cls for cls in TORCH_ENVS.values() if hasattr(cls, "objective")}
    assert with_objective == set(CLASSES)
    assert all(cls.options for cls in with_objective)


def test_the_list_has_them(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    assert list_main(["environments", "--quiet", "--json", str(file)]) == 0
    rows = {row["environment"]: row for row in json.loads(file.read_text())}
    for cls in CLASSES:
        row = rows[cls.id.removeprefix("pglab/")]
        assert row["arguments"] == ", ".join(cls.options)
        shown = str(cls(1).single_action_space) if cls is not PolynomialProgram else "MultiDiscrete([2] * 128)"
        assert row["actions"] == shown
        assert row["time limit"] == cls(1).max_episode_steps
    assert rows["CartPole-v1"]["arguments"] is None


# -- as functions of tensors


def batch(env: TorchVectorEnv, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """States and actions with two batch axes, as `transition` takes them."""
    state = env.initial_state(torch.zeros(3, 4, 0, dtype=dtype))
    action = torch.from_numpy(draw(env.single_action_space, 12, 0)).unflatten(0, (3, 4))
    return state, action.to(dtype) if isinstance(env.single_action_space, spaces.Box | spaces.MultiBinary) else action


@pytest.mark.parametrize(("cls", "kwargs"), CASES, ids=name)
def test_the_functions_take_any_batch_shape(cls: type[TorchVectorEnv], kwargs: dict[str, Any]) -> None:
    env = cls(1, **kwargs)
    for dtype in (torch.float32, torch.float64):
        state, action = batch(env, dtype)
        before = state.clone(), action.clone()
        results = env.transition(state, action)
        assert torch.equal(state, before[0])
        assert torch.equal(action, before[1])
        assert [tuple(x.shape) for x in results] == [(3, 4, cls.state_size), (3, 4), (3, 4)]
        assert [x.dtype for x in results] == [dtype, dtype, torch.bool]
        assert torch.equal(env.observe(state), torch.ones(3, 4, 1, dtype=dtype))
        for x, y in zip(env.transition(state[1, 2], action[1, 2]), results, strict=True):
            torch.testing.assert_close(x, y[1, 2])
        mapped = torch.vmap(torch.vmap(env.transition))(state, action)
        for x, y in zip(mapped, results, strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize(("cls", "kwargs"), CASES, ids=name)
def test_rewards_are_differentiable_where_declared(cls: type[TorchVectorEnv], kwargs: dict[str, Any]) -> None:
    env = cls(1, **kwargs)
    if cls.differentiable:
        state, action = batch(env, torch.float64)
        action = (0.3 * action + 0.1).clamp(-1.9, 1.9).requires_grad_()
        if cls is SharedLogit:
            state = torch.tensor([1.0, env.max_episode_steps - 1, 0.4], dtype=torch.float64).expand(3, 4, 3)
        assert torch.autograd.gradcheck(lambda a: env.transition(state, a)[1], action)
    # f itself, at relaxed actions
    space = env.single_action_space
    event = {SharedLogit: (env.max_episode_steps,), PolynomialProgram: (*space.shape, 2)}
    shape = (1, space.n) if isinstance(space, spaces.Discrete) else event.get(cls, space.shape)
    relaxed = torch.from_numpy(np.random.default_rng(0).uniform(0.05, 0.4, (2, *shape))).requires_grad_()
    assert env.objective(relaxed).shape == (2,)
    assert torch.autograd.gradcheck(env.objective, relaxed)


@pytest.mark.parametrize(("cls", "kwargs"), ONE_STEP, ids=name)
def test_a_reward_is_the_objective_of_what_a_policy_draws(cls: type[TorchVectorEnv], kwargs: dict[str, Any]) -> None:
    """Through both backends, which also give the same."""
    env, gym = (make_environment(cls.id, P, N, backend, kwargs=kwargs) for backend in ("torch", "gymnasium"))
    assert env.spec.action.kind == gym.spec.action.kind
    assert env.spec.action.event_shape == gym.spec.action.event_shape
    assert env.spec.resume == "exact"
    assert not env.spec.terminates
    assert torch.equal(env.reset(NOISE, (0,)).obs, torch.ones(P, N, 1))
    assert torch.equal(gym.reset(NOISE, (0,)).obs, torch.ones(P, N, 1))
    rng = np.random.default_rng(1)
    for _ in range(3):
        if env.spec.action.kind == "discrete":
            d, k = env.spec.action.event_shape
            action = torch.from_numpy(np.eye(k, dtype=np.float32)[rng.integers(k, size=(P, N, d))])
        elif env.spec.action.kind == "binary":
            action = torch.from_numpy(rng.integers(2, size=(P, N, *env.spec.action.event_shape)).astype(np.float32))
        else:
            action = torch.from_numpy(rng.uniform(-1, 1, (P, N, *env.spec.action.event_shape)).astype(np.float32))
        step, other = env.step(action), gym.step(action)
        wanted = env.env.objective(action.flatten(0, 1)).unflatten(0, (P, N))
        torch.testing.assert_close(step.reward, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(step.reward, other.reward, rtol=1e-5, atol=1e-6)
        assert torch.equal(step.terminated, other.terminated)
        assert torch.equal(step.truncated, other.truncated)
        assert step.terminated.all()
        assert not step.truncated.any()
        assert step.ended.all()
        assert torch.equal(step.obs, torch.ones(P, N, 1))
        assert torch.equal(step.final_obs, torch.ones(P, N, 1))


def test_a_time_limit_below_the_end_truncates() -> None:
    env = make_environment("pglab/SharedLogit-v0", P, N, max_episode_steps=2, kwargs={"p": [0.1, 0.2, 0.3, 0.4]})
    env.reset(NOISE, (0,))
    for cut in (False, True, False):
        step = env.step(torch.ones(P, N, 1))
        assert (step.truncated == cut).all()
        assert not step.terminated.any()
        assert (step.reward == 0).all()
    whole = make_environment("pglab/SharedLogit-v0", P, N, kwargs={"p": [0.1, 0.2]})
    whole.reset(NOISE, (0,))
    assert whole.spec.max_episode_steps == 2
    steps = [whole.step(torch.ones(P, N, 1)) for _ in range(4)]  # two episodes
    assert [bool(step.terminated.all()) for step in steps] == [False, True, False, True]
    torch.testing.assert_close(torch.stack([s.reward[0, 0] for s in steps]), torch.tensor([0.0, -1.45, 0.0, -1.45]))


def test_bits_of_a_bernoulli_policy_fit_the_polynomial_program() -> None:
    env = PolynomialProgram(D=3, t=[0.1, 0.5, 0.7], p=3.0)
    bits = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert torch.equal(env.objective(bits), env.objective(torch.stack((1 - bits, bits), -1)))


# -- exact gradients


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        assert value.dtype == wanted[key].dtype
        torch.testing.assert_close(value, wanted[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kwargs", [{"D": 1}, {"D": 5, "t": [0.1, 0.45, 0.5, 0.9, 2.0]}, {"D": 3, "sign": -1}])
def test_binary_quadratic_by_enumeration(kwargs: dict[str, Any]) -> None:
    env, logits = BinaryQuadratic(**kwargs), 2 * normal(kwargs["D"])
    close(env.exact_gradient(logits), exact_gradient(Bernoulli(logits), env.objective))


def test_binary_quadratics_published_numbers() -> None:
    def at(theta: float, t: float) -> float:
        logit = torch.tensor([math.log(theta / (1 - theta))], dtype=torch.float64)
        return BinaryQuadratic(t=t).exact_gradient(logit)["logits"].item()

    assert at(0.1, 0.499) == pytest.approx(1.8e-4)
    assert at(0.5, 0.45) == pytest.approx(0.025)
    extreme = BinaryQuadratic(D=2).exact_gradient(torch.tensor([-60.0, 60.0]))["logits"]
    assert (extreme > 0).all()  # not rounded away in float32


@pytest.mark.parametrize("phi", [0.0, -4.0, 1.3])
def test_shared_logit_by_enumeration(phi: float) -> None:
    env, logit = SharedLogit(), torch.tensor(phi, dtype=torch.float64)
    found = env.exact_gradient(logit)["logit"]
    factors = exact_gradient(Bernoulli(logit.expand(3)), env.objective)["logits"]
    torch.testing.assert_close(found, factors.sum(), rtol=1e-10, atol=1e-12)
    # of the expected return, over all episodes of the environment
    leaf = logit.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=3):
        state, probability = env.initial_state(torch.zeros(0, dtype=torch.float64)), 1.0
        for bit in bits:
            state, reward, _ = env.transition(state, torch.tensor([bit], dtype=torch.float64))
            probability = probability * torch.sigmoid(leaf if bit else -leaf)
        total = total + probability * reward
    torch.testing.assert_close(torch.autograd.grad(total, leaf)[0], found, rtol=1e-10, atol=1e-12)
    if phi == 0.0:
        assert found.item() == pytest.approx(0.045)  # minus the loss's


@pytest.mark.parametrize("kwargs", [{"D": 4}, {"D": 3, "t": [0.1, 0.5, 0.9], "p": 1.5}, {"D": 2, "t": 1.4, "p": 3}])
def test_polynomial_program_by_enumeration(kwargs: dict[str, Any]) -> None:
    env, logits = PolynomialProgram(**kwargs), normal(kwargs["D"])
    close(env.exact_gradient(logits), exact_gradient(Bernoulli(logits), env.objective))
    pairs = normal(kwargs["D"], 2)
    close(env.exact_gradient(pairs), exact_gradient(Categorical(pairs), env.objective))


@pytest.mark.parametrize("kwargs", [{}, {"K": 5}, {"K": 2, "c": [0.9, -0.4]}])
def test_simplex_program_by_enumeration(kwargs: dict[str, Any]) -> None:
    env, logits = SimplexProgram(**kwargs), normal(kwargs.get("K", 3))
    close(env.exact_gradient(logits), exact_gradient(Categorical(logits), env.objective))
    with_factor = logits.unsqueeze(0)
    close(env.exact_gradient(with_factor), exact_gradient(Categorical(with_factor), env.objective))


def test_the_papers_simplex_program_has_the_quadratic_as_its_mean() -> None:
    env, k = SimplexProgram(), 3
    for key in range(4):
        p = torch.softmax(normal(k, key=key), -1)
        mean = (p * env.objective_at(p)(torch.eye(k, dtype=torch.float64))).sum()
        off = p.numpy() - 1 / 3
        q = np.exp(-2.0 * np.abs(np.arange(k)[:, None] - np.arange(k)))
        assert mean.item() == pytest.approx(-off @ q @ off, rel=1e-10)
    # the objective of the environment is another function
    assert (p * env.objective(torch.eye(k, dtype=torch.float64))).sum().item() != pytest.approx(mean.item(), rel=0.1)


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (Quadratic, {"D": 2, "t": [1.0, -0.5]}),
        (Quadratic, {"D": 1, "sign": 1, "t": 0.0}),
        (Quadratic, {"D": 2, "bound": 3.0}),
        (Cosine, {"D": 2, "k": [0.7, 3.0]}),
        (Cosine, {"D": 1, "k": 6.0}),
        (Cosine, {"D": 2, "bound": 0.5, "k": 2.0}),
    ],
)
def test_smooth_ones_by_quadrature(cls: type[Any], kwargs: dict[str, Any]) -> None:
    env, d = cls(**kwargs), kwargs["D"]
    mean, log_std = normal(d), 0.3 * normal(d, key=1) - 0.4
    found, wanted = env.exact_gradient(mean, log_std), exact_gradient(Gaussian(mean, log_std), env.objective)
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-8, atol=1e-9)


def kummer(mean: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of -E||a|| with one standard deviation s, from E||a|| = C M(-1/2; m/2; -x), x = ||mean||^2 / (2 s^2),
    and d E / d log s_i = s^2 d^2 E / d mean_i^2."""
    m, x = len(mean), mean @ mean / (2 * s * s)
    c = math.sqrt(2) * math.exp(special.gammaln((m + 1) / 2) - special.gammaln(m / 2))
    slope = c / (m * s) * special.hyp1f1(0.5, m / 2 + 1, -x)
    bend = c / (m * (m + 2) * s**3) * special.hyp1f1(1.5, m / 2 + 2, -x)
    return -slope * mean, -s * s * (slope - bend * mean * mean)


@pytest.mark.parametrize(
    ("m", "s", "scale"), [(1, 1.0, 1.0), (2, 0.1, 1.0), (6, 1.0, 0.0), (50, 3.0, 0.1), (1000, 0.01, 1)]
)
def test_norm_bandit_with_one_standard_deviation(m: int, s: float, scale: float) -> None:
    mean = scale * normal(m)
    found = NormBandit(m=m).exact_gradient(mean, torch.full((m,), math.log(s), dtype=torch.float64))
    for value, wanted in zip(found.values(), kummer(mean.numpy(), s), strict=True):
        torch.testing.assert_close(value, torch.from_numpy(wanted), rtol=1e-10, atol=1e-12)


def test_norm_bandit_with_different_standard_deviations() -> None:
    """In one dimension E|a| is the folded normal's mean; in two, the score's mean by quadrature in polar coordinates about
    the kink. Standard deviations as small and as large as a policy's may be give finite numbers, equal in float32."""
    mean, s = 0.7, 0.4
    found = NormBandit(m=1).exact_gradient(*(torch.tensor([x], dtype=torch.float64) for x in (mean, math.log(s))))
    assert found["mean"].item() == pytest.approx(-math.erf(mean / (s * math.sqrt(2))), rel=1e-12)
    assert found["log_std"].item() == pytest.approx(-2 * s * s * stats.norm.pdf(mean, 0, s), rel=1e-12)

    mu, std = np.array([0.5, -0.3]), np.array([0.6, 1.1])
    nodes, weights = np.polynomial.legendre.leggauss(400)
    r, wr = 6 * (nodes + 1), 6 * weights  # to 12, over ten standard deviations
    angle = np.arange(400) * 2 * math.pi / 400
    a = r[:, None, None] * np.stack((np.cos(angle), np.sin(angle)), -1)  # [400, 400, 2]
    density = stats.norm.pdf(a, mu, std).prod(-1) * (r * wr)[:, None] * 2 * math.pi / 400
    z = (a - mu) / std
    wanted = {
        name: -(density[..., None] * r[:, None, None] * score).sum((0, 1))
        for name, score in (("mean", z / std), ("log_std", z * z - 1))
    }
    env = NormBandit(m=2)
    found = env.exact_gradient(torch.from_numpy(mu), torch.from_numpy(std).log())
    for key, value in found.items():
        np.testing.assert_allclose(value.numpy(), wanted[key], rtol=1e-9)

    low, high = torch.tensor([-20.0, 2.0, -20.0]), torch.tensor([3.0, -1e-3, 0.0])
    wide = NormBandit(m=3).exact_gradient(high, low)
    exact = NormBandit(m=3).exact_gradient(high.double(), low.double())
    for key, value in wide.items():
        assert value.isfinite().all()
        torch.testing.assert_close(value.double(), exact[key], rtol=1e-5, atol=1e-12)


@pytest.mark.statistical
def test_estimates_of_plain_objectives_have_the_exact_mean() -> None:
    env: Any = PolynomialProgram(D=128, p=3.0)
    logits = 0.5 * normal(128, 2)
    samples = estimate_gradient("score_function", Categorical(logits), env.objective, 4000, 4, baseline="leave_one_out")
    assert_mean(samples["logits"], env.exact_gradient(logits)["logits"], 2e-3)

    env, m = NormBandit(m=50), 50
    d = Gaussian(0.2 * normal(m), 0.2 * normal(m, key=1))
    samples = estimate_gradient("pathwise", d, env.objective, 4000)
    exact = env.exact_gradient(d.mean, d.log_std)
    for key, value in samples.items():
        assert_mean(value, exact[key], 0.05)

    env = Quadratic(D=1, bound=2.0)
    squashed = SquashedGaussian(torch.tensor([0.3]).double(), torch.tensor([-0.7]).double())
    exact = exact_gradient(squashed, env.objective)
    for key, value in estimate_gradient("pathwise", squashed, env.objective, 20_000).items():
        assert_mean(value, exact[key], 0.12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("cls", "kwargs"), CASES, ids=name)
def test_cuda_is_like_the_cpu(cls: type[Any], kwargs: dict[str, Any]) -> None:
    cpu, gpu = (cls(1, device=device, **kwargs) for device in ("cpu", "cuda"))
    state, action = batch(cpu, torch.float32)
    for x, y in zip(cpu.transition(state, action), gpu.transition(state.cuda(), action.cuda()), strict=True):
        assert y.device.type == "cuda"
        torch.testing.assert_close(x, y.cpu(), rtol=1e-5, atol=1e-6)
    width = {SharedLogit: (), SimplexProgram: (kwargs.get("K", 3),)}.get(cls, cpu.single_action_space.shape)
    parameters = [0.1 * normal(*width), *([0.1 * normal(*width, key=1)] if "continuous" in cls.__module__ else [])]
    found, wanted = gpu.exact_gradient(*(p.cuda() for p in parameters)), cpu.exact_gradient(*parameters)
    for key, value in found.items():
        torch.testing.assert_close(value.cpu(), wanted[key], rtol=1e-9, atol=1e-12)


# -- random Fourier features


def test_random_fourier_features_approximate_the_kernel() -> None:
    x = normal(8, 3)
    phi = random_fourier_features(3, features=200_000, bandwidth=1.7, seed=3)
    kernel = torch.exp(-torch.cdist(x, x).square() / (2 * 1.7**2))
    features = phi(x)
    assert features.shape == (8, 200_000)
    torch.testing.assert_close(features @ features.T, kernel, atol=0.015, rtol=0)


def test_random_fourier_features_are_a_function_of_their_seed() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5, 6)))
    phi = random_fourier_features(6)
    assert phi(x).shape == (2, 5, 250)
    assert torch.equal(phi(x), random_fourier_features(6, bandwidth=math.sqrt(12))(x))
    assert not torch.equal(phi(x), random_fourier_features(6, seed=1)(x))
    assert phi(x.float()).dtype == torch.float32
    for kwargs in ({"m": 0}, {"m": 2, "features": 0}, {"m": 2, "bandwidth": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            random_fourier_features(**kwargs)


# -- training

BASE: dict[str, Any] = {
    "agent": {"name": "on_policy", "collect": "episodes", "block": 1, "reduction": "mean_over_episodes"},
    "baseline": "leave_one_out",
    "discount": 1.0,
    "policy": {"hidden": [4], "output_gain": 1.0},
    "learning_rate": 0.05,
    "seeds": 1,
    "total_steps": 4000,
    "evaluation": {"every": 2000, "episodes": 2, "final_episodes": 2},
}
TRAINED: list[tuple[type[Any], dict[str, Any], dict[str, Any]]] = [
    (BinaryQuadratic, {"D": 3, "t": [0.1, 0.45, 0.8]}, {}),
    (SharedLogit, {}, {}),
    (PolynomialProgram, {"D": 4}, {}),
    (PolynomialProgram, {"D": 4, "p": 1.5}, {"policy": {"distribution": "bernoulli"}}),
    (SimplexProgram, {}, {}),
    (Quadratic, {"D": 2}, {"policy": {"log_std": -0.5}}),
    (Cosine, {"D": 2, "k": 2.0}, {"policy": {"log_std": -0.5}}),
    (NormBandit, {"m": 3}, {"policy": {"log_std": 0.3}}),
]


def config(cls: type[TorchVectorEnv], kwargs: dict[str, Any], more: dict[str, Any], num_envs: int) -> Config:
    return Config.read(merge(merge(BASE, {"env": {"id": cls.id, "num_envs": num_envs, "kwargs": kwargs}}), more))


@pytest.mark.statistical
@pytest.mark.parametrize(("cls", "kwargs", "more"), TRAINED)
def test_the_policy_gradient_is_the_exact_one_pushed_through_the_network(
    cls: type[Any], kwargs: dict[str, Any], more: dict[str, Any]
) -> None:
    trainer = Trainer(config(cls, kwargs, more, 8))
    agent = trainer.agent
    found = gradients(agent, lambda members: trainer.environment(members, 8), 4000, 0)[0]  # [R, n]

    distribution = agent.policy.distribution(agent.policy_parameters, torch.ones(1, 1, 1, 1))
    leaves = [getattr(distribution, p).detach()[0, 0, 0].double() for p in distribution.parameters]
    env = cls(**kwargs)
    if cls is SimplexProgram:
        leaves = [leaf.squeeze(0) for leaf in leaves]
    exact = env.exact_gradient(leaves[0].squeeze(-1)) if cls is SharedLogit else env.exact_gradient(*leaves)
    pushed = [
        g.float().reshape(getattr(distribution, p).shape)
        for g, p in zip(exact.values(), distribution.parameters, strict=True)
    ]
    push(agent.policy_parameters, distribution, pushed, torch.ones(1, 1, 1))
    wanted = agent.policy_parameters.grad
    assert wanted is not None
    largest = float(wanted.abs().max())
    assert_mean(torch.from_numpy(found).double(), wanted[0].double(), 0.15 * largest)


def expected(cls: type[Any], kwargs: dict[str, Any], agent: Any) -> float:
    """E[f] under the policy, from 20,000 draws."""
    distribution = agent.policy.distribution(agent.policy_parameters, torch.ones(1, 1, 20_000, 1))
    kind, shape = agent.event
    noise = Noise.of_seeds([0]).of_kind(kind, 0, (0,), (1, 20_000, *shape), axis=1)
    action = agent.policy.present(distribution.executed(distribution.sample(noise)))[0, 0]
    if cls is SharedLogit:  # one bit a draw
        action = action.squeeze(-1)[:19_998].unflatten(0, (-1, 3))
    return float(cls(**kwargs).objective(action).mean())


@pytest.mark.parametrize(("cls", "kwargs", "more"), TRAINED)
def test_training_improves_the_return(
    cls: type[Any], kwargs: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    settings = config(cls, kwargs, more, 32)
    before = expected(cls, kwargs, Trainer(settings).agent)
    train(settings.plain(), tmp_path / "run")
    trained = Trainer(settings)
    trained.agent.load_state(saved(tmp_path / "run"))
    after = expected(cls, kwargs, trained.agent)
    assert after > before + 0.01
    assert len(evaluate_run(tmp_path / "run", 3, True, 0)[0]["returns"]) == 3


@pytest.mark.parametrize(
    ("cls", "kwargs", "estimator"),
    [(Quadratic, {"D": 2, "bound": 2.0}, "pathwise"), (BinaryQuadratic, {"D": 3, "t": 0.2}, "gumbel_softmax")],
)
def test_a_critic_learns_them_too(cls: type[Any], kwargs: dict[str, Any], estimator: str, tmp_path: Path) -> None:
    """Squashed Gaussian in the bounds; relaxed bits."""
    actor_critic = {
        "agent": {"name": "actor_critic", "replay": {"batch_size": 32, "warmup": 50}},
        "estimator": estimator,
        "baseline": "none",
        "learning_rate": 0.01,
        "total_steps": 400,
    }
    base = {key: value for key, value in BASE.items() if key != "agent"}
    settings = Config.read(merge(merge(base, {"env": {"id": cls.id, "num_envs": 2, "kwargs": kwargs}}), actor_critic))
    before = expected(cls, kwargs, Trainer(settings).agent)
    train(settings.plain(), tmp_path / "run")
    trained = Trainer(settings)
    trained.agent.load_state(saved(tmp_path / "run"))
    assert expected(cls, kwargs, trained.agent) > before + 0.1


def saved(folder: Path) -> dict[str, Any]:
    from pglab import checkpoint

    return torch.load(checkpoint.checkpoints(folder / "checkpoints")[-1], weights_only=True)["agent"]
