"""What an estimator is: a surrogate, one number per row, whose gradient is an estimate of grad E[f(z)].

Letters: rows `[...]` are usually `[T, P, N]` (time, population, environments); D factors, K categories.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from pglab.distributions import Distribution
from pglab.registry import Part, Registry

Critic = Callable[[Tensor], Tensor]
"""f at the rows' states: actions `[..., *event]` with any leading axes before the rows' to values of those axes."""

State = Mapping[str, Any]


@dataclass(frozen=True)
class Draw:
    """What happened."""

    action: Tensor
    """The drawn action, `[*rows, *event]`; for SquashedGaussian its pre-squash value."""
    noise: Tensor | None = None
    """The noise that made it under the current parameters; None when the action came from elsewhere."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further noise that the estimator asked for through `extra_noise`."""


@dataclass(frozen=True)
class Signal:
    """What is known of f at the rows, all of it free of the policy's parameters."""

    value: Tensor | None = None
    """`[*rows]`: f of the drawn action: a return, or Q."""
    baseline: Tensor | None = None
    """`[*rows]`, or `[*rows, D]` for one per factor."""
    critic: Critic | None = None
    """A callable f, for estimators that evaluate it themselves."""
    behaviour_log_prob: Tensor | None = None
    """`[*rows]`: joint log-probability under the policy that drew the action; None if it is the current one."""


Need = Literal["value", "critic", "critic_gradient", "critic_relaxed"]


class Estimator(Part):
    """A gradient estimator. Its options are its fields; what it learns or adapts is `state`, which it never stores.

    Class attributes declare what it can do; `pglab list estimators` prints them and configs are checked against them.
    """

    needs: ClassVar[frozenset[Need]]
    """What it takes from the signal: the value of the drawn action, evaluations of the critic, the critic's gradient
    with respect to the action, the critic at relaxed (off-vertex) actions."""
    kinds: ClassVar[frozenset[str]]
    """The distributions it serves: discrete, binary, continuous."""
    unbiased: ClassVar[bool]
    """For E[signal] (with a critic: given the critic)."""
    bias: ClassVar[str] = ""
    """Where it is biased, in a few words."""
    evaluations: ClassVar[str]
    """Evaluations of f per row."""
    paper: ClassVar[str]
    """Source: author, year, equation."""
    scheduled: ClassVar[tuple[str, ...]] = ()
    """Fields that are schedules: their current values reach `surrogate` through `state`, `[P, 1]` in training."""
    uses_baseline: ClassVar[bool] = False
    """Whether signal.baseline enters the estimate."""

    def extra_noise(self, distribution: Distribution) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Further noise wanted for a draw: name -> (kind of noise, shape of one row's)."""
        return {}

    @abstractmethod
    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        """`[*rows]`: its gradient at the distribution's parameters, row by row, is the estimate (ascent)."""


def over_event(value: Any, distribution: Distribution) -> Any:
    """A per-member tensor `[P, 1]` (or a number) reshaped to broadcast against `[*rows, *event]`."""
    if isinstance(value, Tensor) and value.ndim:
        return value.reshape(*value.shape, *([1] * distribution.event_ndim))
    return value


ESTIMATORS: Registry[Estimator] = Registry("estimator", default="score_function")
register_estimator = ESTIMATORS.register
