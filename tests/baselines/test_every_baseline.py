"""What every baseline keeps to: members and invalid rows apart, one column, plain objectives, factors and scales."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from spine import Quadratic, assert_mean, case, make, noise_of, normal, pairs

import pglab
from pglab.baselines import BASELINES, Baseline, Batch, Scores, baselined
from pglab.distributions import Bernoulli, Categorical
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS, Signal
from pglab.gradients import cotangents
from pglab.objectives import Problem
from pglab.trees import repeat_members, take_member

OPTIONS = [
    {"name": "time_dependent", "leave_one_out": True},
    {"name": "time_dependent", "steps": 2},
    {"name": "linear_features", "folds": 2},
    {"name": "linear_features", "folds": 9, "decay": 0.0},
    {"name": "group_normalised", "std": False},
    {"name": "whitened", "std": False},
    {"name": "optimal_per_time", "steps": 2},
    {"name": "optimal_per_time", "prior": 0.0},
]
EVERY = pytest.mark.parametrize("given", [*({"name": n} for n in BASELINES.names()), *OPTIONS], ids=str)
T, P, N, WIDE = 4, 2, 3, 5


def random_batch(key: int, rows: tuple[int, int, int] = (T, P, N), valid: torch.Tensor | None = None) -> Batch:
    """Everything that a batch can offer, in whole episodes of random lengths unless `valid` says otherwise."""
    t, p, n = rows
    if valid is None:
        lengths = 1 + (normal(p, n, key=key + 9).abs() * 2).long().clamp(max=t - 1)
        valid = torch.arange(t)[:, None, None] < lengths
    d = make("categorical", rows, key=key)
    along = torch.where(valid, normal(*rows, key=key + 4), 0.0), torch.where(valid, normal(*rows, key=key + 5), 0.0)
    scores = Scores(
        normal(p, n, WIDE, key=key + 2),
        normal(p, n, WIDE, key=key + 3),
        lambda b: (along[0] - b * along[1] ** 2, along[1] ** 2),
    )
    return Batch(
        obs=normal(*rows, 2, key=key + 1),
        value=torch.where(valid, normal(*rows, key=key) + 2, 0.0),
        valid=valid,
        time=torch.arange(t)[:, None, None].expand(rows),
        v=normal(*rows, key=key + 6),
        distribution=d,
        critic=Quadratic(d),
        action=d.sample(noise_of("exponential", tuple(d.noise_shape), key)),
        scores=lambda: scores,
        whole_episodes=key % 2 == 0,
    )


def of_member(batch: Batch, p: int) -> Batch:
    """One member's rows."""
    d, scores = batch.distribution, batch.scores()
    along = [x[:, p : p + 1] for x in scores.along(torch.zeros_like(batch.value))]
    critic = Quadratic(d)
    critic.c, critic.w = critic.c[:, p : p + 1], critic.w[:, p : p + 1]
    rows = {name: getattr(batch, name)[:, p : p + 1] for name in ("obs", "value", "valid", "time", "v", "action")}
    mine = Scores(scores.value[p : p + 1], scores.one[p : p + 1], lambda b: (along[0] - b * along[1], along[1]))
    return replace(batch, **rows, distribution=Categorical(d.logits[:, p : p + 1]), critic=critic, scores=lambda: mine)


def used(baseline: Baseline, state: dict, batch: Batch) -> torch.Tensor:
    """Everything that a baseline gives, flat, the member axis first."""
    if baseline.per_parameter:
        return baseline.coefficient(state)
    b = baseline.predict(state, batch)
    b = torch.zeros_like(batch.value) if b is None else b
    return torch.cat([x.transpose(0, 1).flatten(1) for x in (b, baseline.scale(state, batch))], 1)


def after(baseline: Baseline, *batches: Batch, members: int = P) -> dict:
    state = baseline.initial(members, "cpu")
    for batch in batches:
        state, info = baseline.update(state, batch)
        assert all(x.shape == (members,) for x in info.values())
    return state


