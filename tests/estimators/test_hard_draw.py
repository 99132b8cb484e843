"""Estimators that push f's slope at the discrete draw through a Jacobian of their choosing, all of it but the noise's
part exactly: means and variances over all outcomes, Jacobians written out, and what float32 makes of extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import integrate, stats
from spine import make, noise_of, normal, repeated

from pglab.distributions import Bernoulli, Categorical, Distribution
from pglab.errors import PglabError
from pglab.estimators import (
    DecoupledStraightThroughGumbelSoftmax,
    Draw,
    Estimator,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    Signal,
    SlopeAnnealedStraightThrough,
    StraightThrough,
    StraightThroughGumbelSoftmax,
)
from pglab.gradients import cotangents
from pglab.lab.oracles import exact_gradient
from pglab.objectives import estimate_gradient

EXACT = {"rtol": 1e-10, "atol": 1e-12}
F64 = torch.float64
TOY_A = {  # (t, theta): mean and variance of straight-through and of ReinMax, published values with four digits
    (0.499, 0.1): {"straight_through": (-7.182e-2, 2.916e-3), "reinmax": (1.8e-4, 2.257e-2)},
    (0.45, 0.5): {"straight_through": (0.025, 6.25e-2), "reinmax": (0.025, 6.25e-2)},
}
NOISELESS = [
    (StraightThrough(), {}),
    (SlopeAnnealedStraightThrough(), {"slope": 2.5}),
    (GappedStraightThrough(), {"temperature": 0.7}),
    (GappedStraightThrough(gap="p"), {"temperature": 0.7}),
    (GappedStraightThrough(gap=0.0), {"temperature": 1.3}),
    (ReinMax(), {"temperature": 1.0}),
    (ReinMax(), {"temperature": 1.4}),
]
ALL = [
    *NOISELESS,
    (StraightThrough(jacobian="identity"), {}),
    (GumbelRao(), {"temperature": 0.5}),
    (ReinMaxRao(), {"temperature": 0.5}),
    (ReinMaxCV(), {"temperature": 0.5}),
    (DecoupledStraightThroughGumbelSoftmax(), {"forward_temperature": 0.5, "backward_temperature": 2.0}),
]


def name_of(case: object) -> str:
    return (
        f"{case.name}{case.model_dump(exclude={'temperature', 'slope', 'samples'})}"
        if isinstance(case, Estimator)
        else ""
    )


def over_outcomes(estimator: Estimator, one: Distribution, critic, state=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of a noiseless estimate over all joint outcomes, `[*event]` each."""
    outcomes = one.enumerate()
    p = one.log_prob(outcomes).sum(-1).exp()
    (g,), _ = cotangents(estimator, repeated_with_mask(one, len(p)), Draw(outcomes), Signal(critic=critic), state)
    mean = torch.einsum("m,m...->...", p, g)
    return mean, torch.einsum("m,m...->...", p, (g - mean).square())


def repeated_with_mask(one: Distribution, n: int) -> Distribution:
    many = repeated(one, n)
    mask = getattr(one, "mask", None)
    return many if mask is None else Categorical(many.logits, mask.expand_as(many.logits))


def bernoulli(theta: float) -> Bernoulli:
    return Bernoulli(torch.tensor([math.log(theta / (1 - theta))], dtype=F64))


def two_categories(one: Bernoulli) -> Categorical:
    return Categorical(torch.stack([torch.zeros_like(one.logits), one.logits], -1))


def extra_of(estimator: Estimator, d: Distribution, key: int = 5) -> dict[str, torch.Tensor]:
    rows = len(d.batch_shape)
    wanted = estimator.extra_noise(d.noise_kind, tuple(d.noise_shape[rows:]))
    return {n: noise_of(kind, (*d.batch_shape, *shape), key) for n, (kind, shape) in wanted.items()}


@pytest.mark.parametrize(("t", "theta"), list(TOY_A))
@pytest.mark.parametrize("name", ["straight_through", "reinmax"])
def test_toy_a(t, theta, name):
    estimator, state = (StraightThrough(), {}) if name == "straight_through" else (ReinMax(), {"temperature": 1.0})
    one = bernoulli(theta)
    mean, variance = over_outcomes(estimator, one, lambda b: (b[..., 0] - t) ** 2, state)
    assert (float(mean), float(variance)) == pytest.approx(TOY_A[t, theta][name], rel=5e-4)
    if name == "reinmax":
        assert float(mean) == pytest.approx(theta * (1 - theta) * (1 - 2 * t), rel=1e-10)


