"""Importance weights and the clipped surrogate, against enumeration and computations by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from spine import Quadratic, make, noise_of, normal, repeated

from pglab.config import Config
from pglab.distributions import Bernoulli, Categorical
from pglab.estimators import ESTIMATORS, Draw, ImportanceWeighted, PPOClip, ScoreFunction, Signal
from pglab.gradients import cotangents
from pglab.training import Trainer

FAMILIES = pytest.mark.parametrize("family", ["categorical", "bernoulli", "gaussian", "squashed_gaussian", "beta"])


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows_of(family: str, rows: tuple[int, ...], same: bool = False):
    """A distribution, draws of another one, and a signal with that one's log-probabilities."""
    d = make(family, rows)
    behaviour = d if same else make(family, rows, key=30)
    action = behaviour.sample(noise_of(d.noise_kind, tuple(d.noise_shape), 5))
    value = Quadratic(d)(d.executed(action))
    log_prob = behaviour.log_prob(action).sum(-1)
    return d, Draw(action), Signal(value, normal(*rows, key=8), behaviour_log_prob=log_prob)


def score(d, action: torch.Tensor) -> list[torch.Tensor]:
    """The gradient of the joint log-probability, row by row, in operations of its own."""
    leaf, parameters = d.cut()
    return list(torch.autograd.grad(leaf.log_prob(action).sum(), parameters))


def over_rows(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return x.reshape(*x.shape, *([1] * (like.ndim - x.ndim)))


@FAMILIES
@pytest.mark.parametrize("baseline", ["per row", "per factor"])
def test_plain_weights_are_those_of_the_score_function(family, baseline):
    d, draw, signal = rows_of(family, (2, 3, 4))
    if baseline == "per factor":
        signal = Signal(signal.value, normal(2, 3, 4, 2), behaviour_log_prob=signal.behaviour_log_prob)
    a, b = (cotangents(e, d, draw, signal)[0] for e in (ImportanceWeighted(), ScoreFunction()))
    torch.testing.assert_close(a, b)


@FAMILIES
@pytest.mark.parametrize("weights", ["clipped", "self_normalised"])
def test_weights_by_hand(family, weights):
    rows = (2, 3, 4)
    d, draw, signal = rows_of(family, rows)
    estimator = ImportanceWeighted(weights=weights, clip=0.9)
    ratio = torch.exp(d.log_prob(draw.action).sum(-1) - signal.behaviour_log_prob)
    assert float(ratio.min()) < 0.9 < float(ratio.max())
    if weights == "clipped":
        w = torch.where(ratio < 0.9, ratio, 0.9)
    else:
        w = torch.empty_like(ratio)
        for member in range(3):
            w[:, member] = ratio[:, member] / ratio[:, member].sum() * 8
    found, _ = cotangents(estimator, d, draw, signal)
    for g, s in zip(found, score(d, draw.action), strict=True):
        torch.testing.assert_close(g, over_rows(w * (signal.value - signal.baseline), s) * s)


@pytest.mark.parametrize("weights", ["plain", "clipped", "self_normalised"])
@FAMILIES
def test_weights_are_1_where_the_current_policy_drew_the_actions(family, weights):
    d, draw, signal = rows_of(family, (2, 3, 4), same=True)
    exact, _ = cotangents(ScoreFunction(), d, draw, Signal(signal.value, signal.baseline))
    for given in (signal, Signal(signal.value, signal.baseline)):
        found, _ = cotangents(ImportanceWeighted(weights=weights), d, draw, given)
        torch.testing.assert_close(found, exact)


def test_self_normalised_members_do_not_mix():
    d, draw, signal = rows_of("gaussian", (2, 3, 4))
    before, _ = cotangents(ImportanceWeighted(weights="self_normalised"), d, draw, signal)
    moved = signal.behaviour_log_prob.clone()
    moved[1, 2, 0] -= 1.0
    other = Signal(signal.value, signal.baseline, behaviour_log_prob=moved)
    after, _ = cotangents(ImportanceWeighted(weights="self_normalised"), d, draw, other)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[:, :2], b[:, :2])
        assert bool((a[:, 2] != b[:, 2]).all())


P, BEHAVIOUR, F = column(0.6, 0.3, 0.1), column(0.2, 0.5, 0.3), column(1.0, -2.0, 4.0)


