"""REBAR and RELAX by quadrature over their noise, what they learn, and what must not leak."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from spine import assert_mean, case, event_of, make, noise_of, normal, repeated

from pglab.distributions import Bernoulli, Categorical, Distribution
from pglab.errors import PglabError
from pglab.estimators import NVIL, REBAR, RELAX, Draw, ScoreFunction, Signal
from pglab.estimators.learned import Learned
from pglab.estimators.rebar import BOUND
from pglab.gradients import cotangents
from pglab.noise import Noise
from pglab.trees import as_dtype, take_member

# One Bernoulli with probability theta, f = (b - t)^2; (t, theta) -> variances of REBAR at eta = 1, temperature 0.5, with
# independent and with common random numbers, and the smallest over eta and temperatures up to 1.
TOYS = {(0.499, 0.1): (1.070e-2, 8.497e-3, 5.661e-3), (0.45, 0.5): (2.265e-2, 2.407e-2, 1.593e-2)}
CASES = pytest.mark.parametrize(("t", "theta"), list(TOYS))
COUPLED = pytest.mark.parametrize("coupled", [False, True])
TAU = {"temperature": 0.5}


def legendre(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, w = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def grid(one: Bernoulli, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A product rule over u and v of every variable, u on each side of its threshold: u, v `[B, D]` and weights `[B]`."""
    x, w = legendre(n)
    parts = []
    for p in torch.sigmoid(one.logits):
        u, uw = torch.cat([x * (1 - p), 1 - p + x * p]), torch.cat([w * (1 - p), w * p])
        pair = torch.cartesian_prod(u, x)  # [2 n^2, 2]
        parts.append((pair, torch.outer(uw, w).flatten()))
    points, weight = parts[0][0][:, None], parts[0][1]
    for pair, more in parts[1:]:
        points = torch.cat([points.repeat_interleave(len(pair), 0), pair.repeat(len(points), 1)[:, None]], 1)
        weight = torch.outer(weight, more).flatten()
    return points[..., 0], points[..., 1], weight


