"""Diagonal Gaussians, with state-independent or state-dependent standard deviation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pglab.distributions.base import Distribution, NoiseKind

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Gaussian(Distribution):
    """D independent normal variables; actions are `[..., D]`.

    mean, log_std: `[..., D]` each (a state-independent log_std comes expanded to the rows).

    Noise: standard normals, `[..., D]`; the draw is mean + std * noise.
    """

    mean: Tensor
    log_std: Tensor

    parameters: ClassVar[tuple[str, ...]] = ("mean", "log_std")
    noise_kind: ClassVar[NoiseKind] = "normal"
    kind: ClassVar[Literal["discrete", "binary", "continuous"]] = "continuous"
    event_ndim: ClassVar[int] = 1

    @property
    def noise_shape(self) -> torch.Size:
        return self.mean.shape

    def rsample(self, noise: Tensor) -> Tensor:
        return self.mean + self.log_std.exp() * noise

    def at_its_noise(self, action: Tensor) -> Tensor:
        action, scale = action.detach(), torch.exp(self.log_std - self.log_std.detach())
        return action + (self.mean - self.mean.detach()) + (action - self.mean.detach()) * (scale - 1)

    def log_prob(self, action: Tensor, noise: Tensor | None = None) -> Tensor:
        """From the noise where it is known: (action - mean) / std is rounded to 0 for tiny std, and its score with it."""
        inverse = torch.exp(-self.log_std)
        if noise is None:
            z = (action.detach() - self.mean) * inverse
        else:
            # The value is the noise; the gradient is that of (constant action - mean) / std.
            z = (noise.detach() * self.log_std.detach().exp() + (self.mean.detach() - self.mean)) * inverse
        return -0.5 * z * z - self.log_std - HALF_LOG_2PI  # [..., D]

    def noise_given(self, action: Tensor, fresh: Tensor) -> Tensor:
        return (action - self.mean) * torch.exp(-self.log_std)

    def entropy(self) -> Tensor:
        return self.log_std + (0.5 + HALF_LOG_2PI)  # [..., D]

    def mode(self) -> Tensor:
        return self.mean
