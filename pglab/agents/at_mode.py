"""A policy that plays its mode, for rollouts that draw their actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from pglab.distributions import Distribution
from pglab.rollout import Act, Event

NO_NOISE: Event = ("uniform", (0,))
"""What a policy without noise asks for: blocks of the right length with nothing in them."""


@dataclass(frozen=True)
class AtMode:
    """What a rollout asks of a distribution, answered by its mode whatever the noise."""

    distribution: Distribution

    def sample(self, noise: Tensor) -> Tensor:
        return self.distribution.mode()

    def executed(self, action: Tensor) -> Tensor:
        return self.distribution.executed(action)


def at_mode(act: Act) -> Act:
    """The policy `act` without its noise."""
    return lambda obs, mask: cast(Distribution, AtMode(act(obs, mask)))