@EVERY
def test_a_population_gives_each_member_what_it_would_have_alone(given):
    baseline = BASELINES.build(given)
    batches = [random_batch(key) for key in (10, 30, 40)]
    state = after(baseline, *batches[:2])
    together = used(baseline, state, batches[2])
    for p in range(P):
        state = after(baseline, *(of_member(b, p) for b in batches[:2]), members=1)
        torch.testing.assert_close(together[p : p + 1], used(baseline, state, of_member(batches[2], p)))
    assert not torch.equal(together[0], together[1]) or baseline.name == "none"


@EVERY
def test_replicated_members_give_what_the_member_gives(given):
    baseline = BASELINES.build(given)
    one = of_member(random_batch(10), 0)
    state = after(baseline, of_member(random_batch(30), 0), members=1)
    many = replace(one, value=one.value.repeat(1, 3, 1))
    for name in ("obs", "valid", "time", "v", "action"):
        many = replace(many, **{name: getattr(one, name).repeat_interleave(3, 1)})
    critic = Quadratic(one.distribution)
    critic.c, critic.w = (x[:, :1].repeat_interleave(3, 1) for x in (one.critic.c, one.critic.w))
    many = replace(many, distribution=Categorical(one.distribution.logits.repeat_interleave(3, 1)), critic=critic)
    found = used(baseline, repeat_members(state, 3), many)
    for p in range(3):
        torch.testing.assert_close(found[p : p + 1], used(baseline, state, one))
    assert take_member(repeat_members(state, 3), 1).keys() == state.keys()


@EVERY
def test_what_stands_in_invalid_rows_changes_nothing(given):
    baseline = BASELINES.build(given)
    past, now = random_batch(10), random_batch(30)
    assert not bool(past.valid.all())
    assert not bool(now.valid.all())

    def other(batch: Batch, key: int) -> Batch:
        """With other contents where not valid; scores are 0 there, as weights are."""

        def mixed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.where(batch.valid.view(*batch.valid.shape, *[1] * (x.ndim - 3)), x, y)

        return replace(
            batch,
            obs=mixed(batch.obs, 50 * normal(*batch.obs.shape, key=key)),
            time=mixed(batch.time, batch.time + 17),
            v=mixed(batch.v, normal(*batch.v.shape, key=key + 1)),
            action=mixed(batch.action, batch.action.roll(1, -1)),
        )

    a, b = after(baseline, past), after(baseline, other(past, 70))
    found, again = (
        baseline.coefficient(s) if baseline.per_parameter else baseline.predict(s, x)
        for s, x in ((a, now), (b, other(now, 80)))
    )
    if found is None:
        return
    if not baseline.per_parameter:
        found, again = found[now.valid], again[now.valid]
        scales = baseline.scale(a, now)[now.valid], baseline.scale(b, other(now, 80))[now.valid]
        torch.testing.assert_close(*scales, rtol=0, atol=0)
    torch.testing.assert_close(found, again, rtol=0, atol=0)


@EVERY
def test_a_member_without_valid_rows_keeps_what_it_has_learned(given):
    baseline = BASELINES.build(given)
    past, now = random_batch(10), random_batch(30)
    none = torch.zeros_like(now.valid)
    empty = replace(now, valid=none, value=torch.zeros_like(now.value))
    state = after(baseline, past)
    later, _ = baseline.update(state, empty)
    last = random_batch(20)
    torch.testing.assert_close(used(baseline, later, last), used(baseline, state, last), rtol=0, atol=0)


@EVERY
@pytest.mark.parametrize("rows", [(1, 1, 1), (3, 1, 1), (1, 2, 4)], ids=str)
def test_few_rows_give_finite_numbers(given, rows):
    """One column has no others; group and batch of one row have no spread."""
    baseline = BASELINES.build(given)
    batches = [random_batch(key, rows, torch.ones(rows, dtype=torch.bool)) for key in (10, 30)]
    for state in (baseline.initial(rows[1], "cpu"), after(baseline, batches[0], members=rows[1])):
        assert bool(torch.isfinite(used(baseline, state, batches[1])).all())
        signal = baselined(baseline, state, batches[1], Signal(value=batches[1].value))
        assert bool(torch.isfinite(signal.value).all())
        if baseline.scales and rows == (1, 1, 1):
            assert float(signal.value - signal.baseline) == 0.0


