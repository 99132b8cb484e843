"""Exact gradients of control tasks against automatic differentiation, enumeration, finite differences and rollouts."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pglab_envs import LQR, Chain, FrozenLakeTable, GridWorld, Tables, TabularEnv, TaxiTable
from spine import assert_mean, normal
from torch import Tensor

from pglab.distributions import Categorical
from pglab.environments.torch_native import TorchEnvironment
from pglab.errors import PglabError
from pglab.lab.exact_control import lqr_gradient, tabular_gradient
from pglab.noise import Noise
from pglab.rollout import block, whole_episodes

Parameters = tuple[Tensor, Tensor, Tensor]

# -- the linear-quadratic regulator


def linear_policy(env: LQR, key: int = 0) -> Parameters:
    """Gain `[A, S]`, offset `[A]` and log_std `[A]` that keep the states small."""
    actions, states = env.B.shape[1], env.B.shape[0]
    stabilising = -env.B.mT / (env.B.mT @ env.B).trace().sqrt()
    return (
        0.3 * stabilising + 0.1 * normal(actions, states, key=key),
        0.2 * normal(actions, key=key + 1),
        0.3 * normal(actions, key=key + 2) - 0.7,
    )


def return_by_moments(env: LQR, steps: list[Parameters], discount: float) -> Tensor:
    """J, `[]`, under a policy for every step, from the mean and the covariance of state and action alone."""
    identity = torch.eye(env.state_size, dtype=torch.float64)
    mean, covariance = env.mean, env.start_noise**2 * identity
    total = torch.zeros((), dtype=torch.float64)
    for t, (gain, offset, log_std) in enumerate(steps):
        both = torch.cat([identity, gain])  # (s, a) = both s + ...
        joint_mean = torch.cat([mean, gain @ mean + offset])
        joint = both @ covariance @ both.mT + torch.block_diag(0 * identity, torch.diag((2 * log_std).exp()))
        second = joint + torch.outer(joint_mean, joint_mean)
        total = total - discount**t * (torch.block_diag(env.Q, env.R) * second).sum()
        forward = torch.cat([env.A, env.B], 1)
        mean, covariance = forward @ joint_mean, forward @ joint @ forward.mT + env.noise**2 * identity
    return total


LQRS: list[dict[str, Any]] = [
    {},
    {"preset": "point_mass", "horizon": 12, "noise": 0.05, "start_noise": 0.3},
    {"horizon": 1, "noise": 0.0},
]


def close(found: Any, wanted: Parameters, rtol: float = 1e-9) -> None:
    for x, y in zip((found.gain, found.offset, found.log_std), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol * float(y.abs().max()))


@pytest.mark.parametrize("kwargs", LQRS)
@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
def test_lqr_is_the_gradient_of_the_return(kwargs: dict[str, Any], discount: float) -> None:
    env = LQR(**kwargs)
    leaves = tuple(x.requires_grad_() for x in linear_policy(env))
    objective = return_by_moments(env, [leaves] * env.max_episode_steps, discount)
    found = lqr_gradient(env, *leaves, discount, True)
    torch.testing.assert_close(found.objective, objective.detach(), rtol=1e-10, atol=1e-10)
    close(found, torch.autograd.grad(objective, leaves))


@pytest.mark.parametrize("kwargs", LQRS)
@pytest.mark.parametrize("discount", [1.0, 0.9, 0.3])
def test_lqr_without_discounted_states_by_step(kwargs: dict[str, Any], discount: float) -> None:
    """The derivative of J at the parameters of step t alone is gamma^t E[grad log pi Q_t]."""
    env = LQR(**kwargs)
    parameters = linear_policy(env)
    steps = [tuple(x.clone().requires_grad_() for x in parameters) for _ in range(env.max_episode_steps)]
    flat = torch.autograd.grad(return_by_moments(env, steps, discount), [x for step in steps for x in step])
    sums = tuple(sum(flat[3 * t + i] / discount**t for t in range(len(steps))) for i in range(3))
    found = lqr_gradient(env, *parameters, discount, False)
    close(found, sums, rtol=1e-8)
    if discount < 1 and len(steps) > 1:
        assert not torch.allclose(found.gain, lqr_gradient(env, *parameters, discount, True).gain, rtol=0.1)
    assert torch.equal(found.objective, lqr_gradient(env, *parameters, discount, True).objective)


def test_lqr_by_finite_differences() -> None:
    env, h = LQR(), 1e-5
    parameters = linear_policy(env, key=10)
    found = lqr_gradient(env, *parameters, 0.95, True)
    for i, (x, g) in enumerate(zip(parameters, (found.gain, found.offset, found.log_std), strict=True)):
        for cell in itertools.product(*map(range, x.shape)):
            sides = []
            for sign in (1, -1):
                moved = [y.clone() for y in parameters]
                moved[i][cell] += sign * h
                sides.append(lqr_gradient(env, *moved, 0.95, True).objective)
            assert float(sides[0] - sides[1]) / (2 * h) == pytest.approx(float(g[cell]), rel=1e-6)


@pytest.mark.statistical
def test_lqr_by_rollouts() -> None:
    """The score function's estimate with rewards to go, in both conventions, over episodes of the environment itself."""
    env, n, discount = LQR(horizon=8), 60_000, 0.8
    gain, offset, log_std = linear_policy(env, key=20)
    rng = np.random.default_rng(1)
    state = env.initial_state(torch.from_numpy(rng.random((n, 2))))
    scores, rewards = [], []
    for _ in range(env.max_episode_steps):
        eps = torch.from_numpy(rng.standard_normal((n, 1)))
        score = eps / log_std.exp()
        scores.append(torch.cat([score * state, score, eps.square() - 1], 1))  # [n, 4]
        action = state @ gain.mT + offset + log_std.exp() * eps
        state, reward, _ = env.transition(state, action, torch.from_numpy(rng.random((n, 2))))
        rewards.append(reward)
    to_go, g = torch.zeros(n).double(), {True: torch.zeros(n, 4).double(), False: torch.zeros(n, 4).double()}
    for t in reversed(range(len(rewards))):
        to_go = rewards[t] + discount * to_go
        for discounted, total in g.items():
            total += (discount**t if discounted else 1.0) * scores[t] * to_go.unsqueeze(1)
    for discounted, samples in g.items():
        exact = lqr_gradient(env, gain, offset, log_std, discount, discounted)
        assert_mean(samples, torch.cat([exact.gain[0], exact.offset, exact.log_std]), 0.8)
        assert_mean(to_go.unsqueeze(1), exact.objective, 0.15)
    other = lqr_gradient(env, gain, offset, log_std, discount, True).gain
    assert float((exact.gain - other).abs().max()) > 1.0  # the conventions are told apart