@pytest.mark.parametrize(("estimator", "state"), NOISELESS, ids=name_of)
def test_a_bernoulli_is_a_categorical_with_two_categories(estimator, state):
    one = Bernoulli(torch.tensor([0.7, -1.9, 0.1], dtype=F64))
    w = normal(3, key=4)

    def f(b: torch.Tensor) -> torch.Tensor:
        return torch.sin(b @ w) + (b * w).prod(-1)

    binary = over_outcomes(estimator, one, f, state)
    pair = over_outcomes(estimator, two_categories(one), lambda z: f(z[..., 1]), state)
    for a, b in zip(binary, pair, strict=True):
        torch.testing.assert_close(b[:, 1], a, **EXACT)
    torch.testing.assert_close(pair[0].sum(-1), torch.zeros(3, dtype=F64), **EXACT)


# -- Jacobians written out

LOGITS = np.array([0.3, -0.2, 0.9])
SLOPE = np.array([1.0, -2.0, 0.5])  # f = SLOPE . z + (SLOPE . z)^2, so f' = SLOPE (1 + 2 SLOPE_D)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def jacobian(q: np.ndarray) -> np.ndarray:
    return np.diag(q) - np.outer(q, q)


def gapped(drawn: int, gap: float) -> np.ndarray:
    z = np.eye(3)[drawn]
    m1 = (LOGITS.max() - LOGITS[drawn]) * z
    m2 = np.maximum(LOGITS + gap - LOGITS.max(), 0) * (1 - z)
    return LOGITS + m1 - m2


def lead(drawn: int) -> float:
    p = softmax(LOGITS)[drawn]
    return -math.log(1 - p) / p


BY_HAND = {
    "straight_through": (StraightThrough(), {}, lambda d: jacobian(softmax(LOGITS))),
    "identity": (StraightThrough(jacobian="identity"), {}, lambda d: np.eye(3) - np.ones((3, 3)) / 3),
    "annealed": (SlopeAnnealedStraightThrough(), {"slope": 2.5}, lambda d: 2.5 * jacobian(softmax(2.5 * LOGITS))),
    "gapped": (
        GappedStraightThrough(),
        {"temperature": 0.7},
        lambda d: jacobian(softmax(gapped(d, 1.0) / 0.7)) / 0.7,
    ),
    "gapped by p": (
        GappedStraightThrough(gap="p"),
        {"temperature": 0.7},
        lambda d: jacobian(softmax(gapped(d, lead(d)) / 0.7)) / 0.7,
    ),
    "reinmax": (
        ReinMax(),
        {"temperature": 1.4},
        lambda d: 2 * jacobian((softmax(LOGITS / 1.4) + np.eye(3)[d]) / 2) - 0.5 * jacobian(softmax(LOGITS)),
    ),
}


@pytest.mark.parametrize("name", list(BY_HAND))
@pytest.mark.parametrize("drawn", [0, 1, 2])
def test_the_jacobian_by_hand_for_three_categories(name, drawn):
    estimator, state, expected = BY_HAND[name]
    c = torch.from_numpy(SLOPE)
    d = Categorical(torch.from_numpy(LOGITS)[None, None])
    action = torch.eye(3, dtype=F64)[drawn][None, None]
    signal = Signal(critic=lambda z: (z @ c + (z @ c) ** 2).sum(-1))
    (g,), value = cotangents(estimator, d, Draw(action), signal, state)
    right = expected(drawn) @ (SLOPE * (1 + 2 * SLOPE[drawn]))
    torch.testing.assert_close(g[0, 0], torch.from_numpy(right), **EXACT)
    assert float(value) == SLOPE[drawn] + SLOPE[drawn] ** 2


@pytest.mark.parametrize(("estimator", "state"), ALL, ids=name_of)
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_f_is_asked_once_at_a_vertex(estimator, state, family):
    d = make(family, (50,))
    noise, seen = noise_of(d.noise_kind, tuple(d.noise_shape)), []

    def critic(a: torch.Tensor) -> torch.Tensor:
        seen.append(a.detach())
        return a.flatten(1).square().sum(-1)

    cotangents(estimator, d, Draw(d.sample(noise), noise, extra_of(estimator, d)), Signal(critic=critic), state)
    (z,) = seen
    assert z.shape == d.noise_shape
    assert bool(((z == 0) | (z == 1)).all())
    assert family == "bernoulli" or bool((z.sum(-1) == 1).all())


