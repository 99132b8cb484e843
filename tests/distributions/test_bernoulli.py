"""Bernoulli against torch.distributions and against the two-category Categorical."""

from __future__ import annotations

import pytest
import torch
from spine import assert_mean, make, noise_of, normal
from torch.distributions import Bernoulli as Reference

from pglab.distributions import Bernoulli, Categorical
from pglab.errors import PglabError


@pytest.mark.parametrize("d", [1, 2, 7])
def test_log_prob_entropy_and_mode_equal_torchs(d):
    ours = Bernoulli(3 * normal(4, 5, d))
    reference = Reference(logits=ours.logits)
    action = (noise_of("uniform", (4, 5, d)) > 0.5).double()
    torch.testing.assert_close(ours.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(ours.entropy(), reference.entropy())
    assert torch.equal(ours.mode(), (reference.probs > 0.5).double())


def test_sample_is_1_exactly_where_u_exceeds_1_minus_p():
    d = make("bernoulli", (100_000,), 2)
    u = noise_of("uniform", (100_000, 2))
    assert torch.equal(d.sample(u), (u > 1 - torch.sigmoid(d.logits)).double())


def test_log_prob_and_relaxation_equal_a_categorical_with_logits_0_and_l():
    logits, u = normal(50, 2), noise_of("uniform", (50, 2))
    ours, twin = Bernoulli(logits), Categorical(torch.stack([torch.zeros_like(logits), logits], -1))
    ones = torch.ones(50, 2).double()
    torch.testing.assert_close(ours.log_prob(ones), twin.log_prob(torch.tensor([0.0, 1.0]).expand(50, 2, 2).double()))
    torch.testing.assert_close(ours.entropy(), twin.entropy())
    # A logistic is the difference of two Gumbels: Gumbel noise (0, logit u) gives the same relaxed draw.
    gumbels = torch.stack([torch.zeros_like(u), torch.logit(u)], -1)
    torch.testing.assert_close(ours.relax(u, 0.3), twin.relax(torch.exp(-gumbels), 0.3)[..., 1])


@pytest.mark.statistical
def test_sample_frequencies_are_the_probabilities():
    d = make("bernoulli", (), 4)
    n = 100_000
    draws = Bernoulli(d.logits.expand(n, 4)).sample(noise_of("uniform", (n, 4)))
    assert_mean(draws, torch.sigmoid(d.logits), resolution=0.02)
    assert_mean(draws[:, :3] * draws[:, 1:], torch.sigmoid(d.logits[:3]) * torch.sigmoid(d.logits[1:]), resolution=0.02)


@pytest.mark.parametrize("temperature", [5.0, 1.0, 0.1])
def test_relax_rounds_to_sample(temperature):
    d, u = make("bernoulli", (50_000,), 2), noise_of("uniform", (50_000, 2))
    assert torch.equal((d.relax(u, temperature) > 0.5).double(), d.sample(u))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_enumerate_counts_in_binary(d):
    dist = make("bernoulli", (3,), d)
    listed = dist.enumerate()
    codes = (listed * torch.tensor([2.0 ** (d - 1 - i) for i in range(d)])).sum(-1)
    assert torch.equal(codes.long(), torch.arange(2**d))
    torch.testing.assert_close(dist.log_prob(listed.unsqueeze(1)).sum(-1).exp().sum(0), torch.ones(3).double())


def test_too_many_outcomes_are_refused():
    with pytest.raises(PglabError, match="too many"):
        Bernoulli(torch.zeros(17)).enumerate()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_give_finite_values_and_gradients(dtype):
    logits = torch.tensor([[-100.0, -50.0, 0.0, 50.0, 100.0]], dtype=dtype, requires_grad=True)
    d = Bernoulli(logits)
    eps = torch.finfo(dtype).eps / 2
    for u in (eps, 0.5, 1 - eps):
        noise = torch.full((1, 5), u, dtype=dtype)
        both = torch.stack([torch.zeros_like(logits), torch.ones_like(logits)])
        for value in (d.log_prob(both), d.entropy(), d.relax(noise, 0.1), d.relax(d.noise_given(both, noise), 0.5)):
            assert bool(torch.isfinite(value).all())
            assert bool(torch.isfinite(torch.autograd.grad(value.sum(), logits)[0]).all())
    torch.testing.assert_close(d.log_prob(torch.zeros(1, 5, dtype=dtype))[0, -1], torch.tensor(-100.0, dtype=dtype))


def test_bernoulli_has_no_rsample():
    with pytest.raises(PglabError, match="relax"):
        make("bernoulli", (2,)).rsample(torch.full((2, 2), 0.5))
