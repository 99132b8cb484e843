"""Every registered estimator where numbers are hard: finite in float32, and what float64 gives."""

from __future__ import annotations

import pytest
import torch
from spine import event_of, noise_of, pairs

from pglab.distributions import Bernoulli, Beta, Categorical, Gaussian, SquashedGaussian
from pglab.distributions.base import Distribution
from pglab.estimators import ESTIMATORS, Draw, Signal
from pglab.gradients import cotangents
from pglab.noise import Noise
from pglab.trees import as_dtype

N = 24
WIDE = 1000
# Their cost grows with K^2 or they list all joint outcomes; K = 1000 is for the others.
SMALL_ONLY = {"arsm"}
# At a standard deviation of 2e-9 they divide a difference of f by it that is below the resolution of f in float32.
LOST = {("antithetic", "sharp"), ("measure_valued", "sharp"), ("delta_method", "sharp")}


def extreme(family: str, case: str) -> Distribution:
    """`N` rows of hard parameters in float64."""
    sign = torch.linspace(-1, 1, N, dtype=torch.float64)[:, None]
    if family == "categorical":
        k = {"one": 1, "wide": WIDE}.get(case, 3)
        logits = torch.linspace(-1, 1, k, dtype=torch.float64).expand(N, 1, k) * (50 if case == "sharp" else 1)
        return Categorical((logits + sign[:, :, None]).contiguous())
    if family == "bernoulli":
        return Bernoulli((sign * (50 if case == "sharp" else 1)).expand(N, 2).contiguous())
    if family == "beta":
        a = torch.full((N, 2), 200.0 if case == "sharp" else 1.1, dtype=torch.float64)
        return Beta(a, a.flip(-1) * 1.5)
    log_std = torch.full((N, 2), {"sharp": -20.0, "flat": 2.0}.get(case, -0.5), dtype=torch.float64)
    mean = sign.expand(N, 2).contiguous()
    return (Gaussian if family == "gaussian" else SquashedGaussian)(mean, log_std)


def cases(family: str) -> list[str]:
    return {"categorical": ["sharp", "one", "wide"], "bernoulli": ["sharp"], "beta": ["sharp", "flat"]}.get(
        family, ["sharp", "flat"]
    )


def objective(event_ndim: int):
    def f(a: torch.Tensor) -> torch.Tensor:
        flat = a.flatten(-event_ndim)
        c = torch.linspace(-1, 1, flat.shape[-1], dtype=a.dtype)
        x = (flat * c).sum(-1)
        return (x - 0.3).square() + x

    return f


def found_in(dtype: torch.dtype, name: str, d: Distribution, options: dict) -> tuple[list[torch.Tensor], torch.Tensor]:
    estimator = ESTIMATORS.get(name)(**options)
    d = type(d)(**{p: getattr(d, p).to(dtype) for p in d.parameters})
    event = event_of(d)
    tiny = torch.finfo(torch.float32).tiny

    def drawn(kind: str, shape: tuple[int, ...], key: int) -> torch.Tensor:
        x = noise_of(kind, shape, key).to(torch.float32)
        x = x.clamp(6e-8, 1 - 6e-8) if kind == "uniform" else x.clamp_min(tiny) if kind == "exponential" else x
        return x.to(dtype)

    noise = drawn(d.noise_kind, tuple(d.noise_shape), 5)
    extra = {
        key: drawn(kind, (N, *shape), 100 + i)
        for i, (key, (kind, shape)) in enumerate(sorted(estimator.extra_noise(d.noise_kind, event).items()))
    }
    f, draw = objective(d.event_ndim), Draw(d.sample(noise), noise, extra)
    with torch.no_grad():
        value = f(d.executed(draw.action))
    state = {field: getattr(estimator, field)[0].start for field in estimator.scheduled}
    state |= as_dtype(estimator.initial(Noise.of_seeds([0]), event, 0), dtype)
    grads, surrogate = cotangents(estimator, d, draw, Signal(value, None, f), state)
    return [*grads, surrogate], draw.action


EVERY = [(n, f, c) for n, f in pairs() for c in cases(f) if not (c == "wide" and n in SMALL_ONLY)]


@pytest.mark.parametrize(("name", "family", "case"), EVERY)
def test_finite_in_float32_and_as_in_float64(name, family, case):
    fields = ESTIMATORS.get(name).model_fields
    options = {"temperature": 0.01} if "temperature" in fields and not name.startswith("reinmax") else {}
    d = extreme(family, case)
    single, a = found_in(torch.float32, name, d, options)
    double, b = found_in(torch.float64, name, d, options)
    for x in single:
        assert bool(torch.isfinite(x).all()), "not finite"
    if d.kind == "continuous" and (name, case) in LOST:
        return
    same = (a.double() - b).abs().flatten(1).amax(1) < 1e-3  # the same draw in both
    for x, y in zip(single[:-1], double[:-1], strict=True):
        x, y = x[same].double(), y[same]
        assert float((x - y).norm()) <= 1e-3 * float(y.norm()) + 1e-6, f"{(x - y).norm():.3g} of {y.norm():.3g}"


def test_one_category_gets_no_gradient():
    for name, family in pairs():
        if family == "categorical":
            (grad, *_), _ = found_in(torch.float32, name, extreme(family, "one"), {})
            assert bool((grad == 0).all()), name
