"""One-step objectives of zeros, ones and one-hots, with the gradients of their expectations in closed form.

Letters: B actions, D binary dimensions, K categories. Gradients are of E[objective], per parameter of the distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.base import TorchVectorEnv
from pglab_envs.one_step import OneStep, count, like, number, numbers, one_or_each, sign_of


def _slope(logits: Tensor) -> Tensor:
    """The derivative p (1 - p) of a Bernoulli variable's mean at its logit."""
    return torch.sigmoid(logits) * torch.sigmoid(-logits)


class BinaryQuadratic(OneStep):
    """sum_i (b_i - t_i)^2 of D bits: the toy of REBAR (t = .45), RELAX (t = .499) and ARM (t = .49, .499, .501, .51).

    The reward is the sum itself, to be maximised, as in ARM; with `sign=-1` it is minus the sum, which is to be minimised
    then, as in REBAR and RELAX. Every bit's best value is 1 where t < 1/2 (0 with `sign=-1`); the closer t to 1/2, the
    fainter the gradient beside the noise. Each bit has a logit of its own: see `SharedLogit` for one logit in common.

    Actions are `[..., D]` of zeros and ones, and so are those of `objective`, which takes any numbers.

    Args:
        num_envs: N.
        D: number of bits.
        t: target, a number or a list of D.
        sign: 1 or -1.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Sources: Tucker et al. (2017), "REBAR", section 5.1; Grathwohl et al. (2018), "Backpropagation through the void",
    section 4.1; Yin & Zhou (2019), "ARM", section 4.
    """

    id = "pglab/BinaryQuadratic-v0"
    differentiable = True
    single_action_space = spaces.MultiBinary(1)
    options = ("D", "t", "sign")

    def __init__(
        self, num_envs: int = 1, D: int = 1, t: float | Sequence[float] = 0.45, sign: int = 1, **vector: Any
    ) -> None:
        self.D, self.sign = count("D", D), sign_of(sign)
        self.single_action_space = spaces.MultiBinary(self.D)
        super().__init__(num_envs, **vector)
        self.t = one_or_each("t", t, self.D, self.device)

    def objective(self, actions: Tensor) -> Tensor:
        return self.sign * (actions - like(self.t, actions)).square().sum(-1)

    def exact_gradient(self, logits: Tensor) -> dict[str, Tensor]:
        """p (1 - p) (1 - 2 t) times the sign, `[D]`, at the logits `[D]` of independent Bernoulli variables."""
        return {"logits": self.sign * _slope(logits) * (1 - 2 * like(self.t, logits))}