def on_grid(estimator, one: Bernoulli, f, state, n: int = 60, **signal) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of an estimate `[D]` by quadrature."""
    u, v, weight = grid(one, n)
    d = repeated(one, len(u))
    action = d.sample(u)
    known = {"value": f(action), "critic": f} | {k: s(action) if callable(s) else s for k, s in signal.items()}
    extra = {} if estimator.coupled else {"conditional": v}
    (g,), _ = cotangents(estimator, d, Draw(action, u, extra), Signal(**known), state)
    mean = weight @ g
    return mean, weight @ (g - mean).square()


def square(t: float):
    return lambda b: (b - t).square().sum(-1)


def bernoulli(*theta: float) -> Bernoulli:
    return Bernoulli(torch.logit(torch.tensor(theta, dtype=torch.float64)))


def fresh(estimator: Learned, event: tuple[int, ...], members: int = 1, observation_size: int = 0) -> dict:
    state = as_dtype(estimator.initial(Noise.of_seeds(range(members)), event, observation_size), torch.float64)
    return state | {name: getattr(estimator, name)[0].start for name in estimator.scheduled}


def anywhere(estimator: Learned, event: tuple[int, ...], members: int = 1, observation_size: int = 0) -> dict:
    """A state with everything that is learned far from its start."""
    state = fresh(estimator, event, members, observation_size)
    state["learned"] = state["learned"] + 0.4 * normal(*state["learned"].shape, key=77)
    return state


@CASES
@COUPLED
def test_one_bernoulli_has_the_known_mean_and_variance(t, theta, coupled):
    mean, variance = on_grid(REBAR(learn=False, coupled=coupled), bernoulli(theta), square(t), TAU)
    assert float(mean) == pytest.approx(theta * (1 - theta) * (1 - 2 * t), rel=1e-8)
    assert float(variance) == pytest.approx(TOYS[t, theta][coupled], rel=5e-4)


@CASES
def test_one_bernoulli_at_its_optimal_eta_is_hardly_better_than_reinforce(t, theta):
    """The variance is a quadratic in eta."""
    best = math.inf
    for tau in (0.1, 0.25, 0.5, 1.0):
        at = [
            float(on_grid(REBAR(learn=False, eta=eta), bernoulli(theta), square(t), {"temperature": tau}, 150)[1])
            for eta in (0.0, 1.0, -1.0)
        ]
        curvature, slope = (at[1] + at[2]) / 2 - at[0], (at[1] - at[2]) / 2
        best = min(best, at[0] - slope**2 / (4 * curvature))
    assert best == pytest.approx(TOYS[t, theta][2], rel=5e-4)


CONTROLS = pytest.mark.parametrize(
    "estimator",
    [
        REBAR(learn=False, eta=-2.3, temperature=0.7),
        REBAR(temperature=0.4),
        REBAR(coupled=True),
        RELAX(hidden=(5, 4)),
        RELAX(hidden=(5,), coupled=True),
    ],
    ids=lambda e: f"{e.name}-{e.coupled}-{'learned' if e.learns else 'fixed'}",
)


def table(b: torch.Tensor) -> torch.Tensor:
    """f of two bits, differentiable off the vertices."""
    x, y = b[..., 0], b[..., 1]
    return 0.3 - 1.2 * x + 0.8 * y + 2.1 * x * y + 0.5 * torch.sin(3 * x)


def exact_of(one: Distribution, f) -> torch.Tensor:
    leaf, (logits,) = one.cut()
    z = one.enumerate()
    return torch.autograd.grad((leaf.log_prob(z).sum(-1).exp() * f(z)).sum(), logits)[0]


@CONTROLS
@pytest.mark.parametrize("baseline", [None, torch.tensor(0.7).double(), torch.tensor([[0.7, -1.3]]).double()])
def test_two_bernoullis_have_the_exact_mean_wherever_the_learned_stands(estimator, baseline):
    one = bernoulli(0.3, 0.8)
    state = anywhere(estimator, (2,)) if estimator.learns else {"temperature": 0.7}
    given = {} if baseline is None else {"baseline": lambda a: baseline.expand(*a.shape[: 1 + (baseline.ndim == 2)])}
    # What does not depend on v needs no rule over it, but the grid is the same for all.
    mean, variance = on_grid(estimator, one, table, state, 14, **given)
    torch.testing.assert_close(mean, exact_of(one, table), rtol=5e-4, atol=5e-5)
    assert float(variance.min()) > 1e-3


@CONTROLS
def test_the_control_variate_alone_has_mean_zero(estimator):
    """f = 0, and a critic that is not: one variable, where the rule is exact."""
    state = anywhere(estimator, (1,)) if estimator.learns else {"temperature": 0.7}
    nothing = {"value": lambda a: torch.zeros(len(a), dtype=torch.float64)}
    mean, variance = on_grid(estimator, bernoulli(0.3), lambda b: torch.exp(b[..., 0]), state, 200, **nothing)
    assert abs(float(mean)) < 1e-9
    assert float(variance) > 1e-6


@pytest.mark.statistical
@pytest.mark.parametrize("masked", [False, True])
@CONTROLS
def test_the_control_variate_alone_has_mean_zero_for_categories(estimator, masked):
    n = 100_000
    one = make("categorical", (), 2, 3, masked=masked)
    d = repeated(one, n)
    if masked:
        d = Categorical(d.logits, one.mask.expand(n, 2, 3))
    shape = tuple(d.noise_shape)
    noise = noise_of("exponential", shape, 31)
    action = d.sample(noise)
    extra = {} if estimator.coupled else {"conditional": noise_of("exponential", shape, 32)}
    state = anywhere(estimator, (2, 3)) if estimator.learns else {"temperature": 0.7}
    signal = Signal(value=torch.zeros(n).double(), critic=lambda a: (a * c).flatten(-2).sum(-1).square())
    c = normal(2, 3, key=4)
    (g,), _ = cotangents(estimator, d, Draw(action, noise, extra), signal, state)
    assert float(g.var(0).max()) > 1e-4
    assert_mean(g, torch.zeros(2, 3).double(), resolution=0.2)
    if masked:
        assert bool((g[:, ~one.mask] == 0).all())


@pytest.mark.parametrize(("t", "ratio"), [(0.2, 0.64), (0.45, 13.0)])
def test_ten_bernoullis_against_the_baseline_of_the_mean(t, ratio):
    """f = sum (b_i - t)^2 at theta = 1/2: optimal eta and the best of five temperatures, over REINFORCE with b = E[f].
    REBAR wins where f varies by much of its size, and loses by far where a constant baseline takes nearly all of it."""
    n, f = 60_000, square(t)
    d = Bernoulli(torch.zeros(n, 10, dtype=torch.float64))
    u, v = noise_of("uniform", (n, 10), 1), noise_of("uniform", (n, 10), 2)
    action = d.sample(u)

    def centred(eta: float, tau: float, baseline: float = 0.0) -> torch.Tensor:
        signal = Signal(f(action), torch.full((n,), baseline, dtype=torch.float64), f)
        draw = Draw(action, u, {"conditional": v})
        (g,), _ = cotangents(REBAR(eta=eta, learn=False), d, draw, signal, {"temperature": tau})
        return g - g.mean(0)

    reference = centred(0.0, 0.5, 5 * ((1 - t) ** 2 + t**2)).square().sum()
    plain, best = centred(0.0, 0.5), math.inf
    for tau in (0.1, 0.25, 0.5, 1.0, 2.0):
        change = centred(1.0, tau) - plain
        eta = -(plain * change).sum() / change.square().sum()
        best = min(best, float((plain + eta * change).square().sum() / reference))
    assert best == pytest.approx(ratio, rel=0.05)


# -- learning


def row_case(estimator: Learned, family: str = "bernoulli", n: int = 40, key: int = 3):
    d = make(family, (n,), 2, 3, key=key)
    shape = tuple(d.noise_shape)
    noise = noise_of(d.noise_kind, shape, key)
    extra = {} if getattr(estimator, "coupled", True) else {"conditional": noise_of(d.noise_kind, shape, key + 1)}
    draw = Draw(d.sample(noise), noise, extra)
    c = normal(*shape[1:], key=8)
    axes = -d.event_ndim

    def critic(a: torch.Tensor) -> torch.Tensor:
        return torch.sin((a * c).flatten(axes).sum(-1)) + 2

    return d, draw, Signal(critic(draw.action), normal(n, key=5), critic)


LEARNERS = pytest.mark.parametrize(
    ("estimator", "family"),
    [(e, f) for e in (REBAR(), REBAR(coupled=True), RELAX(hidden=(4,))) for f in ("bernoulli", "categorical")],
    ids=lambda x: x if isinstance(x, str) else f"{x.name}-{x.coupled}",
)


@LEARNERS
def test_the_loss_is_the_estimates_square_and_is_differentiated_to_second_order(estimator, family):
    """Against central differences of the squared norm of the cotangents themselves, in every learned number: first-order
    gradients alone, or a control variate held constant beside the score, would give another slope."""
    d, draw, signal = row_case(estimator, family)
    state = anywhere(estimator, event_of(d))
    weight = normal(40, key=6).abs()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        (g,), _ = cotangents(estimator, d, draw, signal, {**state, "learned": flat})
        return (g.square().flatten(1).sum(1) * weight).sum()

    flat = state["learned"].clone().requires_grad_()
    made = (estimator.loss(d, draw, signal, {**state, "learned": flat}) * weight).sum()
    (slope,) = torch.autograd.grad(made, flat)
    scale = float(loss(state["learned"]) / made.detach())
    assert scale == pytest.approx(1.0 if estimator.name == "rebar" else float(estimator.size(state)) ** 2)
    step = 1e-5 * torch.eye(flat.shape[1], dtype=torch.float64)
    by_difference = torch.stack([(loss(state["learned"] + e) - loss(state["learned"] - e)) / 2e-5 for e in step])
    torch.testing.assert_close(slope[0] * scale, by_difference, rtol=1e-5, atol=1e-6 * float(by_difference.abs().max()))
    assert float(by_difference.abs().min()) > 0 or family == "categorical"


@LEARNERS
def test_nothing_leaks_from_what_is_learned_to_the_policy(estimator, family):
    """Nor the other way: the update gets no gradient of the policy's, and the estimate none of the control variate's."""
    d, draw, signal = row_case(estimator, family)
    leaf = d.logits.clone().requires_grad_()
    own = replace(d, logits=leaf * 1.0)
    state = anywhere(estimator, event_of(d))
    before = state["learned"].clone()
    cotangents(estimator, own, draw, signal, state)
    found, _ = estimator.update(state, own, draw, signal, torch.full((40,), 1 / 40).double())
    assert leaf.grad is None
    assert not found["learned"].requires_grad
    assert torch.equal(state["learned"], before), "the state that was given is not written to"
    assert float((found["learned"] - before).abs().max()) > 1e-4
    assert found["optimizer"]["steps"] == 1
    assert state["optimizer"]["steps"] == 0


@pytest.mark.parametrize("estimator", [REBAR(), RELAX(hidden=(4,))], ids=lambda e: e.name)
def test_a_learned_temperature_stays_within_its_bounds(estimator):
    d, draw, signal = row_case(estimator)
    state = fresh(estimator, (2,))
    for far in (50.0, -50.0):
        state["learned"][:, 0] = far
        found, info = estimator.update(state, d, draw, signal, torch.full((40,), 1 / 40).double())
        assert float(found["learned"][0, 0]) == pytest.approx(math.copysign(BOUND, far))
        assert float(info["estimator/temperature_factor"]) == pytest.approx(100.0 ** math.copysign(1, far))


def test_rebar_without_learning_has_no_state():
    estimator = REBAR(learn=False)
    assert not estimator.learns
    assert REBAR().learns
    assert estimator.initial(Noise.of_seeds([0]), (2,), 0) == {}
    d, draw, signal = row_case(estimator)
    assert estimator.update(TAU, d, draw, signal, torch.ones(40)) == ({}, {})


def drawn(d: Distribution, estimator: Learned, key: int) -> Draw:
    shape = tuple(d.noise_shape)
    noise = noise_of(d.noise_kind, shape, 2 * key)
    extra = {} if estimator.coupled else {"conditional": noise_of(d.noise_kind, shape, 2 * key + 1)}
    return Draw(d.sample(noise), noise, extra)


def trained(estimator: Learned, one: Distribution, f, updates: int, rows: int, hold: int = 0) -> dict:
    """The state after some updates on fresh draws; the first `hold` learned numbers stay where they are."""
    d, state = repeated(one, rows), fresh(estimator, event_of(one))
    weight = torch.full((rows,), 1 / rows, dtype=torch.float64)
    kept = state["learned"][:, :hold].clone()
    for i in range(updates):
        draw = drawn(d, estimator, i)
        state |= estimator.update(state, d, draw, Signal(f(draw.action), critic=f), weight)[0]
        state["learned"][:, :hold] = kept
    return state


def test_rebar_learns_the_optimal_eta():
    """Found by quadrature at the same temperature."""
    one, f, estimator = bernoulli(0.5), square(0.2), REBAR(estimator_learning_rate=0.01)
    at = [float(on_grid(REBAR(learn=False, eta=x), one, f, TAU)[1]) for x in (0.0, 1.0, -1.0)]
    curvature, slope = (at[1] + at[2]) / 2 - at[0], (at[1] - at[2]) / 2
    state = trained(estimator, one, f, 250, 256, hold=1)
    assert 1 + float(state["learned"][0, 1]) == pytest.approx(-slope / (2 * curvature), abs=0.05)
    both = trained(estimator, one, f, 250, 256)
    assert float(on_grid(estimator, one, f, both, 100)[1]) < float(on_grid(estimator, one, f, state)[1]) < at[1]


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("estimator", "ratio"),
    [(REBAR(estimator_learning_rate=0.02), 0.12), (RELAX(estimator_learning_rate=0.02, hidden=(16,)), 0.06)],
    ids=lambda x: getattr(x, "name", None),
)
def test_learning_makes_the_variance_fall_and_keeps_the_mean(estimator, ratio):
    """Six Bernoullis, f a sum of squares: what is learned takes most of REINFORCE's variance."""
    one, f, n = Bernoulli(torch.linspace(-1, 1, 6, dtype=torch.float64)), square(0.2), 20_000
    state = trained(estimator, one, f, 300, 128)
    d = repeated(one, n)
    draw = drawn(d, estimator, 10_000)
    signal = Signal(f(draw.action), critic=f)
    (g,), _ = cotangents(estimator, d, draw, signal, state)
    (start,), _ = cotangents(estimator, d, draw, signal, fresh(estimator, (6,)))
    (plain,), _ = cotangents(ScoreFunction(), d, draw, signal)
    learned, before, reinforce = (float(x.var(0).sum()) for x in (g, start, plain))
    assert learned < ratio * reinforce
    assert learned < 0.8 * before
    assert_mean(g, exact_of(one, f), resolution=0.05)


