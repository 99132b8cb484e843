"""Q-Prop, LAX and the Stein control variate by Gauss quadrature over the action, and what they learn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from spine import assert_mean, hermite, noise_of, normal, repeated
from torch.nn.functional import logsigmoid

from pglab.distributions import Beta, Distribution, Gaussian, SquashedGaussian
from pglab.estimators import LAX, Draw, Pathwise, QProp, ScoreFunction, Signal, SteinControlVariate
from pglab.estimators.learned import Learned
from pglab.gradients import cotangents
from pglab.lab.oracles import exact_gradient
from pglab.noise import Noise
from pglab.trees import as_dtype

ETAS = ("constant", "conservative", "aggressive", "adaptive")
FAMILIES = pytest.mark.parametrize("family", ["gaussian", "squashed", "beta"])


def make(family: str) -> Distribution:
    if family == "beta":
        return Beta(torch.tensor([2.5, 2.1], dtype=torch.float64), torch.tensor([2.2, 3.1], dtype=torch.float64))
    cls = Gaussian if family == "gaussian" else SquashedGaussian
    return cls(torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([-0.6, -0.9], dtype=torch.float64))


def rule(one: Distribution, n: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Drawn actions `[B, D]`, their noise where the rule knows it, and weights."""
    if isinstance(one, Beta):
        x = torch.linspace(-13, 13, 80, dtype=torch.float64)  # logit z, where the density has no singular end
        density = torch.exp(one.alpha * logsigmoid(x[:, None]) + one.beta * logsigmoid(-x[:, None]))
        first, second = (density / density.sum(0)).T
        z = torch.sigmoid(x)
        return torch.cartesian_prod(z, z), None, torch.outer(first, second).flatten()
    x, w = hermite(n)
    noise = torch.cartesian_prod(x, x)
    assert isinstance(one, Gaussian)
    return one.mean + one.log_std.exp() * noise, noise, torch.outer(w, w).flatten()


def smooth(key: int = 5):
    c = normal(2, key=key)
    return lambda a: torch.sin(a @ c) + (a * c).sum(-1).square() - a[..., 0] * a[..., 1] + 0.5


def moments(estimator, one, f, state, critic=None, baseline=None, n: int = 110) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the estimate at all parameters, `[2 D]`."""
    action, noise, weight = rule(one, n)
    d = repeated(one, len(action))
    b = None if baseline is None else baseline.expand(len(action), *baseline.shape)
    found, _ = cotangents(estimator, d, Draw(action, noise), Signal(f(d.executed(action)), b, critic or f), state)
    g = torch.cat(found, -1)
    mean = weight @ g
    return mean, weight @ (g - mean).square()


def fresh(estimator, members: int = 1, observation_size: int = 0) -> dict:
    return as_dtype(estimator.initial(Noise.of_seeds(range(members)), (2,), observation_size), torch.float64)


def anywhere(estimator, members: int = 1, observation_size: int = 0) -> dict:
    """A state with everything that is learned far from its start."""
    state = fresh(estimator, members, observation_size)
    ones = torch.ones(members, 1, dtype=torch.float64)
    if isinstance(estimator, QProp):
        return {} if estimator.eta == "constant" else {"moments": moments_of(-0.6 * ones)}
    state["learned"] = state["learned"] + 0.4 * normal(*state["learned"].shape, key=77)
    return state


def moments_of(covariance: torch.Tensor) -> dict[str, torch.Tensor]:
    one = torch.ones_like(covariance)
    return {"value": 2 * one, "linear": 0.1 * one, "product": covariance + 0.2, "square": 2 * one, "seen": one}


ESTIMATORS = pytest.mark.parametrize(
    "estimator",
    [*[QProp(eta=eta) for eta in ETAS], LAX(hidden=(5, 4)), SteinControlVariate(hidden=(5,))],
    ids=lambda e: e.name + "-" + getattr(e, "eta", ""),
)


@FAMILIES
@ESTIMATORS
@pytest.mark.parametrize("baseline", ["none", "constant", "per factor"])
def test_the_mean_is_exact_whatever_is_learned_and_whatever_the_critic_is(estimator, family, baseline):
    one, f = make(family), smooth()
    b = {"none": None, "constant": torch.tensor(0.7).double(), "per factor": normal(2, key=9)}[baseline]
    exact = torch.cat(list(exact_gradient(one, f).values()))
    mean, _ = moments(estimator, one, f, anywhere(estimator), smooth(key=40), b)
    torch.testing.assert_close(mean, exact, rtol=1e-6, atol=1e-7)


@FAMILIES
@ESTIMATORS
def test_the_control_variate_alone_has_mean_zero(estimator, family):
    if getattr(estimator, "eta", "") == "conservative":
        pytest.skip("is 0 at this state's negative covariance")
    mean, variance = moments(
        estimator, make(family), lambda a: torch.zeros(len(a)).double(), anywhere(estimator), smooth()
    )
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-7)
    assert float(variance.max()) > 1e-4


# -- Q-Prop


@pytest.mark.parametrize("family", ["gaussian", "beta"])
def test_q_prop_has_no_variance_at_the_mean_where_f_is_linear(family):
    """With b = E[f] and eta = 1; a Beta's parameters both move its mean."""
    one = make(family)
    f = lambda a: 1.5 + a @ torch.tensor([0.3, -2.0]).double()  # noqa: E731
    mean_action = one.mean if isinstance(one, Gaussian) else one.alpha / (one.alpha + one.beta)
    _, variance = moments(QProp(eta="constant"), one, f, {}, baseline=f(mean_action))
    assert float(variance.max()) < 1e-18