class SharedLogit(TorchVectorEnv):
    """sum_i (x_i - p_i)^2 of D bits that share one logit: the toy of Liu et al., p = (.6, .51, .48).

    An action space has no way of saying that its factors share a parameter. Here the bits are asked for one by one, under
    an observation that is always the number 1: the policy cannot tell them apart, so their logit is one. The last bit is
    rewarded with minus the whole sum, which is the loss in the paper (with `sign=1`: with the sum), the others with 0.
    Without discounting (`discount: 1`) every bit's return is that number, and the gradient of the expected return at the
    logit is the toy's.

    State: the number 1, bits given, their sum so far. Actions are `[..., 1]`, 0 or 1. `objective` takes all D bits at
    once, `[B, D]`; at a plain objective one logit is shared by expanding it, and its gradient is the sum of the factors'
    (chain rule): `estimate_gradient(name, Bernoulli(logit.expand(D)), env.objective, n)["logits"].sum(-1)`.

    Args:
        num_envs: N.
        p: targets, one per bit.
        sign: -1 or 1.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: Liu et al. (2019), "Rao-Blackwellized stochastic gradients for discrete distributions"; also the toy of Kool et
    al. (2020), "Estimating gradients for discrete random variables by sampling without replacement".
    """

    id = "pglab/SharedLogit-v0"
    max_episode_steps = 3
    state_size = 3
    reset_noise_size = 0
    terminates = False  # by what is done
    own_end = True
    observation_size = 1
    differentiable = True
    single_observation_space = OneStep.single_observation_space
    single_action_space = spaces.MultiBinary(1)
    options = ("p", "sign")

    def __init__(
        self, num_envs: int = 1, p: Sequence[float] = (0.6, 0.51, 0.48), sign: int = -1, **vector: Any
    ) -> None:
        targets, self.sign = numbers("p", p), sign_of(sign)
        self.max_episode_steps = len(targets)
        super().__init__(num_envs, **vector)
        self.p = torch.tensor(targets, dtype=torch.float64, device=self.device)  # [D]
        self._steps = torch.arange(len(targets), device=self.device)  # [D]

    def objective(self, actions: Tensor) -> Tensor:
        """f `[B]` of bits `[B, D]`."""
        return self.sign * (actions - self.p.to(actions)).square().sum(-1)

    def exact_gradient(self, logit: Tensor) -> dict[str, Tensor]:
        """q (1 - q) sum_i (1 - 2 p_i) times the sign, `[]`, at the common logit `[]`, whose sigmoid is q."""
        return {"logit": self.sign * _slope(logit) * (1 - 2 * self.p.to(logit)).sum()}

    def observe(self, state: Tensor) -> Tensor:
        """The number 1, `[..., 1]`, of the state `[..., 3]`."""
        return state[..., :1]

    def initial_state(self, noise: Tensor) -> Tensor:
        """(1, 0, 0), `[..., 3]`, whatever `noise` `[..., 0]`."""
        one = noise.new_ones(*noise.shape[:-1], 1)
        return torch.cat((one, 0 * one, 0 * one), -1)

    def transition(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next bit.

        Args:
            state: `[..., 3]`.
            action: `[..., 1]`, 0 or 1 (not checked).

        Returns:
            The next state `[..., 3]`, the reward `[...]`, and `[...]` bool, whether the episode terminated.
        """
        one, step, total = state.unbind(-1)  # [...]
        target = (self.p.to(state) * (step.unsqueeze(-1) == self._steps)).sum(-1)  # [...]
        total = total + (action.squeeze(-1) - target).square()
        step = step + 1
        last = step >= len(self._steps)
        return torch.stack((one, step, total), -1), torch.where(last, self.sign * total, 0.0), last


class PolynomialProgram(OneStep):
    """-sum_i |x_i - t|^p / D of D binary latents: the polynomial programming of ReinMax, a minimisation there.

    The paper has D = 128, t = .45, p in {1.5, 2, 3}, batches of 64, and 8,000 steps of Adam at .001 from logits within
    +-.01. ReinMax is exact for p = 2. The best latents are all 0.

    The action space is MultiDiscrete([2] * D), as in the paper (a softmax over two categories each): a categorical policy
    fits, and with `policy.distribution: bernoulli` one of D logits. `objective` takes the actions of both: one-hots
    `[B, D, 2]`, whose x is the second component, or x itself, `[B, D]`.

    Args:
        num_envs: N.
        D: number of latents.
        t: target, a number or a list of D.
        p: power, at least 1.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: Liu et al. (2023), "Bridging discrete and backpropagation: straight-through and beyond".
    """

    id = "pglab/PolynomialProgram-v0"
    differentiable = False  # an action is an index; `objective` is differentiable
    single_action_space = spaces.MultiDiscrete([2] * 128)
    options = ("D", "t", "p")

    def __init__(
        self, num_envs: int = 1, D: int = 128, t: float | Sequence[float] = 0.45, p: float = 2.0, **vector: Any
    ) -> None:
        self.D, self.p = count("D", D), number("p", p)
        if self.p < 1:
            raise ValueError(f"p must be at least 1, got {p}")
        self.single_action_space = spaces.MultiDiscrete([2] * self.D)
        super().__init__(num_envs, **vector)
        self.t = one_or_each("t", t, self.D, self.device)

    def objective(self, actions: Tensor) -> Tensor:
        return self._of(actions[..., 1] if actions.ndim == 3 else actions)

    def reward(self, action: Tensor, state: Tensor) -> Tensor:
        return self._of(action.to(state.dtype))

    def _of(self, x: Tensor) -> Tensor:
        return (x - like(self.t, x)).abs().pow(self.p).sum(-1) / -self.D

    def exact_gradient(self, logits: Tensor) -> dict[str, Tensor]:
        """-q (1 - q) (|1 - t|^p - |t|^p) / D at Bernoulli logits `[D]`, whose sigmoid is q; at categorical logits `[D, 2]`
        that number for the second category and its opposite for the first."""
        one_hot = logits.ndim == 2
        log_odds = logits[:, 1] - logits[:, 0] if one_hot else logits
        t = torch.as_tensor(self.t, dtype=logits.dtype, device=logits.device).expand_as(log_odds)
        g = _slope(log_odds) * (t.abs().pow(self.p) - (1 - t).abs().pow(self.p)) / self.D  # [D]
        return {"logits": torch.stack((-g, g), -1) if one_hot else g}


class SimplexProgram(OneStep):
    """-(z - c)' Q (z - c) of a one-hot z of K categories, Q_ij = exp(-2 |i - j|): a quadratic program on the simplex.

    The toy of Gumbel-Rao has K = 3 and c = 1/3, and is the minimisation of (p - c)' Q (p - c) in the probabilities p. To
    make that an expectation the paper puts for Q a matrix A(p) that depends on p:

        A_ii = (p_i - c_i)^2 / (p_i - 2 p_i c_i + c_i^2) Q_ii
        A_ij = (p_i - c_i) (p_j - c_j) / (c_i c_j - p_i c_j - c_i p_j) Q_ij

    A reward cannot depend on the policy's parameters, so the environment's is that of the fixed Q, whose expectation is
    linear in p. `objective_at(p)` is the paper's function at given probabilities.

    The action space is Discrete(K). `objective` takes one-hots `[B, 1, K]` or `[B, K]`.

    Args:
        num_envs: N.
        K: number of categories.
        c: centre, a number or a list of K; None for 1 / K.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: Paulus, Maddison & Krause (2021), "Rao-Blackwellizing the straight-through Gumbel-Softmax gradient estimator",
    section 5.2.
    """

    id = "pglab/SimplexProgram-v0"
    differentiable = False  # an action is an index; `objective` is differentiable
    single_action_space = spaces.Discrete(3)
    options = ("K", "c")

    def __init__(self, num_envs: int = 1, K: int = 3, c: float | Sequence[float] | None = None, **vector: Any) -> None:
        self.K = count("K", K, 2)
        self.single_action_space = spaces.Discrete(self.K)
        super().__init__(num_envs, **vector)
        centre = one_or_each("c", 1 / self.K if c is None else c, self.K, self.device)
        index = np.arange(self.K)
        q = np.exp(-2.0 * np.abs(index[:, None] - index))
        self.Q = torch.from_numpy(q).to(self.device)  # [K, K] float64
        self.c = torch.as_tensor(centre, dtype=torch.float64, device=self.device).expand(self.K)
        self._values = self.objective(torch.eye(self.K, dtype=torch.float64, device=self.device))  # [K]

    def objective(self, actions: Tensor) -> Tensor:
        return self._of(actions, self.Q)

    def objective_at(self, probs: Tensor) -> Callable[[Tensor], Tensor]:
        """The paper's function at probabilities `[K]`: minus (z - c)' A(p) (z - c), of one-hots `[B, 1, K]` or `[B, K]`.

        Its expectation at these probabilities is -(p - c)' Q (p - c). Estimates are those of its gradient with A held
        fixed; that of the quadratic program has E[d f / d p] added. A is singular where c_i c_j = p_i c_j + c_i p_j
        (c = 1/3: p_i + p_j = 1/3).
        """
        p, c = probs.detach().double(), self.c
        off = torch.outer(p - c, p - c) / (torch.outer(c, c) - torch.outer(p, c) - torch.outer(c, p))
        on = (p - c).square() / (p - 2 * p * c + c.square())
        a = torch.where(torch.eye(self.K, dtype=torch.bool, device=c.device), on, off) * self.Q
        return lambda actions: self._of(actions, a)

    def _of(self, z: Tensor, matrix: Tensor) -> Tensor:
        off = z.flatten(1) - self.c.to(z)  # [B, K]
        return -((off @ matrix.to(z)) * off).sum(-1)

    def reward(self, action: Tensor, state: Tensor) -> Tensor:
        return self._values.to(state.dtype)[action]

    def exact_gradient(self, logits: Tensor) -> dict[str, Tensor]:
        """p_k (f_k - E[f]) at categorical logits, `[K]` or `[1, K]`."""
        p = torch.softmax(logits, -1)
        f = self.objective(torch.eye(self.K, dtype=logits.dtype, device=logits.device))
        return {"logits": p * (f - (p * f).sum(-1, keepdim=True))}
