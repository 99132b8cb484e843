"""Constants that minimise the variance of a column's gradient: one number, one per parameter, one per time step.

A is a column's gradient with the values as they are, S with the value 1: the sum of its rows' scores. All sums are over
past batches, so that no constant contains a sample that it is subtracted from. Where a sum of squared scores is 0 (a dead
parameter, a step never reached) the constant is 0, which leaves the estimate as it is.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, Scores, register_baseline
from pglab.baselines.by_time import by_columns, by_rows, fit, of_episode, ratio, running, sums


class _Optimal(Baseline):
    """A ratio of two running sums."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past against each batch, in [0, 1)."""

    needs = frozenset({"scores"})
    adapts = True

    def initial(self, members: int, device: Any) -> BaselineState:
        return {name: torch.zeros(members, 0, device=device) for name in ("product", "square")}  # [P, constants]

    def best(self, state: BaselineState) -> Tensor:
        """The constants, `[P, constants]`; none before the first batch."""
        return ratio(state["product"], state["square"])

    def moved(self, state: BaselineState, product: Tensor, square: Tensor, seen: Tensor) -> BaselineState:
        """With a batch's sums `[P, constants]`, where there was something to sum."""
        size = product.shape[1]
        new = {"product": product, "square": square}
        return {name: running(fit(state[name], size), x, seen, self.decay) for name, x in new.items()}


def _scores(batch: Batch) -> Scores:
    assert batch.scores is not None
    return batch.scores()


@register_baseline("optimal")
class Optimal(_Optimal):
    """b* = E[A . S] / E[S . S], the constant that minimises the trace of the covariance of A - b S (Greensmith,
    Bartlett & Baxter 2004).

    E[S] = 0, so the trace is E|A|^2 - 2 b E[A . S] + b^2 E[S . S] less a constant. It is no state value: for
    z ~ N(mu, sigma^2), f = z^2 and the gradient at mu, b* = 3 sigma^2 + mu^2 where E f = sigma^2 + mu^2.
    """

    minimises = "trace of the covariance of a column's gradient, over constants"
    paper = "Greensmith, Bartlett & Baxter 2004"

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        b = fit(self.best(state), 1)  # [P, 1]
        return b.expand_as(batch.value)

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, dict[str, Tensor]]:
        scores, seen = _scores(batch), batch.valid.any(2).any(0).unsqueeze(1)  # [P, 1]
        product = (scores.value * scores.one).sum((1, 2)).unsqueeze(1)
        state = self.moved(state, product, scores.one.square().sum((1, 2)).unsqueeze(1), seen)
        return state, {"baseline/optimal": self.best(state).squeeze(1)}


@register_baseline("optimal_per_parameter")
class OptimalPerParameter(_Optimal):
    """b_k = E[A_k S_k] / E[S_k^2], a constant for every parameter, which minimises the variance of each (Peters & Schaal
    2008): the estimate is A - b * S.

    A parameter whose score is always 0 (a dead unit's) has 0/0, which is 0 here. With as many constants as parameters
    they are noisier than one: where columns are few their own error can cost more than they save. The state holds two
    numbers per parameter and member.
    """

    per_parameter = True
    minimises = "variance of every parameter of a column's gradient, over constants"
    paper = "Peters & Schaal 2008"

    def predict(self, state: BaselineState, batch: Batch) -> None:
        return None

    def coefficient(self, state: BaselineState) -> Tensor:
        return self.best(state)

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, dict[str, Tensor]]:
        scores, seen = _scores(batch), batch.valid.any(2).any(0).unsqueeze(1)  # [P, 1]
        return self.moved(state, (scores.value * scores.one).sum(1), scores.one.square().sum(1), seen), {}


@register_baseline("optimal_per_time")
class OptimalPerTime(_Optimal):
    """b_t = E[s_t . A] / E[|s_t|^2], a constant for every step t of an episode; s_t is that step's own score, weighted as
    it is in the gradient (Greensmith, Bartlett & Baxter 2004; Peters & Schaal 2008).

    The gradient A - sum_t b_t s_t has the trace E|A|^2 - 2 sum_t b_t E[s_t . A] + sum_t,u b_t b_u E[s_t . s_u]. Scores of
    different steps are uncorrelated: for t < u, s_t is known before the action of step u, whose score has mean 0 given
    everything before it, so E[s_t . s_u] = 0. The quadratic form is diagonal and each b_t is found by itself, where a
    system of equations would have to be solved otherwise. Note s_t . A and not |s_t|^2 value_t: a step's baseline also
    makes use of what its score has in common with the other steps' terms.

    A is long and s_t short, so plain averages of s_t . A are noisy beyond use with a batch's few columns. Two things mend
    it and leave the limit as it is. With m_u the past's mean value at step u, E[s_t . A] is estimated by
    s_t . (A - sum_u m_u s_u) + m_t |s_t|^2, which has the same mean, whatever m is. And each step's b_t - m_t is shrunk
    towards that of all steps together, as if by `prior` more rows. Steps that were never reached have 0.
    """

    prior: Annotated[float, Field(ge=0)] = 100.0
    """Rows that a step's own correction is weighed against; 0: every step by itself."""
    steps: Annotated[int, Field(ge=1)] = 1000
    """Steps of an episode that are told apart; later ones share the last."""

    needs = frozenset({"scores", "time"})
    minimises = "trace of the covariance of a column's gradient, over functions of time"
    paper = "Greensmith, Bartlett & Baxter 2004; Peters & Schaal 2008"

    def initial(self, members: int, device: Any) -> BaselineState:
        return {name: torch.zeros(members, 0, device=device) for name in ("product", "square", "total", "count")}

    def best(self, state: BaselineState) -> Tensor:
        mean, square = ratio(state["total"], state["count"]), state["square"]  # [P, steps seen]
        off = state["product"] - mean * square
        shared = ratio(off.sum(1, keepdim=True), square.sum(1, keepdim=True))
        prior = self.prior * ratio(square.sum(1, keepdim=True), state["count"].sum(1, keepdim=True))
        return torch.where(state["count"] > 0, mean + ratio(off + prior * shared, square + prior), 0.0)

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        at, size = of_episode(batch, self.steps, state["product"].shape[1])
        return by_rows(fit(self.best(state), size).gather(1, at), batch.value.shape)

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, dict[str, Tensor]]:
        at, size = of_episode(batch, self.steps, state["product"].shape[1])
        alive = by_columns(batch.valid.to(batch.value.dtype))
        count = sums(alive, at, size)

        def moved(name: str, rows: Tensor) -> Tensor:
            return running(fit(state[name], size), sums(rows * alive, at, size), count > 0, self.decay)

        found = {"total": moved("total", by_columns(batch.value)), "count": moved("count", alive)}
        mean = ratio(found["total"], found["count"]).gather(1, at)  # [P, T*N]
        along, square = (by_columns(x) for x in _scores(batch).along(by_rows(mean, batch.value.shape)))
        return found | {"product": moved("product", along + mean * square), "square": moved("square", square)}, {}
