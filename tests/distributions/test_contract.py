"""What holds for every family."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from spine import FAMILIES, make, noise_of, with_parameters

EVERY = pytest.mark.parametrize("family", list(FAMILIES))


def leaves(family: str, rows=(4,)):
    d = make(family, rows)
    found = [getattr(d, p).clone().requires_grad_() for p in d.parameters]
    return with_parameters(d, found), found


@EVERY
@pytest.mark.parametrize("rows", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(family, rows, dtype):
    d = make(family, rows)
    d = with_parameters(d, [getattr(d, p).to(dtype) for p in d.parameters])
    noise = noise_of(d.noise_kind, tuple(d.noise_shape)).to(dtype)
    assert d.batch_shape == rows
    assert len(d.noise_shape) == len(rows) + d.event_ndim
    action = d.sample(noise)
    assert action.shape == d.mode().shape == d.noise_shape
    assert d.log_prob(action).shape == (*rows, 2)
    assert d.noise_given(action, noise).shape == d.noise_shape
    for x in (
        action,
        d.mode(),
        d.log_prob(action),
        d.log_prob(action, noise),
        d.noise_given(action, noise),
        d.executed(action),
    ):
        assert x.dtype == dtype


@EVERY
def test_sample_never_carries_a_gradient(family):
    d, _ = leaves(family)
    noise = noise_of(d.noise_kind, tuple(d.noise_shape)).requires_grad_()
    assert not d.sample(noise).requires_grad


@EVERY
def test_rsample_or_relax_always_carries_one(family):
    d, parameters = leaves(family)
    noise = noise_of(d.noise_kind, tuple(d.noise_shape))
    if FAMILIES[family] == "continuous":
        draw = d.rsample(noise)
        assert torch.equal(draw, d.sample(noise))
    else:
        draw = d.relax(noise, 0.5)
    weight = noise_of("normal", tuple(draw.shape))
    grads = torch.autograd.grad((draw * weight).sum(), parameters)
    assert all(bool((g != 0).all()) for g in grads)


@pytest.mark.parametrize("family", ["gaussian", "squashed_gaussian"])
def test_rsamples_gradient_is_1_and_std_times_noise(family):
    d, parameters = leaves(family)
    noise = noise_of("normal", (4, 2))
    by_mean, by_log_std = torch.autograd.grad(d.rsample(noise).sum(), parameters)
    assert torch.equal(by_mean, torch.ones(4, 2).double())
    torch.testing.assert_close(by_log_std, d.log_std.detach().exp() * noise)


@EVERY
def test_log_prob_takes_action_and_noise_as_constants(family):
    d, _ = leaves(family)
    noise = noise_of(d.noise_kind, tuple(d.noise_shape))
    action = d.sample(noise).requires_grad_()
    noise = noise.requires_grad_()
    for value in (d.log_prob(action), d.log_prob(action, noise)):
        grads = torch.autograd.grad(value.sum(), [action, noise], allow_unused=True)
        assert all(g is None or bool((g == 0).all()) for g in grads)


@EVERY
def test_log_prob_with_conditional_noise_has_the_ordinary_score(family):
    """`noise_given` carries a gradient of its own; it must not enter the score."""
    d, parameters = leaves(family)
    action = d.sample(noise_of(d.noise_kind, tuple(d.noise_shape)))
    noise = d.noise_given(action, noise_of(d.noise_kind, tuple(d.noise_shape), 1))
    plain = torch.autograd.grad(d.log_prob(action).sum(), parameters)
    given = torch.autograd.grad(d.log_prob(action, noise).sum(), parameters)
    for a, b in zip(plain, given, strict=True):
        torch.testing.assert_close(a, b)


@EVERY
def test_cut_gives_detached_leaves_and_detach_gives_none(family):
    d, parameters = leaves(family)
    cut, found = d.cut()
    assert [f.is_leaf and f.requires_grad for f in found] == [True] * len(parameters)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(found, parameters, strict=True))
    assert not any(getattr(d.detach(), p).requires_grad for p in d.parameters)
    assert all(getattr(cut, p) is f for p, f in zip(d.parameters, found, strict=True))
    assert type(cut) is type(d)


@EVERY
def test_records_are_immutable(family):
    d = make(family, (2,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(d, d.parameters[0], torch.zeros(1))


@EVERY
def test_a_cut_distribution_keeps_its_mask(family):
    d = make(family, (3,), masked=True)
    cut, _ = d.cut()
    assert getattr(cut, "mask", None) is getattr(d, "mask", None)