def test_q_prop_expands_before_tanh():
    """By hand: slope f'(tanh m) (1 - tanh(m)^2), deviation in u."""
    d = SquashedGaussian(normal(4, 2), 0.3 * normal(4, 2, key=1))
    noise, b = normal(4, 2, key=2), normal(4, key=3)
    c = torch.tensor([0.8, -1.1], dtype=torch.float64)
    f = lambda a: (a * c).sum(-1) ** 2  # noqa: E731
    u = d.sample(noise)
    found, _ = cotangents(QProp(eta="constant"), d, Draw(u, noise), Signal(f(torch.tanh(u)), b, f))
    at = torch.tanh(d.mean)
    slope = 2 * (at * c).sum(-1, keepdim=True) * c * (1 - at * at)
    left = (f(torch.tanh(u)) - b - (slope * (u - d.mean)).sum(-1)).unsqueeze(-1)
    std = d.log_std.exp()
    torch.testing.assert_close(found[0], left * noise / std + slope)
    torch.testing.assert_close(found[1], left * (noise**2 - 1))


@pytest.mark.parametrize(
    ("eta", "values"),
    [("conservative", [1.0, 0.0, 0.0]), ("aggressive", [1.0, -1.0, 0.0]), ("adaptive", [0.5 / 1.99, -0.3 / 1.99, 0.0])],
)
def test_eta_follows_the_covariance_of_each_member(eta, values):
    state = {"moments": moments_of(torch.tensor([[0.5], [-0.3], [0.0]], dtype=torch.float64))}
    torch.testing.assert_close(
        QProp(eta=eta).coefficient(state)[:, 0], torch.tensor(values).double(), atol=1e-7, rtol=1e-6
    )
    untouched = fresh(QProp(eta=eta), 3)
    assert torch.equal(QProp(eta=eta).coefficient(untouched), torch.zeros(3, 1).double())


