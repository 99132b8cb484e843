"""Exact gradients, found without any estimator: what "unbiased" is checked against."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pglab.distributions import Beta, Distribution, Gaussian
from pglab.errors import PglabError
from pglab.objectives import Objective, without_rows

ORDERS = {1: (64, 128, 256, 512), 2: (24, 48, 96, 192), 3: (16, 24, 36, 54)}
"""Nodes per variable of the quadratures that are compared, by number of variables."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Two orders agree when they differ by less than this fraction of the integrand's root mean square."""
CHUNK = 2**16


def exact_gradient(distribution: Distribution, f: Objective) -> dict[str, Tensor]:
    """The gradient of E[f(z)] at the parameters of a distribution without rows, `{name: [*parameter.shape]}`.

    By enumeration where z is a product of finite variables with at most 2^16 joint outcomes. For Gaussian and
    SquashedGaussian (in the variable before tanh) of up to 3 dimensions, and Beta of up to 3, by Gauss quadrature of
    f x score, with two orders compared. f takes actions `[B, *event]` to `[B]` and need not be differentiable.

    Raises PglabError where neither applies, and where the quadratures disagree (f is not smooth enough, or oscillates).
    """
    one, squeezed = without_rows(distribution)
    one = one.detach()

    def values(z: Tensor) -> Tensor:
        with torch.no_grad():
            return f(z.squeeze(1) if squeezed else z)

    found = _enumerated(one, values) if one.kind != "continuous" else _integrated(one, values)
    return {name: g.squeeze(0) if squeezed else g for name, g in zip(one.parameters, found, strict=True)}


def _enumerated(one: Distribution, f: Callable[[Tensor], Tensor]) -> list[Tensor]:
    outcomes = one.enumerate()  # refuses too many
    with torch.enable_grad():
        leaf, parameters = one.cut()
        total = torch.zeros((), dtype=torch.float64, device=outcomes.device)
        for z in outcomes.split(CHUNK):
            p = leaf.log_prob(z).sum(-1).exp()
            # An outcome of probability 0 adds nothing, whatever f is there.
            total = total + (p * torch.where(p > 0, f(z), 0.0)).double().sum()
        return list(torch.autograd.grad(total, parameters))


def _integrated(one: Distribution, f: Callable[[Tensor], Tensor]) -> list[Tensor]:
    d = one.noise_shape[-1]
    if d not in ORDERS:
        raise PglabError(
            f"{type(one).__name__} of {d} dimensions: the exact gradient is computed by quadrature, for at most 3."
        )
    rule = RULES.get(type(one)) or next((r for t, r in RULES.items() if isinstance(one, t)), None)
    if rule is None:
        raise PglabError(f"There is no exact gradient for {type(one).__name__}: no enumeration and no quadrature.")
    before: Tensor | None = None
    gap = float("inf")
    for n in ORDERS[d]:
        first = second = None
        for z, w, score in rule(one, n):
            g = f(one.executed(z)).double().unsqueeze(-1) * score  # [B, parameters]
            a, b = w @ g, w @ g.square()
            first, second = (a, b) if first is None or second is None else (first + a, second + b)
        assert first is not None
        assert second is not None
        if before is not None:
            gap = float(((first - before).abs() / second.sqrt().clamp_min(1e-300)).max())
            if gap < TOLERANCE.get(_dtype(one), 1e-3):
                return [g.to(_dtype(one)) for g in first.split(d)]
        before = first
    raise PglabError(
        f"The exact gradient could not be computed: quadratures with {ORDERS[d][-2]} and {ORDERS[d][-1]} nodes per "
        f"dimension differ by {gap:.1e} of the integrand's size. f is not smooth, or oscillates too fast."
    )


def _dtype(one: Distribution) -> torch.dtype:
    return getattr(one, one.parameters[0]).dtype


Nodes = Iterator[tuple[Tensor, Tensor, Tensor]]
"""Drawn actions `[B, D]`, float64 weights `[B]` and scores `[B, parameters]`, by chunks."""


