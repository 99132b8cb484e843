"""The augment-REINFORCE-swap-merge estimator for discrete factors."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Categorical, Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, noise_of, register_estimator
from pglab.estimators.outcomes import actions_at, values_at


@register_estimator("arsm")
class ARSM(Estimator):
    """sum_j (f(z^{c<->j}) - mean_m f(z^{m<->j})) (1/K - pi_j) at the logit of category c (Yin, Yue & Zhou 2019, theorem 3).

    pi = E / sum(E) is uniform on the simplex, a Dirichlet(1, ..., 1), for the draw's own exponential noise E;
    z = argmin_i pi_i exp(-phi_i) is the draw, and z^{c<->j} the action after pi_c and pi_j have changed places. With D
    factors the same two places are swapped in all of them at once, so the K (K - 1) / 2 swaps serve every factor.

    Masked categories take no part: pi is uniform on the simplex of a factor's possible ones, and a swap leaves alone the
    factors in which either place is masked. For K = 2 it is ARM with u = pi_0. Near a deterministic policy no swap
    changes the action, and the estimate is 0.
    """

    needs = frozenset({"critic"})
    kinds = frozenset({"discrete"})
    unbiased = True
    evaluations = "1 + K (K - 1) / 2; K for D = 1"
    paper = "Yin, Yue & Zhou 2019"
    uses_noise = True

    def width(self, distribution: Distribution) -> int:
        d, k = distribution.noise_shape[-2:]
        return k if d == 1 else 1 + k * (k - 1) // 2

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert isinstance(distribution, Categorical)
        assert signal.critic is not None
        with torch.no_grad():
            noise, mask = noise_of(draw, self.name), distribution.mask
            valid = noise.new_ones(()).expand_as(noise) if mask is None else mask.to(noise.dtype).expand_as(noise)
            index = swapped(distribution.logits, noise, valid > 0)  # [*rows, 1 + pairs, D]
            f = self.values(distribution, signal, index)  # [*rows, 1 + pairs]
            table = (f - f[..., :1])[..., numbers(noise.shape[-1], noise.device)]  # [*rows, K, K]; f(z) drops out
            count = valid.sum(-1, keepdim=True)
            own = noise * valid
            weight = valid / count - own / own.sum(-1, keepdim=True)  # [*rows, D, K]
            sums = weight @ table  # [*rows, D, K]: the table is symmetric
            estimate = valid * (sums - (valid * sums).sum(-1, keepdim=True) / count)
        return (distribution.logits * estimate).sum((-2, -1))

    def values(self, distribution: Categorical, signal: Signal, index: Tensor) -> Tensor:
        """f at the actions `[*rows, 1 + pairs, D]`, `[*rows, 1 + pairs]`."""
        assert signal.critic is not None
        if index.shape[-1] > 1:
            return values_at(distribution, signal.critic, actions_at(distribution, index)).movedim(0, -1)
        # With one factor the swaps lead to K actions at most.
        every = torch.arange(distribution.logits.shape[-1], device=index.device).reshape(-1, 1)
        every = every.expand(*index.shape[:-2], -1, -1)
        f = values_at(distribution, signal.critic, actions_at(distribution, every)).movedim(0, -1)  # [*rows, K]
        return f.gather(-1, index.squeeze(-1))


def pairs(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All c < j below k, `[k (k - 1) / 2]` each."""
    c, j = torch.triu_indices(k, k, offset=1, device=device)
    return c, j


def numbers(k: int, device: torch.device) -> Tensor:
    """`[K, K]`: which of [no swap, *pairs] swaps c and j."""
    table = torch.zeros(k, k, dtype=torch.int64, device=device)
    c, j = pairs(k, device)
    table[c, j] = torch.arange(1, len(c) + 1, device=device)
    return table + table.T


def swapped(logits: Tensor, noise: Tensor, valid: Tensor) -> Tensor:
    """The categories drawn with no swap and with every pair of noises swapped, `[*rows, 1 + pairs, D]`.

    A swap changes two of the scores log E - logit, and the smallest wins. The two keep their sum, so the smaller of them
    stays at or below the larger before: the best other one matters only where it is among the two best of all.
    """
    k = logits.shape[-1]
    c, j = pairs(k, logits.device)
    log_e = noise.log()
    score = torch.where(valid, log_e - logits, torch.inf)  # [*rows, D, K]
    best, at = score.topk(min(2, k), largest=False)  # [*rows, D, 2]
    drawn = at[..., 0].unsqueeze(-1)  # [*rows, D, 1]
    c_, j_ = c.unsqueeze(-1), j.unsqueeze(-1)
    taken = (at.unsqueeze(-2) == c_) | (at.unsqueeze(-2) == j_)  # [*rows, D, pairs, 2]
    other, which = torch.where(taken, torch.inf, best.unsqueeze(-2)).min(-1)  # [*rows, D, pairs]
    of_c, of_j = log_e[..., j] - logits[..., c], log_e[..., c] - logits[..., j]  # their scores after the swap
    winner = torch.where(of_c < of_j, c, j)
    winner = torch.where(other < torch.minimum(of_c, of_j), at.gather(-1, which), winner)
    winner = torch.where(valid[..., c] & valid[..., j], winner, drawn)
    return torch.cat([drawn, winner], -1).transpose(-1, -2)