def test_the_covariance_is_that_of_earlier_batches_and_each_member_has_its_own():
    rows, estimator = (2, 3, 400), QProp(eta="adaptive")
    one = Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.1, -0.4], dtype=torch.float64))
    d = replace(one, mean=one.mean.expand(*rows, 2), log_std=one.log_std.expand(*rows, 2))
    noise = noise_of("normal", (*rows, 2))
    action = d.sample(noise)
    c, factors = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([2.0, -3.0, 0.5])[:, None].double()
    linear = ((action - one.mean) * c).sum(-1)
    value = factors * linear + 100 + 0.3 * normal(*rows, key=3)
    weight = torch.full(rows, 1 / 800).double()
    weight[:, :, 350:] = 0
    weight = weight * 800 / 700
    value[:, :, 350:] = 1e6
    signal = Signal(value, critic=lambda a: (a * c).sum(-1))
    found, info = estimator.update(fresh(estimator, 3), d, Draw(action, noise), signal, weight)
    for p in range(3):
        x, y = (q[:, p, :350].flatten().numpy() for q in (linear, value))
        expected = np.cov(x, y, bias=True)
        assert float(info["estimator/eta"][p]) == pytest.approx(expected[0, 1] / expected[0, 0], rel=1e-9)
        assert float(info["estimator/eta"][p]) == pytest.approx(float(factors[p]), abs=0.1)
    after = cotangents(estimator, d, Draw(action, noise), signal, found)[0][0]
    before = cotangents(estimator, d, Draw(action, noise), signal, fresh(estimator, 3))[0][0]
    plain = cotangents(ScoreFunction(), d, Draw(action, noise), signal)[0][0]
    assert torch.equal(before, plain), "without a past eta is 0"
    assert not torch.allclose(after, plain)


def test_deciding_eta_by_the_sample_itself_would_be_biased():
    """f = sin(2 z), z ~ N(0.5, 1): gradient 0.146, but 0.297 where eta is 1 for the samples alone whose own product of
    f - E[f] and the linear part is positive."""
    x, w = hermite(200)
    n = len(x)
    d = Gaussian(torch.full((n, 1), 0.5).double(), torch.zeros(n, 1).double())
    z = d.sample(x[:, None])
    f = lambda a: torch.sin(2 * a[..., 0])  # noqa: E731
    draw, signal = Draw(z, x[:, None]), Signal(f(z), critic=f)
    g = [cotangents(e, d, draw, signal)[0][0][:, 0] for e in (ScoreFunction(), QProp(eta="constant"))]
    assert float(w @ g[0]) == pytest.approx(2 * math.cos(1) * math.exp(-2), rel=1e-9)
    assert float(w @ g[1]) == pytest.approx(2 * math.cos(1) * math.exp(-2), rel=1e-9)
    grid = torch.linspace(-9, 9, 400_001).double()  # the choice jumps at 0
    density = torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    value, slope = torch.sin(2 * (grid + 0.5)) - math.sin(1) * math.exp(-2), 2 * math.cos(1)
    eta = (value * slope * grid > 0).double()
    own = (value - eta * slope * grid) * grid + eta * slope
    assert float(torch.trapezoid(own * density, grid)) == pytest.approx(0.29722, abs=1e-5)
    state = fresh(QProp())
    state |= QProp().update(state, d, draw, signal, w)[0]
    mean = w @ cotangents(QProp(), d, draw, signal, state)[0][0][:, 0]
    assert float(QProp().coefficient(state)) == 1.0
    assert float(mean) == pytest.approx(2 * math.cos(1) * math.exp(-2), rel=1e-9)


def test_q_prop_with_eta_1_learns_nothing():
    assert QProp(eta="constant").initial(Noise.of_seeds([0]), (2,), 0) == {}
    with pytest.raises(ValueError, match="conservative"):
        QProp(eta="own sample")


# -- LAX and Stein


def test_lax_by_hand_with_a_linear_network():
    """(f - b - c) s + dc/da da/dtheta with c = size (w a + v)."""
    estimator = LAX(hidden=())
    d = Gaussian(normal(4, 2), 0.3 * normal(4, 2, key=1))
    noise, b, value = normal(4, 2, key=2), normal(4, key=3), normal(4, key=4)
    state = fresh(estimator)
    state["learned"] = torch.tensor([[0.7, -0.2, 0.4]], dtype=torch.float64)
    state["size"] = {"square": torch.tensor([[9.0]]).double(), "seen": torch.tensor([[1.0]]).double()}
    found, _ = cotangents(estimator, d, Draw(d.sample(noise), noise), Signal(value, b), state)
    w, std = torch.tensor([2.1, -0.6], dtype=torch.float64), d.log_std.exp()
    left = (value - b - (d.sample(noise) * w).sum(-1) - 1.2).unsqueeze(-1)
    torch.testing.assert_close(found[0], left * noise / std + w)
    torch.testing.assert_close(found[1], left * (noise**2 - 1) + w * std * noise)


