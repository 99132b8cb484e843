"""Every pair's replicates are what training's own `gradient` gives on the same draws, and independent of one another."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.lab.pairs import Pair, pair_of, pairs_of
from pglab.lab.sampling import FIT, MEASURE, ActorCriticSampler, OnPolicySampler, Sampler, Scene, sampler_of
from pglab.lab.subject import Subject, of_config, with_pair
from pglab.lab.variance import random_phases
from pglab.networks import by_member
from pglab.noise import Purpose
from pglab.training import Trainer
from pglab.trees import take_member

R, NUMBER = 3, 7
STEPS: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 3, "max_episode_steps": 40},
    "seeds": [4],
    "total_steps": 4000,
    "baseline": "value",
    "entropy_weight": 0.01,
    "policy": {"hidden": [8, 8], "output_gain": 1.0},
    "preprocessing": {"normalize_observations": True, "normalize_returns": True},
    "agent": {"steps": 6, "returns": {"name": "gae"}, "value": {"hidden": [8]}, "critic": {"hidden": [8]}},
}
EPISODES: dict[str, Any] = merge(
    STEPS,
    {
        "env": {"max_episode_steps": 12},
        "baseline": "moving_average",
        "agent": {"collect": "episodes", "returns": {"name": "monte_carlo"}},
    },
)
REPLAY: dict[str, Any] = merge(
    {k: v for k, v in STEPS.items() if k not in ("agent", "baseline")},
    {
        "agent": {
            "name": "actor_critic",
            "replay": {"batch_size": 8, "warmup": 40, "capacity": 100},
            "critic": {"hidden": [8], "twin": True},
        }
    },
)
BOX: dict[str, Any] = {"env": {"id": "Pendulum-v1"}, "estimator": "score_function"}
CONFIGS: dict[str, dict[str, Any]] = {
    "steps": STEPS,
    "steps, minibatches": merge(STEPS, {"agent": {"minibatches": 3, "epochs": 2, "reduction": "mean_over_episodes"}}),
    "steps, bernoulli": merge(STEPS, {"policy": {"distribution": "bernoulli"}}),
    "steps, continuous": merge(STEPS, BOX),
    "steps, state-dependent std": merge(STEPS, BOX | {"policy": {"state_dependent_std": True}, "baseline": "none"}),
    "episodes, over steps": merge(EPISODES, {"agent": {"reduction": "mean_over_steps"}}),
    "episodes, over episodes": merge(
        EPISODES, {"agent": {"reduction": "mean_over_episodes", "episodes": 2, "discount_states": True}}
    ),
    "episodes, minibatches": merge(EPISODES, {"agent": {"minibatches": 2}}),
    "episodes, whitened": merge(EPISODES, {"agent": {"normalize_advantages": True}}),
    "replay, discrete": merge(REPLAY, {"estimator": "gumbel_softmax"}),
    "replay, continuous": merge(REPLAY, BOX | {"estimator": "pathwise", "agent": {"auto_entropy": True}}),
    "replay, on-policy data": merge(
        REPLAY, BOX | {"estimator": "pathwise", "agent": {"replay": {"data": "on_policy"}}}
    ),
}


@dataclass
class Drawn:
    subject: Subject
    pairs: list[Pair]
    sampler: Sampler
    scene: Scene
    fresh: list[Any]
    """What the pairs were before anything was fitted."""


def subject_of(config: dict[str, Any], updates: int = 25) -> Subject:
    """An agent that has been trained for a few updates, with a normaliser, V and baseline that have seen something."""
    read = Config.read(config)
    trainer = Trainer(read)
    for _ in range(updates):
        trainer._before_update()
        trainer._update()
    return Subject(read, trainer.agent.at_progress([0.5]), "middle", 0.5, int(trainer.steps[0]), NUMBER)  # type: ignore[arg-type]


@cache
def drawn(name: str) -> Drawn:
    subject = subject_of(CONFIGS[name])
    pairs = pairs_of(subject.config, subject.agent.spec, ["all"])
    sampler = sampler_of(subject, pairs)
    fresh = [take_member(a.frozen_state(), 0) for a in sampler.agents]  # type: ignore[attr-defined]
    fresh = [{k: v for k, v in tree.items() if k != "networks"} for tree in fresh]
    sampler.fit(3)
    return Drawn(subject, pairs, sampler, sampler.draw(range(R)), fresh)


def gradient(scene: Scene, pair: int, unit: Any = "batch") -> Tensor:
    """`[U, n]`."""
    e = scene.estimated(pair)
    if e.one is None:
        return scene.jacobian.pull([e.cotangents], unit)[0]
    value, one = scene.jacobian.pull([e.cotangents, e.one], unit)
    assert e.coefficient is not None
    return value - e.coefficient * one


def trained(found: Drawn, pair: int) -> Tensor:
    """`[R, n]`: what `agent.gradient` leaves in `.grad`, for ascent, of R members that draw the replicates' noise."""
    subject, fitted = found.subject, found.sampler.agents[pair]  # type: ignore[attr-defined]
    twin = fitted.replicated(range(R), NUMBER, MEASURE)
    if isinstance(found.sampler, OnPolicySampler):
        with closing(subject.environment(R)) as env:
            if twin.steps_per_update is not None:
                twin.position = random_phases(twin, env, twin.act)
            rollout = twin.collect(env, (2,))
        twin.gradient(twin.minibatches(twin.prepare(rollout), 0)[0])
    else:
        (kind, shape), b = twin.event, twin.settings.replay.batch_size
        u = twin.noise.uniform(Purpose.REPLAY, (0,), (b,))
        parts = [vars(subject.agent.replay.sample(u[r : r + 1], subject.agent.newest)) for r in range(R)]  # type: ignore[union-attr]
        rows = {k: None if v is None else torch.cat([p[k] for p in parts]) for k, v in parts[0].items()}
        extra = twin.extra_noise(lambda i, k, s: twin.noise.of_kind(k, Purpose.EXTRA, (0, i), (b, *s)))
        noise = twin.noise.of_kind(kind, Purpose.UPDATE, (0,), (b, *shape))
        twin.gradient(twin.actor_rows(type(subject.agent.replay.sample(u[:1]))(**rows), noise, extra))  # type: ignore[union-attr]
    grad = twin.policy_parameters.grad
    assert grad is not None
    return -grad.clone()


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest error of a replicate over the largest norm."""
    return float((found - wanted).norm(dim=-1).max() / wanted.norm(dim=-1).max().clamp_min(1e-30))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_pair_is_what_training_would_apply_on_the_same_draws(name: str) -> None:
    found = drawn(name)
    assert len(found.pairs) > 5
    off, seen = {}, 0
    for i, pair in enumerate(found.pairs):
        mine, wanted = gradient(found.scene, i), trained(found, i)
        assert mine.shape == (R, found.subject.agent.policy_parameters.size)
        if float(wanted.norm()) == 0.0:  # the straight-through estimates of a flat critic
            assert float(mine.norm()) == 0.0
            continue
        seen += 1
        if max(relative(mine, wanted), relative(mine.mean(0, keepdim=True), wanted.mean(0, keepdim=True))) > 1e-5:
            off[pair.name] = relative(mine, wanted)
    assert not off
    assert seen > 0.8 * len(found.pairs)


@pytest.mark.parametrize("name", [n for n in CONFIGS if not n.startswith("replay")])
def test_columns_average_to_the_batch_and_do_not_read_one_another(name: str) -> None:
    found = drawn(name)
    alone = [i for i, pair in enumerate(found.pairs) if not pair.couples]
    assert (len(alone) > 0) == (
        name in ("steps", "steps, bernoulli", "steps, continuous", "episodes, over episodes") or "std" in name
    )
    scene: Any = found.scene
    changed = scene.seen.value.clone()
    changed[:, :, 0] += 3 * torch.where(
        scene.seen.rollout.valid[:, :, 0], torch.arange(1.0, len(changed) + 1)[:, None], 0.0
    )
    other = replace(scene, seen=replace(scene.seen, value=changed))
    moved = 0
    for i in alone:
        columns, batch = gradient(scene, i, "column").view(R, 3, -1), gradient(scene, i)
        assert relative(columns.sum(1), batch) < 1e-5, found.pairs[i].name
        again = gradient(other, i, "column").view(R, 3, -1)
        torch.testing.assert_close(again[:, 1:], columns[:, 1:], rtol=1e-4, atol=1e-6 * float(columns.abs().max()))
        moved += not torch.allclose(again[:, 0], columns[:, 0])
    assert moved > 0 or not alone  # what is read is seen here


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_replicate_is_a_function_of_its_number(name: str) -> None:
    found = drawn(name)
    again = found.sampler.draw(range(1, R))
    for i in range(0, len(found.pairs), 4):
        mine = gradient(found.scene, i)
        assert relative(gradient(again, i), mine[1:]) < 2e-4, found.pairs[i].name
        if float(mine.norm()) > 0:
            assert len({row.numpy().tobytes() for row in mine}) == R


@pytest.mark.parametrize("name", ["steps, minibatches", "episodes, over episodes", "replay, discrete"])
def test_pairs_see_the_same_draws_whoever_is_measured_beside_them(name: str) -> None:
    found = drawn(name)
    for i in (0, len(found.pairs) - 1):
        own = sampler_of(found.subject, [found.pairs[i]])
        own.fit(3)
        scene = own.draw(range(R))
        a, b = found.scene, scene
        assert torch.equal(a.jacobian.inputs[0], b.jacobian.inputs[0])
        assert torch.equal(a.valid, b.valid)
        assert len({twin.noise.members for twin in [*a.twins, *b.twins]}) == 1  # type: ignore[attr-defined]
        if hasattr(a, "seen"):
            assert torch.equal(a.seen.rollout.action, b.seen.rollout.action)  # type: ignore[attr-defined]
        else:
            assert torch.equal(a.rows.noise, b.rows.noise)  # type: ignore[attr-defined]
        assert relative(gradient(scene, 0), gradient(found.scene, i)) < 1e-5


@pytest.mark.parametrize("name", list(CONFIGS))
def test_fitting_and_drawing_leave_the_subject_as_it_is(name: str) -> None:
    found, same = drawn(name), subject_of(CONFIGS[name])
    for key, p in same.agent.networks().items():
        assert torch.equal(p.flat, found.subject.agent.networks()[key].flat), key
    before, after = (
        {k: v for k, v in s.agent.frozen_state().items() if k != "networks"} for s in (same, found.subject)
    )
    assert str(before) == str(after)


@pytest.mark.parametrize("name", ["steps", "replay, discrete"])
def test_what_a_pair_learns_is_fitted_before_and_the_subjects_own_pair_keeps_what_it_had(name: str) -> None:
    found = drawn(name)
    for pair, agent, fresh in zip(found.pairs, found.sampler.agents, found.fresh, strict=True):  # type: ignore[attr-defined]
        now = {k: v for k, v in take_member(agent.frozen_state(), 0).items() if k != "networks"}
        learns = (agent.config.baseline.adapts or agent.config.estimator.learns) and not pair.own
        assert (str(now) != str(fresh)) == learns, pair.name
    fit, measured = (found.subject.agent.replicated(range(R), NUMBER, which).noise.members for which in (FIT, MEASURE))
    assert not set(fit) & set(measured)


def test_v_and_q_that_the_subject_lacks_are_fitted_once_and_shared() -> None:
    subject = subject_of(merge(EPISODES, {"preprocessing": {"normalize_returns": False}}), updates=2)
    assert subject.agent.networks().keys() == {"policy"}
    pairs = pairs_of(subject.config, subject.agent.spec, ["score_function", "score_function/value", "muprop"])
    sampler = sampler_of(subject, pairs)
    assert isinstance(sampler, OnPolicySampler)
    before = [{k: p.flat.clone() for k, p in a.networks().items()} for a in sampler.agents]
    sampler.fit(4)
    for a, start in zip(sampler.agents, before, strict=True):
        for key, p in a.networks().items():
            assert torch.equal(p.flat, start[key]) == (key == "policy"), key
    assert sampler.looker is sampler.agents[1]
    assert "V, Q" in sampler.notes[0]
    assert any("explains" in note for note in sampler.notes)


@pytest.mark.parametrize("twin", [False, True])
def test_the_fitted_q_explains_the_returns_with_every_copy(twin: bool) -> None:
    """Each copy's output layer belongs to its own hidden layers."""
    subject = subject_of(merge(EPISODES, {"agent": {"critic": {"twin": twin}}}), updates=2)
    sampler = sampler_of(subject, pairs_of(subject.config, subject.agent.spec, ["score_function", "muprop"]))
    assert isinstance(sampler, OnPolicySampler)
    sampler.fit(16)
    agent = sampler.agents[1]
    assert agent.critic is not None
    for _, _, rollout, _ in sampler._batches(1, 5):
        prepared = agent.prepare(rollout, agent.look(rollout))
        taken = agent.policy.present(agent.policy.executed(prepared.draw.action)).flatten(3)
        with torch.no_grad():
            q = agent.critic.all(agent.critic.parameters, by_member(prepared.obs), by_member(taken))[:, 0]  # [C, B]
        value, w = (by_member(x.unsqueeze(-1))[0, :, 0] for x in (prepared.batch.value, prepared.value_weight))
        variance = ((value - (value * w).sum()).square() * w).sum()
        assert len(q) == 1 + twin
        assert bool((((q - value).square() * w).sum(1) < variance).all())


