"""Several joint outcomes of discrete or binary factors at once: evaluating them, the most probable ones, and draws without
replacement.

Letters: rows `[...]`, D factors, K categories (2 for binary), S outcomes. An outcome is given by the index of every
factor's category, `[..., S, D]`. Nothing here goes through all K^D outcomes: they are built factor by factor, and only
the best S prefixes are kept. What is selected is a constant, found where nothing is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pglab.distributions import Bernoulli, Categorical, Distribution
from pglab.estimators.base import Critic, leading
from pglab.estimators.control_variates import asked

IMPOSSIBLE = -1e6
"""Stands for the logarithm of 0: finite, so that differences of it are, and far below what logits can give."""


def values_at(distribution: Distribution, critic: Critic, actions: Tensor) -> Tensor:
    """f at actions `[S, *rows, *event]` as a constant, `[S, *rows]`. PglabError where the critic gives another shape."""
    with torch.no_grad():
        return asked(critic, actions, distribution)


def categories(event: tuple[int, ...]) -> int:
    """K of an event `[D, K]`; 2 for a binary one, `[D]`."""
    return event[1] if len(event) == 2 else 2


def sizes(distribution: Distribution) -> tuple[int, int]:
    """D and K."""
    event = tuple(distribution.noise_shape[len(distribution.batch_shape) :])
    return event[0], categories(event)


def category_log_probs(distribution: Distribution) -> Tensor:
    """Log-probability of every factor's categories, `[*rows, D, K]`, at least `IMPOSSIBLE`, with its gradient."""
    if isinstance(distribution, Categorical):
        return distribution.log_probs().clamp_min(IMPOSSIBLE)
    assert isinstance(distribution, Bernoulli)
    return torch.stack([F.logsigmoid(-distribution.logits), F.logsigmoid(distribution.logits)], -1)


def indices(distribution: Distribution, actions: Tensor) -> Tensor:
    """The index of every factor's category, `[*lead, *rows, D]`, of actions `[*lead, *rows, *event]`."""
    return actions.long() if distribution.event_ndim == 1 else actions.argmax(-1)


def actions_at(distribution: Distribution, index: Tensor) -> Tensor:
    """The actions of outcomes `[*rows, S, D]`, `[S, *rows, *event]`."""
    first = leading(index, distribution)  # [S, *rows, D]
    dtype = getattr(distribution, distribution.parameters[0]).dtype
    if distribution.event_ndim == 1:
        return first.to(dtype)
    shape = (len(first), *distribution.noise_shape)
    return torch.zeros(shape, dtype=dtype, device=index.device).scatter_(-1, first.unsqueeze(-1), 1.0)


def further_draws(distribution: Distribution, noise: Tensor) -> Tensor:
    """Independent draws `[S, *rows, *event]` made of the distribution's noise, `[*rows, S, *event]`."""
    assert isinstance(distribution, (Bernoulli, Categorical))
    first = leading(noise, distribution)
    return replace(distribution, logits=distribution.logits.expand_as(first)).sample(first)


@dataclass(frozen=True)
class Outcomes:
    """S different joint outcomes of every row. Where fewer than S are possible, those left over have the log-probability
    `IMPOSSIBLE`."""

    index: Tensor
    """`[*rows, S, D]`."""
    log_prob: Tensor
    """`[*rows, S]`."""
    rest: Tensor
    """`[*rows]`: log-probability of all the other outcomes together: a sum of what was left out, never 1 - sum."""
    other: Tensor | None = None
    """`[*rows, D]`: a draw from the other outcomes; None where there are none."""


