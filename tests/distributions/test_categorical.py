"""Categorical against torch.distributions, with masks, ragged factors and extreme logits."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from spine import LEVEL, assert_mean, generator, make, noise_of, normal
from torch.distributions import Categorical as Reference

from pglab.distributions import Categorical
from pglab.errors import PglabError

SHAPES = [(1, 2), (1, 3), (2, 3), (3, 10)]  # (D, K)


def masked_reference(distribution: Categorical) -> Reference:
    """The renormalised probabilities, from numpy."""
    p = torch.softmax(distribution.logits, -1) * distribution.mask
    return Reference(probs=p / p.sum(-1, keepdim=True), validate_args=False)


def outcomes(k: int, shape: tuple[int, ...], key: int) -> torch.Tensor:
    index = torch.from_numpy(generator(5, key).integers(k, size=shape))
    return torch.nn.functional.one_hot(index, k).double()


@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_log_prob_entropy_and_mode_equal_torchs(d, k):
    ours = make("categorical", (4, 5), d, k)
    reference = Reference(logits=ours.logits)
    action = outcomes(k, (4, 5, d), k)
    torch.testing.assert_close(ours.log_prob(action), reference.log_prob(action.argmax(-1)))
    torch.testing.assert_close(ours.entropy(), reference.entropy())
    torch.testing.assert_close(ours.probs(), reference.probs)
    assert torch.equal(ours.mode().argmax(-1), reference.mode)
    assert ours.log_prob(action).shape == ours.entropy().shape == (4, 5, d)


@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_masked_equals_torch_on_the_renormalised_probabilities(d, k):
    ours = make("categorical", (6,), d, k, masked=True)
    reference = masked_reference(ours)
    action = outcomes(k, (6, d), k)
    action = torch.where(ours.mask.gather(-1, action.argmax(-1, keepdim=True)), action, ours.mode())
    torch.testing.assert_close(ours.log_prob(action), reference.log_prob(action.argmax(-1)))
    torch.testing.assert_close(ours.probs(), reference.probs)
    plain = torch.where(reference.probs > 0, reference.probs * reference.probs.clamp_min(1e-300).log(), 0.0)
    torch.testing.assert_close(ours.entropy(), -plain.sum(-1))
    assert torch.equal(ours.mode().argmax(-1), reference.probs.argmax(-1))


def test_ragged_factors_are_separate_smaller_categoricals():
    logits = normal(5, 2, 4)
    ragged = Categorical(logits, torch.tensor([[True] * 2 + [False] * 2, [True] * 4]))
    small, large = Categorical(logits[:, :1, :2]), Categorical(logits[:, 1:])
    torch.testing.assert_close(ragged.entropy(), torch.cat([small.entropy(), large.entropy()], -1))
    torch.testing.assert_close(ragged.probs()[:, :1, :2], small.probs())
    noise = noise_of("exponential", (5, 2, 4))
    torch.testing.assert_close(ragged.sample(noise)[:, :1, :2], small.sample(noise[:, :1, :2]))
    torch.testing.assert_close(ragged.relax(noise, 0.7)[:, :1, :2], small.relax(noise[:, :1, :2], 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_categories_have_probability_exactly_0_everywhere(dtype):
    mask = torch.tensor([[True, False, True, False], [False, False, True, False]])
    d = Categorical((50 * normal(1000, 2, 4)).to(dtype), mask)
    noise = noise_of("exponential", (1000, 2, 4)).to(dtype)
    off = ~mask.expand(1000, 2, 4)
    action = d.sample(noise)
    conditional = d.noise_given(action, noise.flip(0))
    for x in (d.probs(), action, d.mode(), d.relax(noise, 0.5), d.relax(noise, 1e-2), d.relax(conditional, 0.5)):
        assert bool((x[off] == 0).all())
        torch.testing.assert_close(x.sum(-1), torch.ones(1000, 2, dtype=dtype))
    weights = d.log_prob(d.enumerate().unsqueeze(1)).sum(-1).exp()  # [16, 1000]
    allowed = (d.enumerate() * mask).sum((-1, -2)) == 2
    assert bool((weights[~allowed] == 0).all())
    torch.testing.assert_close(weights.sum(0), torch.ones(1000, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-3])
def test_no_nan_and_no_nan_gradient_where_masked(dtype, temperature):
    mask = torch.tensor([[True, False, True, False], [False, False, True, False]])
    logits = (10 * normal(30, 2, 4)).to(dtype).requires_grad_()
    noise = noise_of("exponential", (30, 2, 4)).to(dtype).requires_grad_()
    tau = torch.tensor(temperature, dtype=dtype, requires_grad=True)
    d = Categorical(logits, mask)
    c = normal(30, 2, 4, key=1).to(dtype)
    action = d.sample(noise)
    everything = {
        "log_prob": d.log_prob(action),
        "entropy": d.entropy(),
        "probs": d.probs() * c,
        "enumerate": d.log_prob(d.enumerate().unsqueeze(1)).sum(-1).exp(),
        "relax": d.relax(noise, tau) * c,
        "noise_given": d.relax(d.noise_given(action, noise), tau) * c,
    }
    for name, value in everything.items():
        assert bool(torch.isfinite(value).all()), name
        grads = torch.autograd.grad(value.sum(), [logits, noise, tau], allow_unused=True)
        for grad, what in zip(grads, ("logits", "noise", "temperature"), strict=True):
            assert grad is None or bool(torch.isfinite(grad).all()), f"{name}: gradient at {what}"
        assert bool((grads[0][~mask.expand(30, 2, 4)] == 0).all()), name


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.statistical
def test_sample_frequencies_are_the_probabilities(masked):
    d = make("categorical", (), 2, 4, masked=masked, key=2)
    n = 200_000
    many = Categorical(d.logits.expand(n, 2, 4), d.mask)
    count = many.sample(noise_of("exponential", (n, 2, 4))).sum(0)
    for row, p in zip(count, d.probs(), strict=True):
        assert stats.chisquare(row[p > 0], n * p[p > 0]).pvalue > LEVEL
        assert bool((row[p == 0] == 0).all())


@pytest.mark.statistical
def test_factors_are_drawn_independently():
    n = 100_000
    d = Categorical(make("categorical", (), 2, 2).logits.expand(n, 2, 2))
    a = d.sample(noise_of("exponential", (n, 2, 2)))[..., 0]
    p = d.probs()[0, :, 0]
    assert_mean((a[:, :1] * a[:, 1:]), p.prod()[None], resolution=0.02)


@pytest.mark.parametrize("temperature", [5.0, 1.0, 0.1])
def test_relax_shares_its_argmax_with_sample(temperature):
    d = make("categorical", (50_000,), 2, 5, masked=True)
    noise = noise_of("exponential", (50_000, 2, 5))
    assert torch.equal(d.relax(noise, temperature).argmax(-1), d.sample(noise).argmax(-1))


def test_relax_is_the_softmax_of_perturbed_logits():
    d = make("categorical", (20,), 2, 3)
    noise = noise_of("exponential", (20, 2, 3))
    reference = torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.7).double(), logits=d.logits)
    gumbel = -noise.log()
    by_hand = ((d.logits + gumbel) / 0.7).exp()
    torch.testing.assert_close(d.relax(noise, 0.7), by_hand / by_hand.sum(-1, keepdim=True))
    assert bool(torch.isfinite(reference.log_prob(d.relax(noise, 0.7))).all())


@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_enumerate_lists_every_joint_outcome_once_last_factor_fastest(d, k):
    dist = make("categorical", (3,), d, k)
    listed = dist.enumerate()
    codes = (listed.argmax(-1) * torch.tensor([k ** (d - 1 - i) for i in range(d)])).sum(-1)
    assert torch.equal(codes, torch.arange(k**d))
    assert torch.equal(listed.sum(-1), torch.ones(k**d, d).double())
    torch.testing.assert_close(dist.log_prob(listed.unsqueeze(1)).sum(-1).exp().sum(0), torch.ones(3).double())


def test_too_many_outcomes_are_refused():
    with pytest.raises(PglabError, match="too many"):
        Categorical(torch.zeros(17, 2)).enumerate()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 1000])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_extreme_logits_give_finite_values_and_gradients(dtype, k, scale):
    logits = (scale * (2 * torch.from_numpy(generator(3).random((8, 1, k))) - 1)).to(dtype)
    logits[0, 0, 0] = scale
    logits = logits.requires_grad_()
    d = Categorical(logits)
    noise = noise_of("exponential", (8, 1, k)).to(dtype)
    for value in (
        d.log_prob(d.sample(noise)),
        d.entropy(),
        d.relax(noise, 0.1).square(),
        d.noise_given(d.mode(), noise),
    ):
        (grad,) = torch.autograd.grad(value.sum(), logits)
        assert bool(torch.isfinite(value).all())
        assert bool(torch.isfinite(grad).all())
    if k == 1:
        assert bool((d.log_prob(d.sample(noise)) == 0).all())
        assert bool((d.entropy() == 0).all())
    else:
        assert float(d.entropy().detach().max()) <= math.log(1000) + 1e-5


def test_opposite_logits_of_50():
    d = Categorical(torch.tensor([[50.0, -50.0]]))
    improbable = torch.tensor([[0.0, 1.0]])
    assert float(d.log_prob(improbable)) == -100
    assert float(d.entropy()) == pytest.approx(0.0, abs=1e-12)


def test_categorical_has_no_rsample():
    with pytest.raises(PglabError, match="relax"):
        make("categorical", (2,)).rsample(torch.ones(2, 2, 3))