def test_lqr_takes_float32_and_says_what_is_wrong() -> None:
    env = LQR()
    gain, offset, log_std = (x.float() for x in linear_policy(env))
    assert lqr_gradient(env, gain, offset, log_std, 1.0, True).gain.dtype == torch.float64
    for wrong in ((gain.mT, offset, log_std), (gain, offset[0], log_std), (gain, offset, gain)):
        with pytest.raises(PglabError, match=r"must be .* for pglab/LQR-v0, got"):
            lqr_gradient(env, *wrong, 1.0, True)
    with pytest.raises(PglabError, match=r"discount must lie in 0\.\.1, got 1\.1"):
        lqr_gradient(env, gain, offset, log_std, 1.1, True)


# -- finite Markov decision processes

T = 3


def tiny() -> TabularEnv:
    """Three states, two actions; random rewards, and an end that depends on where one comes from."""
    p = torch.softmax(normal(3, 2, 3, key=4), -1)
    p[1, 0] = torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64)
    ends = torch.zeros(3, 2, 3, dtype=torch.bool)
    ends[0, 1, 2] = ends[1, :, 0] = True
    return TabularEnv(1, Tables.dense(p, normal(3, 2, 3, key=5), ends, [0.7, 0.3, 0.0]), horizon=T)


def trajectories(env: TabularEnv) -> list[tuple[float, list[tuple[int, int, float]]]]:
    """Every course of an episode: the environment's part of its probability, and its steps (state, action, reward)."""
    t = env.tables
    going = [(float(p), s, []) for s, p in enumerate(t.initial) if p > 0]
    done: list[Any] = []
    for step in range(env.max_episode_steps):
        further = []
        for p, s, past in going:
            for a, j in itertools.product(range(t.actions), range(t.probability.shape[-1])):
                if (q := float(t.probability[s, a, j])) == 0:
                    continue
                course = [*past, (s, a, float(t.reward[s, a, j]))]
                if bool(t.terminated[s, a, j]) or step + 1 == env.max_episode_steps:
                    done.append((p * q, course))
                else:
                    further.append((p * q, int(t.next_state[s, a, j]), course))
        going = further
    return done