def test_relaxs_learning_does_not_depend_on_the_size_of_the_values():
    one, estimator = bernoulli(0.4, 0.7), RELAX(hidden=(4,), estimator_learning_rate=0.01)
    d = repeated(one, 64)
    states = [fresh(estimator, (2,)), fresh(estimator, (2,))]
    for i in range(30):
        u, v = noise_of("uniform", (64, 2), 2 * i), noise_of("uniform", (64, 2), 2 * i + 1)
        action = d.sample(u)
        draw, weight = Draw(action, u, {"conditional": v}), torch.full((64,), 1 / 64).double()
        for state, factor in zip(states, (1.0, 1e-4), strict=True):
            state |= estimator.update(state, d, draw, Signal(factor * table(action)), weight)[0]
    torch.testing.assert_close(states[1]["learned"], states[0]["learned"], rtol=1e-3, atol=1e-4)
    small, large = (
        cotangents(estimator, d, draw, Signal(factor * table(action)), state)[0][0]
        for state, factor in zip(states, (1.0, 1e-4), strict=True)
    )
    torch.testing.assert_close(large / 1e-4, small, rtol=1e-3, atol=1e-3)


def test_relax_reads_the_state():
    estimator = RELAX(hidden=(4,))
    d, draw, signal = row_case(estimator)
    state = anywhere(estimator, (2,), observation_size=3)
    seen = [
        cotangents(estimator, d, draw, replace(signal, obs=obs), state)[0][0]
        for obs in (normal(40, 3, key=1), normal(40, 3, key=1).index_fill(0, torch.tensor([7]), 0.5))
    ]
    assert torch.equal(seen[0][:7], seen[1][:7])
    assert not torch.allclose(seen[0][7], seen[1][7])


