"""Gaussian and SquashedGaussian against torch.distributions, quadrature and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate
from spine import assert_law, hermite, make, noise_of, normal
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from pglab.distributions import Gaussian, SquashedGaussian
from pglab.errors import PglabError
from pglab.gradients import entropy


@pytest.mark.parametrize("d", [1, 2, 6])
def test_gaussian_equals_torchs_normal(d):
    ours = make("gaussian", (4, 5), d)
    reference = Normal(ours.mean, ours.log_std.exp())
    action = 2 * normal(4, 5, d, key=3)
    torch.testing.assert_close(ours.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(ours.entropy(), reference.entropy())
    assert torch.equal(ours.mode(), reference.mode)


@pytest.mark.statistical
def test_gaussian_draws_have_their_law():
    d = Gaussian(
        torch.tensor([0.7], dtype=torch.float64).expand(100_000, 1),
        torch.tensor([-1.3], dtype=torch.float64).expand(100_000, 1),
    )
    assert_law(((d.sample(noise_of("normal", (100_000, 1))) - 0.7) / math.exp(-1.3))[:, 0], "norm")


@pytest.mark.parametrize("family", [Gaussian, SquashedGaussian])
@pytest.mark.parametrize("std", [1e-20, 1e-10, 1e-3, 1.0, 7.0])
def test_scores_from_the_noise_are_exact_in_float32_for_any_std(family, std):
    mean = torch.tensor([[0.3, -1.7]], requires_grad=True)
    log_std = torch.full((1, 2), math.log(std), requires_grad=True)
    d = family(mean, log_std)
    noise = torch.tensor([[1.25, -0.5]])
    grads = torch.autograd.grad(d.log_prob(d.sample(noise), noise).sum(), [mean, log_std])
    torch.testing.assert_close(grads[0] * std, noise, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[1], noise.square() - 1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [Gaussian, SquashedGaussian])
def test_log_prob_with_and_without_noise_agree_in_value_and_gradient(family):
    d, leaves = family(normal(9, 2), 0.5 * normal(9, 2, key=1)).cut()
    noise = normal(9, 2, key=2)
    action = d.sample(noise)
    with_noise, without = d.log_prob(action, noise), d.log_prob(action)
    torch.testing.assert_close(with_noise, without)
    for a, b in zip(
        torch.autograd.grad(with_noise.sum(), leaves), torch.autograd.grad(without.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("log_std", [-20.0, -5.0, 0.0, 2.0])
@pytest.mark.parametrize("family", [Gaussian, SquashedGaussian])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_log_std_in_bounds_gives_finite_values_and_gradients(family, log_std, dtype):
    mean = torch.tensor([[-30.0, 0.0, 30.0]], dtype=dtype, requires_grad=True)
    scale = torch.full((1, 3), log_std, dtype=dtype, requires_grad=True)
    d = family(mean, scale)
    for size in (-6.0, 0.0, 6.0):
        noise = torch.full((1, 3), size, dtype=dtype)
        action = d.sample(noise)
        values = [d.log_prob(action, noise), d.log_prob(action), d.executed(d.rsample(noise)), entropy(d, noise)]
        for value in values:
            grads = torch.autograd.grad(value.sum(), [mean, scale], allow_unused=True)
            assert bool(torch.isfinite(value).all())
            assert all(g is None or bool(torch.isfinite(g).all()) for g in grads)


@pytest.mark.parametrize("mean", [-1.5, 0.0, 2.0])
@pytest.mark.parametrize("std", [0.3, 1.0, 3.0])
def test_squashed_density_integrates_to_1(mean, std):
    d = SquashedGaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([math.log(std)], dtype=torch.float64))

    def density(y: float) -> float:
        return float(d.log_prob(torch.tensor([math.atanh(y)], dtype=torch.float64)).exp())

    points = [-0.999, -0.9, 0.0, 0.9, 0.999]
    ends = 1 - 1e-15
    total = sum(
        integrate.quad(density, a, b, epsabs=1e-8, limit=200)[0]
        for a, b in zip([-ends, *points], [*points, ends], strict=True)
    )
    from scipy.stats import norm

    beyond = norm.sf((math.atanh(ends) - mean) / std) + norm.cdf((-math.atanh(ends) - mean) / std)
    assert total + beyond == pytest.approx(1.0, abs=1e-6)


def test_squashed_log_prob_equals_torchs_transformed_normal():
    d = make("squashed_gaussian", (30,), 3)
    u = normal(30, 3, key=4)
    reference = TransformedDistribution(Normal(d.mean, d.log_std.exp()), TanhTransform(cache_size=1))
    torch.testing.assert_close(d.log_prob(u), reference.log_prob(torch.tanh(u)), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("u", [-40.0, -15.0, -10.5, 0.0, 15.0, 40.0])
def test_squashed_log_prob_is_exact_where_tanh_saturates(dtype, u):
    d = SquashedGaussian(torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=dtype))
    exact = -0.5 * u * u - 0.5 * math.log(2 * math.pi) + 2 * math.log(math.cosh(u))
    assert float(d.log_prob(torch.tensor([u], dtype=dtype))) == pytest.approx(
        exact, rel=1e-6 if dtype == torch.float32 else 1e-10
    )


def test_gradient_of_the_pathwise_entropy_equals_quadrature():
    x, w = hermite(100)
    for mean, log_std in [(0.0, -1.0), (0.8, -0.3), (-1.5, 0.2)]:
        d, leaves = SquashedGaussian(
            torch.full((100, 1), mean, dtype=torch.float64), torch.full((100, 1), log_std, dtype=torch.float64)
        ).cut()
        found = torch.autograd.grad(d.pathwise_entropy(x[:, None]).sum(-1) @ w, leaves)

        def exact(m: float, s: float) -> float:
            def integrand(z: float) -> float:
                u = m + math.exp(s) * z
                return -2 * math.log(math.cosh(u)) * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

            return 0.5 * math.log(2 * math.pi * math.e) + s + integrate.quad(integrand, -12, 12, epsabs=1e-12)[0]

        assert float(d.detach().pathwise_entropy(x[:, None]).sum(-1) @ w) == pytest.approx(
            exact(mean, log_std), abs=1e-6
        )
        h = 1e-4
        slopes = [
            (exact(mean + h, log_std) - exact(mean - h, log_std)) / (2 * h),
            (exact(mean, log_std + h) - exact(mean, log_std - h)) / (2 * h),
        ]
        assert [float(g.sum()) for g in found] == pytest.approx(slopes, abs=1e-5)


def test_squashed_executes_tanh_and_has_no_closed_entropy():
    d = make("squashed_gaussian", (3,))
    np.testing.assert_allclose(d.executed(d.mean).numpy(), np.tanh(d.mean.numpy()))
    assert not d.has_entropy
    with pytest.raises(PglabError, match="pathwise"):
        d.entropy()
    with pytest.raises(PglabError, match="noise is needed"):
        entropy(d)


@pytest.mark.parametrize("family", ["gaussian", "squashed_gaussian"])
def test_continuous_families_cannot_be_enumerated_or_relaxed(family):
    with pytest.raises(PglabError, match="enumerated"):
        make(family, (2,)).enumerate()
    with pytest.raises(PglabError, match="rsample"):
        make(family, (2,)).relax(torch.zeros(2, 2), 1.0)
