"""NVIL: unbiased whatever it has learned; what it learns is the values' mean, of the state and of the past."""

from __future__ import annotations

import pytest
import torch
from spine import assert_mean, make, noise_of, normal, repeated

from pglab.distributions import Bernoulli
from pglab.estimators import NVIL, Draw, ScoreFunction, Signal
from pglab.gradients import cotangents
from pglab.noise import Noise
from pglab.objectives import estimate_gradient
from pglab.trees import as_dtype


def fresh(estimator: NVIL, members: int = 1, observation_size: int = 0) -> dict:
    return as_dtype(estimator.initial(Noise.of_seeds(range(members)), (2,), observation_size), torch.float64)


def anywhere(estimator: NVIL, members: int = 1, observation_size: int = 0, sd: float = 0.5) -> dict:
    state = fresh(estimator, members, observation_size)
    ones = torch.ones(members, 1, dtype=torch.float64)
    state["learned"] = normal(*state["learned"].shape, key=77)
    return state | {
        "size": {"square": 4 * ones, "seen": ones},
        "centre": {"mean": -0.7 * ones, "variance": sd**2 * ones, "seen": ones},
    }


def over_all(estimator: NVIL, one, f, state) -> tuple[torch.Tensor, torch.Tensor]:
    z = one.enumerate()
    p = one.log_prob(z).sum(-1).exp()
    (g,), _ = cotangents(estimator, repeated(one, len(z)), Draw(z), Signal(f(z)), state)
    return torch.einsum("m,m...->...", p, g), g


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
@pytest.mark.parametrize("sd", [0.5, 4.0])
def test_the_mean_over_all_actions(family, sd):
    """Exact; with normalize_variance divided by max(1, sd), and by nothing else."""
    one = make(family, (), 2, 3)
    c = normal(*one.noise_shape, key=5)
    f = lambda a: torch.exp((a * c).flatten(-one.event_ndim).sum(-1))  # noqa: E731
    leaf, (logits,) = one.cut()
    z = one.enumerate()
    exact = torch.autograd.grad((leaf.log_prob(z).sum(-1).exp() * f(z)).sum(), logits)[0]
    state = anywhere(NVIL(), sd=sd)
    mean, _ = over_all(NVIL(), one, f, state)
    torch.testing.assert_close(mean, exact, rtol=1e-10, atol=1e-10)
    scaled, _ = over_all(NVIL(normalize_variance=True), one, f, state)
    torch.testing.assert_close(scaled, exact / max(1.0, sd), rtol=1e-10, atol=1e-10)


def test_it_declares_its_bias():
    assert NVIL().declared_bias == ""
    assert "sd" in NVIL(normalize_variance=True).declared_bias


def test_it_subtracts_the_function_of_the_state_and_the_mean():
    """The estimate for f = 0 is -(C + c) s, with C the same for all actions at a state and another at another."""
    d, obs = make("bernoulli", (6,)), normal(6, 3, key=2)
    state, action = anywhere(NVIL(), observation_size=3), torch.ones(6, 2).double()
    (g,), _ = cotangents(NVIL(), d, Draw(action), Signal(torch.zeros(6).double(), obs=obs), state)
    (other,), _ = cotangents(NVIL(), d, Draw(0 * action), Signal(torch.zeros(6).double(), obs=obs), state)
    subtracted = -g / torch.sigmoid(-d.logits)
    torch.testing.assert_close(subtracted[:, 0], subtracted[:, 1])
    torch.testing.assert_close(other / torch.sigmoid(d.logits), subtracted)
    assert float(subtracted[:, 0].std()) > 0.1


