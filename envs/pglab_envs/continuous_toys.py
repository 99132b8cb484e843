"""One-step objectives of real numbers, with the gradients of their expectations under Gaussians in closed form.

Letters: B actions, D dimensions, F features. Gradients are of E[objective] at `mean` and `log_std` of independent normal
variables, both in the units that `objective` takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pglab_envs.one_step import OneStep, count, like, number, one_or_each, sign_of

STEP = 0.25
"""Of log t in `NormBandit.gradient`; the error falls as exp(-pi^2 / step)."""


class Continuous(OneStep):
    """A function of D real numbers.

    The action space is unbounded, for Gaussian policies. With `bound` it is the box [-bound, bound]^D, for those that need
    one (squashed Gaussian): actions are clipped to it, and `objective` takes them divided by `bound`, as policies draw
    them.
    """

    differentiable = True
    single_action_space = spaces.Box(-np.inf, np.inf, shape=(1,), dtype=np.float32)

    def __init__(self, num_envs: int, dimensions: int, bound: float | None, **vector: Any) -> None:
        self.bound = None if bound is None else number("bound", bound)
        if self.bound is not None and self.bound <= 0:
            raise ValueError(f"bound must be positive, got {bound}")
        high = np.inf if self.bound is None else self.bound
        self.single_action_space = spaces.Box(-high, high, shape=(dimensions,), dtype=np.float32)
        super().__init__(num_envs, **vector)

    def objective(self, actions: Tensor) -> Tensor:
        return self.f(actions if self.bound is None else self.bound * actions)

    def reward(self, action: Tensor, state: Tensor) -> Tensor:
        return self.f(action if self.bound is None else action.clamp(-self.bound, self.bound))

    def f(self, z: Tensor) -> Tensor:
        """The function itself, `[...]`, of `[..., D]` in the space's units."""
        raise NotImplementedError

    def exact_gradient(self, mean: Tensor, log_std: Tensor) -> dict[str, Tensor]:
        """The gradient of E[objective], `[D]` each, at `mean` and `log_std` `[D]`. Nothing is clipped here."""
        scale = 1.0 if self.bound is None else self.bound
        by_mean, by_log_std = self.gradient(scale * mean, log_std + math.log(scale))
        return {"mean": scale * by_mean, "log_std": by_log_std}

    def gradient(self, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """That of E[f] in the space's units."""
        raise NotImplementedError


class Quadratic(Continuous):
    """-sum_i (z_i - t_i)^2 of D real numbers; with `sign=1` the sum itself.

    The mean's best value is t, the standard deviation's 0. With `sign=1` and t = 0 it is the f = z^2 on which the
    estimators' variances have short closed forms (it has no maximum: to be measured, not trained).

    Args:
        num_envs: N.
        D: number of dimensions.
        t: target, a number or a list of D.
        sign: -1 or 1.
        bound: half the width of the action space; None for an unbounded one.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: Mohamed et al. (2020), "Monte Carlo gradient estimation in machine learning", section 3.
    """

    id = "pglab/Quadratic-v0"
    options = ("D", "t", "sign", "bound")

    def __init__(
        self,
        num_envs: int = 1,
        D: int = 1,
        t: float | Sequence[float] = 1.0,
        sign: int = -1,
        bound: float | None = None,
        **vector: Any,
    ) -> None:
        self.sign = sign_of(sign)
        super().__init__(num_envs, count("D", D), bound, **vector)
        self.t = one_or_each("t", t, D, self.device)

    def f(self, z: Tensor) -> Tensor:
        return self.sign * (z - like(self.t, z)).square().sum(-1)

    def gradient(self, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """2 (mean - t) and 2 std^2, times the sign: E[f] = sum_i (mean_i - t_i)^2 + std_i^2."""
        return 2 * self.sign * (mean - like(self.t, mean)), 2 * self.sign * (2 * log_std).exp()


class Cosine(Continuous):
    """sum_i cos(k z_i) of D real numbers: the larger k, the worse the pathwise estimator beside the score function.

    Args:
        num_envs: N.
        D: number of dimensions.
        k: frequency, a number or a list of D.
        bound: half the width of the action space; None for an unbounded one.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: Mohamed et al. (2020), "Monte Carlo gradient estimation in machine learning", section 3.
    """

    id = "pglab/Cosine-v0"
    options = ("D", "k", "bound")

    def __init__(
        self,
        num_envs: int = 1,
        D: int = 1,
        k: float | Sequence[float] = 1.0,
        bound: float | None = None,
        **vector: Any,
    ) -> None:
        super().__init__(num_envs, count("D", D), bound, **vector)
        self.k = one_or_each("k", k, D, self.device)

    def f(self, z: Tensor) -> Tensor:
        return (like(self.k, z) * z).cos().sum(-1)

    def gradient(self, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """-k sin(k mean) e and -k^2 std^2 cos(k mean) e with e = exp(-k^2 std^2 / 2), as E[cos(k z)] = cos(k mean) e."""
        k = like(self.k, mean)
        spread = (k * log_std.exp()) ** 2
        damped = torch.exp(-spread / 2)
        return -k * (k * mean).sin() * damped, -spread * (k * mean).cos() * damped


class NormBandit(Continuous):
    """-||a||_2 of m real numbers: the one-step task of Wu et al., in which a baseline that sees the other dimensions of
    the action gains the more, the larger m (6, 50, 200, 1000 there). `random_fourier_features` are those of its baseline.

    Args:
        num_envs: N.
        m: number of dimensions.
        bound: half the width of the action space; None for an unbounded one.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: Wu et al. (2018), "Variance reduction for policy gradient with action-dependent factorized baselines".
    """

    id = "pglab/NormBandit-v0"
    single_action_space = spaces.Box(-np.inf, np.inf, shape=(6,), dtype=np.float32)
    options = ("m", "bound")

    def __init__(self, num_envs: int = 1, m: int = 6, bound: float | None = None, **vector: Any) -> None:
        self.m = count("m", m)
        super().__init__(num_envs, self.m, bound, **vector)

    def f(self, z: Tensor) -> Tensor:
        return -torch.linalg.vector_norm(z, dim=-1)

    def gradient(self, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """By one integral, with w_i = 1 / (1 + 2 t std_i^2) and

            E||a|| = 1 / (2 sqrt(pi)) int_0^inf t^(-3/2) (1 - prod_i sqrt(w_i) exp(-t w_i mean_i^2)) dt,

        which is sqrt(q) = 1 / (2 sqrt(pi)) int t^(-3/2) (1 - exp(-t q)) dt at q = ||a||^2. The derivative under the integral
        is summed over equal steps of log t, where the sum converges geometrically: exact to rounding.
        """
        mu, var = mean.detach().double(), (2 * log_std.detach().double()).exp()  # [D]
        first = -float((mu.square() + var).sum().log()) - 75
        last = -float(var.min().log()) + 45
        t = torch.arange(first, last, STEP, dtype=torch.float64, device=mu.device).exp().unsqueeze(-1)  # [T, 1]
        w = 1 / (1 + 2 * t * var)  # [T, D]
        tw = t * w
        density = (w.log() / 2 - tw * mu.square()).sum(-1) - t.squeeze(-1).log() / 2  # [T]: log of t^(-1/2) prod(...)
        weight = STEP / (2 * math.sqrt(math.pi)) * density.exp()
        by_mean = weight @ (2 * tw * mu)
        by_log_std = weight @ (2 * var * (tw - 2 * tw.square() * mu.square()))
        return -by_mean.to(mean), -by_log_std.to(log_std)


def random_fourier_features(
    m: int, features: int = 250, bandwidth: float | None = None, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """A fixed random map phi of actions `[..., m]` to `[..., features]`, sqrt(2 / F) cos(W a + b).

    W has normal entries of standard deviation 1 / bandwidth, b is uniform on [0, 2 pi): phi(x) . phi(y) approximates the
    Gaussian kernel exp(-||x - y||^2 / (2 bandwidth^2)). A baseline that is linear in phi is the one that Wu et al. (2018)
    learn on their bandit, with 250 features.

    Args:
        m: dimensions of an action.
        features: F.
        bandwidth: None for sqrt(2 m), about the distance of two standard normal vectors.
        seed: of W and b; the same seed gives the same map.

    Raises:
        ValueError: `m` or `features` below 1, `bandwidth` not positive.

    Source: Rahimi & Recht (2007), "Random features for large-scale kernel machines".
    """
    count("m", m)
    count("features", features)
    width = math.sqrt(2 * m) if bandwidth is None else number("bandwidth", bandwidth)
    if width <= 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(rng.standard_normal((m, features)) / width)
    b = torch.from_numpy(rng.uniform(0, 2 * math.pi, features))

    def phi(actions: Tensor) -> Tensor:
        return math.sqrt(2 / features) * torch.cos(actions @ w.to(actions) + b.to(actions))

    return phi
