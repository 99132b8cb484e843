"""What the control variates have in common: checked evaluations, expansions of the critic, learned functions.

A control variate c enters as (f(z) - b - c) s + (an estimate of grad E[c]), s the score: the mean does not depend on c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from pglab.distributions import Distribution
from pglab.errors import PglabError
from pglab.estimators.base import Critic, Draw, Signal, State
from pglab.estimators.learned import Learned, Views, apply, named
from pglab.networks import MLP
from pglab.noise import Noise

UNSEEN = 1e-30
"""The weight of a size of 1 that values are taken to have before any is seen."""
MEMORY = 0.99
"""How much of the past a running mean keeps at each batch."""
NETWORK_STREAM = 8
"""Keeps the initial weights of an estimator's network apart from those of the agent's networks."""


def asked(critic: Critic, action: Tensor, distribution: Distribution) -> Tensor:
    """f at drawn, relaxed or mean actions `[*lead, *rows, *event]`, `[*lead, *rows]`; PglabError for any other shape."""
    value = critic(distribution.executed(action))
    wanted = action.shape[: action.ndim - distribution.event_ndim]
    if value.shape != wanted:
        raise PglabError(f"The critic gave shape {list(value.shape)}; {list(wanted)} is wanted, one number per action.")
    return value


def expansion(critic: Critic, at: Tensor, distribution: Distribution) -> tuple[Tensor, Tensor]:
    """f `[*rows]` and its gradient `[*rows, *event]` at actions `at`, both constants. The gradient is with respect to the
    drawn variable: before tanh for a SquashedGaussian."""
    with torch.enable_grad():
        point = at.detach().requires_grad_()
        value = asked(critic, point, distribution)
        (slope,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), slope


def inner(a: Tensor, b: Tensor, distribution: Distribution) -> Tensor:
    """The inner product of each row's actions, `[*rows]`."""
    return (a * b).flatten(-distribution.event_ndim).sum(-1)


def scored(distribution: Distribution, draw: Draw, signal: Signal, control: Tensor) -> Tensor:
    """`[*rows]`: 0, with the gradient (f - b - control) s at the distribution's parameters.

    The score is multiplied as log p minus its own value, which is 0: so `control` `[*rows]` may depend on the parameters
    and still adds nothing of its own gradient, while what was learned in it keeps its graph.
    """
    assert signal.value is not None
    log_prob = distribution.log_prob(draw.action, draw.noise)  # [*rows, D]
    score = log_prob - log_prob.detach()
    left = signal.value - control
    baseline = signal.baseline
    if baseline is not None and baseline.ndim == score.ndim:
        return (score * (left.unsqueeze(-1) - baseline)).sum(-1)
    return score.sum(-1) * (left if baseline is None else left - baseline)


def advantage(signal: Signal) -> Tensor:
    """f - b, `[*rows]`; a baseline per factor counts as the mean of its factors."""
    assert signal.value is not None
    baseline = signal.baseline
    if baseline is None:
        return signal.value
    return signal.value - (baseline if baseline.ndim == signal.value.ndim else baseline.mean(-1))


def over_rows(x: Tensor) -> Tensor:
    """One number per member `[P, ...]` for rows `[T, P, N]`; for a single member a number, for rows of any shape."""
    return x[0].squeeze() if len(x) == 1 else x


def by_members(x: Tensor, members: int) -> Tensor:
    """Each member's sum over its rows, `[P, 1]`: rows `[T, P, N]`, or any for a single member."""
    if members == 1:
        return x.sum().reshape(1, 1)
    return x.movedim(-2, 0).flatten(1).sum(1, keepdim=True)


def no_mean(members: int, device: torch.device, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Running means that have seen nothing: `[P, 1]` each, beside the weight of what they have seen."""
    return {name: torch.zeros(members, 1, device=device) for name in (*names, "seen")}


def with_batch(means: Mapping[str, Tensor], weight: Tensor, memory: float, **rows: Tensor) -> dict[str, Tensor]:
    """Running means after a batch of `[*rows]` quantities; rows that do not exist weigh 0."""
    members = len(means["seen"])
    share = by_members(weight, members)
    found = {"seen": torch.lerp(share, means["seen"], memory)}
    for name, x in rows.items():
        found[name] = torch.lerp(by_members(x * weight, members), means[name], memory)
    return found


def mean_of(means: Mapping[str, Tensor], name: str) -> Tensor:
    """A running mean, `[P, 1]`; 0 before any batch."""
    return means[name] / means["seen"].clamp_min(torch.finfo(means["seen"].dtype).tiny)


class LearnedFunction(Learned):
    """An estimator with a learned function c(x, state) of some features x, in units of the values' size.

    c is a network's output times a running root mean square of earlier batches' f - b, so that values of any size are
    learned at the same rate. It is small at first: the estimate starts as nearly REINFORCE.
    """

    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (32, 32)
    """Sizes of the hidden layers (tanh) of the learned function."""

    def features(self, event: tuple[int, ...]) -> int:
        """How many features an action of shape `event` has."""
        raise NotImplementedError

    def network(self, event: tuple[int, ...], observation_size: int) -> MLP:
        """c's network. Without any input it is given a 1."""
        size = max(1, self.features(event) + observation_size)
        return MLP((size, *self.hidden, 1), "tanh", 0.01, stream=NETWORK_STREAM)

    def start(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Tensor]:
        made = self.network(event, observation_size).initial(noise)
        return {name: view.detach() for name, view in made.views.items()}

    def shapes(self, event: tuple[int, ...], observation_size: int) -> dict[str, tuple[int, ...]]:
        return named(self.network(event, observation_size))

    def initial(self, noise: Noise, event: tuple[int, ...], observation_size: int) -> dict[str, Any]:
        size = {name: x + UNSEEN for name, x in no_mean(len(noise), noise.device, ("square",)).items()}
        return super().initial(noise, event, observation_size) | {"size": size}

    def size(self, state: State) -> Tensor:
        """The root mean square of earlier values, `[P, 1]` (a number for a single member)."""
        return over_rows(mean_of(state["size"], "square").sqrt())

    def function(
        self, views: Views, x: Tensor | None, distribution: Distribution, signal: Signal, state: State
    ) -> Tensor:
        """c at features `[*lead, *rows, X]` (None: of the state alone), `[*lead, *rows]`."""
        rows, obs = distribution.batch_shape, signal.obs
        given = [] if x is None else [x]
        if obs is not None and obs.shape[-1]:
            given.append(obs if x is None else obs.expand(*x.shape[:-1], obs.shape[-1]))
        if not given:
            given.append(torch.ones(*rows, 1, dtype=state["learned"].dtype, device=state["learned"].device))
        inputs = torch.cat(given, -1)
        event = tuple(distribution.noise_shape[len(rows) :])
        network = self.network(event, 0 if obs is None else obs.shape[-1])
        return apply(network, views, inputs).squeeze(-1) * self.size(state)

    def relative(self, square: Tensor, state: State) -> Tensor:
        """A squared error in units of the values' size, so that Adam's eps does not matter."""
        return square / self.size(state).square().clamp_min(torch.finfo(square.dtype).tiny ** 0.5)

    def loss(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        return self.relative(super().loss(distribution, draw, signal, state), state)

    def update(
        self, state: State, distribution: Distribution, draw: Draw, signal: Signal, weight: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        square = torch.where(weight > 0, advantage(signal), 0.0).square()
        size = with_batch(state["size"], weight, MEMORY, square=square)
        found, info = super().update({**state, "size": size}, distribution, draw, signal, weight)
        return found | {"size": size}, info
