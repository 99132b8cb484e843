"""What a baseline is: b(s), predicted from anything but the action that it is subtracted for.

Letters: T time, P population, N environments, D factors, O observation. On-policy rows are `[T, P, N]`; in the
actor-critic agent, rows are `[1, P, B]`, a batch of B replayed states.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Critic, Signal
from pglab.registry import Part, Registry

BaselineState = dict[str, Any]
"""A tree of tensors with the member axis first, and numbers."""


@dataclass(frozen=True)
class Scores:
    """Gradients of the columns of a batch, which are independent of one another: of the surrogate with the values as they
    are and with the value 1, at the parameters that are trained (the distribution's on a plain objective), n of them.

    A row's cotangent is multiplied by all that training multiplies it by (mask, gamma^t, one over the number of rows) and
    by N, so that the batch's gradient is the mean of its columns'.
    """

    value: Tensor
    """`[P, N, n]`: grad S(value) of each column, no baseline subtracted: sum over its rows of value x score."""
    one: Tensor
    """`[P, N, n]`: grad S(1) of each column: the sum of its rows' scores. Its mean is zero."""
    along: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Takes a baseline `[T, P, N]` and computes two such tensors: each row's own score's dot product with its column's
    gradient with this baseline subtracted, and its squared norm."""


@dataclass(frozen=True)
class Batch:
    """What a baseline may look at."""

    obs: Tensor
    """`[T, P, N, O]`, normalised as the policy sees them."""
    value: Tensor
    """`[T, P, N]`: f of the drawn action (a return or Q). 0 where not valid."""
    valid: Tensor
    """`[T, P, N]` bool: rows that exist."""
    time: Tensor
    """`[T, P, N]` int64: the step in the episode."""
    v: Tensor | None = None
    """`[T, P, N]`: the learned V(s), before this batch's update; None unless the baseline declares it."""
    distribution: Distribution | None = None
    """The policy at these rows, without gradient; None unless the baseline declares it."""
    critic: Critic | None = None
    """f, where the agent has one."""
    action: Tensor | None = None
    """`[T, P, N, *event]`: the drawn actions; None unless the baseline declares it. A baseline for factor d may read the
    other factors of it, never factor d."""
    scores: Callable[[], Scores] | None = None
    """Computes the columns' gradients; None unless the baseline declares it, and before `update`."""
    whole_episodes: bool = False
    """Whether the rows are whole episodes, several of them one after another in a column: then rows of different episodes
    are independent given the policy."""


class Baseline(Part):
    """A baseline. Its options are its fields; what it learns is `state`, which it never stores."""

    couples_rows: ClassVar[bool] = False
    """Whether one row's prediction reads other rows' values, with the options' defaults: then the unit of replication is
    the whole batch."""
    needs: ClassVar[
        frozenset[Literal["v", "critic", "critic_gradient", "distribution", "action", "scores", "time"]]
    ] = frozenset()
    """What it reads of a batch beside values, observations and masks; `time` where it is nothing without steps of
    episodes."""
    unbiased: ClassVar[bool] = True
    """Whether subtracting it leaves the estimate's mean as it is."""
    bias: ClassVar[str] = ""
    """Where it is biased, in a few words."""
    per_parameter: ClassVar[bool] = False
    """Whether it is a coefficient b for every parameter: the estimate is grad S(value) - b * grad S(1), with b from
    `coefficient`, and `predict` gives None."""
    per_factor: ClassVar[bool] = False
    """Whether `predict` gives one number per action factor, which estimators say that they take."""
    scales: ClassVar[bool] = False
    """Whether `scale` divides the values."""
    adapts: ClassVar[bool] = False
    """Whether it has a state that `update` changes: on a plain objective it is fitted on a stream of its own first."""
    minimises: ClassVar[str] = ""
    """Which norm of the gradient it minimises the variance of, where it minimises one."""
    paper: ClassVar[str] = ""

    @property
    def couples(self) -> bool:
        """Whether it couples rows with these options."""
        return self.couples_rows

    def initial(self, members: int, device: Any) -> BaselineState:
        """The state before any batch, for `members` members."""
        return {}

    @abstractmethod
    def predict(self, state: BaselineState, batch: Batch) -> Tensor | None:
        """`[T, P, N]`, or `[T, P, N, D]` per factor; None for no baseline. Called before `update` sees the batch."""

    def scale(self, state: BaselineState, batch: Batch) -> Tensor:
        """`[T, P, N]`: what value and baseline are divided by, for baselines that declare `scales`."""
        return torch.ones_like(batch.value)

    def coefficient(self, state: BaselineState) -> Tensor:
        """`[P, n]`: b of every parameter, for baselines that declare `per_parameter`."""
        raise NotImplementedError

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, Mapping[str, Tensor]]:
        """The state after this batch, and what to log (`[P]` each)."""
        return state, {}


def baselined(part: Baseline, state: BaselineState, batch: Batch, signal: Signal) -> Signal:
    """The signal with this baseline's prediction, and divided by its scale where it has one."""
    found = replace(signal, baseline=part.predict(state, batch))
    if not part.scales or found.value is None:
        return found
    scale = part.scale(state, batch)
    b = found.baseline
    if b is not None:
        b = b / (scale if b.ndim == scale.ndim else scale.unsqueeze(-1))
    return replace(found, value=found.value / scale, baseline=b)


BASELINES: Registry[Baseline] = Registry("baseline", default="none")
register_baseline = BASELINES.register
