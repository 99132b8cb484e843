"""Optimizers and clipping against torch.optim, one torch optimizer per member."""

from __future__ import annotations

import pytest
import torch
from spine import normal

from pglab.optimizers import OptimizerConfig, clip_by_member

RATES = [1e-3, 0.3, 1e-2]
SETTINGS = {
    "adam": ({"name": "adam"}, lambda p, lr: torch.optim.Adam(p, lr)),
    "adam with other betas": (
        {"name": "adam", "beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
        lambda p, lr: torch.optim.Adam(p, lr, betas=(0.5, 0.9), eps=1e-3),
    ),
    "rmsprop": ({"name": "rmsprop"}, lambda p, lr: torch.optim.RMSprop(p, lr)),
    "rmsprop with another alpha": (
        {"name": "rmsprop", "alpha": 0.7, "eps": 1e-4},
        lambda p, lr: torch.optim.RMSprop(p, lr, alpha=0.7, eps=1e-4),
    ),
    "sgd": ({"name": "sgd"}, lambda p, lr: torch.optim.SGD(p, lr)),
    "sgd with momentum": ({"name": "sgd", "momentum": 0.9}, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_each_member_moves_as_under_torch_optim(name):
    options, theirs = SETTINGS[name]
    ours = OptimizerConfig(**options)
    flat, rate = normal(3, 7), torch.tensor(RATES).double()[:, None]
    params = [torch.nn.Parameter(row.clone()) for row in flat]
    optimizers = [theirs([p], lr) for p, lr in zip(params, rate[:, 0].tolist(), strict=True)]
    state = ours.initial(flat)
    for step in range(12):
        grad = normal(3, 7, key=100 + step) * 10.0 ** (step % 4 - 2)
        grad[:, 0] = 0  # a parameter that gets no gradient
        for p, o, g in zip(params, optimizers, grad, strict=True):
            p.grad = g.clone()
            o.step()
        ours.step(flat, grad, state, rate)
        torch.testing.assert_close(flat, torch.stack([p.detach() for p in params]), rtol=1e-10, atol=1e-12)
    assert state["steps"].tolist() == [[12.0]] * len(state["steps"])


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_member_alone_equals_a_member_among_others_bit_for_bit(name):
    ours = OptimizerConfig(**SETTINGS[name][0])
    together, rate = normal(3, 7).float(), torch.tensor(RATES)[:, None]
    alone = together[1:2].clone()
    a, b = ours.initial(together), ours.initial(alone)
    for step in range(5):
        grad = normal(3, 7, key=step).float()
        ours.step(together, grad, a, rate)
        ours.step(alone, grad[1:2], b, rate[1:2])
    assert torch.equal(together[1:2], alone)


def test_a_learning_rate_of_0_leaves_a_member_where_it_is():
    flat = normal(2, 3)
    before = flat.clone()
    ours = OptimizerConfig()
    ours.step(flat, normal(2, 3, key=1), ours.initial(flat), torch.tensor([[0.0], [0.1]]).double())
    assert torch.equal(flat[0], before[0])
    assert not torch.equal(flat[1], before[1])


@pytest.mark.parametrize("limit", [0.5, 3.0, 1e6])
def test_clipping_equals_torchs_per_member(limit):
    grad = normal(4, 9) * torch.tensor([[0.01], [1.0], [5.0], [0.0]]).double()
    params = [torch.nn.Parameter(torch.zeros(9).double()) for _ in grad]
    for p, g in zip(params, grad, strict=True):
        p.grad = g.clone()
    norms = torch.stack([torch.nn.utils.clip_grad_norm_([p], limit) for p in params])
    torch.testing.assert_close(clip_by_member(grad, limit), norms)
    torch.testing.assert_close(grad, torch.stack([p.grad for p in params]))


def test_no_limit_measures_only():
    grad = normal(4, 9)
    before = grad.clone()
    torch.testing.assert_close(clip_by_member(grad, None), before.square().sum(1).sqrt())
    assert torch.equal(grad, before)
