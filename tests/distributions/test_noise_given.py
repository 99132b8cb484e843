"""p(noise | action): it makes the action, and averaged over actions it is the noise's own law."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from spine import FAMILIES, assert_law, assert_mean, assert_same_law, make, noise_of, with_parameters

from pglab.distributions import Bernoulli, Categorical, Gaussian

LAWS = {"exponential": "expon", "uniform": "uniform", "normal": "norm"}


def many(family: str, n: int, **options):
    d = make(family, (), **options)
    parameters = [getattr(d, p).expand(n, *getattr(d, p).shape) for p in d.parameters]
    return with_parameters(d, parameters)


def given(d, key: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawn actions, and noise drawn given them."""
    shape = tuple(d.noise_shape)
    action = d.sample(noise_of(d.noise_kind, shape, key))
    return action, d.noise_given(action, noise_of(d.noise_kind, shape, key + 1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_categorical_noise_given_makes_the_action_again(k, masked):
    d = make("categorical", (100_000,), 2, k, masked=masked)
    action, noise = given(d, 3)
    assert torch.equal(d.sample(noise), action)


def test_bernoulli_noise_given_makes_the_action_again():
    d = make("bernoulli", (200_000,), 2)
    action, noise = given(d, 3)
    assert torch.equal(d.sample(noise), action)


@pytest.mark.parametrize("family", ["gaussian", "squashed_gaussian"])
def test_gaussian_noise_given_is_the_noise(family):
    d = make(family, (1000,), 2)
    noise = noise_of("normal", (1000, 2))
    torch.testing.assert_close(d.noise_given(d.sample(noise), torch.zeros(1000, 2)), noise)


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_foreign_actions_get_noise_that_makes_them(family):
    d = make(family, (5000,))
    action = make(family, (5000,), key=40).sample(noise_of(d.noise_kind, tuple(d.noise_shape), 1))
    assert torch.equal(d.sample(d.noise_given(action, noise_of(d.noise_kind, tuple(d.noise_shape), 2))), action)


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_in_float32_it_makes_the_action_but_for_rare_ties(family):
    d = make(family, (300_000,))
    d = with_parameters(d, [getattr(d, p).float() for p in d.parameters])
    fresh = [noise_of(d.noise_kind, tuple(d.noise_shape), key).float().clamp(1e-7, None) for key in (1, 2)]
    if family == "bernoulli":
        fresh = [u.clamp(max=1 - 1e-7) for u in fresh]
    action = d.sample(fresh[0])
    other = d.sample(d.noise_given(action, fresh[1])) != action
    assert int(other.flatten(1).any(1).sum()) <= 6


@pytest.mark.statistical
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("key", [0, 20])
def test_averaged_over_actions_it_has_the_noises_own_law(family, key):
    d = many(family, 100_000, key=key)
    _, noise = given(d, 5)
    columns = noise.flatten(1).T
    for x in columns:
        assert_law(x, LAWS[d.noise_kind])
    u = torch.from_numpy(getattr(stats, LAWS[d.noise_kind]).cdf(noise.flatten(1)))
    i, j = torch.triu_indices(len(columns), len(columns), offset=1)
    assert_mean((u[:, i] - 0.5) * (u[:, j] - 0.5), torch.zeros(len(i)), resolution=0.01)


@pytest.mark.statistical
def test_conditional_gumbels_average_to_unconditional_ones():
    """Mean l_k + 0.5772 and standard deviation 1.2825; the RELAX-RL code had neither."""
    d = many("categorical", 200_000, k=4)
    _, noise = given(d, 9)
    gumbels = (d.logits - noise.log()).flatten(1)
    mean = d.logits[0].flatten() + 0.5772156649
    assert_mean(gumbels, mean, resolution=0.05)
    assert_mean((gumbels - mean).square(), torch.full((8,), math.pi**2 / 6).double(), resolution=0.1)


@pytest.mark.statistical
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_given_an_action_it_has_the_law_that_rejection_gives(family):
    d = many(family, 60_000, d=1)
    noise = noise_of(d.noise_kind, tuple(d.noise_shape), 1)
    action = d.sample(noise)
    fresh = noise_of(d.noise_kind, tuple(d.noise_shape), 2)
    for outcome in d.enumerate():
        accepted = noise[(action == outcome).flatten(1).all(1)].flatten(1)
        drawn = d.noise_given(outcome.expand_as(action), fresh).flatten(1)
        for a, b in zip(accepted.T, drawn.T, strict=True):
            assert_same_law(a, b)


@pytest.mark.statistical
def test_the_winning_gumbel_has_the_law_of_the_log_sum_whatever_wins():
    d = many("categorical", 30_000, d=1)
    for outcome in d.enumerate():
        noise = d.noise_given(outcome.expand_as(d.logits), noise_of("exponential", tuple(d.noise_shape), 2))
        first = (noise / d.probs()).min(-1).values[:, 0]
        assert_law(first, "expon")


@pytest.mark.parametrize(("cls", "size"), [(Categorical, (40, 2, 3)), (Bernoulli, (40, 2))])
def test_its_derivative_in_the_parameters_equals_finite_differences(cls, size):
    """REBAR and RELAX differentiate the conditional noise in the parameters."""
    family = cls.__name__.lower()
    logits = make(family, (40,)).logits
    kind = cls(logits).noise_kind
    action = cls(logits).sample(noise_of(kind, size, 1))
    fresh = noise_of(kind, size, 2)
    assert torch.autograd.gradcheck(lambda x: cls(x).noise_given(action, fresh), (logits.clone().requires_grad_(),))


def test_gaussian_noise_given_carries_the_gradient_of_its_parameters():
    mean, log_std = torch.zeros(1, 1).double().requires_grad_(), torch.zeros(1, 1).double().requires_grad_()
    noise = Gaussian(mean, log_std).noise_given(torch.tensor([[0.5]]).double(), torch.zeros(1, 1))
    grads = torch.autograd.grad(noise.sum(), [mean, log_std])
    assert [float(g) for g in grads] == [-1.0, -0.5]
