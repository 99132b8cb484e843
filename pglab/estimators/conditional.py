"""Relaxed draws and relaxed draws given the discrete one, made in log space.

Both families draw by comparing perturbed logits: zeta = logit + logit(u) with 0 (Bernoulli), or zeta_k = logit_k + G_k
with one another (Categorical, up to a constant per factor). zeta has p(zeta | action) as `zeta_given`, differentiable in
the logits. They agree with `noise_given` and `relax`, and stay exact where its noise would be rounded to 0 or 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pglab.distributions import Bernoulli, Categorical, Distribution


def perturbed(distribution: Distribution, noise: Tensor) -> Tensor:
    """zeta of a draw's noise, `[*rows, *event]`."""
    if isinstance(distribution, Bernoulli):
        return distribution.logits + torch.logit(noise)
    assert isinstance(distribution, Categorical)
    return distribution.logits - noise.log()


def perturbed_given(distribution: Distribution, action: Tensor, fresh: Tensor) -> Tensor:
    """A zeta from p(zeta | action), made of unconditional noise `fresh` (Tucker et al. 2017; Paulus et al. 2021, eq. 9). Carries the gradient of the logits, through the conditional noise too."""
    if isinstance(distribution, Bernoulli):
        return _binary_given(distribution.logits, action, torch.logit(fresh))
    assert isinstance(distribution, Categorical)
    return _discrete_given(distribution, action, fresh.log())


def perturbed_again(distribution: Distribution, action: Tensor, noise: Tensor) -> Tensor:
    """The same with common random numbers: made of the very noise that, given the action, gives the draw's own zeta. So
    its value is that of `perturbed`; its gradient is that of `perturbed_given`."""
    at = distribution.detach()
    if isinstance(distribution, Bernoulli):
        assert isinstance(at, Bernoulli)
        tiny = torch.finfo(noise.dtype).tiny
        size = perturbed(at, noise).abs().clamp_min(tiny)
        sign = 2 * action - 1
        log_odds = size + torch.log(-torch.expm1(-size)) - F.softplus(sign * at.logits)  # log(e^size - 1) - ...
        return _binary_given(distribution.logits, action, sign * log_odds)
    assert isinstance(distribution, Categorical)
    assert isinstance(at, Categorical)
    zeta, log_p = perturbed(at, noise), at.log_probs()
    first = (zeta * action).sum(-1, keepdim=True)
    behind = (zeta - first).clamp_max(-1e-30)
    losers = noise.log() + torch.log(-torch.expm1(behind))
    return _discrete_given(distribution, action, torch.where(action > 0.5, noise.log() - log_p, losers))


def relaxed(distribution: Distribution, zeta: Tensor, temperature: Tensor | float) -> Tensor:
    """zeta `[*lead, *rows, *event]` as relaxed actions: sigmoid or softmax of zeta / temperature; 0 where masked."""
    scaled = zeta / temperature
    if isinstance(distribution, Bernoulli):
        return torch.sigmoid(scaled)
    assert isinstance(distribution, Categorical)
    return torch.softmax(_kept(distribution, scaled), dim=-1)


def _kept(distribution: Categorical, x: Tensor) -> Tensor:
    """A very negative finite number where masked."""
    return x if distribution.mask is None else torch.where(distribution.mask, x, torch.finfo(x.dtype).min / 4)


def _binary_given(logits: Tensor, action: Tensor, logit_v: Tensor) -> Tensor:
    """u = 1 - p + p v given 1, u = (1 - p) v given 0, as logit + logit(u): softplus(logit(v) + softplus(logit)) given 1,
    and its mirror image given 0."""
    sign = 2 * action - 1
    return sign * F.softplus(sign * logit_v + F.softplus(sign * logits))


def _discrete_given(distribution: Categorical, action: Tensor, log_e: Tensor) -> Tensor:
    """E_b = p_b e_b for the winner b, E_j = e_j + p_j e_b for the others, as zeta = logit - log E."""
    logits = distribution.logits
    # The winner's Gumbel, log-sum-exp - log e_b, has the same law whatever wins.
    first = torch.logsumexp(_kept(distribution, logits), -1, keepdim=True) - (log_e * action).sum(-1, keepdim=True)
    return torch.where(action > 0.5, first, -torch.logaddexp(log_e - logits, -first))
