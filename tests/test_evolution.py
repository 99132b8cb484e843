"""Evolution strategies: the estimate against smoothed objectives in closed form, and what perturbed networks play."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pglab_envs.base import TorchVectorEnv
from pglab_envs.registry import TORCH_ENVS
from spine import assert_mean, hermite
from test_training import assert_same, final_state, killed_after, logged
from torch import Tensor

import pglab
from pglab.agents import EvolutionAgent
from pglab.agents.evolution import SharedNoise, search_gradient, shaped
from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.lab.variance import gradients
from pglab.noise import Noise, Purpose
from pglab.training import Trainer, resume, train

BASE: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 8},
    "agent": {"name": "evolution"},
    "policy": {"hidden": [3]},
    "discount": 0.9,
    "seeds": 2,
    "total_steps": 400,
    "evaluation": {"episodes": 2, "final_episodes": 2},
}


def read(*more: dict[str, Any]) -> Config:
    data = BASE
    for extra in more:
        data = merge(data, extra)
    return Config.read(data)


def evolving(*more: dict[str, Any]) -> tuple[EvolutionAgent, Trainer]:
    trainer = Trainer(read(*more))
    assert isinstance(trainer.agent, EvolutionAgent)
    return trainer.agent, trainer


# -- the estimate on functions of the parameters


def nodes(dimensions: int, n: int = 24) -> tuple[Tensor, Tensor]:
    """Quadrature against independent standard normals: `[Q, dimensions]` and weights `[Q]`."""
    x, w = hermite(n)
    grid = torch.cartesian_prod(*[x] * dimensions).reshape(-1, dimensions)
    return grid, torch.cartesian_prod(*[w] * dimensions).reshape(-1, dimensions).prod(1)


def estimates(
    f: Any, theta: Tensor, sigma: Tensor, epsilon: Tensor, mirrored: bool, loo: bool
) -> tuple[Tensor, Tensor]:
    """Estimates `[Q, n]` at mean and log sigma from draws `[Q, K, n]`: every row is a member of its own."""
    step = sigma * epsilon
    z = torch.stack([theta + step, theta - step], 2).flatten(1, 2) if mirrored else theta + step
    return search_gradient(epsilon, f(z), sigma.expand(len(epsilon), -1), mirrored, loo)


@pytest.mark.parametrize(("d", "s"), [(0.7, 0.5), (-1.3, 0.1), (0.0, 1.0)])
def test_of_a_square_mean_and_variance_are_the_known_ones(d: float, s: float) -> None:
    """f = z^2: gradients 2 d and 2 s^2; variances 15 s^2 + 14 d^2 + d^4 / s^2 plain and 8 d^2 mirrored."""
    epsilon, w = nodes(1)
    known = {False: 15 * s**2 + 14 * d**2 + d**4 / s**2, True: 8 * d**2}
    for mirrored, variance in known.items():
        theta, sigma = torch.tensor([d], dtype=torch.float64), torch.tensor([s], dtype=torch.float64)
        g, h = estimates(lambda z: z[..., 0] ** 2, theta, sigma, epsilon.unsqueeze(1), mirrored, False)
        assert float(w @ g[:, 0]) == pytest.approx(2 * d, abs=1e-10)
        assert float(w @ g[:, 0] ** 2) - 4 * d * d == pytest.approx(variance, abs=1e-9)
        assert float(w @ h[:, 0]) == pytest.approx(2 * s * s, abs=1e-10)


def crooked(z: Tensor) -> Tensor:
    return torch.sin(z[..., 0]) * z[..., 1] + z[..., 0] ** 3 - 0.4 * z[..., 1] ** 2 + 2


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("loo", [False, True])
def test_the_expectation_is_the_smoothed_objectives_gradient(mirrored: bool, loo: bool) -> None:
    """Against a derivative of E[f(theta + sigma eps)] itself, taken through theta and sigma inside of f."""
    theta = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    log_sigma = torch.tensor([math.log(0.4), math.log(0.9)], dtype=torch.float64, requires_grad=True)
    x, w = nodes(2)
    smoothed = (w * crooked(theta + log_sigma.exp() * x)).sum()
    exact = torch.autograd.grad(smoothed, [theta, log_sigma])
    sigma = log_sigma.detach().exp()
    if loo:  # two draws: all pairs of nodes
        few, v = nodes(2, 10)
        pair = torch.cartesian_prod(torch.arange(len(v)), torch.arange(len(v)))
        draws, w = few[pair], v[pair].prod(1)  # [Q, 2, 2]
    else:
        draws = x.unsqueeze(1)
    found = estimates(crooked, theta.detach(), sigma, draws, mirrored, loo)
    for g, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(w @ g, wanted, rtol=1e-8, atol=1e-8)


def test_a_baseline_leaves_out_the_draw_and_its_mirror_image() -> None:
    epsilon = torch.tensor([[[1.0], [-2.0], [0.5]]])
    sigma = torch.tensor([[0.5]])
    plain, _ = search_gradient(epsilon, torch.tensor([[3.0, 1.0, 8.0]]), sigma, False, True)
    # Less the means of the others: 3 - 4.5, 1 - 5.5, 8 - 2.
    assert plain.item() == pytest.approx((-1.5 * 1 + -4.5 * -2 + 6 * 0.5) / (3 * 0.5))
    value = torch.tensor([[3.0, 1.0, 8.0, 0.0, 2.0, 4.0]])
    without = search_gradient(epsilon, value, sigma, True, False)
    mean, log_sigma = search_gradient(epsilon, value, sigma, True, True)
    assert mean.item() == without[0].item() == pytest.approx((1 * 1 + 4 * -2 + -1 * 0.5) / (3 * 0.5))
    # Pairs' means 2, 4, 3, less the others' means 3.5, 2.5, 3.
    assert log_sigma.item() == pytest.approx((-1.5 * 0 + 1.5 * 3 + 0 * -0.75) / 3)


def test_centered_ranks_are_ranks_and_equal_returns_share_theirs() -> None:
    value = torch.tensor([[3.0, -1.0, 100.0, 7.0, 8.0], [2.0, 5.0, 5.0, 5.0, 9.0]])
    wanted = torch.tensor([[-0.25, -0.5, 0.5, 0.0, 0.25], [-0.5, 0.0, 0.0, 0.0, 0.5]])
    torch.testing.assert_close(shaped(value, "centered_ranks"), wanted)
    torch.testing.assert_close(shaped(value.exp().clamp(max=1e30), "centered_ranks"), wanted)
    assert torch.equal(shaped(torch.full((1, 6), 500.0), "centered_ranks"), torch.zeros(1, 6))


def test_standardized_returns_have_mean_0_and_deviation_1_and_equal_ones_are_0() -> None:
    found = shaped(torch.tensor([[1.0, 2.0, 4.0, 9.0], [5.0, 5.0, 5.0, 5.0]]), "standardized")
    torch.testing.assert_close(found.mean(1), torch.zeros(2))
    torch.testing.assert_close(found.std(1), torch.tensor([1.0, 0.0]))


# -- what is played


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("episodes", [1, 2])
def test_values_are_the_discounted_returns_of_the_perturbed_networks_episodes(mirrored, env, episodes) -> None:
    """Each network made on its own from theta, sigma and its eps, layer by layer; returns added up row by row."""
    agent, trainer = evolving(
        {
            "env": {"id": env, "max_episode_steps": 21},
            "agent": {"perturbations": 4, "sigma": 0.3, "mirrored": mirrored, "episodes": episodes},
            "preprocessing": {"normalize_observations": True},
        }
    )
    agent.preprocessor.state["obs"]["mean"].fill_(0.2)
    agent.preprocessor.state["obs"]["var"].copy_(torch.tensor([[2.25], [4.0]]))
    tried, rollout = agent.collect(trainer.env, (0,))
    assert tried.value.shape == (2, 4)
    for p, m in itertools.product(range(2), range(4)):
        eps = tried.epsilon[p, m // 2] * (-1) ** m if mirrored else tried.epsilon[p, m]
        parts, at = {}, 0
        for name, shape in agent.policy_parameters.shapes.items():
            parts[name] = (agent.policy_parameters.flat[p] + 0.3 * eps)[at : at + math.prod(shape)].view(shape)
            at += math.prod(shape)
        columns = slice(2 * m, 2 * m + 2)
        valid, obs = rollout.valid[:, p, columns], rollout.obs[:, p, columns]
        out = (
            torch.tanh((obs - 0.2) / [1.5, 2.0][p] @ parts["weight0"] + parts["bias0"]) @ parts["weight1"]
            + parts["bias1"]
        )
        if env == "CartPole-v1":
            assert torch.equal(rollout.action[:, p, columns, 0].argmax(-1)[valid], out.argmax(-1)[valid])
        else:
            torch.testing.assert_close(rollout.action[:, p, columns][valid], out[valid], rtol=1e-4, atol=1e-5)
        total = 0.0
        for n in range(2 * m, 2 * m + 2):
            ends = 0
            for t in range(len(rollout)):
                if rollout.valid[t, p, n]:
                    total += 0.9 ** int(rollout.time[t, p, n]) * float(rollout.reward[t, p, n])
                    ends += bool(rollout.ended[t, p, n])
            assert ends == episodes
        assert float(tried.value[p, m]) == pytest.approx(total / (2 * episodes), rel=1e-4)


@pytest.mark.parametrize(
    ("common", "mirrored", "same"),
    [
        ("none", True, lambda a, b: a == b),
        ("pair", True, lambda a, b: a // 2 == b // 2),
        ("pair", False, lambda a, b: a == b),
        ("all", True, lambda a, b: True),
        ("all", False, lambda a, b: True),
    ],
)
def test_networks_share_starts_and_noise_as_they_are_told(common, mirrored, same) -> None:
    options = {"perturbations": 6, "common_starts": common, "mirrored": mirrored, "deterministic": False}
    for more in ({}, {"env": {"backend": "gymnasium"}}):
        agent, trainer = evolving({"agent": options, "env": {"num_envs": 12}}, more)
        _, rollout = agent.collect(trainer.env, (0,))
        first, noise = rollout.obs[0].unflatten(1, (6, 2)), rollout.noise[:5].unflatten(2, (6, 2))
        for p, a, b, i, j in itertools.product(range(2), range(6), range(6), range(2), range(2)):
            shared = i == j and same(a, b)
            assert torch.equal(first[p, a, i], first[p, b, j]) == shared
            assert torch.equal(noise[:, p, a, i], noise[:, p, b, j]) == shared
        assert not torch.equal(first[0], first[1])


def test_shared_noise_keeps_its_law_and_a_members_noise_its_own() -> None:
    shared = SharedNoise(Noise.of_seeds([3, 4]).members, groups=2, repeats=3)
    x = shared.normal(Purpose.ACTION, (0,), (5, 12, 1), axis=1)  # [T, P, N, 1]
    assert x.shape == (5, 2, 12, 1)
    parts = x.unflatten(2, (2, 3, 2))
    assert torch.equal(parts[:, :, :, 0], parts[:, :, :, 2])
    assert len(x[:, 0].unique()) == 5 * 4
    alone = SharedNoise(Noise.of_seeds([4]).members, groups=2, repeats=3).normal(
        Purpose.ACTION, (0,), (5, 12, 1), axis=1
    )
    assert torch.equal(alone[:, 0], x[:, 1])


def test_what_a_deterministic_policy_does_not_depend_on_is_left_alone() -> None:
    for more in ({}, {"state_dependent_std": True}):
        policy = {"env": {"id": "Pendulum-v1"}, "policy": more}
        agent, trainer = evolving(policy, {"agent": {"learn_sigma": True}})
        before = agent.policy_parameters.flat.clone()
        log_sigma = agent.search.flat.clone()
        for _ in range(2):
            agent.update(trainer.env)
        views, still = agent.policy_parameters.views, agent.policy_parameters.flat == before
        # 3 x 3 + 3 + 3 + 1 parameters of the mean; log_std, or its column of the last layer with its bias, beside them.
        assert int((~still).sum()) == 2 * 16
        assert torch.equal(agent.search.flat == log_sigma, still)
        left = views["weight1"][..., 1] if more else views["log_std"]
        assert torch.equal(left, torch.zeros_like(left)) != bool(more)
        drawing, trainer = evolving(policy, {"agent": {"deterministic": False}})
        drawing.update(trainer.env)
        assert bool((drawing.policy_parameters.flat != before).all())


# -- expectations through the agent, on an environment whose returns are known


class Quadratic(TorchVectorEnv):
    """One step from s uniform on (0, 1): the reward is -(a - 0.5)^2."""

    id = "test/Quadratic-v0"
    max_episode_steps = 1
    state_size = reset_noise_size = observation_size = 1
    differentiable = True
    single_observation_space = spaces.Box(0, 1, (1,), np.float32)
    single_action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def initial_state(self, noise: Tensor) -> Tensor:
        return noise

    def transition(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reward = -(action - 0.5).square().squeeze(-1)
        return state, reward, torch.ones_like(reward, dtype=torch.bool)


LINEAR: dict[str, Any] = {
    "env": {"id": "test/Quadratic-v0", "num_envs": 96},
    "agent": {"sigma": 0.3, "perturbations": 48},
    "policy": {"hidden": [], "output_gain": 1.0},
}


@pytest.fixture
def quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TORCH_ENVS, "test/Quadratic-v0", Quadratic)


@pytest.mark.statistical
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"agent": {"mirrored": False}},
        {"agent": {"mirrored": False}, "baseline": "leave_one_out"},
        {"agent": {"mirrored": False, "common_starts": "all"}, "baseline": "leave_one_out"},
        {"agent": {"common_starts": "none", "episodes": 2}},
        {"agent": {"deterministic": False}, "policy": {"log_std": -1.0}},
        {"agent": {"learn_sigma": True}, "baseline": "leave_one_out"},
    ],
    ids=str,
)
def test_measured_gradients_have_the_smoothed_objectives_as_their_mean(quadratic: None, more: dict[str, Any]) -> None:
    """a = w s + b (+ e^l noise): J = -E[(w s + b - 1/2)^2] - e^{2 l}; smoothing adds a constant in w and b, and makes the
    last term -e^{2 l + 2 sigma^2}."""
    agent, trainer = evolving(LINEAR, more)
    agent.policy_parameters.views["bias0"].data.fill_(-0.7)
    found = gradients(agent, lambda members: trainer.environment(members, 96), 300, 0)  # descent
    stochastic = not agent.settings.deterministic
    for p in range(2):
        w, b, log_std = agent.policy_parameters.flat[p].tolist()
        exact = [-2 * (w / 3 + (b - 0.5) / 2), -2 * (w / 2 + b - 0.5)]
        exact.append(-2 * math.exp(2 * log_std + 2 * 0.09) if stochastic else 0.0)
        assert_mean(-torch.from_numpy(found[p]).double(), torch.tensor(exact).double(), 0.7)


@pytest.mark.statistical
@pytest.mark.parametrize("more", [{"agent": {"mirrored": False}}, {}], ids=str)
def test_a_learned_sigmas_gradient_is_that_of_the_smoothed_objective(quadratic: None, more: dict[str, Any]) -> None:
    """d/d log sigma of -sigma_w^2 E[s^2] - sigma_b^2, with one sigma for each parameter."""
    agent, trainer = evolving(LINEAR, more, {"agent": {"learn_sigma": True}, "baseline": "leave_one_out", "seeds": 1})
    assert agent.search is not None
    agent.search.flat.copy_(torch.tensor([[0.5, 0.2, 0.3]]).log())
    twin = agent.replicated(range(600), 0)
    env = trainer.environment(600, 96)
    twin.gradient(twin.collect(env, (0,))[0])
    exact = torch.tensor([-2 * 0.25 / 3, -2 * 0.04, 0.0]).double()
    assert_mean(-twin.search.grad.double(), exact, 0.12)


def test_mirroring_and_common_starts_lower_the_variance(quadratic: None) -> None:
    traces = {}
    for name, options in {
        "plain": {"mirrored": False},
        "own": {"common_starts": "none"},
        "pair": {"common_starts": "pair"},
    }.items():
        agent, trainer = evolving(LINEAR, {"agent": {"sigma": 0.05, **options}})
        found = gradients(agent, lambda members: trainer.environment(members, 96), 100, 0)  # noqa: B023
        traces[name] = found.var(1).sum()
    assert traces["pair"] < 0.8 * traces["own"] < 0.5 * traces["plain"]


# -- as an agent among the others


PGPE = {"agent": {"learn_sigma": True, "deterministic": False, "sigma_learning_rate": 0.02}}


def test_pgpe_finds_the_optimum_and_narrows_its_search(quadratic: None) -> None:
    agent, trainer = evolving(LINEAR, PGPE, {"agent": {"deterministic": True}, "learning_rate": 0.02})
    for _ in range(400):
        agent.update(trainer.env)
    w, b, _ = agent.policy_parameters.flat.unbind(1)
    assert float(w.abs().max()) < 0.1
    assert float((b - 0.5).abs().max()) < 0.05
    assert float(agent.search.flat[:, :2].exp().max()) < 0.1
    assert torch.equal(agent.search.flat[:, 2], torch.full((2,), math.log(0.3)))


def test_a_learned_sigma_stays_within_its_bounds(quadratic: None) -> None:
    agent, trainer = evolving(LINEAR, PGPE, {"agent": {"sigma_bounds": [0.25, 0.31], "sigma_learning_rate": 5.0}})
    for _ in range(5):
        agent.update(trainer.env)
        sigma = agent.sigma()
        assert float(sigma.min()) >= 0.25 - 1e-6
        assert float(sigma.max()) <= 0.31 + 1e-6


RUN: dict[str, Any] = {
    "env": {"max_episode_steps": 30},
    "agent": {"perturbations": 4, "sigma": 0.2},
    "preprocessing": {"normalize_observations": True, "normalize_returns": True},
    "learning_rate": {"kind": "linear", "start": 3e-2, "end": 0.0},
    "max_grad_norm": 0.5,
    "seeds": 3,
    "total_steps": 1600,
    "log_every": 160,
    "evaluation": {"every": 400, "episodes": 2, "final_episodes": 2},
    "checkpoint": {"every": 320, "keep": 10},
    "measurement": {"at": [0, 0.5, 1], "replicates": 4},
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"agent": {"shaping": "centered_ranks", "sigma": {"kind": "linear", "start": 0.3, "end": 0.1}}},
        {**PGPE, "env": {"id": "Pendulum-v1"}},
        {"env": {"backend": "gymnasium", "autoreset_mode": "next_step"}},
    ],
    ids=["es", "ranks", "pgpe", "gymnasium"],
)
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


@pytest.mark.parametrize("more", [{}, PGPE, {"agent": {"shaping": "standardized", "common_starts": "all"}}], ids=str)
def test_a_member_alone_equals_the_same_member_in_a_population(more: dict[str, Any]) -> None:
    config = merge(merge(merge(BASE, RUN), more), {"total_steps": 100_000})
    many = Trainer(Config.read(merge(config, {"seeds": [5, 9], "agent": {"sigma": [0.2, 0.5]}})))
    one = Trainer(Config.read(merge(config, {"seeds": [9], "agent": {"sigma": 0.5}})))
    index = next(i for i, m in enumerate(many.population.members) if (m.seed, m.overrides["agent.sigma"]) == (9, 0.5))
    for _ in range(12):
        for trainer in (many, one):
            trainer._before_update()
        _, crowd = many._update()
        _, single = one._update()
        t, valid = len(single), single.valid[:, 0]
        assert torch.equal(crowd.valid[:t, index], valid)
        assert not crowd.valid[t:, index].any()
        assert torch.equal(crowd.time[:t, index][valid], single.time[:, 0][valid])
    for name, parameters in one.agent.networks().items():
        ours, theirs = parameters.flat[0], many.agent.networks()[name].flat[index]
        assert torch.linalg.vector_norm(ours - theirs) <= 1e-4 * torch.linalg.vector_norm(ours), name


def test_replicates_are_a_function_of_their_number_and_leave_training_alone() -> None:
    (agent, trainer), (other, undisturbed) = (evolving(RUN, PGPE) for _ in range(2))

    def drawn(replicates: int, snapshot: int) -> np.ndarray:
        return gradients(agent, lambda members: trainer.environment(members, 8), replicates, snapshot)

    few, many = drawn(4, 0), drawn(6, 0)
    np.testing.assert_allclose(many[:, :4], few, rtol=2e-4, atol=1e-6)
    assert len({row.tobytes() for row in many.reshape(18, -1)}) == 18
    assert not np.allclose(drawn(4, 1), few)
    for _ in range(2):
        agent.update(trainer.env)
        other.update(undisturbed.env)
    assert_same(agent.state(), other.state())


def test_a_trained_agent_is_exported_and_predicts(tmp_path: Path) -> None:
    trained = train(merge(BASE, RUN), tmp_path / "run")
    loaded = pglab.load_agent(tmp_path / "run", 1)
    obs = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    ours = trained.agent.act(torch.from_numpy(obs).expand(3, -1, -1), None).mode()[1, :, 0].argmax(-1)
    assert loaded.predict(obs, deterministic=True)[0].tolist() == ours.tolist()


REFUSED = {
    "estimator": ({"estimator": "pathwise"}, "estimator of its own"),
    "its options": ({"estimator": {"name": "straight_through_gumbel_softmax"}}, "estimator of its own"),
    "entropy": ({"entropy_weight": 0.01}, "entropy_weight to 0"),
    "executor": ({"executor": "compile"}, "choose executor auto or eager"),
    "share": ({"agent": {"perturbations": 3, "mirrored": False}}, "multiple of agent.perturbations"),
    "odd": ({"env": {"num_envs": 5}}, "even"),
    "lonely": ({"env": {"num_envs": 1}, "agent": {"mirrored": False, "shaping": "standardized"}}, "2 or more"),
    "state baseline": ({"baseline": "value", "agent": {"mirrored": False}}, "none or leave_one_out"),
    "cancels": ({"baseline": "leave_one_out"}, "cancels"),
    "twice": ({"baseline": "leave_one_out", "agent": {"mirrored": False, "shaping": "centered_ranks"}}, "already"),
    "one pair": ({"baseline": "leave_one_out", "env": {"num_envs": 2}, "agent": {"learn_sigma": True}}, "2 or more"),
    "sigma": ({"agent": {"sigma": 0.0}}, "sigma must be above 0"),
    "bounds": ({"agent": {"sigma_bounds": [2.0, 1.0]}}, "low below high"),
    "start": ({"agent": {"learn_sigma": True, "sigma": 20.0}}, "within sigma_bounds"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_does_not_fit_is_refused_in_a_sentence(case: str) -> None:
    more, said = REFUSED[case]
    with pytest.raises(PglabError, match=said):
        Trainer(read(more))


def test_settings_say_which_estimator_it_is_and_where_it_is_biased() -> None:
    assert read().agent.estimator == "evolution strategies (mirrored, returns)"
    assert read().agent.declared_bias == ""
    ranked = read({"agent": {"shaping": "centered_ranks", "learn_sigma": True, "mirrored": False}}).agent
    assert ranked.estimator == "PGPE (centered ranks)"
    assert "ranks" in ranked.declared_bias
    config = read(PGPE)
    assert Config.read(config.plain()) == config


@pytest.mark.slow
def test_it_learns_cartpole() -> None:
    trained = train(
        {
            "env": {"id": "CartPole-v1", "num_envs": 16},
            "agent": {"name": "evolution", "sigma": 0.3},
            "policy": {"hidden": []},
            "learning_rate": 0.1,
            "discount": 1.0,
            "seeds": 4,
            "total_steps": 60_000,
            "threads": 1,
        }
    )
    assert np.median(np.mean(trained.evaluations[-1]["returns"], 1)) > 475