def batch(d: Distribution, f, key: int) -> tuple[Draw, Signal]:
    noise = noise_of(d.noise_kind, tuple(d.noise_shape), key)
    action = d.sample(noise)
    return Draw(action, noise), Signal(f(d.executed(action)), critic=f)


@pytest.mark.parametrize("family", ["gaussian", "squashed"])
@pytest.mark.parametrize(
    "estimator", [LAX(hidden=(4,)), SteinControlVariate(hidden=(4,), objective="variance")], ids=lambda e: e.name
)
def test_the_variance_is_differentiated_to_second_order(estimator, family):
    d = repeated(make(family), 30)
    draw, signal = batch(d, smooth(), 3)
    signal = replace(signal, baseline=normal(30, key=4), obs=normal(30, 3, key=6))
    state, weight = anywhere(estimator, 1, 3), normal(30, key=5).abs()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        found, _ = cotangents(estimator, d, draw, signal, {**state, "learned": flat})
        return (torch.cat(found, -1).square().sum(-1) * weight).sum() / estimator.size(state) ** 2

    flat = state["learned"].clone().requires_grad_()
    (slope,) = torch.autograd.grad((estimator.loss(d, draw, signal, {**state, "learned": flat}) * weight).sum(), flat)
    step = 1e-5 * torch.eye(flat.shape[1], dtype=torch.float64)
    by_difference = torch.stack([(loss(state["learned"] + e) - loss(state["learned"] - e)) / 2e-5 for e in step])
    torch.testing.assert_close(slope[0], by_difference, rtol=1e-5, atol=1e-6 * float(by_difference.abs().max()))


