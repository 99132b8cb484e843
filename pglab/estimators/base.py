"""What an estimator is: a surrogate, one number per row, whose gradient is an estimate of grad E[f(z)].

Letters: rows `[...]` are usually `[T, P, N]` (time, population, environments); D factors, K categories.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pglab.distributions import FAMILIES, Distribution
from pglab.errors import PglabError
from pglab.noise import Noise
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
    obs: Tensor | None = None
    """`[*rows, O]`: the states, for estimators that learn functions of them; None (or O = 0) where there are none."""


Need = Literal["value", "critic", "critic_gradient", "critic_relaxed"]


class Estimator(Part):
    """A gradient estimator. Its options are its fields; what it learns or adapts is `state`, which it never stores.

    Class attributes declare what it can do; `pglab list estimators` prints them and configs are checked against them.
    """

    needs: ClassVar[frozenset[Need]]
    """What it takes from the signal: the value of the drawn action, evaluations of the critic, the critic's gradient
    with respect to the action, the critic at relaxed (off-vertex) actions."""
    kinds: ClassVar[frozenset[str]]
    """The kinds of distributions it serves: discrete, binary, continuous."""
    families: ClassVar[tuple[type[Distribution], ...]] = (Distribution,)
    """The families that it serves, of these kinds; subclasses of them too."""
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
    linear: ClassVar[bool] = False
    """Whether the estimate is linear in signal.value: then it can be made for the value 1 as well, which baselines that
    are a coefficient per parameter need."""
    uses_noise: ClassVar[bool] = False
    """Whether it needs the noise that made the draw under the current parameters."""
    reweights: ClassVar[bool] = False
    """Whether it honours signal.behaviour_log_prob: then it may take more than one step on a batch."""
    same_mean_as: ClassVar[str] = ""
    """A biased estimator that has exactly the mean of another one, by name."""
    learns: ClassVar[bool] = False
    """Whether it has a state of its own that `update` changes."""
    fit_updates: ClassVar[int] = 0
    """For one that learns: updates on a stream of their own before it is used on a plain objective."""

    @classmethod
    def serves(cls, family: type[Distribution]) -> bool:
        """Whether it can be used with this family of distributions."""
        return family.kind in cls.kinds and issubclass(family, cls.families)

    @classmethod
    def served(cls) -> str:
        """The kinds it serves, with the families in parentheses where it does not serve all of a kind."""
        shown = []
        for kind in sorted(cls.kinds):
            families = [f for f in FAMILIES if f.kind == kind]
            fitting = [f.__name__ for f in families if cls.serves(f)]
            shown.append(kind if len(fitting) == len(families) else f"{kind} ({', '.join(fitting)})")
        return ", ".join(shown)

    @property
    def declared_bias(self) -> str:
        """Where it is biased with these options, in a few words; empty where it is unbiased."""
        return "" if self.unbiased else self.bias

    def extra_noise(self, kind: str, event: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Further noise wanted for a draw: name -> (kind of noise, shape of one row's).

        `kind` and `event` are those of the distribution's own noise; kinds are exponential, uniform and normal.
        """
        return {}

    def width(self, distribution: Distribution) -> int:
        """About how many actions per row are evaluated at once: bounds the memory of a block of estimates."""
        return 1

    def initial(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Any]:
        """What it learns or adapts before any batch, for `noise`'s members: a tree of tensors with the member axis first,
        and numbers. `surrogate` finds it in its `state`, beside the scheduled options."""
        return {}

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The state (that of `initial`, without the scheduled options) after a batch whose estimate has been used, and
        what to log (`[P]` each). `state` holds both; `weight` `[*rows]` is 0 for rows that do not exist and sums to about
        1 for each member. Parameters of `distribution` carry no gradient."""
        return {}, {}

    @abstractmethod
    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        """`[*rows]`: its gradient at the distribution's parameters, row by row, is the estimate (ascent)."""


def over_event(value: Any, distribution: Distribution) -> Any:
    """A per-member tensor `[P, 1]` (or a number) reshaped to broadcast against `[*rows, *event]`."""
    if isinstance(value, Tensor) and value.ndim:
        return value.reshape(*value.shape, *([1] * distribution.event_ndim))
    return value


def leading(extra: Tensor, distribution: Distribution) -> Tensor:
    """Extra noise `[*rows, S, ...]` of S further draws as `[S, *rows, ...]`: the critic takes leading axes."""
    return extra.movedim(len(distribution.batch_shape), 0)


def noise_of(draw: Draw, name: str) -> Tensor:
    """The noise that made the draw; PglabError where the action came from elsewhere. `name` is the estimator's."""
    if draw.noise is None:
        raise PglabError(f"{name} needs the noise that made the draw: draw anew, or use `noise_given`.")
    return draw.noise


def evaluated(critic: Critic, action: Tensor) -> Tensor:
    """f at actions `[*lead, *rows, *event]` as a constant, `[*lead, *rows]`."""
    with torch.no_grad():
        return critic(action)


def joint(log_prob: Tensor) -> Tensor:
    """Log-probabilities per factor `[..., D]` as the joint one `[...]`."""
    return log_prob.sum(-1)


ESTIMATORS: Registry[Estimator] = Registry("estimator", default="score_function")
register_estimator = ESTIMATORS.register
