"""Bernoulli factors: actions of 0 and 1, uniform noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pglab.distributions.base import Distribution, NoiseKind
from pglab.distributions.categorical import MAX_OUTCOMES
from pglab.errors import PglabError


@dataclass(frozen=True)
class Bernoulli(Distribution):
    """D independent Bernoulli variables; actions are `[..., D]` of 0. and 1.

    logits: `[..., D]`, log-odds of 1.

    Noise: uniforms u on (0, 1), `[..., D]`. The draw is 1 where logit + log u - log(1 - u) > 0, that is u > 1 - p, the
    binary Gumbel-max trick (Maddison et al. 2017, appendix B), so `relax` and `sample` share their noise.
    """

    logits: Tensor

    parameters: ClassVar[tuple[str, ...]] = ("logits",)
    noise_kind: ClassVar[NoiseKind] = "uniform"
    kind: ClassVar[Literal["discrete", "binary", "continuous"]] = "binary"
    event_ndim: ClassVar[int] = 1

    @property
    def noise_shape(self) -> torch.Size:
        return self.logits.shape

    def rsample(self, noise: Tensor) -> Tensor:
        raise PglabError(
            "Bernoulli draws have no gradient: use `relax`, a straight-through or a score-function estimator."
        )

    def sample(self, noise: Tensor) -> Tensor:
        with torch.no_grad():
            return (self.logits + torch.logit(noise) > 0).to(self.logits.dtype)

    def log_prob(self, action: Tensor, noise: Tensor | None = None) -> Tensor:
        return action.detach() * self.logits - F.softplus(self.logits)  # [..., D]

    def noise_given(self, action: Tensor, fresh: Tensor) -> Tensor:
        """u uniform on (1 - p, 1) given 1, on (0, 1 - p) given 0 (Tucker et al. 2017, section 3)."""
        p, q = torch.sigmoid(self.logits), torch.sigmoid(-self.logits)
        u = torch.where(action > 0.5, q + p * fresh, q * fresh)
        step = torch.finfo(fresh.dtype).eps / 2
        return u.clamp(step, 1 - step)

    def relax(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        """sigmoid((logits + logit(u)) / temperature), the binary concrete variable (Maddison et al. 2017)."""
        return torch.sigmoid((self.logits + torch.logit(noise)) / temperature)

    def entropy(self) -> Tensor:
        return F.softplus(self.logits) - self.logits * torch.sigmoid(self.logits)  # [..., D]

    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    def enumerate(self) -> Tensor:
        """`[2^D, D]`, the last factor running fastest."""
        d = self.logits.shape[-1]
        if 2**d > MAX_OUTCOMES:
            raise PglabError(f"2^{d} joint actions are too many to enumerate (at most {MAX_OUTCOMES}).")
        bits = torch.arange(2**d, device=self.logits.device)[:, None] >> torch.arange(
            d - 1, -1, -1, device=self.logits.device
        )
        return (bits & 1).to(self.logits.dtype)  # [M, D]
