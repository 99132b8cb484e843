"""ARSM: held to a plain loop over its definition, to ARM for two categories, and integrated exactly over the simplex."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from spine import assert_mean, make, noise_of, normal, repeated
from test_unbiased import exact_discrete, table_critic

from pglab.distributions import Bernoulli, Categorical
from pglab.errors import PglabError
from pglab.estimators import Draw, Signal
from pglab.estimators.arm import ARM
from pglab.estimators.arsm import ARSM
from pglab.gradients import cotangents

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def estimate(d: Categorical, noise: torch.Tensor, f) -> torch.Tensor:
    (g,), _ = cotangents(ARSM(), d, Draw(d.sample(noise), noise), Signal(critic=f))
    return g


def by_definition(logits: np.ndarray, noise: np.ndarray, mask: np.ndarray, f) -> np.ndarray:
    """One row, `[D, K]` each: every swap made, every action drawn by argmin pi exp(-phi), every mean taken."""
    d, k = logits.shape
    pi = np.where(mask, noise, 0) / np.where(mask, noise, 0).sum(1, keepdims=True)

    def action(c: int, j: int) -> np.ndarray:
        z = np.zeros((d, k))
        for i in range(d):
            own = pi[i].copy()
            if mask[i, c] and mask[i, j]:
                own[c], own[j] = own[j], own[c]
            z[i, np.argmin(np.where(mask[i], own * np.exp(-logits[i]), np.inf))] = 1
        return z

    table = np.array([[f(action(c, j)) for j in range(k)] for c in range(k)])
    g = np.zeros((d, k))
    for i in range(d):
        places = np.flatnonzero(mask[i])
        for c, j in itertools.product(places, places):
            g[i, c] += (table[c, j] - table[places, j].mean()) * (1 / len(places) - pi[i, j])
    return g


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("d", "k"), [(1, 1), (1, 2), (1, 3), (2, 3), (3, 2), (4, 3), (1, 10), (2, 10)])
def test_the_definition_in_plain_loops(d, k, masked):
    n = 40
    one = make("categorical", (n,), d, k, masked=masked)
    noise, w = noise_of("exponential", (n, d, k)), normal(d, k, key=9)
    g = estimate(one, noise, lambda a: torch.sin(3 * (a * w).sum((-2, -1))))
    mask = np.ones((n, d, k), dtype=bool) if one.mask is None else one.mask.numpy()
    for row in range(n):
        wanted = by_definition(
            one.logits[row].numpy(), noise[row].numpy(), mask[row], lambda a: np.sin(3 * (a * w.numpy()).sum())
        )
        np.testing.assert_allclose(g[row].numpy(), wanted, rtol=1e-9, atol=1e-12)
    assert k == 1 or bool((g != 0).any())


@pytest.mark.parametrize("d", [1, 2, 4])
def test_for_two_categories_it_is_arm_with_u_the_first_share(d):
    n = 300
    phi, noise = normal(n, d), noise_of("exponential", (n, d, 2))
    u = noise[..., 0] / noise.sum(-1)
    w = normal(d, key=5)

    def f(bits: torch.Tensor) -> torch.Tensor:
        return torch.cos((bits * w).sum(-1) * 2)

    binary = Bernoulli(phi)
    (arm,), _ = cotangents(ARM(), binary, Draw(binary.sample(u), u), Signal(critic=f))
    g = estimate(Categorical(torch.stack([torch.zeros_like(phi), phi], -1)), noise, lambda a: f(a[..., 1]))
    torch.testing.assert_close(g[..., 1], arm, **EXACT)
    torch.testing.assert_close(g[..., 0], -arm, **EXACT)


# -- the simplex of three categories, cut into the polygons on which no swapped action changes


def split(polygon: list[np.ndarray], line: np.ndarray) -> list[list[np.ndarray]]:
    """A convex polygon cut along `line . pi = 0`."""
    side = [float(line @ v) for v in polygon]
    if min(side) >= -1e-14 or max(side) <= 1e-14:
        return [polygon]
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for (a, x), (b, y) in zip(
        zip(polygon, side, strict=True), zip(polygon[1:] + polygon[:1], side[1:] + side[:1], strict=True), strict=True
    ):
        for half, sign in zip(halves, (1, -1), strict=True):
            if sign * x >= 0:
                half.append(a)
            if x * y < 0:
                half.append(a + (b - a) * x / (x - y))
    return [h for h in halves if len(h) > 2]


def triangles(logits: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Centroids `[B, 3]` and probabilities `[B]` of triangles that tile the simplex: every comparison of two scores, after
    any swap, is of pi_a exp(-phi_i) with pi_b exp(-phi_k)."""
    cells = [[np.eye(3)[i] for i in range(3)]]
    for a, b in itertools.combinations(range(3), 2):
        for i, k in itertools.permutations(range(3), 2):
            line = np.zeros(3)
            line[a], line[b] = np.exp(-logits[i]), -np.exp(-logits[k])
            cells = [part for cell in cells for part in split(cell, line)]
    centres, sizes = [], []
    for cell in cells:
        for second, third in itertools.pairwise(cell[1:]):
            centres.append((cell[0] + second + third) / 3)
            sizes.append(abs(np.linalg.det(np.stack([cell[0], second, third]))))
    return torch.tensor(np.array(centres)), torch.tensor(np.array(sizes))


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("key", [0, 30])
def test_the_mean_over_the_simplex_is_the_exact_gradient(d, key):
    """On a triangle the estimate is linear in pi, so its mean there is its value at the centroid."""
    one = make("categorical", (), d, 3, key=key)
    f, values = table_critic(one)
    points, weights = zip(*(triangles(phi) for phi in one.logits.numpy()), strict=True)
    assert all(float(w.sum()) == pytest.approx(1, abs=1e-12) for w in weights)
    index = torch.cartesian_prod(*(torch.arange(len(w)) for w in weights)).reshape(-1, d)
    pi = torch.stack([p[index[:, i]] for i, p in enumerate(points)], 1)  # [B, D, 3]
    weight = torch.stack([w[index[:, i]] for i, w in enumerate(weights)], 1).prod(1)
    keep = weight > 1e-15
    g = estimate(repeated(one, int(keep.sum())), pi[keep], f)
    mean = torch.einsum("b,bdk->dk", weight[keep], g)
    torch.testing.assert_close(mean, exact_discrete(one, values), rtol=1e-8, atol=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("d", "k", "masked"), [(1, 10, False), (1, 10, True), (2, 3, True), (4, 2, False), (2, 4, True)]
)
def test_the_mean_over_the_noise_is_the_exact_gradient(d, k, masked):
    n = 60_000
    one = make("categorical", (), d, k, masked=masked)
    f, values = table_critic(one)
    g = estimate(repeated(one, n), noise_of("exponential", (n, d, k), 4), f)
    assert_mean(g, exact_discrete(one, values), resolution=0.06)
    assert float(g.std(0).max()) > 0.05
    if masked:
        assert bool((g[:, ~one.mask] == 0).all())


