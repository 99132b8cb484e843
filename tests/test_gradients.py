"""The cut at the distribution's parameters: no silent broadcast, no leak between rows, the same gradient as without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from spine import FAMILIES, Quadratic, assert_mean, case, event_of, make, noise_of, normal, pairs, with_parameters

from pglab.distributions import Bernoulli, Categorical, Gaussian
from pglab.environments.contract import ActionSpec
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS, Draw, Enumeration, ScoreFunction, Signal
from pglab.gradients import cotangents, entropy, push, surrogate
from pglab.networks import Parameters
from pglab.noise import Noise
from pglab.policy import Policy, PolicyConfig

EVERY = pytest.mark.parametrize(("name", "family"), pairs())
ROWS = pytest.mark.parametrize("rows", [(5,), (2, 3, 4)], ids=str)


def wrong(x: torch.Tensor, rows: int) -> list[torch.Tensor]:
    """Shapes of the right numbers that broadcasting would swallow."""
    found = [x.unsqueeze(-1), x.unsqueeze(0), x.unsqueeze(rows), x[0], x[:1], x.sum()]
    return [v for v in found if v.shape != x.shape]


@EVERY
@ROWS
def test_the_right_shapes_pass_and_give_one_number_and_one_cotangent_per_row(name, family, rows):
    estimator, d, draw, signal, state = case(name, family, rows)
    found, value = cotangents(estimator, d, draw, signal, state)
    assert value.shape == rows
    assert [g.shape for g in found] == [getattr(d, p).shape for p in d.parameters]
    assert all(bool(torch.isfinite(g).all()) for g in found)
    assert not value.requires_grad


@EVERY
@ROWS
@pytest.mark.parametrize("field", ["action", "noise", "value", "baseline", "behaviour_log_prob"])
def test_every_wrong_shape_is_refused(name, family, rows, field):
    estimator, d, draw, signal, state = case(name, family, rows)
    if field in ("action", "noise"):
        for x in wrong(getattr(draw, field), len(rows)):
            with pytest.raises(PglabError, match=field):
                cotangents(estimator, d, replace(draw, **{field: x}), signal, state)
        return
    for x in wrong(normal(*rows), len(rows)):
        with pytest.raises(PglabError, match=field):
            cotangents(estimator, d, draw, replace(signal, **{field: x}), state)


@EVERY
@ROWS
def test_a_critic_of_the_wrong_shape_is_refused(name, family, rows):
    estimator, d, draw, signal, state = case(name, family, rows)
    if not any(need.startswith("critic") for need in estimator.needs):
        pytest.skip("asks no critic")
    for change in (
        lambda v: v.unsqueeze(-1),
        lambda v: v.unsqueeze(0),
        lambda v: v.mean(-1),
        lambda v: v.mean(-1, keepdim=True),
        lambda v: v.mean(),
    ):
        with pytest.raises(PglabError):
            cotangents(estimator, d, draw, replace(signal, critic=lambda a, c=change: c(Quadratic(d)(a))), state)


def test_enumeration_refuses_a_critic_that_drops_the_rows_leading_axis():
    """As many outcomes as time steps: `[M, P, N]` would broadcast against `[M, T, P, N]`."""
    d = make("categorical", (3, 2, 4), 1, 3)
    with pytest.raises(PglabError, match="critic"):
        cotangents(Enumeration(), d, Draw(d.mode()), Signal(critic=lambda a: Quadratic(d)(a)[:, 0]))


@EVERY
def test_integers_are_refused(name, family):
    estimator, d, draw, signal, state = case(name, family, (5,))
    with pytest.raises(PglabError, match="dtype"):
        cotangents(estimator, d, replace(draw, action=draw.action.long()), signal, state)
    with pytest.raises(PglabError, match="dtype"):
        cotangents(estimator, d, draw, replace(signal, value=torch.ones(5, dtype=torch.int64)), state)


@EVERY
def test_what_an_estimator_needs_is_asked_for(name, family):
    estimator, d, draw, _, state = case(name, family, (5,))
    with pytest.raises(PglabError, match="needs signal"):
        cotangents(estimator, d, draw, Signal(), state)


def test_parameters_that_are_not_expanded_to_the_rows_are_refused():
    d = Gaussian(normal(5, 2), torch.zeros(2).double())
    with pytest.raises(PglabError, match="log_std"):
        cotangents(ScoreFunction(), d, Draw(normal(5, 2)), Signal(value=normal(5)))


def test_an_entropy_weight_that_would_add_an_axis_is_refused():
    estimator, d, draw, signal, state = case("score_function", "gaussian", (5,))
    with pytest.raises(PglabError, match="entropy"):
        cotangents(estimator, d, draw, signal, state, torch.ones(5, 1))


def test_push_refuses_weights_that_are_not_one_per_row():
    policy, parameters, d = network("gaussian", (2, 3, 4))
    found = [torch.ones_like(getattr(d, p)) for p in d.parameters]
    for shape in [(2, 3), (3, 1), (2, 3, 1), (2, 3, 4, 1)]:
        with pytest.raises(PglabError, match="weight"):
            push(parameters, d, found, torch.ones(shape))
    assert policy.family == "gaussian"


@EVERY
def test_rows_do_not_leak_into_each_other(name, family):
    rows = (2, 3, 4)
    estimator, d, draw, signal, state = case(name, family, rows)
    before, value = cotangents(estimator, d, draw, signal, state)
    j = (1, 2, 0)
    moved = [getattr(d, p).clone() for p in d.parameters]
    for x in moved:
        x[j] += torch.linspace(4.9, 1.9, x[j].numel()).reshape(x[j].shape)  # not a constant: no softmax sees one
    after, value_after = cotangents(estimator, with_parameters(d, moved), draw, signal, state)
    others = torch.ones(rows, dtype=torch.bool)
    others[j] = False
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[others], b[others])
    assert torch.equal(value[others], value_after[others])
    assert any(not torch.equal(a[j], b[j]) for a, b in zip(before, after, strict=True))


@EVERY
def test_rows_alone_equal_rows_together(name, family):
    estimator, d, draw, signal, state = case(name, family, (6,))
    together, _ = cotangents(estimator, d, draw, signal, state)
    i = 4
    alone = with_parameters(d, [getattr(d, p)[i : i + 1] for p in d.parameters])
    part = Draw(draw.action[i : i + 1], draw.noise[i : i + 1], {k: v[i : i + 1] for k, v in draw.extra.items()})
    critic = Quadratic(d)
    critic.c, critic.w = critic.c[i : i + 1], critic.w[i : i + 1]
    baseline = None if signal.baseline is None else signal.baseline[i : i + 1]
    single, _ = cotangents(estimator, alone, part, Signal(signal.value[i : i + 1], baseline, critic), state)
    for a, b in zip(together, single, strict=True):
        torch.testing.assert_close(a[i : i + 1], b)


SPECS = {
    "categorical": ActionSpec("discrete", (3, 3)),
    "bernoulli": ActionSpec("binary", (2, 2)),
    "gaussian": ActionSpec("continuous", (1, 1)),
    "squashed_gaussian": ActionSpec("continuous", (1, 1), low=normal(2).numpy(), high=normal(2).numpy()),
    "beta": ActionSpec("continuous", (1, 1), low=normal(2).numpy(), high=normal(2).numpy()),
}


def network(family: str, rows: tuple[int, int, int]):
    """A policy network in float64 and its distribution on the rows, with its graph."""
    config = PolicyConfig(hidden=(5,), distribution=family, output_gain=1.0)
    policy = Policy(config, 4, SPECS[family], "gaussian")
    made = policy.initial(Noise.of_seeds(range(rows[1])))
    parameters = Parameters(made.shapes, made.flat.double())
    return policy, parameters, policy.distribution(parameters, normal(*rows, 4, key=60))


@EVERY
def test_the_cut_gives_the_gradient_of_the_mean_surrogate_through_the_network(name, family):
    rows = (2, 3, 4)
    _, parameters, d = network(family, rows)
    estimator, _, _, _, state = case(name, family, rows)
    noise = noise_of(d.noise_kind, tuple(d.noise_shape), 2)
    extra = {
        k: noise_of(kind, (*rows, *shape), 70)
        for k, (kind, shape) in estimator.extra_noise(d.noise_kind, event_of(d)).items()
    }
    draw, critic = Draw(d.sample(noise), noise, extra), Quadratic(d)
    value = critic(d.executed(draw.action))
    signal = Signal(value, normal(*rows) if estimator.uses_baseline else None, critic)
    weight = normal(*rows, key=61).abs() / 24
    whole = (surrogate(estimator, d, draw, signal, state) * weight).sum()
    leaves = list(parameters.views.values())
    direct = torch.autograd.grad(whole, leaves, retain_graph=True, allow_unused=True)
    direct = [torch.zeros_like(v) if g is None else g for g, v in zip(direct, leaves, strict=True)]
    push(parameters, d, cotangents(estimator, d, draw, signal, state)[0], weight)
    torch.testing.assert_close(-parameters.grad, torch.cat([g.reshape(3, -1) for g in direct], 1))
    assert bool((parameters.grad != 0).any())


def test_push_leaves_out_a_head_that_is_not_learned():
    config = PolicyConfig(hidden=(5,), distribution="gaussian", learn_std=False)
    policy = Policy(config, 4, SPECS["gaussian"], "gaussian")
    parameters = policy.initial(Noise.of_seeds([0, 1]))
    d = policy.distribution(parameters, normal(3, 2, 4, 4).float())
    push(parameters, d, [torch.ones_like(d.mean), torch.ones_like(d.log_std)], torch.ones(3, 2, 4))
    assert bool((parameters.grad[:, -2:] == 0).all())
    assert bool((parameters.grad[:, :-2] != 0).any())


def entropy_part(family: str, weight, rows=(2, 3, 4), **options):
    estimator, d, draw, signal, state = case("score_function", family, rows, **options)
    plain, a = cotangents(estimator, d, draw, signal, state)
    regular, b = cotangents(estimator, d, draw, signal, state, weight, draw.noise)
    assert torch.equal(a, b)
    return d, [y - x for x, y in zip(plain, regular, strict=True)]


def test_entropy_term_is_the_weighted_closed_form_gradient():
    w = torch.tensor([[0.1], [0.5], [2.0]], dtype=torch.float64)  # [P, 1]
    d, (found,) = entropy_part("categorical", w)
    p, log_p = d.probs(), d.log_probs()
    h = -(p * log_p).sum(-1, keepdim=True)
    torch.testing.assert_close(found, w[..., None, None] * -p * (log_p + h))
    d, (found,) = entropy_part("bernoulli", w)
    s = torch.sigmoid(d.logits)
    torch.testing.assert_close(found, -w[..., None] * d.logits * s * (1 - s))
    d, (by_mean, by_log_std) = entropy_part("gaussian", w)
    torch.testing.assert_close(by_mean, torch.zeros_like(by_mean))
    torch.testing.assert_close(by_log_std, w[..., None].expand_as(by_log_std))


def test_entropy_term_of_beta_by_the_trigamma_function():
    w = torch.tensor([[0.1], [0.5], [2.0]], dtype=torch.float64)
    d, (by_alpha, by_beta) = entropy_part("beta", w)
    a, b = d.alpha, d.beta
    one, two, both = (torch.special.polygamma(1, x) for x in (a, b, a + b))
    torch.testing.assert_close(by_alpha, w[..., None] * ((a + b - 2) * both - (a - 1) * one))
    torch.testing.assert_close(by_beta, w[..., None] * ((a + b - 2) * both - (b - 1) * two))


def test_entropy_term_of_the_squashed_gaussian_by_hand():
    rows = (2, 3, 4)
    d, (by_mean, by_log_std) = entropy_part("squashed_gaussian", 0.3, rows)
    x = noise_of("normal", (*rows, 2))
    u = d.mean + d.log_std.exp() * x
    torch.testing.assert_close(by_mean, -0.6 * torch.tanh(u))
    torch.testing.assert_close(by_log_std, 0.3 * (1 - 2 * torch.tanh(u) * d.log_std.exp() * x))


@pytest.mark.statistical
def test_pathwise_entropy_has_the_mean_of_minus_log_prob():
    d = make("squashed_gaussian", (), 2)
    n = 100_000
    many = with_parameters(d, [getattr(d, p).expand(n, 2) for p in d.parameters])
    a, b = noise_of("normal", (n, 2), 1), noise_of("normal", (n, 2), 2)
    difference = many.pathwise_entropy(a) + many.log_prob(many.sample(b), b)
    assert_mean(difference, torch.zeros(2), resolution=0.1)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_joint_entropy_sums_the_factors(family):
    d = make(family, (2, 3, 4))
    noise = noise_of(d.noise_kind, tuple(d.noise_shape))
    each = d.entropy() if d.has_entropy else d.pathwise_entropy(noise)
    torch.testing.assert_close(entropy(d, noise), each.sum(-1))


def test_a_masked_category_gets_no_gradient_from_any_estimator():
    mask = torch.tensor([[True, False, True], [True, True, False]])
    for name, family in pairs():
        if family != "categorical":
            continue
        estimator, d, _, signal, state = case(name, family, (2, 3, 4))
        d = Categorical(d.logits, mask)
        noise = noise_of("exponential", (2, 3, 4, 2, 3))
        draw = Draw(d.sample(noise), noise, case(name, family, (2, 3, 4))[2].extra)
        found, _ = cotangents(estimator, d, draw, signal, state, 0.1)
        assert bool(torch.isfinite(found[0]).all()), name
        assert bool((found[0][..., ~mask] == 0).all()), name


def test_the_estimators_see_leaves_and_the_policy_gets_no_gradient_behind_them():
    logits = torch.zeros(4, 2).double().requires_grad_()
    d = Bernoulli(logits * 2)
    (found,), _ = cotangents(
        ESTIMATORS.get("score_function")(), d, Draw(torch.ones(4, 2).double()), Signal(torch.ones(4))
    )
    assert logits.grad is None
    torch.testing.assert_close(found, torch.full((4, 2), 0.5, dtype=torch.float64))
