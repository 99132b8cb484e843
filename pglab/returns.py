"""Returns and advantages over a block of steps, as plain functions of tensors.

Letters: T time, `...` any row shape (usually P, N). Discounts and lambdas broadcast against a row (`[P, 1]`).
Time is in the names: `v_t` is V(s_t), `v_tp1` is V of the observation the transition led to, *before* any reset.
"""

from __future__ import annotations

import torch
from torch import Tensor


def monte_carlo(r_t: Tensor, ended_t: Tensor, discount: Tensor | float) -> Tensor:
    """Discounted reward-to-go `[T, ...]`, ended where `ended_t` (bool) is True and at the end of the block."""
    go_on = (~ended_t).to(r_t.dtype) * discount  # [T, ...]
    g = torch.zeros_like(r_t[0])
    out = []
    for t in range(len(r_t) - 1, -1, -1):
        g = torch.addcmul(r_t[t], go_on[t], g)
        out.append(g)
    return torch.stack(out[::-1])


def gae(
    r_t: Tensor,
    v_t: Tensor,
    v_tp1: Tensor,
    terminated_t: Tensor,
    ended_t: Tensor,
    discount: Tensor | float,
    lam: Tensor | float,
) -> Tensor:
    """Generalised advantage estimates `[T, ...]` (Schulman et al. 2016, eq. 16).

    A terminated transition has no future; a truncated one is bootstrapped with `v_tp1`; the recursion stops at both.
    Adding `v_t` gives lambda-returns (Sutton & Barto 2018, eq. 12.2); with lam = 1, bootstrapped Monte-Carlo returns.
    """
    delta = r_t + (~terminated_t).to(r_t.dtype) * discount * v_tp1 - v_t  # [T, ...]
    decay = (~ended_t).to(r_t.dtype) * (discount * lam)
    a = torch.zeros_like(r_t[0])
    out = []
    for t in range(len(r_t) - 1, -1, -1):
        a = torch.addcmul(delta[t], decay[t], a)
        out.append(a)
    return torch.stack(out[::-1])


def n_step(
    r_t: Tensor, v_tp1: Tensor, terminated_t: Tensor, ended_t: Tensor, discount: Tensor | float, n: int
) -> Tensor:
    """n-step returns `[T, ...]` (Sutton & Barto 2018, eq. 7.1): n rewards, then V; fewer where the episode or the block
    ends sooner."""
    steps = len(r_t)
    live = (~terminated_t).to(r_t.dtype) * discount  # factor of what follows a transition
    g = r_t + live * v_tp1  # one step, bootstrapped
    for _ in range(min(n, steps) - 1):
        longer = r_t + live * torch.cat([g[1:], v_tp1[-1:]])  # [T, ...]
        # Past the end of an episode (or of the block) only V is known.
        longer = torch.where(ended_t, r_t + live * v_tp1, longer)
        g = longer
    return g


def v_trace(
    r_t: Tensor,
    v_t: Tensor,
    v_tp1: Tensor,
    ratio_t: Tensor,
    terminated_t: Tensor,
    ended_t: Tensor,
    discount: Tensor | float,
    lam: Tensor | float,
    rho_clip: float,
    c_clip: float,
) -> tuple[Tensor, Tensor]:
    """V-trace targets for V and the values of the actions, `[T, ...]` each (Espeholt et al. 2018, eq. 1 and section 4.2).

    `ratio_t` is pi(a|s) / mu(a|s) of policy over behaviour. With rho = min(rho_clip, ratio), c = lam min(c_clip, ratio):
    vs_t = V_t + rho_t (r_t + discount V_{t+1} - V_t) + discount c_t (vs_{t+1} - V_{t+1}), and an action's value is
    r_t + discount vs_{t+1}. At ratio 1 and lam 1, bootstrapped Monte-Carlo returns both. The fixed point is V of a policy
    between behaviour and target where rho is clipped: then biased.
    """
    live = (~terminated_t).to(r_t.dtype) * discount
    rho, c = ratio_t.clamp(max=rho_clip), ratio_t.clamp(max=c_clip) * lam
    delta = rho * (r_t + live * v_tp1 - v_t)
    decay = (~ended_t).to(r_t.dtype) * (discount * c)
    a = torch.zeros_like(r_t[0])
    out = []
    for t in range(len(r_t) - 1, -1, -1):
        a = torch.addcmul(delta[t], decay[t], a)
        out.append(a)
    vs = v_t + torch.stack(out[::-1])
    # What follows: the next row's target, but V where the episode was cut or the block ends.
    follows = torch.cat([torch.where(ended_t[:-1], v_tp1[:-1], vs[1:]), v_tp1[-1:]])
    return vs, r_t + live * follows


def discount_powers(time: Tensor, discount: Tensor | float) -> Tensor:
    """gamma^t for the step in the episode `time` `[T, P, N]`."""
    base = torch.as_tensor(discount, dtype=torch.float32, device=time.device)
    return torch.pow(base, time.to(torch.float32))
