"""Double control variates and RODEO: over all tuples of samples, and against plain loops over their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from spine import event_of, make, noise_of, normal, repeated
from test_unbiased import exact_discrete, table_critic

from pglab.baselines import Batch, LeaveOneOut
from pglab.distributions import Bernoulli, Categorical, Distribution
from pglab.errors import PglabError
from pglab.estimators import Draw, ScoreFunction, Signal
from pglab.estimators.double_cv import DoubleCV
from pglab.estimators.rodeo import RODEO
from pglab.gradients import cotangents
from pglab.noise import Noise
from pglab.trees import as_dtype

EXACT = {"rtol": 1e-9, "atol": 1e-11}
CASES = pytest.mark.parametrize(
    ("family", "d", "k", "masked", "samples"),
    [
        ("categorical", 1, 3, False, 2),
        ("categorical", 1, 3, True, 3),
        ("categorical", 2, 3, False, 2),
        ("categorical", 2, 3, True, 2),
        ("categorical", 1, 10, False, 2),
        ("categorical", 2, 1, False, 2),
        ("bernoulli", 1, 2, False, 4),
        ("bernoulli", 2, 2, False, 3),
        ("bernoulli", 4, 2, False, 2),
    ],
)


def noise_that_draws(one: Distribution, actions: torch.Tensor) -> torch.Tensor:
    """Noise under which the distribution draws `actions` `[..., *event]`."""
    if isinstance(one, Bernoulli):
        p = torch.sigmoid(one.logits)
        return torch.where(actions > 0.5, 1 - p / 2, (1 - p) / 2)
    return torch.where(actions > 0.5, 1e-9, 1e3)


def every_tuple(one: Distribution, samples: int):
    """Rows with every tuple of outcomes: the distribution, the draws, their probabilities."""
    outcomes = one.enumerate()
    p = one.log_prob(outcomes).sum(-1).exp()
    possible = torch.nonzero(p > 0).squeeze(1).tolist()
    index = torch.tensor(list(itertools.product(possible, repeat=samples)))  # [B, S]
    rows = repeated(one, len(index))
    rest = noise_that_draws(one, outcomes[index[:, 1:]])
    return rows, Draw(outcomes[index[:, 0]], None, {"samples": rest}), p[index].prod(1), outcomes[index]


def state_of(estimator, one: Distribution, key: int | None = None) -> dict:
    """The initial state in float64; with `key` whatever is learned is random, as after some training."""
    state = as_dtype(estimator.initial(Noise.of_seeds([0]), event_of(one), 0), torch.float64)
    if key is not None:
        state["learned"] = normal(*state["learned"].shape, key=key)
        if "size" in state:
            state["size"] = {"square": torch.full((1, 1), 1.7, dtype=torch.float64), "seen": torch.ones(1, 1).double()}
    return state


BOTH = pytest.mark.parametrize("part", [DoubleCV, RODEO])


@BOTH
@CASES
@pytest.mark.parametrize("key", [None, 70])
def test_the_mean_over_all_samples_is_the_exact_gradient_whatever_was_learned(part, family, d, k, masked, samples, key):
    estimator = part(samples=samples)
    one = make(family, (), d, k, masked=masked)
    f, values = table_critic(one)
    rows, draw, weight, _ = every_tuple(one, samples)
    (g,), value = cotangents(estimator, rows, draw, Signal(critic=f), state_of(estimator, one, key))
    assert bool(torch.isfinite(value).all())
    torch.testing.assert_close(torch.einsum("b,b...->...", weight, g), exact_discrete(one, values), **EXACT)
    if masked:
        assert bool((g[:, ~one.mask] == 0).all())
    if k == 1:
        assert torch.equal(g, torch.zeros_like(g))


@BOTH
@CASES
def test_without_its_control_variates_it_is_leave_one_out(part, family, d, k, masked, samples):
    estimator = DoubleCV(samples=samples, alpha=0.0) if part is DoubleCV else RODEO(samples=samples)
    one = make(family, (), d, k, masked=masked)
    f, _ = table_critic(one)
    rows, draw, _, x = every_tuple(one, samples)
    state = state_of(estimator, one)
    if part is RODEO:
        state["learned"] = torch.zeros_like(state["learned"])
    (g,), _ = cotangents(estimator, rows, draw, Signal(critic=f), state)
    logits = one.logits.expand(1, len(x), samples, *event_of(one))  # [1, B, S, *event]
    many = Bernoulli(logits) if family == "bernoulli" else Categorical(logits, one.mask)
    value = f(x).unsqueeze(0)
    batch = Batch(
        torch.zeros(1, len(x), samples, 1),
        value,
        torch.ones_like(value, dtype=torch.bool),
        torch.zeros(1, len(x), samples).long(),
    )
    baseline = LeaveOneOut()
    b = baseline.predict(baseline.initial(len(x), "cpu"), batch)
    (each,), _ = cotangents(ScoreFunction(), many, Draw(x.unsqueeze(0)), Signal(value, b))
    torch.testing.assert_close(g, each[0].mean(1), **EXACT)


# -- plain loops, one row at a time


class Curved:
    """f(x) = sin(w . x) + (v . x)^2 in numpy and in torch."""

    def __init__(self, *event: int) -> None:
        self.w, self.v, self.n = normal(*event, key=5), normal(*event, key=6), len(event)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin((self.w * x).flatten(-self.n).sum(-1)) + (self.v * x).flatten(-self.n).sum(-1).square()

    def both(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        w, v = self.w.numpy(), self.v.numpy()
        a, b = float((w * x).sum()), float((v * x).sum())
        return math.sin(a) + b * b, math.cos(a) * w + 2 * b * v


def random_rows(family: str, d: int, k: int, samples: int, n: int = 12):
    one = make(family, (n,), d, k)
    event = event_of(one)
    x = one.sample(noise_of(one.noise_kind, tuple(one.noise_shape)))
    rest = noise_of(one.noise_kind, (n, samples - 1, *event), 3)
    logits = one.logits.unsqueeze(1).expand(n, samples - 1, *event)
    all_x = torch.cat([x.unsqueeze(1), type(one)(logits).sample(rest)], 1).numpy()  # [n, S, *event]
    mean = (torch.sigmoid(one.logits) if family == "bernoulli" else one.probs()).numpy()
    return one, Draw(x, None, {"samples": rest}), all_x, mean


LOOPS = pytest.mark.parametrize(
    ("family", "d", "k", "samples"),
    [("categorical", 2, 3, 2), ("categorical", 1, 4, 4), ("bernoulli", 3, 2, 2), ("bernoulli", 4, 2, 3)],
)


@LOOPS
@pytest.mark.parametrize("alpha", [1.0, -0.6])
def test_double_cv_in_plain_loops(family, d, k, samples, alpha):
    one, draw, x, mean = random_rows(family, d, k, samples)
    f, estimator = Curved(*event_of(one)), DoubleCV(samples=samples, alpha=alpha)
    alpha = float(np.float32(alpha))  # states start in float32
    (g,), _ = cotangents(estimator, one, draw, Signal(critic=f), state_of(estimator, one))
    for row in range(len(x)):
        values, slopes = zip(*(f.both(z) for z in x[row]), strict=True)
        models = [np.mean([slopes[j] for j in range(samples) if j != i], 0) for i in range(samples)]
        left = [v - alpha * (a * (z - mean[row])).sum() for v, a, z in zip(values, models, x[row], strict=True)]
        wanted = np.zeros_like(mean[row])
        for i in range(samples):
            gain = left[i] - np.mean([left[j] for j in range(samples) if j != i])
            m, a = mean[row], models[i]
            jacobian = a * m * (1 - m) if family == "bernoulli" else m * (a - (m * a).sum(-1, keepdims=True))
            wanted += (gain * (x[row, i] - m) + alpha * jacobian) / samples
        np.testing.assert_allclose(g[row].numpy(), wanted, rtol=1e-9, atol=1e-11)


@LOOPS
def test_rodeo_in_plain_loops(family, d, k, samples):
    one, draw, x, mean = random_rows(family, d, k, samples)
    f, estimator = Curved(*event_of(one)), RODEO(samples=samples, hidden=(4,))
    state = state_of(estimator, one, key=70)
    (g,), _ = cotangents(estimator, one, draw, Signal(critic=f), state)
    flat, size = state["learned"][0].numpy(), math.sqrt(1.7)
    w0, b0, w1, b1 = flat[:8].reshape(2, 4), flat[8:12], flat[12:20].reshape(4, 2), flat[20:]

    def network(value: float, change: float) -> np.ndarray:
        return (np.tanh(np.array([value, change]) / size @ w0 + b0) @ w1 + b1) * size

    def neighbours(z: np.ndarray, m: np.ndarray):
        """All outcomes that differ in one factor at most, with the probability of drawing them from factor i."""
        for i in range(d):
            if family == "bernoulli":
                for bit in (0.0, 1.0):
                    y = z.copy()
                    y[i] = bit
                    yield y, m[i] if bit else 1 - m[i]
            else:
                for v in range(k):
                    y = z.copy()
                    y[i] = np.eye(k)[v]
                    yield y, m[i, v]

    for row in range(len(x)):
        m = mean[row]
        values, slopes = zip(*(f.both(z) for z in x[row]), strict=True)

        def outputs(i: int, y: np.ndarray, row=row, values=values, slopes=slopes) -> np.ndarray:
            made = [network(values[j], float((slopes[j] * (y - x[row, j])).sum())) for j in range(samples) if j != i]
            return np.mean(made, 0)

        stein, local = [], []
        for i, z in enumerate(x[row]):
            at = outputs(i, z)
            stein.append(sum(q * (outputs(i, y)[0] - at[0]) for y, q in neighbours(z, m)) / d)
            local.append(sum(q * (outputs(i, y)[1] * (y - m) - at[1] * (z - m)) for y, q in neighbours(z, m)) / d)
        wanted = np.zeros_like(m)
        for i, z in enumerate(x[row]):
            baseline = np.mean([values[j] + stein[j] for j in range(samples) if j != i])
            wanted += ((values[i] - baseline) * (z - m) + local[i]) / samples
        np.testing.assert_allclose(g[row].numpy(), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
@pytest.mark.parametrize("samples", [2, 4])
def test_double_cv_of_a_linear_f_has_no_variance(family, samples):
    one = make(family, (), 3, 4)
    c = normal(*event_of(one))
    rows = repeated(one, 500)
    event = event_of(one)
    extra = {"samples": noise_of(one.noise_kind, (500, samples - 1, *event), 1)}
    draw = Draw(rows.sample(noise_of(one.noise_kind, (500, *event))), None, extra)
    estimator = DoubleCV(samples=samples, alpha=1.0)
    signal = Signal(critic=lambda a: 3 + (a * c).flatten(-len(event)).sum(-1))
    (g,), _ = cotangents(estimator, rows, draw, signal, state_of(estimator, one))
    torch.testing.assert_close(g, g[:1].expand_as(g), **EXACT)
    assert float(g.abs().max()) > 0.05


def trained(estimator, one: Distribution, f, updates: int, rows: int = 256) -> dict:
    """The state after updates on a stream of draws."""
    state, event = state_of(estimator, one), event_of(one)
    d = repeated(one, rows)
    for i in range(updates):
        extra = {"samples": noise_of(one.noise_kind, (rows, estimator.samples - 1, *event), 2000 + i)}
        draw = Draw(d.sample(noise_of(one.noise_kind, (rows, *event), 1000 + i)), None, extra)
        weight = torch.full((rows,), 1 / rows).double()
        state, info = estimator.update(state, d, draw, Signal(critic=f), weight)
    assert all(bool(torch.isfinite(x).all()) for x in info.values())
    return state


def total_variance(estimator, one: Distribution, f, state: dict) -> float:
    rows, draw, weight, _ = every_tuple(one, estimator.samples)
    (g,), _ = cotangents(estimator, rows, draw, Signal(critic=f), state)
    mean = torch.einsum("b,b...->...", weight, g)
    return float(torch.einsum("b,b...->...", weight, (g - mean) ** 2).sum())


def test_alpha_moves_to_where_the_variance_is_least():
    """The variance is quadratic in alpha: three values give its minimum."""
    one = make("bernoulli", (), 4)
    f = Curved(4)
    a, b, c = (total_variance(e, one, f, state_of(e, one)) for e in (DoubleCV(alpha=x) for x in (0.0, 1.0, 2.0)))
    curve, slope = (a - 2 * b + c) / 2, (4 * b - 3 * a - c) / 2
    best = -slope / (2 * curve)
    state = trained(DoubleCV(estimator_learning_rate=0.03), one, f, 300)
    found = float(state["learned"])
    assert found == pytest.approx(best, abs=0.1)
    assert abs(best) > 0.15
    estimator = DoubleCV()
    assert total_variance(estimator, one, f, state) < min(a, b)


def test_learning_makes_rodeo_better_than_leave_one_out():
    one = make("bernoulli", (), 4)
    f, estimator = Curved(4), RODEO(estimator_learning_rate=0.01)
    before = total_variance(estimator, one, f, state_of(estimator, one))
    state = trained(estimator, one, f, 250)
    assert total_variance(estimator, one, f, state) < 0.7 * before
    rows, draw, weight, _ = every_tuple(one, 2)
    (g,), _ = cotangents(estimator, rows, draw, Signal(critic=f), state)
    exact = exact_discrete(one, f(one.enumerate()))
    torch.testing.assert_close(torch.einsum("b,b...->...", weight, g), exact, **EXACT)


@BOTH
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_members_never_mix(part, family):
    rows, estimator = (2, 3, 4), part()
    one = make(family, rows)
    event, f = event_of(one), Curved(*event_of(one))
    extra = {"samples": noise_of(one.noise_kind, (*rows, 1, *event), 3)}
    draw = Draw(one.sample(noise_of(one.noise_kind, (*rows, *event))), None, extra)
    state = as_dtype(estimator.initial(Noise.of_seeds(range(3)), event, 0), torch.float64)
    weight = torch.full(rows, 1 / 8).double()
    for _ in range(5):
        state, _ = estimator.update(state, one, draw, Signal(critic=f), weight)
    (g,), _ = cotangents(estimator, one, draw, Signal(critic=f), state)
    for p in range(3):
        own = type(one)(one.logits[:, p : p + 1])
        part_draw = Draw(draw.action[:, p : p + 1], None, {"samples": extra["samples"][:, p : p + 1]})
        alone = as_dtype(estimator.initial(Noise.of_seeds([p]), event, 0), torch.float64)
        for _ in range(5):
            alone, _ = estimator.update(alone, own, part_draw, Signal(critic=f), weight[:, p : p + 1])
        torch.testing.assert_close(alone["learned"], state["learned"][p : p + 1])
        (single,), _ = cotangents(estimator, own, part_draw, Signal(critic=f), alone)
        torch.testing.assert_close(g[:, p : p + 1], single)
    assert not torch.equal(state["learned"][0], state["learned"][1])


@BOTH
def test_the_size_of_f_does_not_matter(part):
    """A thousand times the values give a thousand times the estimate, after learning as well."""
    one = make("bernoulli", (), 3)
    f, estimator = Curved(3), part(estimator_learning_rate=0.01)
    rows, draw, _, _ = every_tuple(one, 2)
    found = []
    for size in (1.0, 1000.0):
        state = trained(estimator, one, lambda a, size=size: size * f(a), 20)
        (g,), _ = cotangents(estimator, rows, draw, Signal(critic=lambda a, size=size: size * f(a)), state)
        found.append(g / size)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


@BOTH
@pytest.mark.parametrize(("family", "k"), [("categorical", 3), ("categorical", 1000), ("bernoulli", 2)])
def test_float32_with_extreme_logits(part, family, k):
    n, d, estimator = (500, 3, part()) if k < 1000 else (4, 1, part())
    shape = (n, d) if family == "bernoulli" else (n, d, k)
    scale = torch.linspace(0, 50, n).view(n, *([1] * (len(shape) - 1)))
    logits, c, found = normal(*shape).sign().float() * scale, normal(*shape[1:]), []
    kind = "uniform" if family == "bernoulli" else "exponential"
    noise = noise_of(kind, (n, 2, *shape[1:])).float().clamp(1e-7, 1 - 1e-7 if family == "bernoulli" else None)
    for dtype in (torch.float32, torch.float64):
        one = (Bernoulli if family == "bernoulli" else Categorical)(logits.to(dtype))
        draw = Draw(one.sample(noise[:, 0].to(dtype)), None, {"samples": noise[:, 1:].to(dtype)})
        signal = Signal(critic=lambda a: 3 + (a * c.to(a.dtype)).flatten(2).sum(-1) ** 2)
        state = as_dtype(state_of(estimator, one, key=70), dtype)
        (g,), value = cotangents(estimator, one, draw, signal, state)
        assert bool(torch.isfinite(g).all())
        assert bool(torch.isfinite(value).all())
        new, _ = estimator.update(state, one, draw, signal, torch.full((n,), 1 / n, dtype=dtype))
        assert bool(torch.isfinite(new["learned"]).all())
        found.append(g.double())
    off = (found[0] - found[1]).flatten(1).norm(dim=1)
    assert float((off - 1e-3 * found[1].flatten(1).norm(dim=1)).max()) < 1e-4


@BOTH
def test_one_sample_is_refused(part):
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        part(samples=1)


@BOTH
def test_a_critic_of_another_shape_is_refused(part):
    one = make("bernoulli", (5,))
    extra = {"samples": noise_of("uniform", (5, 1, 2))}
    with pytest.raises(PglabError, match="critic"):
        cotangents(
            part(), one, Draw(one.mode(), None, extra), Signal(critic=lambda a: a.sum(-1)[0]), state_of(part(), one)
        )