def test_stein_fits_the_values():
    d, estimator = repeated(make("gaussian"), 30), SteinControlVariate(hidden=(4,))
    draw, signal = batch(d, smooth(), 3)
    signal = replace(signal, baseline=normal(30, key=4))
    state = anywhere(estimator)
    c = estimator.control(estimator.learned(state, d, signal), d, draw, signal, state)
    torch.testing.assert_close(estimator.loss(d, draw, signal, state), (signal.value - signal.baseline - c).square())
    assert not torch.allclose(
        estimator.loss(d, draw, signal, state),
        SteinControlVariate(hidden=(4,), objective="variance").loss(d, draw, signal, state),
    )


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("estimator", "family", "ratio"),
    [
        (LAX(estimator_learning_rate=0.02, hidden=(16,)), "gaussian", 0.12),
        (LAX(estimator_learning_rate=0.02, hidden=(16,)), "beta", 0.35),
        (SteinControlVariate(estimator_learning_rate=0.02, hidden=(16,)), "gaussian", 0.12),
        (SteinControlVariate(estimator_learning_rate=0.02, hidden=(16,)), "squashed", 0.12),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_learning_makes_the_variance_fall_and_keeps_the_mean(estimator, family, ratio):
    one, f, n, rows = make(family), smooth(), 10_000, 128
    d, state = repeated(one, rows), fresh(estimator)
    weight = torch.full((rows,), 1 / rows, dtype=torch.float64)
    for i in range(250 if family != "beta" else 120):
        state |= estimator.update(state, d, *batch(d, f, i), weight)[0]
    exact = torch.cat(list(exact_gradient(one, f).values()))
    mean, learned = moments(estimator, one, f, state)
    torch.testing.assert_close(mean, exact, rtol=1e-6, atol=1e-7)
    _, start = moments(estimator, one, f, fresh(estimator))
    assert float(learned.sum()) < ratio * float(start.sum())
    d = repeated(one, n)
    draw, signal = batch(d, f, 10_000)
    assert_mean(torch.cat(cotangents(estimator, d, draw, signal, state)[0], -1), exact, resolution=0.5)


def test_what_lax_learns_beats_both_the_score_function_and_the_pathwise_estimate():
    """sin(3 a), where those two are equally good; f is a black box to LAX."""
    one = Gaussian(torch.tensor([0.3, 0.1], dtype=torch.float64), torch.full((2,), math.log(0.5)).double())
    f, estimator, rows = lambda a: torch.sin(3 * a).sum(-1), LAX(estimator_learning_rate=0.02, hidden=(16,)), 128
    d, state = repeated(one, rows), fresh(estimator)
    for i in range(120):
        state |= estimator.update(state, d, *batch(d, f, i), torch.full((rows,), 1 / rows).double())[0]
    learned, score, path = (
        float(moments(e, one, f, s)[1].sum()) for e, s in ((estimator, state), (ScoreFunction(), {}), (Pathwise(), {}))
    )
    assert learned < 0.6 * min(score, path)


# -- all


LEARNERS = pytest.mark.parametrize(
    "estimator", [LAX(hidden=(4,)), SteinControlVariate(hidden=(4,)), QProp(eta="adaptive")], ids=lambda e: e.name
)


@LEARNERS
def test_members_learn_as_if_they_were_alone(estimator):
    rows = (2, 3, 5)
    d = Gaussian(normal(*rows, 2), 0.3 * normal(*rows, 2, key=1))
    noise, value = normal(*rows, 2, key=2), normal(*rows, key=3)
    obs, weight = normal(*rows, 3, key=4), normal(*rows, key=5).abs()
    critic = lambda a: a.square().sum(-1)  # noqa: E731
    state = anywhere(estimator, 3, 3)
    signal = Signal(value, critic=critic, obs=obs)
    together, _ = estimator.update(state, d, Draw(d.sample(noise), noise), signal, weight)
    for p in range(3):
        s = slice(p, p + 1)
        alone = {
            k: {n: v[s] if isinstance(v, torch.Tensor) else v for n, v in x.items()} if isinstance(x, dict) else x[s]
            for k, x in state.items()
        }
        one = Gaussian(d.mean[:, s], d.log_std[:, s])
        signal = Signal(value[:, s], critic=critic, obs=obs[:, s])
        found, _ = estimator.update(alone, one, Draw(one.sample(noise[:, s]), noise[:, s]), signal, weight[:, s])
        for key in ("learned",) if isinstance(estimator, Learned) else ():
            torch.testing.assert_close(together[key][s], found[key])
        for name, x in together.get("size", together.get("moments", {})).items():
            torch.testing.assert_close(x[s], found.get("size", found.get("moments", {}))[name])


@ESTIMATORS
@pytest.mark.parametrize("cls", [Gaussian, SquashedGaussian])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_float32_with_any_standard_deviation(estimator, cls, value):
    """Finite from e^-20 to e^2; equal to float64, where f is a constant that is not rounded. The gradients are compared in
    units of 1 / std, but those of the linear control variate, which do not grow with it, as they are."""
    log_std = torch.linspace(-20, 2, 500)[:, None].expand(500, 2)
    noise, mean = normal(500, 2, key=1).float(), normal(500, 2).float()
    found, state = [], anywhere(estimator)
    for dtype in (torch.float32, torch.float64):
        d = cls(mean.to(dtype), log_std.to(dtype))
        action = d.sample(noise.to(dtype))
        signal = Signal(torch.full((500,), value, dtype=dtype), critic=lambda a: a.square().sum(-1) + a[..., 0])
        draw, own = Draw(action, noise.to(dtype)), as_dtype(state, dtype)
        g, _ = cotangents(estimator, d, draw, signal, own)
        assert all(bool(torch.isfinite(x).all()) for x in g)
        found.append([x.double() for x in g])
        new, _ = estimator.update(own, d, draw, signal, torch.full((500,), 1 / 500, dtype=dtype))
        assert all(bool(torch.isfinite(x).all()) for x in new.values() if isinstance(x, torch.Tensor))
    scale = 1.0 if value == 0 and isinstance(estimator, QProp) else log_std[:, :1].double().exp()
    for narrow, wide, unit in zip(*found, (scale, 1.0), strict=True):
        assert float(((narrow - wide) * unit).norm()) <= 1e-3 * float((wide * unit).norm())