def test_the_first_batch_is_plain_reinforce_but_for_the_small_start_and_later_ones_know_the_past_only():
    d, estimator = make("gaussian", (50,)), NVIL(decay=0.75, estimator_learning_rate=0.0)
    noise = noise_of("normal", (50, 2))
    draw, weight = Draw(d.sample(noise), noise), torch.full((50,), 1 / 50).double()
    state = fresh(estimator)
    state["learned"].zero_()
    values = [normal(50, key=k) + 10 * k for k in range(3)]
    (first, _), _ = cotangents(estimator, d, draw, Signal(values[0]), state)
    (plain, _), _ = cotangents(ScoreFunction(), d, draw, Signal(values[0]))
    assert torch.equal(first, plain)
    for value in values[:2]:
        learned, info = estimator.update(state, d, draw, Signal(value), weight)
        state |= learned
    assert float(info["estimator/mean"]) == pytest.approx(
        float((0.75 * values[0].mean() + values[1].mean()) / 1.75), rel=1e-9
    )
    c = (0.75 * values[0].mean() + values[1].mean()) / 1.75
    (g, _), _ = cotangents(estimator, d, draw, Signal(values[2]), state)
    (expected, _), _ = cotangents(ScoreFunction(), d, draw, Signal(values[2], c.expand(50)))
    torch.testing.assert_close(g, expected)
    spread = (0.75 * values[0].var(unbiased=False) + values[1].var(unbiased=False)) / 1.75
    (g, _), _ = cotangents(NVIL(normalize_variance=True), d, draw, Signal(4 * values[2] - 3 * c), state)
    torch.testing.assert_close(g, 4 * expected / spread.sqrt().clamp_min(1))


def test_members_and_rows_that_do_not_exist():
    """Each member's mean is that of its own rows of weight above 0, and a member without any stays where it was."""
    rows, estimator = (2, 3, 4), NVIL(decay=0.5, estimator_learning_rate=0.0)
    d = make("gaussian", rows)
    noise = noise_of("normal", (*rows, 2))
    value, weight = normal(*rows), torch.full(rows, 1 / 8).double()
    weight[:, 1, 2:] = 0
    weight[:, 1] *= 2
    value[:, 1, 2:] = 1e9
    weight[:, 2] = 0
    state = fresh(estimator, 3)
    state["learned"].zero_()
    found, info = estimator.update(state, d, Draw(d.sample(noise), noise), Signal(value), weight)
    expected = torch.stack([value[:, 0].mean(), value[:, 1, :2].mean(), torch.tensor(0.0).double()])
    torch.testing.assert_close(info["estimator/mean"], expected)
    again, info = estimator.update({**state, **found}, d, Draw(d.sample(noise), noise), Signal(value), weight)
    torch.testing.assert_close(info["estimator/mean"], expected)
    assert bool(torch.isfinite(again["learned"]).all())


def test_it_learns_the_value_of_the_state():
    """f = 3 o_0 + b at random states: C takes what the state explains, and the variance falls to what is left."""
    estimator, n = NVIL(estimator_learning_rate=0.02, hidden=(16,)), 256
    d = Bernoulli(torch.full((n, 1), 0.3, dtype=torch.float64))
    state, weight = fresh(estimator, 1, 2), torch.full((n,), 1 / n).double()

    def batch(key: int) -> tuple[Draw, Signal]:
        obs, action = normal(n, 2, key=key), d.sample(noise_of("uniform", (n, 1), key))
        return Draw(action), Signal(3 * obs[:, 0] + action[:, 0], obs=obs)

    for i in range(250):
        draw, signal = batch(i)
        state |= estimator.update(state, d, draw, signal, weight)[0]
    draw, signal = batch(10_000)
    (learned,), _ = cotangents(estimator, d, draw, signal, state)
    (plain,), _ = cotangents(ScoreFunction(), d, draw, signal)
    assert float(learned.var()) < 0.1 * float(plain.var())


@pytest.mark.statistical
def test_on_a_plain_objective():
    one, f = Bernoulli(torch.tensor([0.5, -0.3], dtype=torch.float64)), lambda b: (b - 0.2).square().sum(-1) + 5
    found = estimate_gradient("nvil", one, f, 20_000)["logits"]
    plain = estimate_gradient("score_function", one, f, 20_000)["logits"]
    p = torch.sigmoid(one.logits)
    assert float(found.var(0).sum()) < 0.02 * float(plain.var(0).sum())
    assert_mean(found, 0.6 * p * (1 - p), resolution=0.05)
