"""Policies: networks' outputs as distributions on the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spine import normal
from torch.nn.functional import one_hot

from pglab.distributions import Bernoulli, Beta, Categorical, Gaussian, SquashedGaussian
from pglab.environments.contract import ActionSpec
from pglab.errors import PglabError
from pglab.noise import Noise
from pglab.policy import Policy, PolicyConfig

BOX = {"low": -np.ones(2, np.float32), "high": np.ones(2, np.float32)}
DISCRETE, RAGGED, TWO = ActionSpec("discrete", (3,)), ActionSpec("discrete", (2, 4)), ActionSpec("discrete", (2,))
BINARY, BOUNDED, UNBOUNDED = (
    ActionSpec("binary", (2, 2)),
    ActionSpec("continuous", (1, 1), **BOX),
    ActionSpec("continuous", (1, 1)),
)


def build(action: ActionSpec, default: str = "gaussian", seeds=(0, 1, 2), **options):
    policy = Policy(PolicyConfig(**{"hidden": (6,), "output_gain": 1.0} | options), 4, action, default)
    return policy, policy.initial(Noise.of_seeds(seeds))


OBS = normal(5, 3, 2, 4).float()  # [T, P, N, O]


@pytest.mark.parametrize(
    ("action", "default", "family"),
    [
        (DISCRETE, "gaussian", Categorical),
        (RAGGED, "gaussian", Categorical),
        (BINARY, "gaussian", Bernoulli),
        (BOUNDED, "gaussian", Gaussian),
        (BOUNDED, "squashed_gaussian", SquashedGaussian),
    ],
)
def test_auto_picks_the_family_and_rows_are_kept(action, default, family):
    policy, parameters = build(action, default)
    d = policy.distribution(parameters, OBS)
    assert type(d) is family
    assert d.batch_shape == (5, 3, 2)
    assert all(getattr(d, p).shape == d.noise_shape for p in d.parameters)
    alone = policy.distribution(parameters, OBS[3])
    for p in d.parameters:
        torch.testing.assert_close(getattr(d, p)[3], getattr(alone, p))


@pytest.mark.parametrize("action", [DISCRETE, BINARY, BOUNDED])
def test_a_members_policy_does_not_depend_on_the_population(action):
    policy, parameters = build(action)
    single, alone = build(action, seeds=(2,))
    d, e = policy.distribution(parameters, OBS), single.distribution(alone, OBS[:, 2:])
    for p in d.parameters:
        torch.testing.assert_close(getattr(d, p)[:, 2:], getattr(e, p))


def test_ragged_factors_are_padded_with_probability_0_and_an_action_mask_takes_their_place():
    policy, parameters = build(RAGGED)
    probs = policy.distribution(parameters, OBS).probs()
    assert bool((probs[..., 0, 2:] == 0).all())
    mask = torch.ones(5, 3, 2, 2, 4, dtype=torch.bool)
    mask[..., 0, 1:] = False
    probs = policy.distribution(parameters, OBS, mask).probs()
    assert bool((probs[..., 0, 0] == 1).all())


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_bounded_logits(family):
    action = TWO
    free, parameters = build(action, distribution=family)
    bounded, same = build(action, distribution=family, logit_bound=0.5)
    h = free.distribution(parameters, 10 * OBS).logits
    d = bounded.distribution(same, 10 * OBS).logits
    torch.testing.assert_close(d, 0.5 * torch.tanh(2 * h))
    assert float(d.detach().abs().max()) <= 0.5


def test_state_independent_std_is_one_learned_vector_per_member():
    policy, parameters = build(BOUNDED, log_std=-0.7)
    d = policy.distribution(parameters, OBS)
    assert bool((d.log_std == -0.7).all())
    with torch.no_grad():
        parameters.views["log_std"][1] = torch.tensor([[0.1, 0.2]])
    d = policy.distribution(parameters, OBS)
    torch.testing.assert_close(d.log_std[:, 1], torch.tensor([0.1, 0.2]).expand(5, 2, 2))
    assert bool((d.log_std[:, [0, 2]] == -0.7).all())


def test_state_dependent_std_comes_from_the_network_within_bounds():
    policy, parameters = build(BOUNDED, state_dependent_std=True, log_std=-1.0, log_std_bounds=(-1.2, -0.8))
    d = policy.distribution(parameters, 10 * OBS)
    assert len(d.log_std.unique()) > 3
    assert float(d.log_std.detach().min()) == pytest.approx(-1.2)
    assert float(d.log_std.detach().max()) == pytest.approx(-0.8)
    assert "log_std" not in parameters.views


@pytest.mark.parametrize("state_dependent", [False, True])
def test_std_that_is_not_learned_carries_no_gradient(state_dependent):
    policy, parameters = build(BOUNDED, learn_std=False, state_dependent_std=state_dependent)
    d = policy.distribution(parameters, OBS)
    assert d.mean.requires_grad
    assert not d.log_std.requires_grad


def test_mean_scale():
    (a, x), (b, y) = build(BOUNDED), build(BOUNDED, mean_scale=2.0)
    torch.testing.assert_close(2 * a.distribution(x, OBS).mean, b.distribution(y, OBS).mean)


def test_a_small_output_gain_starts_near_uniform():
    policy, parameters = build(DISCRETE, output_gain=0.01)
    assert float(policy.distribution(parameters, OBS).logits.detach().abs().max()) < 0.1


def test_a_bernoulli_policy_presents_the_one_hot_of_two_actions():
    policy, parameters = build(TWO, distribution="bernoulli")
    d = policy.distribution(parameters, OBS)
    bits = torch.tensor([[0.0], [1.0]])
    assert torch.equal(policy.present(bits), one_hot(bits.long(), 2).float())
    assert d.noise_shape == (5, 3, 2, 1)
    binary, _ = build(BINARY)
    assert torch.equal(binary.present(bits), bits)


def test_executed_is_the_distributions():
    for family in ("gaussian", "squashed_gaussian", "beta"):
        policy, parameters = build(BOUNDED, distribution=family)
        d = policy.distribution(parameters, OBS)
        torch.testing.assert_close(policy.executed(OBS), d.executed(OBS))


def test_a_beta_policy_has_parameters_above_1_and_acts_within_minus_1_and_1():
    policy, parameters = build(BOUNDED, distribution="beta")
    d = policy.distribution(parameters, 100 * OBS)
    assert type(d) is Beta
    assert d.batch_shape == (5, 3, 2)
    assert float(torch.cat([d.alpha, d.beta]).detach().min()) >= 1
    assert len(d.alpha.unique()) > 3
    assert len(d.beta.unique()) > 3
    z = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(d.executed(z), 2 * z - 1)
    assert policy.describe() == "beta, actions within the bounds"


@pytest.mark.parametrize(
    ("action", "family"),
    [
        (DISCRETE, "gaussian"),
        (DISCRETE, "bernoulli"),
        (RAGGED, "bernoulli"),
        (BINARY, "categorical"),
        (BOUNDED, "categorical"),
        (UNBOUNDED, "squashed_gaussian"),
        (UNBOUNDED, "beta"),
        (DISCRETE, "beta"),
    ],
)
def test_families_that_do_not_fit_are_refused(action, family):
    with pytest.raises(PglabError, match=r"policy\.distribution"):
        build(action, distribution=family)
