"""Optimizers over a whole population: one flat tensor, one learning rate and one gradient norm per member.

`torch.optim` takes one learning rate per parameter group and clips one norm over everything; here both are per member,
so that a member's training does not depend on who else is in the population.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pglab.registry import Strict

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Strict):
    """How gradients become steps."""

    name: Literal["adam", "sgd", "rmsprop"] = "adam"
    """adam (Kingma & Ba 2015), sgd (with momentum), or rmsprop (Tieleman & Hinton 2012)."""
    beta1: Decay = 0.9
    """Adam: decay of the first moment."""
    beta2: Decay = 0.999
    """Adam: decay of the second moment."""
    momentum: Decay = 0.0
    """SGD: momentum."""
    alpha: Decay = 0.99
    """RMSprop: decay of the mean square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Adam and RMSprop: added to the root of the second moment."""

    def initial(self, flat: Tensor) -> dict[str, Any]:
        """The optimizer's state for parameters `[P, n]`: tensors `[P, n]`, and step counts `[P, 1]` (tensors too, so that a
        step is operations on tensors alone)."""
        state = {"steps": flat.new_zeros(len(flat), 1, dtype=torch.float64)}
        if self.name == "adam" or (self.name == "sgd" and self.momentum):
            state["first"] = torch.zeros_like(flat)
        if self.name in ("adam", "rmsprop"):
            state["second"] = torch.zeros_like(flat)
        return state

    def step(self, flat: Tensor, grad: Tensor, state: dict[str, Any], learning_rate: Tensor) -> None:
        """Move `flat` `[P, n]` against `grad` `[P, n]` in place; `learning_rate` is `[P, 1]`."""
        t = state["steps"].add_(1)
        if self.name == "adam":
            first, second = state["first"], state["second"]
            first.lerp_(grad, 1 - self.beta1)
            second.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
            short = [(1 - beta**t) for beta in (self.beta1, self.beta2)]  # what the moments lack of their full weight
            root = second.sqrt().div_(short[1].sqrt_().to(second.dtype)).add_(self.eps)
            flat.sub_(first / root * (learning_rate / short[0].to(first.dtype)))
        elif self.name == "rmsprop":
            state["second"].mul_(self.alpha).addcmul_(grad, grad, value=1 - self.alpha)
            flat.sub_(learning_rate * grad / state["second"].sqrt().add_(self.eps))
        elif self.momentum:
            state["first"].mul_(self.momentum).add_(grad)
            flat.sub_(learning_rate * state["first"])
        else:
            flat.sub_(learning_rate * grad)


def optimizer_state(saved: dict[str, Any], members: int, device: torch.device) -> dict[str, Any]:
    """An optimizer's state as a checkpoint holds it, for `members` members; older ones hold the step count as a number."""
    steps = saved["steps"]
    if isinstance(steps, torch.Tensor):
        return saved
    return saved | {"steps": torch.full((members, 1), float(steps), dtype=torch.float64, device=device)}


def clip_by_member(grad: Tensor, limit: float | None) -> Tensor:
    """Scale each member's gradient `[P, n]` in place to norm at most `limit`; returns the norms before, `[P]`."""
    norm = torch.linalg.vector_norm(grad, dim=1)  # [P]
    if limit is not None:
        grad.mul_((limit / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1))
    return norm
