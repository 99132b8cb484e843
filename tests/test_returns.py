"""Returns against hand-computed numbers, naive O(T^2) definitions and stable-baselines3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spine import generator, normal

from pglab.returns import discount_powers, gae, monte_carlo, n_step, v_trace

# Five steps: the episode terminates at step 1, the next is truncated at step 3, the block cuts the third.
R = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
V = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
NEXT = torch.tensor([20.0, 777.0, 40.0, 60.0, 70.0])  # V of where each transition led, before any reset
TERMINATED = torch.tensor([False, True, False, False, False])
ENDED = torch.tensor([False, True, False, True, False])


def test_monte_carlo_by_hand():
    assert monte_carlo(R, ENDED, 0.5).tolist() == [2.0, 2.0, 5.0, 4.0, 5.0]


def test_gae_by_hand():
    # deltas: 1+.5*20-10, 2-20, 3+.5*40-30, 4+.5*60-40, 5+.5*70-50 = 1, -18, -7, -6, -10; decay .25
    assert gae(R, V, NEXT, TERMINATED, ENDED, 0.5, 0.5).tolist() == [1 - 18 / 4, -18.0, -7 - 6 / 4, -6.0, -10.0]


def test_n_step_by_hand():
    # two steps: 1+.5*2; 2; 3+.5*(4+.5*60); 4+.5*60; 5+.5*70
    assert n_step(R, NEXT, TERMINATED, ENDED, 0.5, 2).tolist() == [2.0, 2.0, 20.0, 34.0, 40.0]
    assert n_step(R, NEXT, TERMINATED, ENDED, 0.5, 1).tolist() == [11.0, 2.0, 23.0, 34.0, 40.0]


def block(t: int = 30, rows: tuple[int, ...] = (3, 4)):
    """Random rewards, values and ends; where nothing ends, V of the next state is V there."""
    g = generator(t)
    ended = torch.from_numpy(g.random((t, *rows)) < 0.2)
    terminated = ended & torch.from_numpy(g.random((t, *rows)) < 0.5)
    r, v, other = (torch.from_numpy(g.standard_normal((t, *rows))) for _ in range(3))
    v_tp1 = torch.where(ended, other, torch.cat([v[1:], other[-1:]]))
    return r, v, v_tp1, terminated, ended


def returns_from(r, v_tp1, terminated, ended, discount, t, n):
    """n rewards from step t of one column, then V, fewer where the episode or the block ends: the definition."""
    total, factor = 0.0, 1.0
    for k in range(t, min(t + n, len(r))):
        total, factor = total + factor * r[k], factor * discount
        if terminated[k]:
            return total
        if ended[k] or k == min(t + n, len(r)) - 1:
            return total + factor * v_tp1[k]
    raise AssertionError


def each_column(*tensors):
    flat = [x.flatten(1).numpy() for x in tensors]
    return [[x[:, i] for x in flat] for i in range(flat[0].shape[1])]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 30, 100])
def test_n_step_equals_its_definition(n):
    r, _, v_tp1, terminated, ended = block()
    found = n_step(r, v_tp1, terminated, ended, 0.9, n).flatten(1)
    for i, column in enumerate(each_column(r, v_tp1, terminated, ended)):
        naive = [returns_from(*column, 0.9, t, n) for t in range(len(r))]
        np.testing.assert_allclose(found[:, i], naive, rtol=1e-12)


def test_monte_carlo_equals_its_definition():
    r, *_, ended = block()
    found = monte_carlo(r, ended, 0.9).flatten(1)
    for i, (x, end) in enumerate(each_column(r, ended)):
        for t in range(len(x)):
            stop = next((k for k in range(t, len(x)) if end[k]), len(x) - 1)
            assert found[t, i] == pytest.approx(sum(0.9 ** (k - t) * x[k] for k in range(t, stop + 1)), rel=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_gae_plus_v_is_the_mixture_of_all_n_step_returns(lam):
    """(1 - lam) sum_n lam^(n-1) G_n, the whole of the remaining weight on the longest."""
    r, v, v_tp1, terminated, ended = block()
    found = (v + gae(r, v, v_tp1, terminated, ended, 0.9, lam)).flatten(1)
    for i, column in enumerate(each_column(r, v_tp1, terminated, ended)):
        end = column[-1]
        for t in range(len(r)):
            longest = next((k for k in range(t, len(r)) if end[k]), len(r) - 1) - t + 1
            each = [returns_from(*column, 0.9, t, n) for n in range(1, longest + 1)]
            weights = [(1 - lam) * lam**k for k in range(longest - 1)] + [lam ** (longest - 1)]
            assert found[t, i] == pytest.approx(float(np.dot(weights, each)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_gae_equals_stable_baselines3(lam):
    from gymnasium import spaces
    from stable_baselines3.common.buffers import RolloutBuffer

    steps, n, gamma = 40, 5, 0.97
    r, v, v_tp1, terminated, ended = block(steps, (n,))
    buffer = RolloutBuffer(
        steps, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", gae_lambda=lam, gamma=gamma, n_envs=n
    )
    start = np.ones(n)
    for t in range(steps):
        # stable-baselines3 folds V of a truncated episode's last observation into the reward.
        cut = ended[t] & ~terminated[t]
        reward = (r[t] + gamma * v_tp1[t] * cut).numpy()
        buffer.add(np.zeros((n, 1)), np.zeros((n, 1)), reward, start, v[t], torch.zeros(n))
        start = ended[t].numpy().astype(float)
    buffer.compute_returns_and_advantage(v_tp1[-1], start)
    found = gae(r, v, v_tp1, terminated, ended, gamma, lam)
    np.testing.assert_allclose(buffer.advantages, found, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(buffer.returns, found + v, rtol=1e-5, atol=1e-5)


def test_gae_with_lambda_1_is_monte_carlo_where_episodes_terminate():
    r, v, v_tp1, _, ended = block()
    ended[-1] = True
    found = v + gae(r, v, v_tp1, ended, ended, 0.9, 1.0)
    torch.testing.assert_close(found, monte_carlo(r, ended, 0.9))


def test_every_member_has_its_own_discount_and_lambda():
    r, v, v_tp1, terminated, ended = block(20, (2, 4))
    gammas, lams = torch.tensor([[0.9], [0.5]]).double(), torch.tensor([[0.3], [1.0]]).double()
    for p in range(2):
        x = [y[:, p : p + 1] for y in (r, v, v_tp1, terminated, ended)]
        g, lam = float(gammas[p]), float(lams[p])
        torch.testing.assert_close(gae(r, v, v_tp1, terminated, ended, gammas, lams)[:, p : p + 1], gae(*x, g, lam))
        torch.testing.assert_close(monte_carlo(r, ended, gammas)[:, p : p + 1], monte_carlo(x[0], x[4], g))
        torch.testing.assert_close(
            n_step(r, v_tp1, terminated, ended, gammas, 3)[:, p : p + 1], n_step(x[0], *x[2:], g, 3)
        )


def test_nothing_after_an_end_reaches_back():
    r, v, v_tp1, terminated, ended = block()
    ended[10] = True
    for x in (r, v, v_tp1):
        x.requires_grad_()
    total = (
        gae(r, v, v_tp1, terminated, ended, 0.9, 0.8)
        + monte_carlo(r, ended, 0.9)
        + n_step(r, v_tp1, terminated, ended, 0.9, 5)
    )[:11].sum()
    for g in torch.autograd.grad(total, [r, v, v_tp1]):
        assert bool((g[11:] == 0).all())


def test_discount_powers():
    time = torch.tensor([[[0, 3]], [[1, 4]]])
    torch.testing.assert_close(discount_powers(time, 0.5), torch.tensor([[[1.0, 0.125]], [[0.5, 0.0625]]]))
    per_member = discount_powers(torch.full((2, 2, 3), 2), torch.tensor([[0.0], [0.1]]))
    torch.testing.assert_close(per_member[:, 1], torch.full((2, 3), 0.01))
    assert bool((per_member[:, 0] == 0).all())
    assert bool((discount_powers(torch.zeros(1, 1, 1).long(), 0.0) == 1).all())


def test_one_step_blocks():
    r, v, nxt = normal(1, 2, 2), normal(1, 2, 2, key=1), normal(1, 2, 2, key=2)
    no = torch.zeros(1, 2, 2, dtype=torch.bool)
    torch.testing.assert_close(gae(r, v, nxt, no, no, 0.9, 0.9), r + 0.9 * nxt - v)
    torch.testing.assert_close(n_step(r, nxt, no, no, 0.9, 5), r + 0.9 * nxt)
    torch.testing.assert_close(monte_carlo(r, no, 0.9), r)


def v_trace_from(r, v, v_tp1, ratio, terminated, ended, discount, lam, rho_clip, c_clip, t):
    """The definition, as a sum over what follows step t: V_t + sum_k discount^k (prod of c) rho_k delta_k."""
    total, factor = v[t], 1.0
    for k in range(t, len(r)):
        follows = 0.0 if terminated[k] else discount * v_tp1[k]
        total += factor * min(rho_clip, ratio[k]) * (r[k] + follows - v[k])
        if ended[k]:
            break
        factor *= discount * lam * min(c_clip, ratio[k])
    return total


@pytest.mark.parametrize(("lam", "rho_clip", "c_clip"), [(1.0, 1.0, 1.0), (0.9, 2.0, 1.5), (0.5, 0.7, 0.3)])
def test_v_trace_is_its_definition(lam, rho_clip, c_clip):
    r, v, v_tp1, terminated, ended = block()
    ratio = torch.exp(normal(*r.shape, key=5))
    vs, q = v_trace(r, v, v_tp1, ratio, terminated, ended, 0.9, lam, rho_clip, c_clip)
    for column, (x, y) in zip(each_column(r, v, v_tp1, ratio, terminated, ended), each_column(vs, q), strict=True):
        rewards, _, nexts, _, over, cut = column
        for t in range(len(r)):
            assert x[t] == pytest.approx(v_trace_from(*column, 0.9, lam, rho_clip, c_clip, t))
            follows = 0.0 if over[t] else nexts[t] if cut[t] or t == len(r) - 1 else x[t + 1]
            assert y[t] == pytest.approx(rewards[t] + 0.9 * follows)


def test_v_trace_of_the_policys_own_actions_are_lambda_returns():
    r, v, v_tp1, terminated, ended = block()
    vs, _ = v_trace(r, v, v_tp1, torch.ones_like(r), terminated, ended, 0.9, 0.7, 1.0, 1.0)
    torch.testing.assert_close(vs, v + gae(r, v, v_tp1, terminated, ended, 0.9, 0.7))
    _, whole = v_trace(r, v, v_tp1, torch.ones_like(r), terminated, ended, 0.9, 1.0, 1.0, 1.0)
    torch.testing.assert_close(whole, v + gae(r, v, v_tp1, terminated, ended, 0.9, 1.0))
