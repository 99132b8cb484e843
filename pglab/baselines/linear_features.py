"""A ridge regression of the values on features of state and time."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline
from pglab.baselines.by_time import by_columns, by_rows

CLIP = 10.0
TIME_UNIT = 100.0


@register_baseline("linear_features")
class LinearFeatures(Baseline):
    """b = w . [s, s^2, t, t^2, t^3, 1], w by ridge regression (Duan et al. 2016), for every member apart.

    s is clipped to [-10, 10] and t is the step of the episode in hundreds. The ridge is relative to every feature's own
    mean square, so that no choice of units makes the system singular. Regressed on past batches, decayed (0: on the
    newest one alone, as published), or, with `folds`, cross-fitted: the columns are cut into that many folds and each
    fold's w is regressed on the past and on the batch's other folds. Regressed on the very rows that it is subtracted
    from it would be biased; neither way is. Without observations it is a function of time, without time of the state.
    """

    ridge: Annotated[float, Field(gt=0)] = 1e-5
    """Penalty on the squared weights of features scaled to a mean square of 1."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past against each batch, in [0, 1)."""
    folds: Annotated[int, Field(ge=0)] = 0
    """Folds of columns to cross-fit within the batch (at least 2; as many as columns: leave one out); 0: the past alone."""

    adapts = True
    minimises = "the squared error of the value, not a variance of the gradient"
    paper = "Duan et al. 2016"

    @field_validator("folds")
    @classmethod
    def _two_at_least(cls, value: int) -> int:
        if value == 1:
            raise ValueError("folds must be 0 (none) or at least 2: one fold would be regressed on itself")
        return value

    @property
    def couples(self) -> bool:
        return self.folds > 0

    def initial(self, members: int, device: Any) -> BaselineState:
        # Double precision: features' squares and the sixth powers of time meet in one matrix.
        return {
            "gram": torch.zeros(members, 0, 0, dtype=torch.float64, device=device),  # [P, F, F]
            "moment": torch.zeros(members, 0, dtype=torch.float64, device=device),  # [P, F]
        }

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        x, (_, p, n) = features(batch), batch.value.shape  # [P, T*N, F]
        gram, moment = self._past(state, x.shape[2])
        k = min(self.folds, n)
        if k < 2:
            found = (x @ self._weights(gram, moment).unsqueeze(2)).squeeze(2)  # [P, T*N]
            return by_rows(found, batch.value.shape).to(batch.value.dtype)
        grams, moments = _products(x, batch, k)
        others = 1 - torch.eye(k, dtype=x.dtype, device=x.device)
        grams = self.decay * gram.unsqueeze(1) + torch.einsum("jk,pkfg->pjfg", others, grams)
        moments = self.decay * moment.unsqueeze(1) + torch.einsum("jk,pkf->pjf", others, moments)
        w = self._weights(grams, moments)[:, torch.arange(n, device=x.device) % k]  # [P, N, F]
        found = torch.einsum("ptnf,pnf->tpn", x.view(p, -1, n, x.shape[2]), w)
        return found.to(batch.value.dtype)

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, dict[str, Tensor]]:
        x = features(batch)
        gram, moment = self._past(state, x.shape[2])
        grams, moments = _products(x, batch, 1)
        seen = batch.valid.any(2).any(0)  # [P]
        return {
            "gram": torch.where(seen[:, None, None], self.decay * gram + grams[:, 0], gram),
            "moment": torch.where(seen[:, None], self.decay * moment + moments[:, 0], moment),
        }, {}

    def _past(self, state: BaselineState, f: int) -> tuple[Tensor, Tensor]:
        gram, moment = state["gram"].double(), state["moment"].double()
        return (gram, moment) if gram.shape[1] else (gram.new_zeros(len(gram), f, f), moment.new_zeros(len(gram), f))

    def _weights(self, gram: Tensor, moment: Tensor) -> Tensor:
        """`[..., F]`: 0 for features that were never anything but 0, all of them where there are no rows."""
        square = gram.diagonal(dim1=-2, dim2=-1)
        scale = torch.where(square > 0, square, 1.0).rsqrt() * (square > 0)
        unit = gram * scale.unsqueeze(-1) * scale.unsqueeze(-2)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        found, _ = torch.linalg.solve_ex(unit + self.ridge * eye, (moment * scale).unsqueeze(-1))
        return found.squeeze(-1) * scale


def features(batch: Batch) -> Tensor:
    """[s, s^2, t, t^2, t^3, 1] of every row, `[P, T*N, 2 O + 4]`, float64."""
    s = batch.obs.double().clamp(-CLIP, CLIP)
    t = batch.time.double().unsqueeze(-1) / TIME_UNIT
    x = torch.cat([s, s.square(), t, t.square(), t.pow(3), torch.ones_like(t)], -1)  # [T, P, N, F]
    return x.transpose(0, 1).flatten(1, 2)


def _products(x: Tensor, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """Sums over the rows of each of k folds (column n is in fold n mod k) of x x' and x value, `[P, k, F, F]` and
    `[P, k, F]`."""
    t, p, n = batch.value.shape
    alive = by_columns(batch.valid).double().unsqueeze(2)  # [P, T*N, 1]
    value = by_columns(torch.where(batch.valid, batch.value, 0.0)).double().unsqueeze(2)
    grams, moments = [], []
    for j in range(k):
        a, b, y = (z.view(p, t, n, -1)[:, :, j::k].flatten(1, 2) for z in (x * alive, x, value))
        grams.append(a.mT @ b)
        moments.append((a.mT @ y).squeeze(2))
    return torch.stack(grams, 1), torch.stack(moments, 1)