# -- exact classes of f

CASES = [("categorical", d, k, m) for d, k in [(1, 3), (1, 10), (2, 2), (2, 3), (2, 5), (2, 10)] for m in (False, True)]
CASES += [("bernoulli", d, 2, False) for d in (1, 2, 4)]
EVERY_CASE = pytest.mark.parametrize(("family", "d", "k", "masked"), CASES)


def quadratic(one: Distribution, key: int = 3):
    """Any quadratic of all coordinates together."""
    n = one.logits.numel()
    a, c = normal(n, n, key=key), normal(n, key=key + 1)

    def f(z: torch.Tensor) -> torch.Tensor:
        x = z.flatten(z.ndim - one.event_ndim)
        return x @ c + torch.einsum("...i,ij,...j->...", x, a, x)

    return f


def by_factor(one: Distribution, degree: int, key: int = 3):
    """A product over factors of a polynomial of each."""
    rows = [normal(*one.logits.shape, key=key + i) for i in range(degree)]

    def f(z: torch.Tensor) -> torch.Tensor:
        total = torch.full((), 0.3, dtype=F64)
        for i, c in enumerate(rows):
            x = z * c if one.event_ndim == 1 else (z * c).sum(-1)  # [..., D]
            total = total + x ** (i + 1)
        return total.prod(-1)

    return f


def exact(one: Distribution, f) -> torch.Tensor:
    return exact_gradient(one, f)["logits"]


@EVERY_CASE
def test_straight_through_is_exact_for_what_is_linear_in_every_factor(family, d, k, masked):
    one = make(family, (), d, k, masked=masked)
    f = by_factor(one, 1)
    torch.testing.assert_close(over_outcomes(StraightThrough(), one, f)[0], exact(one, f), **EXACT)


@EVERY_CASE
@pytest.mark.parametrize("shape", ["quadratic", "product of quadratics"])
def test_reinmax_is_exact_for_what_is_quadratic_in_every_factor(family, d, k, masked, shape):
    one = make(family, (), d, k, masked=masked)
    f = quadratic(one) if shape == "quadratic" else by_factor(one, 2)
    mean = over_outcomes(ReinMax(), one, f, {"temperature": 1.0})[0]
    torch.testing.assert_close(mean, exact(one, f), **EXACT)


def test_they_are_exact_no_further():
    one = make("categorical", (), 2, 3)
    first, second, third = (by_factor(one, i) for i in (1, 2, 3))
    off = {
        "straight-through, quadratic": over_outcomes(StraightThrough(), one, second)[0] - exact(one, second),
        "annealed, linear": over_outcomes(SlopeAnnealedStraightThrough(), one, first, {"slope": 2.0})[0]
        - exact(one, first),
        "reinmax, cubic": over_outcomes(ReinMax(), one, third, {"temperature": 1.0})[0] - exact(one, third),
        "reinmax at 1.5, quadratic": over_outcomes(ReinMax(), one, second, {"temperature": 1.5})[0]
        - exact(one, second),
    }
    assert all(float(x.abs().max()) > 1e-2 for x in off.values()), off


def test_slope_1_is_straight_through_and_the_default_grows_to_5():
    d = make("categorical", (20,))
    draw = Draw(d.sample(noise_of("exponential", (20, 2, 3))))
    signal = Signal(critic=quadratic(make("categorical", ())))
    (a,), _ = cotangents(SlopeAnnealedStraightThrough(), d, draw, signal, {"slope": 1.0})
    (b,), _ = cotangents(StraightThrough(), d, draw, signal)
    assert torch.equal(a, b)
    (schedule,) = SlopeAnnealedStraightThrough().slope
    assert [schedule(x) for x in (0.0, 0.5, 1.0)] == [1.0, 3.0, 5.0]


# -- gapped straight-through