@EVERY
def test_float32_stays_float32(given):
    baseline = BASELINES.build(given)

    def single(batch: Batch) -> Batch:
        d, s = batch.distribution, batch.scores()
        critic = Quadratic(d)
        critic.c, critic.w = critic.c.float(), critic.w.float()
        along = [x.float() for x in s.along(torch.zeros_like(batch.value))]
        scores = Scores(s.value.float(), s.one.float(), lambda b: (along[0] - b * along[1], along[1]))
        rows = {name: getattr(batch, name).float() for name in ("obs", "value", "v", "action")}
        return replace(batch, **rows, distribution=Categorical(d.logits.float()), critic=critic, scores=lambda: scores)

    past, now = random_batch(10), random_batch(30)
    found = used(baseline, after(baseline, single(past)), single(now))
    assert found.dtype == torch.float32
    exact = used(baseline, after(baseline, past), now)
    torch.testing.assert_close(found, exact.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "given", [g for g in ({"name": n} for n in BASELINES.names()) if g["name"] != "value"] + OPTIONS, ids=str
)
@pytest.mark.statistical
def test_plain_objectives_have_the_exact_mean_where_the_baseline_is_unbiased(given):
    d = Bernoulli(torch.tensor([0.4, -1.1], dtype=torch.float64))

    def f(z: torch.Tensor) -> torch.Tensor:
        return 2 + z[:, 0] - 1.7 * z[:, 0] * z[:, 1]

    baseline = BASELINES.build(given)
    draws = 4
    found = pglab.estimate_gradient("score_function", d, f, 20_000, draws=draws, baseline=baseline)["logits"]
    exact = pglab.exact_gradient(d, f)["logits"]
    if baseline.unbiased:
        assert_mean(found, exact, resolution=0.08)
    elif not baseline.std:
        assert_mean(found, exact * (draws - 1) / draws, resolution=0.08)
    else:
        error = found.std(0) / math.sqrt(len(found))
        assert bool(((found.mean(0) - exact).abs() > 20 * error).any())


def test_what_compares_draws_wants_two():
    d, f = Bernoulli(torch.zeros(1)), lambda z: z[:, 0]
    for given in ({"name": "time_dependent", "leave_one_out": True}, {"name": "linear_features", "folds": 2}):
        with pytest.raises(PglabError, match="draws must be at least 2"):
            pglab.estimate_gradient("score_function", d, f, 3, baseline=given)
        pglab.estimate_gradient("score_function", d, f, 3, baseline=given["name"])


@pytest.mark.parametrize("name", [n for n in BASELINES.names() if "scores" in BASELINES.get(n).needs])
def test_what_needs_scores_refuses_estimates_that_are_not_linear_in_the_value(name):
    users = [n for n, f in pairs() if f == "bernoulli" and ESTIMATORS.get(n).uses_baseline]
    refused = [n for n in users if not ESTIMATORS.get(n).linear]
    for user in refused:
        with pytest.raises(PglabError, match="linear in the value"):
            Problem.of(user, Bernoulli(torch.zeros(2)), lambda z: z.sum(1), baseline=name)
    assert refused


@pytest.mark.parametrize(("name", "family"), [(n, f) for n, f in pairs() if ESTIMATORS.get(n).uses_baseline])
def test_every_estimator_takes_a_baseline_per_factor(name, family):
    """The same number for every factor is that number."""
    estimator, d, draw, signal, state = case(name, family, (2, 3, 4))
    width = d.noise_shape[3]
    wide = replace(signal, baseline=signal.baseline.unsqueeze(-1).expand(*signal.baseline.shape, width))
    for a, b in zip(
        cotangents(estimator, d, draw, signal, state)[0], cotangents(estimator, d, draw, wide, state)[0], strict=True
    ):
        torch.testing.assert_close(a, b)


def test_a_scale_divides_value_and_baseline():
    class Halved(Baseline):
        """Per factor, with a scale."""

        scales = True

        def predict(self, state, batch):
            return normal(*batch.value.shape, 2, key=5)

        def scale(self, state, batch):
            return torch.full_like(batch.value, 2.0)

    batch = random_batch(10)
    found = baselined(Halved(), {}, batch, Signal(value=batch.value))
    torch.testing.assert_close(found.value, batch.value / 2)
    torch.testing.assert_close(found.baseline, normal(T, P, N, 2, key=5) / 2)
