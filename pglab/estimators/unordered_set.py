"""The unordered set estimator: several draws without replacement."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, joint, leading, register_estimator
from pglab.estimators.outcomes import categories, category_log_probs, possible_actions, values_at, without_replacement


@register_estimator("unordered_set")
class UnorderedSet(Estimator):
    """sum_{s in S} p(s) R(S, s) (f(s) - b(S, s)) grad log p(s), for a set S of k different outcomes drawn without replacement
    (Kool, van Hoof & Welling 2020).

    R(S, s) = p^{D - s}(S - s) / p(S), the leave-one-out ratio, is a constant: no gradient goes through it. p(s) R(S, s) is
    the probability that s was drawn first, given the set, so the weights sum to 1 and the estimate is that of one draw,
    averaged over which of the set it was. The built-in baseline b(S, s) = p(s) f(s) + sum_{s' in S - s} p(s') R^{D - s}(S - s, s')
    f(s') estimates E[f] from the others, without bias whatever s is.

    Draws are joint, of all D factors together: S holds k of the K^D outcomes. Where fewer than k are possible the estimate
    is the exact gradient. It gains over independent draws where the distribution is peaked. The draw itself is not used.
    """

    k: Annotated[int, Field(ge=1, le=10)] = 4
    """Draws, all different. The ratios go through their 2^k subsets."""
    baseline: bool = True
    """Whether the built-in baseline is subtracted; it needs two draws at least."""

    needs = frozenset({"critic"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = True
    evaluations = "k"
    paper = "Kool, van Hoof & Welling 2020"

    @model_validator(mode="after")
    def _fits(self) -> UnorderedSet:
        if self.baseline and self.k < 2:
            raise ValueError("the built-in baseline needs k of at least 2; set baseline to false for k = 1")
        return self

    def extra_noise(self, kind: str, event: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"arrivals": ("exponential", (event[0], self.k, categories(event)))}

    def width(self, distribution: Distribution) -> int:
        return self.k

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        with torch.no_grad():
            found = without_replacement(category_log_probs(distribution), self.k, draw.extra["arrivals"])
            actions = possible_actions(distribution, found.index, found.log_prob)
            weight, others = first_draw(found.log_prob, found.rest)
            f = values_at(distribution, signal.critic, actions).movedim(0, -1)  # [*rows, S]
            if self.baseline:
                f = f - f[..., :1]  # the weights sum to 1: a constant drops out, and with it its rounding
                f = f - (others @ f.unsqueeze(-1)).squeeze(-1)
            gain = leading(weight * f, distribution)  # [S, *rows]
        return (gain * joint(distribution.log_prob(actions))).sum(0)


@cache
def subsets(n: int, size: int) -> list[tuple[int, ...]]:
    """All subsets of that size of n elements, in lexicographic order."""
    return list(itertools.combinations(range(n), size))


@cache
def smaller(n: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`[subsets, size]` twice: the elements of every subset, and the number of the subset that is left without each."""
    number = {s: i for i, s in enumerate(subsets(n, size - 1))}
    left = [[number[s[:i] + s[i + 1 :]] for i in range(size)] for s in subsets(n, size)]
    return torch.tensor(subsets(n, size), device=device), torch.tensor(left, device=device)


@cache
def without_two(n: int, device: torch.device) -> Tensor:
    """`[n, n]`: the number of the subset of all elements but these two."""
    table = torch.zeros(n, n, dtype=torch.int64, device=device)
    for i, kept in enumerate(subsets(n, n - 2)):
        a, b = set(range(n)) - set(kept)
        table[a, b] = table[b, a] = i
    return table


def first_draw(log_prob: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """For S outcomes drawn without replacement: `[*rows, S]`, the probability given the set that each was the first; and
    `[*rows, S, S]`, the built-in baseline's weight of column s' for row s. Both sum to 1 over the last axis (the latter for S > 1).

    log_prob: `[*rows, S]`; rest: `[*rows]`, log-probability of all other outcomes.

    With q(C) the probability that, once S - C has been drawn, the next |C| draws are C in any order,
    q(C) = sum_{c in C} p(c) q(C - c) / (p(C) + p(rest)); then p^{D - s}(S - s) = q(S - s) and p(S) = q(S).
    """
    n, device = log_prob.shape[-1], log_prob.device
    q = [torch.zeros_like(log_prob[..., :1])]  # logarithms, for the subsets of size 0, 1, ..., n
    for size in range(1, n + 1):
        elements, left = smaller(n, size, device)
        p = log_prob[..., elements]  # [*rows, subsets, size]
        q.append((p + q[-1][..., left]).logsumexp(-1) - torch.logaddexp(p.logsumexp(-1), rest.unsqueeze(-1)))
    without_one = q[n - 1].flip(-1)  # [*rows, S]: the subset without s is number n - 1 - s
    weight = (log_prob + without_one - q[n]).exp()
    own = torch.diag_embed(log_prob.exp())  # [*rows, S, S]
    if n == 1:
        return weight, own
    others = (log_prob.unsqueeze(-2) + q[n - 2][..., without_two(n, device)] - without_one.unsqueeze(-1)).exp()
    return weight, torch.where(torch.eye(n, dtype=torch.bool, device=device), own, others)