@pytest.mark.parametrize("p", [1e-6, 0.03, 0.5, 0.9, 1 - 1e-6])
def test_the_gap_p_is_the_mean_lead_of_the_gumbels_that_draw_it(p):
    """Given the draw, the first of exponential clocks rings at Exp(1) and the next after Exp(1 - p) more, and Gumbels
    lead by the log of their ratio: E log(1 + s / t), with P(s / t > x) = 1 / (1 + (1 - p) x)."""
    log_p, log_rest = torch.tensor(p, dtype=F64).log(), torch.log1p(torch.tensor(-p, dtype=F64))
    found = float(GappedStraightThrough(gap="p")._gap(log_p, log_rest))
    expected = integrate.quad(lambda y: 1 / (1 + (1 - p) * math.expm1(y)), 0, 60)[0]  # x = e^y - 1
    assert found == pytest.approx(expected, rel=1e-7)


def test_the_gap_p_stays_right_in_float32():
    logits = torch.tensor([[[-50.0, 0.0, 50.0]]])
    log_p = Categorical(logits).log_probs()
    for drawn, expected in ((0, 1.0), (1, 1.0), (2, 50.0)):
        action = torch.eye(3)[drawn][None, None]
        found = GappedStraightThrough(gap="p").moved(Categorical(logits), action)[0, 0]
        top = found.topk(2).values
        assert int(found.argmax()) == drawn
        assert float(top[0] - top[1]) == pytest.approx(expected, rel=1e-5)
    assert bool((GappedStraightThrough(gap=1.0).moved(Categorical(logits), action) <= log_p).all())


# -- decoupled temperatures


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
@pytest.mark.parametrize("tau", [0.4, 1.0, 2.0])
def test_with_equal_temperatures_the_decoupled_form_is_st_gs_of_the_tempered_logits(family, tau):
    d = make(family, (200,))
    tempered = type(d)(d.logits / tau)
    noise = noise_of(d.noise_kind, tuple(d.noise_shape))
    signal = Signal(critic=quadratic(make(family, ())))
    state = {"forward_temperature": tau, "backward_temperature": tau}
    decoupled = DecoupledStraightThroughGumbelSoftmax()
    (a,), value = cotangents(decoupled, d, Draw(d.sample(noise), noise), signal, state)
    draw = Draw(tempered.sample(noise), noise)
    (b,), same = cotangents(StraightThroughGumbelSoftmax(), tempered, draw, signal, {"temperature": 1.0})
    torch.testing.assert_close(a, b / tau, **EXACT)
    torch.testing.assert_close(value, same, **EXACT)


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_the_forward_temperature_chooses_the_draw_and_the_backward_one_the_jacobian(family):
    d = make(family, (200,))
    noise, seen = noise_of(d.noise_kind, tuple(d.noise_shape)), []
    c = normal(*d.noise_shape[1:], key=8)

    def critic(z: torch.Tensor) -> torch.Tensor:
        seen.append(z.detach())
        return (c * z).flatten(1).sum(-1)

    def estimate(forward: float, backward: float) -> torch.Tensor:
        state = {"forward_temperature": forward, "backward_temperature": backward}
        draw = Draw(d.sample(noise), noise)
        return cotangents(DecoupledStraightThroughGumbelSoftmax(), d, draw, Signal(critic=critic), state)[0][0]

    a, b = estimate(1.0, 0.6), estimate(0.2, 0.6)
    assert torch.equal(seen[0], d.sample(noise))
    assert torch.equal(seen[1], type(d)(d.logits / 0.2).sample(noise))
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(a, b)  # f is linear: its slope is the same anywhere
    logits = d.logits.clone().requires_grad_()
    y = type(d)(logits / 0.6).relax(noise, 1.0)
    torch.testing.assert_close(a, torch.autograd.grad((c * y).sum(), logits)[0], **EXACT)


def test_the_decoupled_form_says_that_it_needs_the_noise():
    d = make("categorical", (4,))
    state = {"forward_temperature": 1.0, "backward_temperature": 1.0}
    with pytest.raises(PglabError, match="noise"):
        cotangents(
            DecoupledStraightThroughGumbelSoftmax(),
            d,
            Draw(d.mode()),
            Signal(critic=lambda a: a.flatten(-2).sum(-1)),
            state,
        )


# -- populations, options, masks, extremes


