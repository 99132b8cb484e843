"""Categorical factors: one-hot actions, exponential noise (the Gumbel-max trick in the exponential domain)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pglab.distributions.base import Distribution, NoiseKind
from pglab.errors import PglabError

MAX_OUTCOMES = 2**16


@dataclass(frozen=True)
class Categorical(Distribution):
    """D independent categorical variables with K categories each; actions are one-hot, `[..., D, K]`.

    logits: `[..., D, K]`, unnormalised log-probabilities.
    mask: `[..., D, K]` bool or None, True where a category may be drawn. It serves both environments' action masks and
        the padding of ragged MultiDiscrete spaces: masked categories have probability 0 in every function, and are
        kept out by `where` rather than by -inf, which turns into NaN when it meets a 0.

    Noise: `[..., D, K]` standard exponentials E. The draw is argmin_k E_k / p_k = argmax_k (logit_k - log E_k), the
    Gumbel-max trick (Gumbel 1954; Maddison, Tarlow & Minka 2014) with G = -log E.
    """

    logits: Tensor
    mask: Tensor | None = None

    parameters: ClassVar[tuple[str, ...]] = ("logits",)
    noise_kind: ClassVar[NoiseKind] = "exponential"
    kind: ClassVar[Literal["discrete", "binary", "continuous"]] = "discrete"
    event_ndim: ClassVar[int] = 2

    @property
    def noise_shape(self) -> torch.Size:
        return self.logits.shape

    def log_probs(self) -> Tensor:
        """Log-probability of every category, `[..., D, K]`; a very negative finite number where masked."""
        return torch.log_softmax(self._masked(self.logits), dim=-1)

    def probs(self) -> Tensor:
        """Probability of every category, `[..., D, K]`; exactly 0 where masked."""
        return torch.softmax(self._masked(self.logits), dim=-1)

    def _masked(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return x
        # A finite floor: exp(floor - max) is exactly 0 and 0 * floor is 0, where 0 * -inf would be NaN.
        floor = torch.finfo(x.dtype).min / 4
        return torch.where(self.mask, x, floor)

    def rsample(self, noise: Tensor) -> Tensor:
        raise PglabError(
            "Categorical draws have no gradient: use `relax`, a straight-through or a score-function estimator."
        )

    def sample(self, noise: Tensor) -> Tensor:
        with torch.no_grad():
            index = self._masked(self.logits - noise.log()).argmax(dim=-1, keepdim=True)  # [..., D, 1]
            return torch.zeros_like(self.logits).scatter_(-1, index, 1.0)  # [..., D, K]

    def log_prob(self, action: Tensor, noise: Tensor | None = None) -> Tensor:
        return (self.log_probs() * action.detach()).sum(-1)  # [..., D]

    def noise_given(self, action: Tensor, fresh: Tensor) -> Tensor:
        """min_k E_k / p_k is Exp(1) whatever wins, so E_b = p_b e_b and the losers E_j = e_j + p_j e_b.

        The exponential-domain form of the conditional Gumbels of Paulus, Maddison & Krause 2021, eq. 9.
        """
        p = self.probs()
        first = (fresh * action).sum(-1, keepdim=True)  # [..., D, 1]: e_b
        return torch.where(action > 0.5, p * first, fresh + p * first).clamp_min(torch.finfo(fresh.dtype).tiny)

    def relax(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        """softmax((logits - log E) / temperature) (Jang et al. 2017; Maddison et al. 2017); argmax equals `sample(noise)`."""
        # Masked after the division, which would carry the floor to -inf and its gradient at the temperature to NaN.
        return torch.softmax(self._masked((self.logits - noise.log()) / temperature), dim=-1)

    def entropy(self) -> Tensor:
        log_p = self.log_probs()
        p = log_p.exp()
        return -(p * log_p).sum(-1)  # [..., D]; a masked category adds 0 * finite

    def mode(self) -> Tensor:
        logits = self.logits.contiguous()  # of numbers side by side torch finds the largest ten times faster
        index = self._masked(logits).argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, index, 1.0)

    def enumerate(self) -> Tensor:
        """`[K^D, D, K]`, the last factor running fastest. Masked outcomes are listed; their probability is 0."""
        d, k = self.logits.shape[-2:]
        if k**d > MAX_OUTCOMES:
            raise PglabError(f"{k}^{d} joint actions are too many to enumerate (at most {MAX_OUTCOMES}).")
        one = torch.eye(k, dtype=self.logits.dtype, device=self.logits.device)
        index = torch.cartesian_prod(*[torch.arange(k, device=one.device)] * d).reshape(-1, d)  # [M, D]
        return one[index]  # [M, D, K]