def test_masked_categories_are_as_if_they_were_not_there():
    n = 200
    noise, w = noise_of("exponential", (n, 2, 5)), normal(2, 5, key=9)
    mask = torch.tensor([True, False, True, True, False])
    d = Categorical(normal(n, 2, 5), mask.expand(n, 2, 5))
    g = estimate(d, noise, lambda a: torch.sin(3 * (a * w).sum((-2, -1))))
    less = estimate(
        Categorical(d.logits[..., mask]), noise[..., mask], lambda a: torch.sin(3 * (a * w[:, mask]).sum((-2, -1)))
    )
    torch.testing.assert_close(g[..., mask], less, **EXACT)
    assert bool((g[..., ~mask] == 0).all())


@pytest.mark.parametrize("d", [1, 2])
def test_what_f_is_at_masked_categories_does_not_matter(d):
    one = make("categorical", (300,), d, 4, masked=True)
    c = torch.where(one.mask, normal(300, d, 4), torch.nan)
    noise = noise_of("exponential", (300, d, 4))
    g, clean = (
        estimate(one, noise, lambda a, c=c: torch.where(a > 0.5, c, 0.0).sum((-2, -1))) for c in (c, c.nan_to_num(7.0))
    )
    assert torch.equal(g, clean)


@pytest.mark.parametrize(("d", "k", "count"), [(2, 4, 7), (3, 2, 2), (1, 6, 6), (2, 1, 1)])
def test_the_number_of_evaluations(d, k, count):
    one, seen = make("categorical", (7,), d, k), []

    def critic(a: torch.Tensor) -> torch.Tensor:
        seen.append(len(a))
        return a.flatten(2).sum(-1)

    estimate(one, noise_of("exponential", (7, d, k)), critic)
    assert seen == [count]
    assert ARSM().width(one) == count


def test_no_noise_is_refused():
    d = make("categorical", (4,))
    with pytest.raises(PglabError, match="noise"):
        cotangents(ARSM(), d, Draw(d.mode()), Signal(critic=lambda a: a.flatten(2).sum(-1)))


@pytest.mark.parametrize(("rows", "d", "k"), [(2000, 2, 3), (2, 1, 1000)])
def test_float32_with_extreme_logits(rows, d, k):
    scale = torch.linspace(0, 50, rows).view(rows, 1, 1)
    logits = normal(rows, d, k).sign().float() * scale
    noise, c, found = noise_of("exponential", (rows, d, k)).float().clamp_min(1e-30), normal(d, k), []
    for dtype in (torch.float32, torch.float64):
        one = Categorical(logits.to(dtype))
        g = estimate(one, noise.to(dtype), lambda a: (100 + (a.double() * c).sum((-2, -1))).to(a.dtype))
        assert bool(torch.isfinite(g).all())
        found.append(g.double())
    norm = found[1].flatten(1).norm(dim=1)
    off = (found[0] - found[1]).flatten(1).norm(dim=1)
    assert float((off - 1e-3 * norm).max()) < 1e-4