@pytest.mark.parametrize(("estimator", "state"), [c for c in ALL if c[1]], ids=name_of)
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_every_member_has_its_own_temperature(estimator, state, family):
    d = make(family, (2, 3, 4))
    noise = noise_of(d.noise_kind, tuple(d.noise_shape))
    draw = Draw(d.sample(noise), noise, extra_of(estimator, d))
    signal = Signal(critic=quadratic(make(family, ())))
    factors = [1.0, 1.5, 3.0]
    swept = {k: v * torch.tensor(factors, dtype=F64)[:, None] for k, v in state.items()}
    (found,), _ = cotangents(estimator, d, draw, signal, swept)
    singles = [cotangents(estimator, d, draw, signal, {k: v * x for k, v in state.items()})[0][0] for x in factors]
    for p, alone in enumerate(singles):
        torch.testing.assert_close(found[:, p], alone[:, p], **EXACT)
    assert not torch.allclose(singles[0][:, 2], singles[2][:, 2])


WRONG = [
    (StraightThrough, {"jacobian": "sigmoid"}),
    (SlopeAnnealedStraightThrough, {"slope": 0.0}),
    (SlopeAnnealedStraightThrough, {"slope": {"kind": "linear", "start": 1.0, "end": -1.0}}),
    (GumbelRao, {"samples": 0}),
    (GumbelRao, {"temperature": 0.0}),
    (GappedStraightThrough, {"gap": -1.0}),
    (GappedStraightThrough, {"gap": "q"}),
    (GappedStraightThrough, {"temperature": -1.0}),
    (ReinMax, {"temperature": 0.9}),
    (ReinMax, {"temperature": {"kind": "linear", "start": 2.0, "end": 0.5}}),
    (ReinMaxRao, {"samples": 0}),
    (ReinMaxCV, {"temperature": 0.0}),
    (DecoupledStraightThroughGumbelSoftmax, {"forward_temperature": 0.0}),
    (DecoupledStraightThroughGumbelSoftmax, {"backward_temperature": -1.0}),
]