@pytest.mark.parametrize("discount", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("discounted", [True, False])
def test_tabular_by_enumerating_trajectories(discount: float, discounted: bool) -> None:
    env, logits = tiny(), normal(3, 2).requires_grad_()
    pi = torch.softmax(logits, -1)
    objective, surrogate, length = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    occupancy, total = torch.zeros(T, 3).double(), 0.0
    for p, course in trajectories(env):
        of_actions = torch.stack([pi[s, a] for s, a, _ in course])
        probability = p * of_actions.prod()
        objective = objective + probability * sum(discount**t * r for t, (_, _, r) in enumerate(course))
        for t in range(len(course)):
            to_go = sum(discount ** (u - t) * r for u, (_, _, r) in enumerate(course) if u >= t)
            weight = discount**t if discounted else 1.0
            surrogate = surrogate + probability.detach() * weight * to_go * of_actions[t].log()
            occupancy[t, course[t][0]] += probability.detach()
        length = length + probability.detach() * len(course)
        total += float(probability.detach())
    assert total == pytest.approx(1.0)
    found = tabular_gradient(env, pi, None, discount, discounted)
    torch.testing.assert_close(found.objective, objective.detach())
    torch.testing.assert_close(found.cotangent, torch.autograd.grad(surrogate, logits, retain_graph=True)[0])
    if discounted:
        torch.testing.assert_close(found.cotangent, torch.autograd.grad(objective, logits)[0])
    torch.testing.assert_close(found.occupancy, occupancy)
    torch.testing.assert_close(found.expected_steps, length)
    assert found.q.shape == (T, 3, 2)
    torch.testing.assert_close(found.v, (pi.detach() * found.q).sum(-1))
    torch.testing.assert_close((found.v[0] * env.tables.initial).sum(), found.objective)
    torch.testing.assert_close(found.q[-1], env.tables.expected_reward())


def test_tabular_horizon_and_known_values() -> None:
    env = GridWorld(size=2, slip=0.0)
    down_then_right = torch.zeros(4, 4).double()
    down_then_right[:, 1], down_then_right[2] = 1.0, torch.eye(4).double()[2]
    found = tabular_gradient(env, down_then_right, None, 0.5, True)
    assert (found.objective.item(), found.expected_steps.item()) == (-1.5, 2.0)
    assert found.occupancy.sum(1).tolist() == [1.0, 1.0] + [0.0] * 98
    assert tabular_gradient(env, down_then_right, 1, 0.5, True).objective == -1
    stay = torch.eye(4).double()[[0, 0, 0, 0]]
    assert tabular_gradient(env, stay, 7, 1.0, False).objective == -7
    on = torch.tensor([1.0, 0.0]).double().expand(5, 2)
    assert tabular_gradient(Chain(slip=0.0), on, 6, 1.0, True).objective == 20  # four steps on, then 10 a step


def test_tabular_taxi_by_finite_differences() -> None:
    """The largest table: the slope along one random direction of all logits."""
    env, logits, direction, h = TaxiTable(), 0.5 * normal(500, 6), normal(500, 6, key=1), 1e-4

    def objective(x: Tensor) -> float:
        return tabular_gradient(env, torch.softmax(x, -1), None, 0.95, True).objective.item()

    found = tabular_gradient(env, torch.softmax(logits, -1), None, 0.95, True)
    slope = (objective(logits + h * direction) - objective(logits - h * direction)) / (2 * h)
    assert float((found.cotangent * direction).sum()) == pytest.approx(slope, rel=1e-5)
    assert found.q.shape == (200, 500, 6)


@pytest.mark.statistical
def test_tabular_by_rollouts() -> None:
    """FrozenLake's episodes as agents collect them, under a policy that mostly does what is best."""
    n, discount = 20_000, 0.9
    env, noise = TorchEnvironment(FrozenLakeTable, 1, n, kwargs={"horizon": 40}), Noise.of_seeds([3])
    best = torch.tensor([0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0])
    logits = (0.3 * normal(16, 4)).float() + 3 * torch.eye(4)[best]
    act = lambda obs, _: Categorical((obs @ logits).unsqueeze(-2))  # noqa: E731
    play = partial(block, env, act, lambda executed: executed)
    event = ("exponential", (1, 4))
    rollout = whole_episodes(env, play, noise, (0,), 40, event)
    valid = rollout.valid[:, 0].double()  # [T, n]
    reward = rollout.reward[:, 0].double() * valid
    score = rollout.action[:, 0, :, 0].double() - torch.softmax(logits, -1).double()[rollout.obs[:, 0].argmax(-1)]
    directions = normal(16, 4, 6, key=9)  # six numbers of the gradient, each of all states
    along = (score.unsqueeze(-1) * directions[rollout.obs[:, 0].argmax(-1)]).sum(-2) * valid.unsqueeze(-1)  # [T, n, 6]
    to_go, g = torch.zeros(n).double(), {True: torch.zeros(n, 6).double(), False: torch.zeros(n, 6).double()}
    for t in reversed(range(len(reward))):
        to_go = reward[t] + discount * to_go
        for discounted, total in g.items():
            total += (discount**t if discounted else 1.0) * along[t] * to_go.unsqueeze(-1)
    pi = torch.softmax(logits.double(), -1)
    exact = {d: tabular_gradient(env.env, pi, None, discount, d) for d in (True, False)}
    wanted = {d: torch.einsum("sa,sak->k", e.cotangent, directions) for d, e in exact.items()}
    for discounted, samples in g.items():
        assert_mean(samples, wanted[discounted], 0.03)
    assert_mean(to_go.unsqueeze(1), exact[True].objective, 0.01)
    assert_mean(valid.sum(0).unsqueeze(1), exact[True].expected_steps, 0.6)
    seen = torch.stack([(rollout.obs[t, 0] * valid[t, :, None]).mean(0) for t in range(3)]).double()
    assert float((seen - exact[True].occupancy[:3]).abs().max()) < 5 * 0.5 / n**0.5
    assert float((wanted[True] - wanted[False]).abs().max()) > 0.03  # the conventions are told apart


def test_tabular_says_what_is_wrong() -> None:
    env, uniform = Chain(), torch.full((5, 2), 0.5)
    assert tabular_gradient(env, uniform, 3, 1.0, True).cotangent.dtype == torch.float64
    for wrong, says in (
        ((uniform.mT, 3, 1.0, True), r"probabilities must be \(5, 2\) for pglab/Chain-v0, got \(2, 5\)"),
        ((uniform - 0.1, 3, 1.0, True), "sum to 1 over actions"),
        ((torch.tensor([1.5, -0.5]).expand(5, 2), 3, 1.0, True), "at least 0"),
        ((uniform, 0, 1.0, True), "horizon must be at least 1, got 0"),
        ((uniform, 3, -0.1, True), "discount must lie in"),
    ):
        with pytest.raises(PglabError, match=says):
            tabular_gradient(env, *wrong)
