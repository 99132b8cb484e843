"""RODEO: leave-one-out with learned control variates made by a discrete Stein operator."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Signal, State, joint, register_estimator
from pglab.estimators.control_variates import NETWORK_STREAM, LearnedFunction, expansion, inner
from pglab.estimators.double_cv import SeveralSamples
from pglab.estimators.learned import Views, apply
from pglab.estimators.outcomes import category_log_probs, indices, sizes, values_at
from pglab.networks import MLP


@register_estimator("rodeo")
class RODEO(SeveralSamples, LearnedFunction):
    """1/S sum_k [(f(x_k) - mean_{j != k} (f(x_j) + (A h_j)(x_j))) grad log p(x_k) + (A g_k)(x_k)] (Shi, Zhou, Hwang, Titsias &
    Mackey 2022).

    A is the Gibbs Stein operator, (A h)(x) = 1/D sum_d (E[h(x with factor d drawn anew)] - h(x)), whose result has mean 0
    under p for any h. h_k(y) and g_k(y) = h'_k(y) grad log p(y) are made of the samples but x_k: h_k and h'_k are the means
    over j != k of the two outputs of a learned network at f(x_j) and its first-order change to y, f'(x_j) . (y - x_j). The
    network moves so that the variance falls; no further evaluation of f is needed. At first h and g are small: the
    estimate is nearly the leave-one-out one.
    """

    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (16,)
    """Sizes of the hidden layers (tanh) of the network behind h and g."""

    paper = "Shi et al. 2022"

    def width(self, distribution: Distribution) -> int:
        d, k = sizes(distribution)
        return self.samples * (1 + (self.samples - 1) * (1 + d * (k - 1)))

    def network(self, event: tuple[int, ...], observation_size: int) -> MLP:
        return MLP((2, *self.hidden, 2), "tanh", 0.01, stream=NETWORK_STREAM)

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        assert signal.critic is not None
        x = self.drawn(distribution, draw)
        value, slope = expansion(signal.critic, x, distribution)  # [S, *rows], [S, *rows, *event]
        log_p = category_log_probs(distribution)  # [*rows, D, K]
        d, k = log_p.shape[-2:]
        # A neighbour has one factor moved on by 1, ..., K - 1 categories: M = D (K - 1) of them.
        own = indices(distribution, x).unsqueeze(-1)  # [S, *rows, D, 1]
        moved = (own + torch.arange(1, k, device=x.device)) % k  # [S, *rows, D, K - 1]
        every = log_p.expand(len(x), *log_p.shape)
        log_moved = every.gather(-1, moved)
        log_here = joint(distribution.log_prob(x))  # [S, *rows]
        log_there = first(log_here[..., None, None] + log_moved - every.gather(-1, own))  # [M, S, *rows]

        number = torch.arange(len(x), device=x.device)
        others = (number.unsqueeze(-1) + number[1:]) % len(x)  # [S, S - 1]: for every sample the others
        here = inner(slope[others], x.unsqueeze(1) - x[others], distribution)  # [S, S - 1, *rows]
        steep = (slope if distribution.event_ndim == 2 else torch.stack([torch.zeros_like(slope), slope], -1))[others]
        to, at = (i.unsqueeze(1).expand(*steep.shape[:-1], i.shape[-1]) for i in (moved, own))
        there = first(here[..., None, None] + steep.gather(-1, to) - steep.gather(-1, at))  # [M, S, S - 1, *rows]
        h, g = self.outputs(state, distribution, signal, value[others], torch.cat([here.unsqueeze(0), there]))

        p = first(log_moved.detach().exp())  # [M, S, *rows]
        corrected = value + (p * (h[1:] - h[0])).sum(0) / d
        baseline = (corrected.sum(0) - corrected) / (len(x) - 1)
        local = (p * (g[1:] * log_there - g[0] * log_here)).sum(0) / d
        return ((value - baseline) * log_here + local).mean(0)

    def outputs(
        self, state: State, distribution: Distribution, signal: Signal, value: Tensor, change: Tensor
    ) -> tuple[Tensor, Tensor]:
        """h and h' `[1 + M, S, *rows]` from values `[S, S - 1, *rows]` and changes `[1 + M, S, S - 1, *rows]`."""
        views: Views = self.learned(state, distribution, signal)
        unit = self.size(state).unsqueeze(-1)
        inputs = torch.stack([value.expand_as(change), change], -1)
        inputs = torch.where(unit > 0, inputs / unit, 0.0)  # a unit of 0: all values were
        h, g = (apply(self.network((), 0), views, inputs) * unit).mean(2).unbind(-1)
        return h, g

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if signal.value is None:  # the size of the values is made of it
            assert signal.critic is not None
            value = values_at(distribution, signal.critic, draw.action.unsqueeze(0)).squeeze(0)
            signal = replace(signal, value=value)
        return super().update(state, distribution, draw, signal, weight)


def first(x: Tensor) -> Tensor:
    """`[..., D, K - 1]` as `[M, ...]`."""
    return x.flatten(-2).movedim(-1, 0)
