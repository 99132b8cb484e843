"""MuProp and DARN over all outcomes, exactly."""

from __future__ import annotations

import math

import pytest
import torch
from spine import make, normal, repeated

from pglab.distributions import Bernoulli, Categorical, Distribution
from pglab.estimators import DARN, Draw, MuProp, Signal
from pglab.gradients import cotangents

EXACT = {"rtol": 1e-10, "atol": 1e-10}
# One Bernoulli with probability theta, f = (b - t)^2; (t, theta) -> the variances of MuProp and DARN.
TOYS = {(0.499, 0.1): (4.796e-2, 2.257e-2), (0.45, 0.5): (1.5625e-2, 6.25e-2)}
CASES = pytest.mark.parametrize(("t", "theta"), list(TOYS))


def outcomes(estimator, one: Distribution, value, critic=None, baseline=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the estimate over all joint outcomes."""
    z = one.enumerate()
    p = one.log_prob(z).sum(-1).exp()
    b = None if baseline is None else baseline.expand(len(z), *baseline.shape)
    (g,), _ = cotangents(estimator, repeated(one, len(z)), Draw(z), Signal(value(z), b, critic or value))
    mean = torch.einsum("m,m...->...", p, g)
    return mean, torch.einsum("m,m...->...", p, (g - mean).square())


def exact(one: Distribution, f) -> torch.Tensor:
    leaf, (logits,) = one.cut()
    z = one.enumerate()
    return torch.autograd.grad((leaf.log_prob(z).sum(-1).exp() * f(z)).sum(), logits)[0]


def smooth(one: Distribution, key: int = 5):
    """Not a polynomial, differentiable everywhere, with interactions."""
    c = normal(*one.noise_shape, key=key)
    axes = -one.event_ndim
    return lambda a: torch.sin((a * c).flatten(axes).sum(-1)) + torch.exp(0.5 * (a * c * c).flatten(axes).sum(-1))


@CASES
def test_muprop_of_one_bernoulli(t, theta):
    one = Bernoulli(torch.tensor([math.log(theta / (1 - theta))], dtype=torch.float64))
    mean, variance = outcomes(MuProp(), one, lambda b: (b[..., 0] - t) ** 2)
    assert float(mean) == pytest.approx(theta * (1 - theta) * (1 - 2 * t), rel=1e-10)
    assert float(variance) == pytest.approx(TOYS[t, theta][0], rel=5e-4)


FAMILIES = [
    ("categorical", 1, 2, False),
    ("categorical", 2, 3, False),
    ("categorical", 2, 3, True),
    ("bernoulli", 3, 2, False),
]


@pytest.mark.parametrize(("family", "d", "k", "masked"), FAMILIES)
@pytest.mark.parametrize("baseline", ["none", "constant", "per factor"])
def test_muprop_over_all_actions_whatever_the_critic_is(family, d, k, masked, baseline):
    one = make(family, (), d, k, masked=masked)
    f, q = smooth(one), smooth(one, key=40)
    b = {"none": None, "constant": torch.tensor(0.7).double(), "per factor": normal(d, key=9)}[baseline]
    own, _ = outcomes(MuProp(), one, f, baseline=b)
    torch.testing.assert_close(own, exact(one, f), **EXACT)
    other, _ = outcomes(MuProp(), one, f, q, b)
    torch.testing.assert_close(other, exact(one, f), **EXACT)
    nothing, variance = outcomes(MuProp(), one, lambda a: 0.0 * f(a), q, b)
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), **EXACT)
    assert float(variance.max()) > 1e-3, "the control variate alone"
    if masked:
        assert bool((own[~one.mask] == 0).all())


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_muprop_has_no_variance_where_f_is_linear(family):
    one = make(family, (), 2, 3)
    c = normal(*one.noise_shape, key=5)
    f = lambda a: 3 + (a * c).flatten(-one.event_ndim).sum(-1)  # noqa: E731
    mean, variance = outcomes(MuProp(), one, f)
    torch.testing.assert_close(mean, exact(one, f), **EXACT)
    assert float(variance.max()) < 1e-20


@CASES
def test_darn_of_one_bernoulli(t, theta):
    """Exact for a square, at a high variance. Expanding at theta rather than 1/2 is not exact even here."""
    one = Bernoulli(torch.tensor([math.log(theta / (1 - theta))], dtype=torch.float64))
    mean, variance = outcomes(DARN(), one, lambda b: (b[..., 0] - t) ** 2)
    assert float(mean) == pytest.approx(theta * (1 - theta) * (1 - 2 * t), rel=1e-10)
    assert float(variance) == pytest.approx(TOYS[t, theta][1], rel=5e-4)
    at_theta = sum(p * (b - theta) * 2 * (b - t) * (b - theta) for b, p in ((0, 1 - theta), (1, theta)))
    if theta != 0.5:
        assert at_theta == pytest.approx(0.0722, rel=1e-3)
        assert abs(at_theta - float(mean)) > 0.07


def test_darn_is_exact_where_f_is_quadratic_in_each_variable():
    one = make("bernoulli", (), 4)
    c, w = normal(4, key=5), normal(4, 4, key=6)
    f = lambda b: b @ c + torch.einsum("...i,ij,...j->...", b, w, b) + b.prod(-1)  # noqa: E731
    mean, _ = outcomes(DARN(), one, f)
    torch.testing.assert_close(mean, exact(one, f), **EXACT)


def test_darn_takes_the_mean_of_the_end_slopes_for_the_difference():
    """f = b^3: half of (0 + 3) instead of 1; as `bias` says, f must be quadratic."""
    one = Bernoulli(torch.tensor([0.4], dtype=torch.float64))
    p = torch.sigmoid(one.logits)
    mean, _ = outcomes(DARN(), one, lambda b: b[..., 0] ** 3)
    torch.testing.assert_close(mean, 1.5 * p * (1 - p), **EXACT)
    torch.testing.assert_close(exact(one, lambda b: b[..., 0] ** 3), p * (1 - p), **EXACT)
    assert DARN().declared_bias


@pytest.mark.parametrize("estimator", [MuProp(), DARN()], ids=lambda e: e.name)
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_float32_with_logits_of_any_size(estimator, family):
    if family == "categorical" and estimator.name == "darn":
        pytest.skip("binary only")
    d = make(family, (1000,), 2, 3)
    cls = type(d)
    logits = (20 * d.logits).clamp(-50, 50).float()
    action = make(family, (1000,), 2, 3, key=9).mode()
    found = []
    for dtype in (torch.float32, torch.float64):
        d, a = cls(logits.to(dtype)), action.to(dtype)
        f = smooth(cls(logits[0]))
        signal = Signal(f(a.double()).to(dtype), critic=lambda x: f(x.double()).to(x.dtype))  # noqa: B023
        (g,), _ = cotangents(estimator, d, Draw(a), signal)
        assert bool(torch.isfinite(g).all())
        found.append(g.double())
    assert float((found[0] - found[1]).norm()) < 1e-4 * float(found[1].norm())


def test_one_category_gets_no_gradient():
    d = Categorical(normal(5, 2, 1))
    one = torch.ones(5, 2, 1).double()
    (g,), _ = cotangents(MuProp(), d, Draw(one), Signal(normal(5), critic=lambda a: a.sum((-2, -1)).square()))
    assert torch.equal(g, torch.zeros_like(g))
