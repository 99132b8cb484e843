"""ARM and DisARM by exact integration over the uniforms: both are constant or linear in u on a few cells per factor."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from spine import make, noise_of, normal, repeated
from test_unbiased import exact_discrete, table_critic

from pglab.distributions import Bernoulli
from pglab.errors import PglabError
from pglab.estimators import Draw, Signal
from pglab.estimators.arm import ARM
from pglab.estimators.disarm import DisARM
from pglab.gradients import cotangents

BOTH = pytest.mark.parametrize("estimator", [ARM(), DisARM()], ids=lambda e: e.name)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def cells(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gauss-Legendre nodes `[cells, nodes, D]`, their weights `[cells, nodes]` and the cells' widths `[cells, D]`. On a cell,
    a box between the points min(p, 1 - p) and max(p, 1 - p) of every factor, no draw and no twin changes."""
    x, w = torch.tensor([-1.0, 1.0]).double() / math.sqrt(3), torch.tensor([0.5, 0.5]).double()
    parts = []
    for logit in logits.tolist():
        p = 1 / (1 + math.exp(-logit))
        ends = [0.0, min(p, 1 - p), max(p, 1 - p), 1.0]
        parts.append([(a + (b - a) * (1 + x) / 2, w * (b - a), b - a) for a, b in itertools.pairwise(ends)])
    nodes, weights, widths = [], [], []
    for cell in itertools.product(*parts):
        nodes.append(torch.cartesian_prod(*[c[0] for c in cell]).reshape(-1, len(cell)))
        weights.append(torch.cartesian_prod(*[c[1] for c in cell]).reshape(-1, len(cell)).prod(-1))
        widths.append(torch.tensor([c[2] for c in cell], dtype=torch.float64))
    return torch.stack(nodes), torch.stack(weights), torch.stack(widths)


def at_cells(estimator, one: Bernoulli, f):
    """The estimates `[cells, nodes, D]` with their weights and the cells' widths."""
    nodes, weights, widths = cells(one.logits)
    flat = nodes.flatten(0, 1)
    d = repeated(one, len(flat))
    (g,), _ = cotangents(estimator, d, Draw(d.sample(flat), flat), Signal(critic=f))
    return g.view(nodes.shape), weights, widths


def moments(g: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.einsum("cn,cnd->d", weights, g)
    return mean, torch.einsum("cn,cnd->d", weights, (g - mean) ** 2)


@BOTH
@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("key", [0, 30])
def test_the_mean_over_the_uniforms_is_the_exact_gradient(estimator, d, key):
    one = make("bernoulli", (), d, key=key)
    f, values = table_critic(one)
    g, weights, _ = at_cells(estimator, one, f)
    torch.testing.assert_close(moments(g, weights)[0], exact_discrete(one, values), **EXACT)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_disarm_is_arms_expectation_given_the_pair(d):
    one = make("bernoulli", (), d)
    f, _ = table_critic(one)
    arm, weights, widths = at_cells(ARM(), one, f)
    disarm, _, _ = at_cells(DisARM(), one, f)
    assert torch.equal(disarm, disarm[:, :1].expand_as(disarm))
    given = (arm * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(disarm[:, 0], given, **EXACT)
    # Var ARM = Var DisARM + E[(f - f')^2 width^2 / 12], the variance of a uniform on its cell.
    slope = (arm[:, 1:] - arm[:, :1]).abs().sum(1)
    assert float(slope.max()) > 0.1
    z = one.logits > -torch.logit(cells(one.logits)[0].mean(1))
    twin = one.logits > torch.logit(cells(one.logits)[0].mean(1))
    difference = f(z.double()) - f(twin.double())
    within = (weights.sum(1, keepdim=True) * difference.unsqueeze(-1) ** 2 * widths**2 / 12).sum(0)
    torch.testing.assert_close(moments(arm, weights)[1], moments(disarm, weights)[1] + within, **EXACT)


@pytest.mark.parametrize(
    ("estimator", "t", "theta", "variance"),
    [
        (ARM(), 0.499, 0.1, 1.3027e-7),
        (ARM(), 0.45, 0.5, 2.083e-4),
        (DisARM(), 0.499, 0.1, 1.296e-7),
        (DisARM(), 0.45, 0.5, 0.0),
    ],
    ids=str,
)
def test_one_bernoulli_and_a_square_has_the_known_variance(estimator, t, theta, variance):
    one = Bernoulli(torch.tensor([math.log(theta / (1 - theta))], dtype=torch.float64))
    g, weights, _ = at_cells(estimator, one, lambda b: (b[..., 0] - t) ** 2)
    mean, found = moments(g, weights)
    assert float(mean) == pytest.approx(theta * (1 - theta) * (1 - 2 * t), rel=1e-10)
    assert float(found) == pytest.approx(variance, rel=3e-4, abs=1e-16)


def test_by_hand():
    """p = (0.8, 0.3), u = (0.9, 0.5): the draw is (1, 0), its twin (0, 0), f = 2 and 5."""
    d = Bernoulli(torch.logit(torch.tensor([[0.8, 0.3]], dtype=torch.float64)))
    u = torch.tensor([[0.9, 0.5]], dtype=torch.float64)
    signal = Signal(critic=lambda a: 5 - 3 * a[..., 0] + 7 * a[..., 1])
    action = d.sample(u)
    assert action.tolist() == [[1.0, 0.0]]
    (arm,), _ = cotangents(ARM(), d, Draw(action, u), signal)
    (disarm,), _ = cotangents(DisARM(), d, Draw(action, u), signal)
    torch.testing.assert_close(arm, torch.tensor([[-3 * 0.4, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(disarm, torch.tensor([[-3 * 0.8 / 2, 0.0]], dtype=torch.float64))


@BOTH
def test_f_is_asked_about_the_draw_and_the_draw_of_1_minus_u(estimator):
    d = make("bernoulli", (500,), 3)
    u, seen = noise_of("uniform", (500, 3)), []

    def critic(a: torch.Tensor) -> torch.Tensor:
        seen.append(a)
        return a.sum(-1)

    cotangents(estimator, d, Draw(d.sample(u), u), Signal(critic=critic))
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.stack([d.sample(u), d.sample(1 - u)]))


@BOTH
def test_no_noise_is_refused(estimator):
    d = make("bernoulli", (4,))
    with pytest.raises(PglabError, match="noise"):
        cotangents(estimator, d, Draw(d.mode()), Signal(critic=lambda a: a.sum(-1)))


@BOTH
def test_float32_with_extreme_logits(estimator):
    logits = torch.linspace(-50, 50, 4001).reshape(-1, 1).expand(-1, 3).contiguous()
    u = noise_of("uniform", (4001, 3)).float().clamp(2**-24, 1 - 2**-24)
    found = []
    for dtype in (torch.float32, torch.float64):
        d, noise, c = Bernoulli(logits.to(dtype)), u.to(dtype), normal(3).to(dtype)
        (g,), value = cotangents(estimator, d, Draw(d.sample(noise), noise), Signal(critic=lambda a, c=c: 100 + a @ c))
        assert bool(torch.isfinite(g).all())
        assert bool(torch.isfinite(value).all())
        found.append(g.double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert bool((found[0].abs().sum(1) > 0).any())
