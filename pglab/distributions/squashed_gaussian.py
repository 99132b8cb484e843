"""A diagonal Gaussian pressed into (-1, 1) by tanh."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pglab.distributions.gaussian import Gaussian
from pglab.errors import PglabError


def log_det_tanh(u: Tensor) -> Tensor:
    """log d tanh(u)/du = 2 (log 2 - u - softplus(-2u)): exact for any u, where log(1 - tanh(u)^2) saturates."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


@dataclass(frozen=True)
class SquashedGaussian(Gaussian):
    """tanh of a Gaussian (Haarnoja et al. 2018, appendix C).

    Drawn actions are the *pre-squash* values u, `[..., D]`: log-probabilities are computed from u, never from an atanh
    of the bounded action. `executed(u)` is tanh(u), what environments and critics see. `log_prob` is the density of the
    executed action, log-determinant included.
    """

    def executed(self, action: Tensor) -> Tensor:
        return torch.tanh(action)

    def log_prob(self, action: Tensor, noise: Tensor | None = None) -> Tensor:
        return super().log_prob(action, noise) - log_det_tanh(action.detach())  # [..., D]

    @property
    def has_entropy(self) -> bool:
        return False

    def entropy(self) -> Tensor:
        raise PglabError("SquashedGaussian has no closed-form entropy: use the pathwise estimate -log_prob of a draw.")

    def pathwise_entropy(self, noise: Tensor) -> Tensor:
        """One unbiased, differentiable estimate of each factor's entropy: that of the Gaussian, closed form, plus the
        log-determinant at the draw that `noise` makes, `[..., D]`."""
        return super().entropy() + log_det_tanh(self.rsample(noise))