@pytest.mark.parametrize(("cls", "options"), WRONG)
def test_wrong_options_are_refused(cls, options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        cls(**options)


def test_a_critic_that_drops_an_axis_is_refused():
    d = make("categorical", (2, 4))
    with pytest.raises(PglabError, match="critic"):
        cotangents(StraightThrough(), d, Draw(d.mode()), Signal(critic=lambda a: a.flatten(-2).sum(-1)[0]))


@pytest.mark.parametrize(("estimator", "state"), ALL, ids=name_of)
def test_masked_categories_get_exactly_nothing_and_one_category_has_no_gradient(estimator, state):
    for masked, k in ((True, 4), (False, 1)):
        d = make("categorical", (300,), 2, k, masked=masked)
        d = Categorical(30 * d.logits, d.mask)
        noise = noise_of("exponential", tuple(d.noise_shape))
        draw = Draw(d.sample(noise), noise, extra_of(estimator, d))
        f = quadratic(make("categorical", (), 2, k))
        for scale in (1.0, 1e-2):
            cold = state if isinstance(estimator, ReinMax) else {key: v * scale for key, v in state.items()}
            (g,), _ = cotangents(estimator, d, draw, Signal(critic=f), cold)
            assert bool(torch.isfinite(g).all())
            nothing = torch.zeros_like(g, dtype=torch.bool) if d.mask is None else ~d.mask
            assert bool((g[nothing | (k == 1)] == 0).all())


EXTREME = [
    (StraightThrough(), {}),
    (StraightThrough(jacobian="identity"), {}),
    (SlopeAnnealedStraightThrough(), {"slope": 1.0}),
    (SlopeAnnealedStraightThrough(), {"slope": 100.0}),
    (GappedStraightThrough(gap="p"), {"temperature": 0.1}),
    (GappedStraightThrough(gap=0.02), {"temperature": 0.01}),
    (ReinMax(), {"temperature": 1.0}),
    *[(cls(), {"temperature": tau}) for cls in (GumbelRao, ReinMaxRao, ReinMaxCV) for tau in (1.0, 0.01)],
    *[
        (DecoupledStraightThroughGumbelSoftmax(), {"forward_temperature": f, "backward_temperature": b})
        for f, b in ((1.0, 0.01), (0.01, 1.0))
    ],
]


@pytest.mark.parametrize(("estimator", "state"), EXTREME, ids=name_of)
@pytest.mark.parametrize("k", [1, 2, 3, 1000])
def test_float32_keeps_to_float64_at_extremes(estimator, state, k):
    """Logits up to 50 in size, temperatures down to 0.01; rows whose gradient float32 can hold."""
    n = 8 if k == 1000 else 400
    family = "bernoulli" if k == 1 else "categorical"
    scale = torch.linspace(0, 1, n, dtype=F64)[:, None] ** 2 * 50
    shape = (n, 2) if k == 1 else (n, 2, k)
    logits = (scale[..., None] if k > 1 else scale) * (2 * noise_of("uniform", shape, 3) - 1)
    wide = (Bernoulli if k == 1 else Categorical)(logits.float().double())
    narrow = type(wide)(logits.float())
    noise = noise_of(wide.noise_kind, shape).float().clamp(1e-7, 1 - 1e-7 if k == 1 else None)
    action = wide.sample(noise_of(wide.noise_kind, shape, 9))  # not the noise's: any action may come
    extra = {n: x.float().clamp(1e-7, 1 - 1e-7 if k == 1 else None) for n, x in extra_of(estimator, wide).items()}
    c = normal(*shape[1:], key=6).float()

    def estimate(d: Distribution) -> torch.Tensor:
        dtype = d.logits.dtype

        def f(z: torch.Tensor) -> torch.Tensor:
            x = (c.to(dtype) * z).flatten(1).sum(-1)
            return x + x.square()

        draw = Draw(action.to(dtype), noise.to(dtype), {n: x.to(dtype) for n, x in extra.items()})
        return cotangents(estimator, d, draw, Signal(critic=f), state)[0][0]

    a, b = estimate(narrow), estimate(wide)
    assert a.dtype == torch.float32
    assert bool(torch.isfinite(a).all())
    norm = b.flatten(2).norm(dim=-1) if family == "categorical" else b.abs()
    error = (a - b).flatten(2).norm(dim=-1) if family == "categorical" else (a - b).abs()
    held = norm > 1e-30
    assert float(held.double().mean()) > 0.2
    worst = float((error / norm)[held].max())
    assert worst < 1e-3, worst


# -- the relaxation's own vanishing and exploding Jacobians


@pytest.mark.parametrize(("theta", "dead", "ratio"), [(0.5, 0.52, 181), (0.1, 0.80, 145)])
def test_cold_gumbel_softmax_has_dead_jacobians_and_a_larger_variance(theta, dead, ratio):
    """Two categories in float32 at temperature 0.01: the loser's share underflows where its perturbed logit is 150 log
    2 temperatures behind, and nothing passes then. f = (z - t)^2, t of toy A."""
    n, tau, t = 200_000, 0.01, 0.45 if theta == 0.5 else 0.499
    logit = math.log(theta / (1 - theta))
    one = Categorical(torch.tensor([[0.0, logit]]))
    g = estimate_gradient("gumbel_softmax", one, lambda z: (z[:, 0, 1] - t) ** 2, n, temperature=tau)["logits"]
    assert g.dtype == torch.float32
    found = float((g == 0).all(-1).all(-1).double().mean())
    far = stats.logistic.cdf(-150 * math.log(2) * tau - logit) + stats.logistic.sf(150 * math.log(2) * tau - logit)
    assert found == pytest.approx(far, abs=7 * math.sqrt(far * (1 - far) / n))
    assert far == pytest.approx(dead, abs=0.01)

    u = ((torch.arange(n).double() + 0.5) / n)[:, None]
    many = Bernoulli(torch.full((n, 1), logit, dtype=F64))
    variances = []
    for temperature in (tau, 1.0):
        signal = Signal(critic=lambda b: (b[..., 0] - t) ** 2)
        (h,), _ = cotangents(GumbelSoftmax(), many, Draw(many.sample(u), u), signal, {"temperature": temperature})
        variances.append(float(h.var()))
    assert variances[0] / variances[1] == pytest.approx(ratio, rel=0.01)


def test_the_plain_objective_runs_them_all():
    one = Categorical(torch.tensor([0.2, -0.4, 0.9], dtype=F64))
    c = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    for part, _ in ALL:
        g = estimate_gradient(part, one, lambda z: torch.exp(z @ c), 7)["logits"]
        assert g.shape == (7, 3)
        assert bool(torch.isfinite(g).all())