@pytest.mark.statistical
@pytest.mark.parametrize("limit", [1, 3, 20])
def test_random_phases_of_short_episodes(limit: int) -> None:
    """Where all episodes last equally long, every step is as likely as another. False-alarm rate 1e-6 in all."""
    config = merge(STEPS, {"env": {"num_envs": 3000, "max_episode_steps": limit, "id": "Pendulum-v1"}})
    (subject,) = of_config(Config.read(config))
    with closing(subject.environment(1)) as env:
        at = random_phases(subject.agent.replicated(range(1), 0), env, subject.agent.act).time[0]
    counts = torch.bincount(at, minlength=limit).double()
    few = limit // 8 or 1  # steps between two starts
    seen = counts[counts > 0]
    assert len(seen) == limit // few
    assert stats.chisquare(seen.numpy()).pvalue > 1e-6 / 3 if limit > 1 else len(seen) == 1


def test_the_pairs_of_a_config() -> None:
    subject = of_config(Config.read(STEPS))[0]
    spec = subject.agent.spec
    default = [p.name for p in pairs_of(subject.config, spec)]
    assert default[0] == "score_function / value"
    assert {"score_function", "score_function / leave_one_out", "gumbel_softmax", "muprop / value"} <= set(default)
    assert len(set(default)) == len(default) < len(pairs_of(subject.config, spec, ["all"]))
    (one,) = pairs_of(subject.config, spec, ["score_function/value", "score_function / value"])
    assert one.own
    assert one.config == subject.config
    assert pair_of(subject.config, "rebar", "none", spec).declared == ""
    assert pair_of(subject.config, "straight_through", "none", spec).declared != ""
    assert "whitened" in pair_of(Config.read(CONFIGS["episodes, whitened"]), "score_function", "none", spec).declared
    for wanted, says in (
        ("score_funtion", "'score_function'"),
        ("score_function/vlaue", "'value'"),
        ("pathwise", "score_function"),
        ("enumeration/value", "uses no baseline"),
    ):
        with pytest.raises(PglabError, match=says):
            pairs_of(subject.config, spec, [wanted])


def test_an_agent_of_a_pair_has_the_subjects_networks_and_its_own_options() -> None:
    found = drawn("replay, continuous")
    assert isinstance(found.sampler, ActorCriticSampler)
    host = found.sampler.host
    pair = pair_of(found.subject.config, "score_function", "moving_average", host.spec)
    agent = with_pair(found.subject, pair.config, pair.own)
    assert agent.networks()["critic"] is host.networks()["critic"]
    assert agent.log_alpha is host.log_alpha  # type: ignore[union-attr]
    assert agent.replay is host.replay  # type: ignore[union-attr]
    assert agent.progress == [0.5]
