"""Gradients kept apart by row and column, held to plain loops of autograd and to the gradient that training applies."""

from __future__ import annotations

import pytest
import torch
from spine import make, noise_of, normal

from pglab.distributions import Categorical
from pglab.environments.contract import ActionSpec
from pglab.estimators import Draw, ScoreFunction, Signal
from pglab.gradients import cotangents, push, row_gradients
from pglab.networks import Parameters, by_member
from pglab.noise import Noise
from pglab.policy import Policy, PolicyConfig

T, P, N = 3, 2, 4
BOX = ActionSpec("continuous", (1, 1), low=normal(2).numpy(), high=normal(2).numpy())
CASES = {
    "categorical": ("categorical", ActionSpec("discrete", (3, 3)), {}),
    "bounded logits": ("categorical", ActionSpec("discrete", (3, 2)), {"logit_bound": 2.0}),
    "bernoulli": ("bernoulli", ActionSpec("binary", (2, 2)), {"activation": "silu"}),
    "gaussian": ("gaussian", ActionSpec("continuous", (1, 1)), {"mean_scale": 0.7, "activation": "relu"}),
    "std from the network": ("gaussian", BOX, {"state_dependent_std": True, "activation": "elu"}),
    "std not learned": ("gaussian", BOX, {"learn_std": False}),
    "std at its bound": ("gaussian", BOX, {"log_std": 3.0}),
    "squashed": ("squashed_gaussian", BOX, {}),
    "no hidden layer": ("gaussian", BOX, {"hidden": ()}),
}


def case(name: str):
    """A policy in float64 on rows `[T, P, N]`, the cotangents of a score function there, and weights with holes."""
    family, action, options = CASES[name]
    config = PolicyConfig(**{"hidden": (5, 3), "distribution": family, "output_gain": 1.0, **options})
    policy = Policy(config, 4, action, "gaussian")
    made = policy.initial(Noise.of_seeds(range(P)))
    parameters = Parameters(made.shapes, made.flat.double())
    obs = normal(T, P, N, 4, key=60)
    d = policy.distribution(parameters, obs)
    draw = Draw(d.sample(noise_of(d.noise_kind, tuple(d.noise_shape), 2)))
    grads, _ = cotangents(ScoreFunction(), d, draw, Signal(normal(T, P, N, key=3)))
    weight = normal(T, P, N, key=61).abs() * (normal(T, P, N, key=62) > -0.7)
    assert bool((weight == 0).any())
    return policy, parameters, obs, draw, grads, weight


def every_row(policy, parameters, obs, grads, weight) -> torch.Tensor:
    """`[T, P, N, n]`, one backward pass of plain operations a row."""
    found = torch.zeros(T, P, N, parameters.size, dtype=torch.float64)
    for t in range(T):
        for p in range(P):
            for n in range(N):
                views = {k: v[p : p + 1].detach().clone().requires_grad_() for k, v in parameters.views.items()}
                weights = [views[name] for name in policy.network.layer_names]
                h = policy.network.plain(weights, obs[t, p, n].view(1, 1, -1))
                d = policy.parameterized(views, h.view(1, 1, 1, -1))
                objective = torch.zeros(()).double()
                for name, grad in zip(d.parameters, grads, strict=True):
                    objective = objective + (getattr(d, name)[0, 0, 0] * grad[t, p, n]).sum() * weight[t, p, n]
                leaves = list(views.values())
                parts = torch.autograd.grad(objective, leaves, allow_unused=True)
                parts = [torch.zeros_like(v) if g is None else g for g, v in zip(parts, leaves, strict=True)]
                found[t, p, n] = torch.cat([g.flatten() for g in parts])
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_columns_products_and_norms_are_those_of_a_loop_over_rows(name):
    policy, parameters, obs, _, grads, weight = case(name)
    rows = row_gradients(policy, parameters, obs, grads, weight)
    loop = every_row(policy, parameters, obs, grads, weight)
    columns = loop.sum(0)
    torch.testing.assert_close(rows.column_sums(), columns, rtol=1e-10, atol=1e-12)
    times = normal(T, P, N, key=8)
    times_columns = (loop * times.unsqueeze(-1)).sum(0)
    torch.testing.assert_close(rows.column_sums(times), times_columns, rtol=1e-10, atol=1e-12)
    vectors = normal(P, N, parameters.size, key=9)
    torch.testing.assert_close(rows.along(vectors), (loop * vectors).sum(-1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rows.squared_norms(), loop.square().sum(-1), rtol=1e-10, atol=1e-12)
    assert bool((loop != 0).any())


@pytest.mark.parametrize("name", list(CASES))
def test_columns_add_up_to_the_gradient_that_training_applies(name):
    policy, parameters, obs, _, grads, weight = case(name)
    found = row_gradients(policy, parameters, obs, grads, weight).column_sums().sum(1)
    push(parameters, policy.distribution(parameters, obs), grads, weight)
    torch.testing.assert_close(-found, parameters.grad, rtol=1e-10, atol=1e-12)


def test_columns_are_the_gradients_of_a_population_with_a_member_for_every_column():
    policy, parameters, obs, _, grads, weight = case("gaussian")
    many = parameters.repeated(N)

    def apart(x):
        return x.flatten(1, 2).unsqueeze(2)  # [T, P*N, 1, ...]

    push(many, policy.distribution(many, apart(obs)), [apart(g) for g in grads], apart(weight))
    found = row_gradients(policy, parameters, obs, grads, weight).column_sums()
    torch.testing.assert_close(found, -many.grad.view(P, N, -1), rtol=1e-10, atol=1e-12)


def test_action_masks_are_kept_to():
    policy, parameters, obs, _, _, weight = case("categorical")
    mask = make("categorical", (T, P, N), 2, 3, masked=True).mask
    d = policy.distribution(parameters, obs, mask)
    draw = Draw(d.sample(noise_of(d.noise_kind, tuple(d.noise_shape), 2)))
    grads, _ = cotangents(ScoreFunction(), d, draw, Signal(normal(T, P, N, key=3)))
    found = row_gradients(policy, parameters, obs, grads, weight, mask).column_sums().sum(1)
    push(parameters, d, grads, weight)
    torch.testing.assert_close(-found, parameters.grad, rtol=1e-10, atol=1e-12)
    assert isinstance(d, Categorical)


class Kept:
    """A recorded pass that counts on being used."""

    def __init__(self, network, parameters, obs) -> None:
        self.hidden, self.output = network.run(
            [parameters.views[n].detach() for n in network.layer_names], by_member(obs)
        )
        self.asked = 0

    def holds(self, parameters) -> bool:
        self.asked += 1
        return True


def test_a_recorded_pass_is_used_and_changes_nothing(monkeypatch):
    policy, parameters, obs, _, grads, weight = case("bernoulli")
    again = row_gradients(policy, parameters, obs, grads, weight)
    kept = Kept(policy.network, parameters, obs)
    monkeypatch.setattr(type(policy.network), "run", None)
    found = row_gradients(policy, parameters, obs, grads, weight, recorded=kept)
    assert kept.asked == 1
    torch.testing.assert_close(found.column_sums(), again.column_sums())
    torch.testing.assert_close(found.squared_norms(), again.squared_norms())


def test_nothing_is_left_in_the_parameters():
    policy, parameters, obs, _, grads, weight = case("gaussian")
    before = parameters.flat.clone(), parameters.grad.clone()
    row_gradients(policy, parameters, obs, grads, weight).column_sums()
    assert torch.equal(parameters.flat, before[0])
    assert torch.equal(parameters.grad, before[1])
    assert all(v.grad is None for v in parameters.views.values())