@pytest.mark.parametrize("estimator", [REBAR(), RELAX(hidden=(4,)), NVIL(hidden=(4,))], ids=lambda e: e.name)
def test_members_learn_as_if_they_were_alone(estimator):
    rows = (2, 3, 5)
    d = make("categorical", rows)
    noise, again = (noise_of("exponential", (*rows, 2, 3), k) for k in (1, 2))
    action, value, obs = d.sample(noise), normal(*rows, key=3), normal(*rows, 4, key=4)
    weight = normal(*rows, key=5).abs()
    state = fresh(estimator, (2, 3), 3, 4)
    state["learned"] = state["learned"] + 0.4 * normal(*state["learned"].shape, key=77)

    def updated(s: slice, given: dict) -> dict:
        draw = Draw(action[:, s], noise[:, s], {"conditional": again[:, s]})
        signal = Signal(value[:, s], critic=lambda a: a.square().flatten(-2).sum(-1), obs=obs[:, s])
        return estimator.update(given, Categorical(d.logits[:, s]), draw, signal, weight[:, s])[0]

    together = updated(slice(None), state)
    for p in range(3):
        temperature = {k: v for k, v in state.items() if k == "temperature"}
        own = take_member({k: v for k, v in state.items() if k != "temperature"}, p) | temperature
        found = updated(slice(p, p + 1), own)
        expected = take_member(together, p)
        torch.testing.assert_close(found["learned"], expected["learned"])
        for part in ("size", "centre"):
            for name, x in expected.get(part, {}).items():
                torch.testing.assert_close(found[part][name], x)