def _root(log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The empty prefix: its index `[*rows, 1, 0]`, log-probability `[*rows, 1]`, and an empty rest `[*rows]`."""
    rows = log_p.shape[:-2]
    index = torch.zeros((*rows, 1, 0), dtype=torch.int64, device=log_p.device)
    return index, log_p.new_zeros((*rows, 1)), log_p.new_full(rows, 2 * IMPOSSIBLE)


def _children(log_prob: Tensor, log_p: Tensor) -> Tensor:
    """Log-probabilities of prefixes `[*rows, b]` lengthened by a factor with `log_p` `[*rows, K]`: `[*rows, b, K]`."""
    return (log_prob.unsqueeze(-1) + log_p.unsqueeze(-2)).clamp_min(IMPOSSIBLE)


def _lengthened(index: Tensor, child: Tensor, k: int) -> Tensor:
    """The prefixes `[*rows, c, d + 1]` of children `[*rows, c]`, numbered parent * k + category."""
    parent = (child // k).unsqueeze(-1)
    own = index.gather(-2, parent.expand(*parent.shape[:-1], index.shape[-1]))
    return torch.cat([own, (child % k).unsqueeze(-1)], -1)


def most_probable(log_p: Tensor, size: int, noise: Tensor) -> Outcomes:
    """The `size` most probable joint outcomes, and a draw from all the others.

    A prefix that is not among the `size` most probable ones cannot start an outcome that is. What is dropped along the
    way is a partition of the other outcomes: the draw takes one of its parts, and the factors that the part leaves open.

    log_p: `[*rows, D, K]`; noise: exponentials `[*rows, D, size + 1, K]`.
    """
    factors, k = log_p.shape[-2:]
    index, log_prob, rest = _root(log_p)
    free = (noise[..., size, :].log() - log_p).argmin(-1)  # [*rows, D]
    other, first = None, torch.full_like(rest, -4 * IMPOSSIBLE)
    for d in range(factors):
        children = _children(log_prob, log_p[..., d, :]).flatten(-2)  # [*rows, b * K]
        kept = children.topk(min(size, children.shape[-1])).indices
        if children.shape[-1] > size:
            dropped = children.scatter(-1, kept, 2 * IMPOSSIBLE)
            rest = torch.logaddexp(rest, dropped.logsumexp(-1))
            arrival = noise[..., d, : log_prob.shape[-1], :].log().flatten(-2) - dropped
            soonest, child = arrival.min(-1, keepdim=True)
            found = torch.cat([_lengthened(index, child, k).squeeze(-2), free[..., d + 1 :]], -1)  # [*rows, D]
            other = found if other is None else torch.where(soonest < first.unsqueeze(-1), found, other)
            first = torch.minimum(first, soonest.squeeze(-1))
        index, log_prob = _lengthened(index, kept, k), children.gather(-1, kept)
    return Outcomes(index, log_prob, rest, other)


def without_replacement(log_p: Tensor, size: int, noise: Tensor) -> Outcomes:
    """`size` draws without replacement from the joint outcomes, in the order in which they were drawn.

    Outcome z arrives at an exponential time with rate p(z), and the first `size` are kept: the Gumbel-top-k trick with
    Gumbel = -log(time) (Vieira 2014; Kool, van Hoof & Welling 2019). A prefix arrives when the first outcome under it
    does. Given that time, the prefixes one longer arrive as if by themselves, but with their first one moved to it:
    exponentials have no memory.

    log_p: `[*rows, D, K]`; noise: exponentials `[*rows, D, size, K]`.
    """
    factors, k = log_p.shape[-2:]
    index, log_prob, rest = _root(log_p)
    time = torch.full_like(log_prob, 4 * IMPOSSIBLE)  # logarithms of times: the root's own is not needed
    for d in range(factors):
        children = _children(log_prob, log_p[..., d, :])  # [*rows, b, K]
        arrival = noise[..., d, : log_prob.shape[-1], :].log() - children
        if d:
            wait = arrival + torch.log(-torch.expm1(arrival.amin(-1, keepdim=True) - arrival))  # -inf for the first
            arrival = torch.logaddexp(time.unsqueeze(-1), wait)
        children, arrival = children.flatten(-2), arrival.flatten(-2)
        kept = arrival.topk(min(size, arrival.shape[-1]), largest=False).indices
        rest = torch.logaddexp(rest, children.scatter(-1, kept, 2 * IMPOSSIBLE).logsumexp(-1))
        index, log_prob, time = _lengthened(index, kept, k), children.gather(-1, kept), arrival.gather(-1, kept)
    return Outcomes(index, log_prob, rest)


def possible_actions(distribution: Distribution, index: Tensor, log_prob: Tensor) -> Tensor:
    """The actions `[S, *rows, *event]` of outcomes `[*rows, S, D]`, with the first one in place of impossible ones, whose
    weight is 0: f is never asked about an action that cannot be drawn."""
    here = (log_prob > IMPOSSIBLE / 2).unsqueeze(-1)
    return actions_at(distribution, torch.where(here, index, index[..., :1, :]))
