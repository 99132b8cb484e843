"""Relaxed draws given the discrete one: the right law, the right gradient, and no rounding where noise would be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from spine import assert_mean, make, noise_of, normal, repeated, with_parameters

from pglab.distributions import Bernoulli, Categorical, Distribution
from pglab.estimators.conditional import perturbed, perturbed_again, perturbed_given, relaxed

FAMILIES = pytest.mark.parametrize(
    ("family", "masked"), [("categorical", False), ("categorical", True), ("bernoulli", False)]
)
TEMPERATURES = pytest.mark.parametrize("temperature", [0.3, 1.0])


def drawn(d: Distribution, key: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, the action it makes, and fresh noise."""
    shape = tuple(d.noise_shape)
    noise = noise_of(d.noise_kind, shape, key)
    return noise, d.sample(noise), noise_of(d.noise_kind, shape, key + 1)


def slope(d: Distribution, f) -> torch.Tensor:
    leaf, parameters = d.cut()
    return torch.autograd.grad(f(leaf), parameters)[0]


@FAMILIES
@TEMPERATURES
def test_they_are_those_of_the_distributions_noise(family, masked, temperature):
    """Through another path: conditional noise first, its relaxation then; values and gradients."""
    d = make(family, (400,), 2, 4, masked=masked)
    noise, action, fresh = drawn(d)
    weight = normal(*noise.shape, key=9)
    torch.testing.assert_close(relaxed(d, perturbed(d, noise), temperature), d.relax(noise, temperature))
    pairs = [
        (lambda q: relaxed(q, perturbed(q, noise), temperature), lambda q: q.relax(noise, temperature)),
        (
            lambda q: relaxed(q, perturbed_given(q, action, fresh), temperature),
            lambda q: q.relax(q.noise_given(action, fresh), temperature),
        ),
    ]
    for mine, other in pairs:
        torch.testing.assert_close(mine(d), other(d), rtol=1e-7, atol=1e-9)
        a, b = (slope(d, lambda q, h=h: (h(q) * weight).sum()) for h in (mine, other))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@FAMILIES
def test_given_the_action_they_make_it(family, masked):
    d = make(family, (5000,), 2, 4, masked=masked)
    _, action, fresh = drawn(d)
    zeta = perturbed_given(d, action, fresh)
    again = (zeta > 0).double() if family == "bernoulli" else relaxed(d, zeta, 1.0).argmax(-1)
    assert torch.equal(again, action if family == "bernoulli" else action.argmax(-1))


@FAMILIES
def test_with_common_random_numbers_they_are_the_draws_own(family, masked):
    """In value those of the draw's noise, in gradient those of the conditional sampler at the noise that gives them."""
    d = make(family, (300,), 2, 4, masked=masked)
    noise, action, _ = drawn(d)
    if isinstance(d, Bernoulli):
        p = torch.sigmoid(d.logits)
        fresh = torch.where(action > 0.5, (noise - (1 - p)) / p, noise / (1 - p))
    else:
        p = d.probs()
        first = (noise * action / p.clamp_min(1e-300)).sum(-1, keepdim=True)
        fresh = torch.where(action > 0.5, first, torch.where(p > 0, noise - p * first, noise))
    ones = relaxed(d, perturbed(d, noise), 0.7)
    torch.testing.assert_close(relaxed(d, perturbed_again(d, action, noise), 0.7), ones, rtol=1e-8, atol=1e-10)
    weight = normal(*noise.shape, key=9)
    own = slope(d, lambda q: (relaxed(q, perturbed_again(q, action, noise), 0.7) * weight).sum())
    given = slope(d, lambda q: (relaxed(q, perturbed_given(q, action, fresh), 0.7) * weight).sum())
    torch.testing.assert_close(own, given, rtol=1e-6, atol=1e-8)
    free = slope(d, lambda q: (relaxed(q, perturbed(q, noise), 0.7) * weight).sum())
    assert not torch.allclose(own, free, atol=1e-2)


@pytest.mark.statistical
def test_averaged_over_actions_the_gumbels_are_unconditional():
    """Mean logit + 0.5772 and standard deviation 1.2825, for the winner as for the others: a winner drawn by its own
    logit, as is sometimes done, has neither."""
    d = repeated(make("categorical", (), 2, 4), 200_000)
    _, action, fresh = drawn(d, 3)
    zeta = perturbed_given(d, action, fresh)
    mean = d.logits[0] + 0.5772156649
    assert_mean(zeta, mean, resolution=0.05)
    assert_mean((zeta - mean).square(), torch.full_like(mean, math.pi**2 / 6), resolution=0.1)
    wrong = torch.where(action > 0.5, d.logits - fresh.log(), zeta)
    assert float((wrong.mean(0) - mean).abs().max()) > 0.2