@pytest.mark.parametrize("name", ["rebar", "relax"])
def test_every_member_has_its_own_temperature(name):
    rows = (2, 3, 4)
    estimator, d, draw, signal, state = case(name, "categorical", rows)
    state["learned"] = state["learned"] + 0.3 * normal(*state["learned"].shape)
    taus = [0.3, 1.0, 2.0]
    state["temperature"] = torch.tensor(taus, dtype=torch.float64)[:, None]
    (together,), _ = cotangents(estimator, d, draw, signal, state)
    for p, tau in enumerate(taus):
        alone = {"learned": state["learned"][p : p + 1], "temperature": tau}
        if "size" in state:
            alone["size"] = {k: v[p : p + 1] for k, v in state["size"].items()}
        (found,), _ = cotangents(estimator, d, draw, signal, alone)
        torch.testing.assert_close(together[:, p], found[:, p])


@pytest.mark.parametrize("estimator", [REBAR(), RELAX()], ids=lambda e: e.name)
def test_they_say_that_they_need_the_noise(estimator):
    d, draw, signal = row_case(estimator)
    with pytest.raises(PglabError, match="noise"):
        cotangents(estimator, d, replace(draw, noise=None), signal, fresh(estimator, (2,)))


@pytest.mark.parametrize("cls", [REBAR, RELAX])
@pytest.mark.parametrize("temperature", [0, -1.0])
def test_temperatures_of_0_or_below_are_refused(cls, temperature):
    with pytest.raises(ValueError, match="above 0"):
        cls(temperature=temperature)