def batch_mean(estimator: ImportanceWeighted, n: int) -> torch.Tensor:
    """The mean over all outcomes of n draws of BEHAVIOUR of the mean of their estimates for P's logits."""
    outcomes = torch.tensor(list(itertools.product(range(3), repeat=n)))  # [3^n, n]
    weight = BEHAVIOUR[outcomes].prod(1)
    d = repeated(Categorical(P.log()[None]), outcomes.numel())
    d = Categorical(d.logits.unflatten(0, (1, *outcomes.shape)))  # every batch is a member: rows [1, 3^n, n]
    action = torch.eye(3, dtype=torch.float64)[outcomes][None, :, :, None]
    signal = Signal(F[outcomes][None], behaviour_log_prob=BEHAVIOUR[outcomes].log()[None])
    (found,), _ = cotangents(estimator, d, Draw(action), signal)
    return torch.einsum("b,bk->k", weight, found[0].mean(1)[:, 0])


def test_plain_weights_are_unbiased_by_enumeration():
    exact = P * (F - P @ F)
    for n in (1, 3):
        torch.testing.assert_close(batch_mean(ImportanceWeighted(), n), exact, rtol=1e-10, atol=1e-10)


def test_clipped_weights_have_the_declared_bias_by_enumeration():
    ratio = (P / BEHAVIOUR).clamp(max=2.0)
    exact = sum(BEHAVIOUR[i] * ratio[i] * F[i] * (torch.eye(3, dtype=torch.float64)[i] - P) for i in range(3))
    found = batch_mean(ImportanceWeighted(weights="clipped", clip=2.0), 1)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    assert float((found - P * (F - P @ F)).abs().max()) > 0.05
    assert ImportanceWeighted(weights="clipped").declared_bias
    assert not ImportanceWeighted().declared_bias


def test_self_normalised_bias_falls_as_1_over_the_rows():
    exact = P * (F - P @ F)
    bias = [float((batch_mean(ImportanceWeighted(weights="self_normalised"), n) - exact).norm()) for n in (2, 4, 8)]
    assert bias[0] > bias[1] > bias[2] > 1e-3
    assert bias[1] / bias[2] == pytest.approx(2, rel=0.2)
    assert ImportanceWeighted(weights="self_normalised").declared_bias


def test_self_normalised_weights_do_not_depend_on_the_scale_of_the_behaviour():
    d, draw, signal = rows_of("beta", (6,))
    found = [
        cotangents(
            ImportanceWeighted(weights="self_normalised"),
            d,
            draw,
            Signal(signal.value, behaviour_log_prob=signal.behaviour_log_prob + shift),
        )[0]
        for shift in (0.0, 2.5)
    ]
    torch.testing.assert_close(*found)


# -- the clipped surrogate

CLIP = {"clip": 0.2}


def clipped_rows(ratio: torch.Tensor, advantage: torch.Tensor, state=CLIP):
    """Bernoulli rows at 1 with probability 0.6, drawn with probability 0.6 / ratio: estimate, surrogate, score 0.4."""
    d = Bernoulli(torch.full((len(ratio), 1), 0.6, dtype=torch.float64).logit())
    signal = Signal(advantage + 1, torch.ones_like(advantage), behaviour_log_prob=(0.6 / ratio).log())
    (found,), value = cotangents(PPOClip(), d, Draw(torch.ones(len(ratio), 1).double()), signal, state)
    return found[:, 0], value


def test_the_six_cases_of_the_clip_by_hand():
    """Ratio below, in and above (0.8, 1.2), advantage 2 or -2; the score is 1 - 0.6."""
    ratio, advantage = column(0.7, 1.1, 1.5, 0.7, 1.1, 1.5), column(2, 2, 2, -2, -2, -2)
    found, value = clipped_rows(ratio, advantage)
    torch.testing.assert_close(found, column(0.7 * 2, 1.1 * 2, 0, 0, -1.1 * 2, -1.5 * 2) * 0.4)
    torch.testing.assert_close(value, column(1.4, 2.2, 2.4, -1.6, -2.2, -3.0))


def test_the_clips_own_value_is_used():
    found, value = clipped_rows(column(1.25, 1.25), column(1, 1), {"clip": 0.3})
    torch.testing.assert_close(found, column(1.25, 1.25) * 0.4)
    torch.testing.assert_close(value, column(1.25, 1.25))


def test_members_have_clips_of_their_own():
    d, draw, signal = rows_of("gaussian", (2, 3, 4))
    clips = [0.05, 0.3, 0.9]
    found, _ = cotangents(PPOClip(), d, draw, signal, {"clip": column(*clips)[:, None]})
    for member, clip in enumerate(clips):
        alone, _ = cotangents(PPOClip(), d, draw, signal, {"clip": clip})
        for a, b in zip(found, alone, strict=True):
            torch.testing.assert_close(a[:, member], b[:, member])