@pytest.mark.statistical
def test_the_winners_gumbel_does_not_know_who_won():
    d = repeated(make("categorical", (), 1, 3), 30_000)
    for outcome in d.enumerate():
        zeta = perturbed_given(d, outcome.expand_as(d.logits), noise_of("exponential", tuple(d.noise_shape), 5))
        first = (zeta * outcome).sum(-1)[:, 0] - torch.logsumexp(d.logits[:, 0], -1)
        assert stats.kstest(first.numpy(), "gumbel_r").pvalue > 1e-9


# A rule on (0, 1).
LEGENDRE = np.polynomial.legendre.leggauss(120)
NODES, WEIGHTS = torch.from_numpy((LEGENDRE[0] + 1) / 2), torch.from_numpy(LEGENDRE[1] / 2)


def gumbel_rule(n: int = 180) -> tuple[torch.Tensor, torch.Tensor]:
    """A trapezoid rule over -log of a standard exponential, as exponentials and weights."""
    g = torch.linspace(-4.5, 38, n, dtype=torch.float64)
    return torch.exp(-g), torch.exp(-g - torch.exp(-g)) * (g[1] - g[0])


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
@TEMPERATURES
def test_the_gradient_of_the_conditional_draw_and_the_score_make_that_of_the_free_one(family, temperature):
    """E[h(zeta~) s + grad h(zeta~)] = E[grad h(zeta)], by quadrature. Without the gradient through the conditional noise
    it does not hold."""
    if family == "bernoulli":
        one: Distribution = Bernoulli(torch.tensor([0.8], dtype=torch.float64))
        p = float(torch.sigmoid(torch.tensor(0.8)))
        cut = torch.cat([NODES * (1 - p), 1 - p + NODES * p])[:, None]  # free: by sides of the threshold
        free, free_weight = cut, torch.cat([WEIGHTS * (1 - p), WEIGHTS * p])
        given, weight = NODES[:, None], WEIGHTS
    else:
        one = Categorical(torch.tensor([[0.8, -0.3]], dtype=torch.float64))
        e, w = gumbel_rule()
        given, weight = torch.cartesian_prod(e, e)[:, None], torch.outer(w, w).flatten()
        free, free_weight = given, weight

    def h(d: Distribution, zeta: torch.Tensor) -> torch.Tensor:
        x = relaxed(d, zeta, temperature).flatten(1)
        return torch.exp(x[:, 0]) + x.square().sum(-1)

    d = repeated(one, len(free))
    exact = (slope(d, lambda q: (h(q, perturbed(q, free)) * free_weight).sum())).sum(0)
    found, blind = torch.zeros_like(exact), torch.zeros_like(exact)
    for outcome in one.enumerate():
        d = repeated(one, len(given))
        action = outcome.expand(len(given), *outcome.shape)
        p = one.log_prob(outcome).sum().exp()
        at = h(d, perturbed_given(d, action, given))
        score = slope(d, lambda q, a=action, c=at: (q.log_prob(a).sum(-1) * c * weight).sum()).sum(0)
        path = slope(d, lambda q, a=action: (h(q, perturbed_given(q, a, given)) * weight).sum()).sum(0)
        found = found + p * (score + path)
        blind = blind + p * score
        frozen = d.noise_given(action, given)
        blind = blind + p * slope(d, lambda q, e=frozen: (h(q, perturbed(q, e)) * weight).sum()).sum(0)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)
    assert not torch.allclose(blind, exact, atol=1e-2)


@FAMILIES
@pytest.mark.parametrize("size", [8.0, 50.0])
def test_float32_with_logits_of_any_size(family, masked, size):
    """Finite, with finite gradients, and those of float64, where conditional uniforms are rounded to 1."""
    d = make(family, (2000,), 2, 4, masked=masked)
    d = replace(d, logits=(d.logits * size).clamp(-size, size).float())
    wide = with_parameters(d, [d.logits.double()])
    shape = tuple(d.noise_shape)
    noise, fresh = (
        noise_of(d.noise_kind, shape, key).float().clamp(6e-8, None if family == "categorical" else 1 - 6e-8)
        for key in (1, 2)
    )
    action = d.sample(noise)
    if family == "bernoulli":
        action = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()  # unlikely ones too
    for temperature in (1.0, 0.01):
        for made in (lambda q, n, f: perturbed_given(q, action.to(n), f), lambda q, n, f: perturbed(q, n)):
            narrow = relaxed(d, made(d, noise, fresh), temperature)
            precise = relaxed(wide, made(wide, noise.double(), fresh.double()), temperature)
            assert bool(torch.isfinite(narrow).all())
            g = slope(d, lambda q, m=made, t=temperature: relaxed(q, m(q, noise, fresh), t).square().sum())
            w = slope(
                wide,
                lambda q, m=made, t=temperature: relaxed(q, m(q, noise.double(), fresh.double()), t).square().sum(),
            )
            assert bool(torch.isfinite(g).all())
            if temperature == 1.0:
                assert float((narrow - precise).abs().max()) < 1e-4
                assert float((g - w).norm()) < 1e-4 * float(w.norm())
    if isinstance(d, Categorical):
        assert bool(torch.isfinite(perturbed_again(d, action, noise)).all())