def product_rule(nodes: np.ndarray, weights: np.ndarray, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """A product of one-dimensional rules `[D, n]` as nodes `[B, D]` and weights `[B]`, float64, by chunks."""
    d, n = nodes.shape
    for start in range(0, n**d, CHUNK):
        index = np.stack(np.unravel_index(np.arange(start, min(start + CHUNK, n**d)), (n,) * d))  # [D, B]
        x = np.take_along_axis(nodes, index, 1).T
        w = np.take_along_axis(weights, index, 1).prod(0)
        yield torch.from_numpy(x.copy()).to(device), torch.from_numpy(w).to(device)


def _hermite(one: Gaussian, n: int) -> Nodes:
    from scipy.special import roots_hermitenorm

    x, w = roots_hermitenorm(n)
    w = w / w.sum()
    d = one.mean.shape[-1]
    for noise, weight in product_rule(np.tile(x, (d, 1)), np.tile(w, (d, 1)), one.mean.device):
        z = one.mean + one.log_std.exp() * noise.to(one.mean.dtype)
        yield z, weight, torch.cat([noise / one.log_std.double().exp(), noise.square() - 1], -1)


def _jacobi(one: Beta, n: int) -> Nodes:
    a, b = (x.double().cpu().numpy() for x in (one.alpha, one.beta))
    rules = [jacobi_scores(*ab, n) for ab in zip(a, b, strict=True)]
    x, w, by_alpha, by_beta = (np.stack(parts) for parts in zip(*rules, strict=True))  # [D, n] each
    for (z, weight), (s, _), (t, _) in zip(
        *(product_rule(v, w, one.alpha.device) for v in (x, by_alpha, by_beta)), strict=True
    ):
        yield z.to(one.alpha.dtype), weight, torch.cat([s, t], -1)


def jacobi_scores(a: float, b: float, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gauss-Jacobi nodes on (0, 1), weights for the density of Beta(a, b), and its two scores there up to degree n - 1.

    The scores log z - E log z and log(1 - z) - E log(1 - z) are singular at the ends, where a Gauss rule converges slowly.
    Their projections on the first n orthonormal polynomials P_k are not, and have the same integral against every
    polynomial f of degree below n. By Rodrigues' formula and k integrations by parts,

        E[P_k(z) log z] = (-1)^{k-1} B(a, b + k) / (k c_k),   E[P_k(z) log(1 - z)] = -B(a + k, b) / (k c_k),

    with c_k^2 = B(a, b) Gamma(k + a) Gamma(k + b) / ((2k + a + b - 1) k! Gamma(k + a + b - 1)). Nodes, weights and the P_k
    at the nodes come from the eigenvectors of the three-term recurrence's matrix (Golub & Welsch 1969).
    """
    from scipy.linalg import eigh_tridiagonal
    from scipy.special import betaln, gammaln

    k = np.arange(1.0, n)
    s = 2 * k + a + b - 2
    diagonal = np.concatenate([[a / (a + b)], 0.5 * (1 + (a - b) * (a + b - 2) / (s * (s + 2)))])
    j, r = k[1:], s[1:]
    square = j * (j + a - 1) * (j + b - 1) * (j + a + b - 2) / (r**2 * (r**2 - 1))
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    z, vectors = eigh_tridiagonal(diagonal, np.sqrt(np.concatenate([[variance], square])))
    vectors = vectors * np.where(vectors[0] < 0, -1.0, 1.0)  # column i: P_k(z_i) sqrt(w_i)
    log_c = 0.5 * (
        betaln(a, b)
        + gammaln(k + a)
        + gammaln(k + b)
        - np.log(2 * k + a + b - 1)
        - gammaln(k + 1)
        - gammaln(k + a + b - 1)
    )
    by_alpha = np.exp(betaln(a, b + k) - log_c) / k * -((-1.0) ** k)
    by_beta = -np.exp(betaln(a + k, b) - log_c) / k
    root = np.maximum(vectors[0], 1e-150)
    return z, root**2, by_alpha @ vectors[1:] / root, by_beta @ vectors[1:] / root


RULES: dict[type[Distribution], Callable[..., Nodes]] = {Gaussian: _hermite, Beta: _jacobi}
"""Quadrature rules by family."""
