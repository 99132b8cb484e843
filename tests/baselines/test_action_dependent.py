"""The baseline per factor: by loops over outcomes, unbiased by enumeration and quadrature, and what it is worth."""

from __future__ import annotations

import itertools

import pytest
import torch
from spine import Quadratic, hermite, make, noise_of, normal

import pglab
from pglab.baselines import ActionDependent, Batch, CriticMean
from pglab.distributions import Bernoulli, Categorical, Distribution, Gaussian
from pglab.errors import PglabError
from pglab.estimators import Draw, ScoreFunction, Signal
from pglab.gradients import cotangents

ROWS = (2, 3, 4)
FAMILIES = ["categorical", "bernoulli", "gaussian", "squashed_gaussian", "beta"]


def drawn(family: str, d: int = 2, masked: bool = False) -> tuple[Distribution, torch.Tensor]:
    one = make(family, ROWS, d, masked=masked)
    return one, one.sample(noise_of(one.noise_kind, tuple(one.noise_shape), 3))


def predicted(d: Distribution, action: torch.Tensor, critic) -> torch.Tensor:
    value = torch.zeros(d.batch_shape, dtype=torch.float64)
    ok = torch.ones_like(value, dtype=torch.bool)
    return ActionDependent().predict(
        {}, Batch(value.unsqueeze(-1), value, ok, ok.long(), distribution=d, critic=critic, action=action)
    )


@pytest.mark.parametrize("masked", [False, True])
def test_categorical_factors_are_summed_out_one_by_one(masked):
    d, action = drawn("categorical", masked=masked)
    found, f, p = predicted(d, action, Quadratic(d)), Quadratic(d), d.probs()
    for i in range(2):
        expected = torch.zeros(ROWS, dtype=torch.float64)
        for k in range(3):
            other = action.clone()
            other[..., i, :] = torch.eye(3, dtype=torch.float64)[k]
            expected += p[..., i, k] * f(other)
        torch.testing.assert_close(found[..., i], expected)


def test_binary_factors_are_summed_out_one_by_one():
    d, action = drawn("bernoulli")
    found, f, p = predicted(d, action, Quadratic(d)), Quadratic(d), torch.sigmoid(d.logits)
    for i in range(2):
        low, high = action.clone(), action.clone()
        low[..., i], high[..., i] = 0, 1
        torch.testing.assert_close(found[..., i], (1 - p[..., i]) * f(low) + p[..., i] * f(high))


@pytest.mark.parametrize("family", ["gaussian", "squashed_gaussian", "beta"])
def test_a_continuous_factor_is_put_at_its_mode(family):
    d, action = drawn(family)
    found, f = predicted(d, action, Quadratic(d)), Quadratic(d)
    for i in range(2):
        other = action.clone()
        other[..., i] = d.mode()[..., i]
        torch.testing.assert_close(found[..., i], f(d.executed(other)))


@pytest.mark.parametrize("family", FAMILIES)
def test_factor_d_reads_the_other_factors_and_never_its_own(family):
    d, action = drawn(family, 3)
    f = Quadratic(d)
    before = predicted(d, action, f)
    for i in range(3):
        other = action.clone()
        fresh = d.sample(noise_of(d.noise_kind, tuple(d.noise_shape), 8))
        other[:, :, :, i] = fresh[:, :, :, i]
        after = predicted(d, other, f)
        assert torch.equal(after[..., i], before[..., i])
        assert all(not torch.equal(after[..., j], before[..., j]) for j in range(3) if j != i)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_one_factor_it_is_a_function_of_the_state(family):
    d, action = drawn(family, 1)
    f = Quadratic(d)
    value = torch.zeros(ROWS, dtype=torch.float64)
    ok = torch.ones(ROWS, dtype=torch.bool)
    mean = CriticMean().predict({}, Batch(value.unsqueeze(-1), value, ok, ok.long(), distribution=d, critic=f))
    torch.testing.assert_close(predicted(d, action, f)[..., 0], mean)


