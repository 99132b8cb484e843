"""What a baseline is: b(s), predicted from anything but the action that it is subtracted for.

Letters: T time, P population, N environments, D factors, O observation. On-policy rows are `[T, P, N]`; in the
actor-critic agent, rows are `[1, P, B]`, a batch of B replayed states.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Critic
from pglab.registry import Part, Registry

BaselineState = dict[str, Any]
"""A tree of tensors with the member axis first, and numbers."""


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
    whole_episodes: bool = False
    """Whether the rows are whole episodes, several of them one after another in a column: then rows of different episodes
    are independent given the policy."""


class Baseline(Part):
    """A baseline. Its options are its fields; what it learns is `state`, which it never stores."""

    couples_rows: ClassVar[bool] = False
    """Whether one row's prediction reads other rows' values: then the unit of replication is the whole batch."""
    needs: ClassVar[frozenset[Literal["v", "critic", "distribution"]]] = frozenset()
    """What it reads of a batch beside values, observations, masks and times."""
    unbiased: ClassVar[bool] = True
    """Whether subtracting it leaves the estimate's mean as it is."""
    paper: ClassVar[str] = ""

    def initial(self, members: int, device: Any) -> BaselineState:
        """The state before any batch, for `members` members."""
        return {}

    @abstractmethod
    def predict(self, state: BaselineState, batch: Batch) -> Tensor | None:
        """`[T, P, N]`, or `[T, P, N, D]` per factor; None for no baseline. Called before `update` sees the batch."""

    def update(self, state: BaselineState, batch: Batch) -> tuple[BaselineState, Mapping[str, Tensor]]:
        """The state after this batch, and what to log (`[P]` each)."""
        return state, {}


BASELINES: Registry[Baseline] = Registry("baseline", default="none")
register_baseline = BASELINES.register