@FAMILIES
@pytest.mark.parametrize("baseline", ["none", "per row", "per factor"])
def test_at_ratio_1_it_is_the_score_function(family, baseline):
    d, draw, signal = rows_of(family, (2, 3, 4), same=True)
    b = {"none": None, "per row": signal.baseline, "per factor": normal(2, 3, 4, 2)}[baseline]
    exact, _ = cotangents(ScoreFunction(), d, draw, Signal(signal.value, b))
    for behaviour in (signal.behaviour_log_prob, None):
        given = Signal(signal.value, b, behaviour_log_prob=behaviour)
        found, _ = cotangents(PPOClip(), d, draw, given, CLIP)
        torch.testing.assert_close(found, exact)


@FAMILIES
def test_a_row_contributes_its_weighted_score_or_nothing(family):
    d, draw, signal = rows_of(family, (40,))
    found, value = cotangents(PPOClip(), d, draw, signal, CLIP)
    ratio = torch.exp(d.log_prob(draw.action).sum(-1) - signal.behaviour_log_prob)
    a = signal.value - signal.baseline
    active = torch.where(a > 0, ratio < 1.2, ratio > 0.8)
    assert 0 < int(active.sum()) < 40
    torch.testing.assert_close(value, torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a))
    for g, s in zip(found, score(d, draw.action), strict=True):
        torch.testing.assert_close(g, over_rows(torch.where(active, ratio * a, 0.0), s) * s)


def test_factors_with_baselines_of_their_own_are_clipped_by_the_joint_ratio():
    d, draw, signal = rows_of("bernoulli", (60,))
    b = 2 * normal(60, 2, key=3)
    given = Signal(signal.value, b, behaviour_log_prob=signal.behaviour_log_prob)
    (found,), _ = cotangents(PPOClip(), d, draw, given, CLIP)
    ratio = torch.exp(d.log_prob(draw.action).sum(-1) - signal.behaviour_log_prob)[:, None]
    a = signal.value[:, None] - b
    active = torch.where(a > 0, ratio < 1.2, ratio > 0.8)
    torch.testing.assert_close(found, torch.where(active, ratio * a, 0.0) * (draw.action - torch.sigmoid(d.logits)))


@pytest.mark.parametrize("value", [0, -0.1, {"kind": "linear", "start": 0.2, "end": 0.0}])
def test_clips_of_0_or_below_are_refused(value):
    with pytest.raises(ValueError, match="above 0"):
        PPOClip(clip=value)
    if not isinstance(value, dict):
        with pytest.raises(ValueError, match="greater than 0"):
            ImportanceWeighted(clip=value)


@pytest.mark.parametrize("gap", [-500.0, -80.0, 80.0, 500.0])
@pytest.mark.parametrize("advantage", [-10.0, 10.0])
@pytest.mark.parametrize("name", ["ppo_clip", "importance_weighted"])
def test_policies_far_apart_give_finite_estimates_in_float32(name, advantage, gap):
    d = make("categorical", (3,))
    d = Categorical(d.logits.float())
    action = d.mode()
    signal = Signal(torch.full((3,), advantage), behaviour_log_prob=(d.log_prob(action).sum(-1) - gap).clamp(max=0.0))
    for options in ({}, {"weights": "clipped"}, {"weights": "self_normalised"}):
        if name == "ppo_clip" and options:
            continue
        (found,), value = cotangents(ESTIMATORS.get(name)(**options), d, Draw(action), signal, CLIP)
        assert bool(torch.isfinite(found).all())
        assert bool(torch.isfinite(value).all())


@pytest.mark.parametrize(
    "estimator", [{"name": "ppo_clip", "clip": [0.001, 0.3]}, {"name": "importance_weighted", "weights": "clipped"}]
)
def test_several_epochs_and_minibatches_on_one_batch(estimator):
    config = {
        "env": {"id": "CartPole-v1", "num_envs": 4},
        "agent": {"name": "on_policy", "steps": 16, "epochs": 3, "minibatches": 2},
        "policy": {"hidden": [8]},
        "estimator": estimator,
        "baseline": "value",
        "learning_rate": 0.01,
        "seeds": 1,
    }
    trainer = Trainer(Config.read(config))
    start = trainer.agent.policy_parameters.flat.clone()
    for _ in range(2):
        trainer.agent.update(trainer.env)
    end = trainer.agent.policy_parameters.flat
    assert bool(torch.isfinite(end).all())
    assert bool((end != start).any(1).all())
    if len(end) == 2:
        assert not torch.equal(end[0], end[1])  # the clip was met