@LEARNERS
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_float32_extremes_are_finite(estimator, family, temperature):
    n = 500
    d = make(family, (n,), 2, 3)
    d = replace(d, logits=(60 * d.logits).clamp(-50, 50).float())
    shape = tuple(d.noise_shape)
    low = 6e-8 if family == "bernoulli" else 1e-37
    noise, again = (noise_of(d.noise_kind, shape, k).float() for k in (1, 2))
    noise[:9], again[3:12] = low, low
    if family == "bernoulli":
        noise[20:29], again[23:32] = 1 - 6e-8, 1 - 6e-8
        noise, again = noise.clamp(6e-8, 1 - 6e-8), again.clamp(6e-8, 1 - 6e-8)
    action = d.sample(noise)
    draw = Draw(action, noise, {} if estimator.coupled else {"conditional": again})
    signal = Signal(action.flatten(1).sum(1), critic=lambda a: a.square().flatten(-d.event_ndim).sum(-1))
    state = as_dtype(anywhere(estimator, event_of(d)), torch.float32) | {"temperature": temperature}
    (g,), value = cotangents(estimator, d, draw, signal, state)
    assert bool(torch.isfinite(g).all() & torch.isfinite(value).all())
    found, _ = estimator.update(state, d, draw, signal, torch.full((n,), 1 / n))
    assert bool(torch.isfinite(found["learned"]).all())


@LEARNERS
def test_float32_equals_float64(estimator, family):
    """Logits up to 10, where the conditional noise itself is rounded."""
    n = 400
    d = make(family, (n,), 2, 3)
    d = replace(d, logits=(4 * d.logits).clamp(-10, 10).float())
    shape = tuple(d.noise_shape)
    noise, again = (noise_of(d.noise_kind, shape, k).float().clamp(1e-6) for k in (1, 2))
    action = d.sample(noise)
    state, found = anywhere(estimator, event_of(d)), []
    for dtype in (torch.float32, torch.float64):
        wide = replace(d, logits=d.logits.to(dtype))
        a = action.to(dtype)
        draw = Draw(a, noise.to(dtype), {} if estimator.coupled else {"conditional": again.to(dtype)})
        signal = Signal(a.flatten(1).sum(1), critic=lambda x: x.square().flatten(-d.event_ndim).sum(-1))
        (g,), _ = cotangents(estimator, wide, draw, signal, as_dtype(state, dtype) | {"temperature": 0.1})
        found.append(g.double())
    assert float((found[0] - found[1]).norm()) < 1e-3 * float(found[1].norm())