def exact(d: Distribution, action: torch.Tensor, p: torch.Tensor, f, critic) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and mean square `[n]` of the estimates for outcomes `[M, *event]` with probabilities `[M]`; the baseline asks
    `critic`."""
    parameters = {name: getattr(d, name).expand(1, 1, len(p), *getattr(d, name).shape) for name in d.parameters}
    rows = type(d)(**parameters)
    action = action[None, None]
    b = predicted(rows, action, critic)
    grads, _ = cotangents(ScoreFunction(), rows, Draw(action), Signal(f(action), b))
    g = torch.cat([x[0, 0].flatten(1) for x in grads], 1)  # [M, n]
    return (p.unsqueeze(1) * g).sum(0), (p.unsqueeze(1) * g.square()).sum(0)


def f(z: torch.Tensor) -> torch.Tensor:
    """`[..., D]` or `[..., D, K]`: no sum over factors."""
    z = z if z.shape[-1] == 3 else z.unsqueeze(-1)
    a, b = z[..., 0, :].sum(-1) + z[..., 0, 0], z[..., 1, :].square().sum(-1) - 2 * z[..., 1, 0]
    return 1 + a - 2 * b + 3 * a * b


@pytest.mark.parametrize("critic", [f, lambda z: torch.sin(f(z)) * 4], ids=["exact", "wrong"])
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_unbiased_over_all_joint_outcomes_whatever_the_critic(family, critic):
    d = make(family, (), 2)
    outcomes = d.enumerate()
    found, _ = exact(d, outcomes, d.log_prob(outcomes).sum(-1).exp(), f, critic)
    torch.testing.assert_close(found, pglab.exact_gradient(d, f)["logits"].flatten(), rtol=1e-10, atol=1e-12)


def grid(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, w = hermite(30)
    nodes = torch.tensor(list(itertools.product(x.tolist(), repeat=d)), dtype=torch.float64)
    weights = torch.tensor(list(itertools.product(w.tolist(), repeat=d)), dtype=torch.float64).prod(1)
    return nodes, weights


@pytest.mark.parametrize("critic", [f, lambda z: f(z).square()], ids=["exact", "wrong"])
def test_unbiased_by_quadrature_for_gaussians(critic):
    d = Gaussian(normal(2, key=3), 0.3 * normal(2, key=4))
    nodes, w = grid(2)
    found, _ = exact(d, d.mean + d.log_std.exp() * nodes, w, f, critic)
    right = pglab.exact_gradient(d, f)
    torch.testing.assert_close(found, torch.cat([right["mean"], right["log_std"]]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_its_worth_grows_with_the_number_of_factors(d):
    """z ~ N(0, 1)^D, f = sum z, gradient 1 at each mean: (f - 0) z_d has variance D + 1, (f - b_d) z_d has 2."""
    nodes, w = grid(d)
    one = Gaussian(torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64))
    mean, square = exact(one, nodes, w, lambda z: z.sum(-1), lambda z: z.sum(-1))
    torch.testing.assert_close(mean[:d], torch.ones(d, dtype=torch.float64))
    torch.testing.assert_close(square[:d] - 1, torch.full((d,), 2.0, dtype=torch.float64))
    state = (w.unsqueeze(1) * (nodes.sum(1, keepdim=True) * nodes).square()).sum(0) - 1
    torch.testing.assert_close(state, torch.full((d,), d + 1.0, dtype=torch.float64))


@pytest.mark.parametrize("critic", [lambda a: a.flatten(3).sum(-1).mean(-1), lambda a: torch.zeros(2, 1, 1)])
def test_a_critic_that_would_broadcast_is_refused(critic):
    for d in (Bernoulli(normal(*ROWS, 2)), Categorical(normal(*ROWS, 2, 3))):
        with pytest.raises(PglabError, match="critic"):
            predicted(d, d.mode(), critic)
