"""What a distribution is: an immutable record of its parameters with pure functions and no randomness inside.

Letters: `...` any batch shape (usually T, P, N), D factors (action dimensions), K categories, M joint outcomes.
Noise is always an argument, so the same noise gives the same action under every estimator.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from pglab.errors import PglabError

NoiseKind = Literal["exponential", "uniform", "normal"]


@dataclass(frozen=True)
class Distribution(ABC):
    """A product of D independent factors given the parameters.

    `parameters` names the fields that are differentiated. Every factor's log-probability is kept apart (`[..., D]`),
    so baselines and estimators may treat factors one by one; sum over the last axis for the joint.
    """

    parameters: ClassVar[tuple[str, ...]]
    noise_kind: ClassVar[NoiseKind]
    kind: ClassVar[Literal["discrete", "binary", "continuous"]]
    event_ndim: ClassVar[int]  # trailing axes of an action: 2 for one-hot [D, K], else 1 for [D]

    @property
    @abstractmethod
    def noise_shape(self) -> torch.Size:
        """Shape of the noise that makes one draw per row, batch axes included."""

    @property
    def batch_shape(self) -> torch.Size:
        """The shape of the rows, `[...]`."""
        return self.noise_shape[: len(self.noise_shape) - self.event_ndim]

    @abstractmethod
    def rsample(self, noise: Tensor) -> Tensor:
        """A draw that carries the gradient of its parameters, where the family has one; else PglabError."""

    @abstractmethod
    def log_prob(self, action: Tensor, noise: Tensor | None = None) -> Tensor:
        """Log-probability (density) of each factor, `[..., D]`. The action is a constant: only parameters get a gradient.

        `noise`, if given, is what made `action` *under these very parameters*: families whose score is better computed
        from it (Gaussians) use it, the others do not need it.
        """

    @abstractmethod
    def noise_given(self, action: Tensor, fresh: Tensor) -> Tensor:
        """A draw from p(noise | action), made from `fresh` unconditional noise. Differentiable in the parameters."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Closed-form entropy of each factor, `[..., D]`; PglabError where there is none."""

    @abstractmethod
    def mode(self) -> Tensor:
        """The most probable action (for SquashedGaussian: the image of the Gaussian's mean)."""

    @property
    def has_entropy(self) -> bool:
        """Whether `entropy` has a closed form."""
        return True

    def sample(self, noise: Tensor) -> Tensor:
        """A draw that never carries a gradient."""
        with torch.no_grad():
            return self.rsample(noise)

    def executed(self, action: Tensor) -> Tensor:
        """What the environment and a critic see of a drawn action: the action itself, but tanh(u) for SquashedGaussian."""
        return action

    def at_its_noise(self, action: Tensor) -> Tensor:
        """The given draw, carrying the gradient of the parameters at the noise that makes it: `rsample` where the action
        is known and its noise is not. PglabError where draws have no gradient."""
        raise PglabError(f"{type(self).__name__} draws have no gradient.")

    def check(self) -> None:  # noqa: B027
        """PglabError where the parameters' values lie outside of what they may be. Reads values: for plain objectives."""

    def enumerate(self) -> Tensor:
        """All joint outcomes, `[M, *event]`; PglabError for a continuous family."""
        raise PglabError(f"{type(self).__name__} has infinitely many outcomes and cannot be enumerated.")

    def relax(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        """A continuous relaxation of `sample(noise)` that carries a gradient; PglabError where there is none."""
        raise PglabError(f"{type(self).__name__} has no relaxation: its draws carry a gradient already (use rsample).")

    def cut(self) -> tuple[Self, list[Tensor]]:
        """The same distribution with its parameters as detached leaves, and those leaves in the order of `parameters`."""
        leaves = [getattr(self, name).detach().requires_grad_() for name in self.parameters]
        return dataclasses.replace(self, **dict(zip(self.parameters, leaves, strict=True))), leaves

    def detach(self) -> Self:
        """The same distribution with parameters that carry no gradient."""
        return dataclasses.replace(self, **{name: getattr(self, name).detach() for name in self.parameters})
