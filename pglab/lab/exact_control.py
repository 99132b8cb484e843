"""Exact policy gradients of control tasks: linear-quadratic regulators and finite Markov decision processes.

Both are for a stationary policy pi and a time limit of T steps, at which rewards stop. The value of an action is the
discounted reward to go, Q_t(s, a) = E[sum_{u = t}^{T-1} gamma^(u-t) r_u | s_t = s, a_t = a], and V_t(s) its mean over the
policy's actions. The gradient is

    g = sum_{t < T} w_t E[ grad log pi(a_t | s_t) Q_t(s_t, a_t) ],

with w_t = gamma^t or w_t = 1. With gamma^t (`discount_states=True`) it is the gradient of J = E[sum_t gamma^t r_t] (the
policy gradient theorem, Sutton et al. 2000). With 1 it is what most implementations estimate: states far into the
episode count in full, and g is the gradient of no function (Nota & Thomas 2020). Both are the same for gamma = 1. No sample
is taken anywhere, and everything is computed in float64.

Letters: T steps, S state variables or states, A action dimensions or actions, J outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pglab.errors import PglabError

if TYPE_CHECKING:
    from pglab_envs.lqr import LQR
    from pglab_envs.tabular import TabularEnv


@dataclass(frozen=True)
class LinearGradient:
    """J and the gradient at the parameters of a linear-Gaussian policy, float64."""

    objective: Tensor  # []: J = E[sum_t gamma^t r_t], whatever the weights of the gradient
    gain: Tensor  # [A, S]
    offset: Tensor  # [A]
    log_std: Tensor  # [A]


def lqr_gradient(
    env: LQR, gain: Tensor, offset: Tensor, log_std: Tensor, discount: float, discount_states: bool
) -> LinearGradient:
    """The exact gradient of a linear-quadratic regulator under the policy a = K s + k + std * eps, eps standard normal.

    With the costs' signs turned (r = -cost), D = diag(std^2), W = noise^2 I, the closed loop

        s' = F s + f + B std eps + w,    F = A + B K,  f = B k,  covariance of the noise N = B D B' + W.

    *Backward.* Values are quadratic, V_t(s) = -(s' P_t s + 2 p_t' s + c_t). Putting V_{t+1} into
    V_t(s) = E[-(s' Q s + a' R a) + gamma V_{t+1}(s')] and collecting powers of s, from P_T = 0, p_T = 0, c_T = 0:

        P_t = Q + K' R K + gamma F' P_{t+1} F
        p_t = K' R k + gamma F' (P_{t+1} f + p_{t+1})
        c_t = k' R k + tr(R D) + gamma (f' P_{t+1} f + 2 p_{t+1}' f + tr(P_{t+1} N) + c_{t+1})

    *Forward.* The moments m_t = E[s_t] and M_t = E[s_t s_t']:

        m_{t+1} = F m_t + f
        M_{t+1} = F M_t F' + F m_t f' + f m_t' F' + f f' + N

    *The policy gradient theorem.* Q_t(s, a) = -(s' Q s + a' R a) + gamma E[V_{t+1}(A s + B a + w)] is quadratic in a, with

        dQ_t/da = -2 (H_t a + gamma B' (P_{t+1} A s + p_{t+1})),    H_t = R + gamma B' P_{t+1} B,    d2Q_t/da2 = -2 H_t.

    For a Gaussian, E_a[grad_mean log pi Q] = E_a[dQ/da] and E_a[grad_log_std log pi Q] = std^2 diag E_a[d2Q/da2] (integration
    by parts). With the mean K s + k, E_a[dQ_t/da] = -2 (G_t s + g_t), G_t = H_t K + gamma B' P_{t+1} A and
    g_t = H_t k + gamma B' p_{t+1}; by the chain rule and the moments of s_t, step t adds w_t times

        gain: -2 (G_t M_t + g_t m_t'),    offset: -2 (G_t m_t + g_t),    log_std: -2 std^2 diag(H_t).

    Args:
        env: `pglab_envs.LQR`; its horizon is T.
        gain: K, `[A, S]`.
        offset: k, `[A]`.
        log_std: `[A]`.
        discount: gamma, in [0, 1].
        discount_states: whether step t weighs gamma^t, or 1.

    Raises:
        PglabError: a parameter of another shape, a discount outside of [0, 1].

    Source: own derivation; the recursions are those of policy evaluation in Fazel et al. (2018), "Global convergence of
    policy gradient methods for the linear quadratic regulator", with a horizon, an offset and noise.
    """
    a, b, q, r = (x.double() for x in (env.A, env.B, env.Q, env.R))
    (states, actions), gamma = b.shape, _discount(discount)
    for name, x, shape in (
        ("gain", gain, (actions, states)),
        ("offset", offset, (actions,)),
        ("log_std", log_std, (actions,)),
    ):
        if x.shape != shape:
            raise PglabError(f"{name} must be {shape} for {env.id}, got {tuple(x.shape)}.")
    gain, offset, log_std = (x.detach().to(a) for x in (gain, offset, log_std))
    var = (2 * log_std).exp()  # [A]
    eye = torch.eye(states, dtype=a.dtype, device=a.device)
    closed, drift = a + b @ gain, b @ offset  # F [S, S], f [S]
    noise = (b * var) @ b.mT + env.noise**2 * eye  # N [S, S]
    horizon = env.max_episode_steps

    p2, p1, p0 = torch.zeros_like(a), torch.zeros_like(drift), a.new_zeros(())  # P_T [S, S], p_T [S], c_T []
    slopes: list[
        tuple[Tensor, Tensor, Tensor]
    ] = []  # G_t [A, S], g_t [A], diag(H_t) [A], from the last step to the first
    for _ in range(horizon):
        h = r + gamma * b.mT @ p2 @ b  # [A, A]
        slopes.append((h @ gain + gamma * b.mT @ p2 @ a, h @ offset + gamma * b.mT @ p1, h.diagonal()))
        p0 = offset @ r @ offset + r.diagonal() @ var + gamma * (drift @ p2 @ drift + 2 * p1 @ drift + p0)
        p0 = p0 + gamma * (p2 * noise).sum()
        p1 = gain.mT @ r @ offset + gamma * closed.mT @ (p2 @ drift + p1)
        p2 = q + gain.mT @ r @ gain + gamma * closed.mT @ p2 @ closed

    m1 = env.mean.double()  # m_0 [S]
    m2 = torch.outer(m1, m1) + env.start_noise**2 * eye  # M_0 [S, S]
    objective = -((p2 * m2).sum() + 2 * p1 @ m1 + p0)
    by_gain, by_offset, by_log_std = torch.zeros_like(gain), torch.zeros_like(offset), torch.zeros_like(log_std)
    for t, (linear, constant, curvature) in enumerate(reversed(slopes)):
        weight = gamma**t if discount_states else 1.0
        by_gain -= 2 * weight * (linear @ m2 + torch.outer(constant, m1))
        by_offset -= 2 * weight * (linear @ m1 + constant)
        by_log_std -= 2 * weight * var * curvature
        cross = torch.outer(closed @ m1, drift)  # [S, S]
        m2 = closed @ m2 @ closed.mT + cross + cross.mT + torch.outer(drift, drift) + noise
        m1 = closed @ m1 + drift
    return LinearGradient(objective, by_gain, by_offset, by_log_std)


@dataclass(frozen=True)
class TabularGradient:
    """J, the gradient at a policy's logits state by state, and what they are made of, float64."""

    objective: Tensor  # []: J = E[sum_t gamma^t r_t], whatever the weights of the gradient
    cotangent: Tensor  # [S, A]: sum_t w_t d_t(s) pi(a | s) (Q_t(s, a) - V_t(s))
    q: Tensor  # [T, S, A]: Q_t(s, a)
    v: Tensor  # [T, S]: V_t(s)
    occupancy: Tensor  # [T, S]: d_t(s), the probability that step t is taken, and taken in s
    expected_steps: Tensor  # []: E[steps of an episode]


def tabular_gradient(
    env: TabularEnv, probabilities: Tensor, horizon: int | None, discount: float, discount_states: bool
) -> TabularGradient:
    """The exact gradient of a finite Markov decision process, by dynamic programming over T steps.

    `cotangent` is the gradient at the logits of a softmax policy with logits of its own for every state; for one with
    parameters theta it is pushed through the logits, sum_{s, a} cotangent[s, a] d logits[s, a] / d theta. With d_0 the
    initial distribution and V_T = 0,

        Q_t(s, a) = sum_j P_j(s, a) (r_j + gamma (1 - terminated_j) V_{t+1}(s'_j)),    V_t(s) = sum_a pi(a | s) Q_t(s, a)
        d_{t+1}(s') = sum_{s, a, j: s'_j = s', not terminated_j} d_t(s) pi(a | s) P_j(s, a).

    Args:
        env: `pglab_envs.TabularEnv`.
        probabilities: pi(a | s), `[S, A]`.
        horizon: T; None for the environment's time limit.
        discount: gamma, in [0, 1].
        discount_states: whether step t weighs gamma^t, or 1.

    Raises:
        PglabError: `probabilities` of another shape, or not distributions over actions; a horizon below 1; a discount
            outside of [0, 1].

    Source: Sutton et al. (2000), "Policy gradient methods for reinforcement learning with function approximation".
    """
    tables, gamma = env.tables, _discount(discount)
    steps = env.max_episode_steps if horizon is None else horizon
    if steps < 1:
        raise PglabError(f"horizon must be at least 1, got {steps}.")
    pi = probabilities.detach().to("cpu", torch.float64)  # [S, A]
    if pi.shape != (wanted := (tables.states, tables.actions)):
        raise PglabError(f"probabilities must be {wanted} for {env.id}, got {tuple(pi.shape)}.")
    # As exact as a softmax in float32 is; what is lacking there is lacking in the gradient too.
    if not bool((pi >= 0).all() and ((pi.sum(-1) - 1).abs() < 1e-5).all()):
        raise PglabError("probabilities must be at least 0 and sum to 1 over actions.")
    going_on = tables.probability * ~tables.terminated  # [S, A, J]
    expected_reward = tables.expected_reward()  # [S, A]

    q = pi.new_zeros(steps, *pi.shape)  # [T, S, A]
    v = pi.new_zeros(steps, len(pi))  # [T, S]
    later = pi.new_zeros(len(pi))  # V_{t+1} [S]
    for t in reversed(range(steps)):
        q[t] = expected_reward + gamma * (going_on * later[tables.next_state]).sum(-1)
        later = v[t] = (pi * q[t]).sum(-1)

    leads = pi.unsqueeze(-1) * going_on  # [S, A, J]: of action and outcome, given the state
    next_state = tables.next_state.flatten()
    occupancy = pi.new_zeros(steps, len(pi))  # [T, S]
    occupancy[0] = tables.initial
    for t in range(1, steps):
        flow = occupancy[t - 1, :, None, None] * leads
        occupancy[t].index_add_(0, next_state, flow.flatten())

    weight = gamma ** torch.arange(steps, dtype=torch.float64) if discount_states else pi.new_ones(steps)  # [T]
    advantage = q - v.unsqueeze(-1)  # [T, S, A]
    cotangent = pi * torch.einsum("t,ts,tsa->sa", weight, occupancy, advantage)
    return TabularGradient(tables.initial @ v[0], cotangent, q, v, occupancy, occupancy.sum())


def _discount(discount: float) -> float:
    if not 0 <= discount <= 1:
        raise PglabError(f"discount must lie in 0..1, got {discount}.")
    return float(discount)
