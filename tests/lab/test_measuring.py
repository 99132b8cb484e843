"""What is measured against what is known exactly: means, variances and biases of every pair, on tasks that can be solved.

False-alarm rate of all comparisons of this file together: 1e-6 (Bonferroni over `COMPARISONS`), with fixed seeds.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pglab_envs import TORCH_ENVS, Tables, TabularEnv
from scipy import stats
from spine import normal
from torch import Tensor

from pglab.agents import OnPolicyAgent
from pglab.config import Config, merge
from pglab.lab.measuring import Measured, _Tally
from pglab.lab.pairs import Pair, pairs_of
from pglab.lab.reference import Reference
from pglab.lab.references import true_gradient
from pglab.lab.sampling import Sampler, sampler_of
from pglab.lab.subject import Subject, of_config
from pglab.lab.variance import gradients
from pglab.noise import Noise
from pglab.training import Trainer

FALSE_ALARM, COMPARISONS = 1e-6, 5000
QUANTILE = float(stats.norm.isf(FALSE_ALARM / COMPARISONS / 2))
TINY_STEPS = 3


class Tiny(TabularEnv):
    """Three states, two actions, outcomes by chance, and an end that depends on where one comes from."""

    id = "pglab/TinyProcess-v1"
    max_episode_steps = TINY_STEPS
    options = ()

    def __init__(self, num_envs: int = 1, **vector: Any) -> None:
        p = torch.softmax(normal(3, 2, 3, key=4), -1)
        ends = torch.zeros(3, 2, 3, dtype=torch.bool)
        ends[0, 1, 2] = ends[1, :, 0] = True
        tables = Tables.dense(p, 2 * normal(3, 2, 3, key=5), ends, [0.7, 0.3, 0.0])
        super().__init__(num_envs, tables, TINY_STEPS, **vector)


@pytest.fixture(autouse=True)
def _tiny_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TORCH_ENVS, Tiny.id, Tiny)


BASE: dict[str, Any] = {
    "seeds": [2],
    "total_steps": 1000,
    "discount": 0.8,
    "agent": {
        "collect": "episodes",
        "reduction": "mean_over_episodes",
        "value": {"hidden": [4]},
        "critic": {"hidden": [4]},
    },
    "policy": {"hidden": [], "output_gain": 1.0},
}
TASKS: dict[str, dict[str, Any]] = {
    "lqr": {**BASE, "env": {"id": "pglab/LQR-v0", "num_envs": 4, "kwargs": {"horizon": 4}}, "policy": {"hidden": []}},
    "chain": {**BASE, "env": {"id": "pglab/Chain-v0", "num_envs": 4, "kwargs": {"n": 3, "horizon": 4}}},
    "chain, discounted, entropy": merge(
        {**BASE, "env": {"id": "pglab/Chain-v0", "num_envs": 4, "kwargs": {"n": 3, "horizon": 4}}},
        {"agent": {"discount_states": True}, "entropy_weight": 0.5, "policy": {"hidden": [3]}},
    ),
    "grid": merge(
        {**BASE, "env": {"id": "pglab/GridWorld-v0", "num_envs": 4, "kwargs": {"size": 2, "horizon": 4}}},
        {"agent": {"episodes": 2}},
    ),
    "tiny": {**BASE, "env": {"id": Tiny.id, "num_envs": 3}, "baseline": "value"},
}


def subject_of(config: dict[str, Any], noise: float = 0.3) -> Subject:
    (subject,) = of_config(Config.read(config))
    flat = subject.agent.policy_parameters.flat
    with torch.no_grad():
        flat.add_(noise * Noise.of_seeds([9]).normal(0, (77,), flat.shape[1:]))  # type: ignore[arg-type]
    return subject


def tallied(subject: Subject, pairs: list[Pair], replicates: int, fit: int = 8) -> tuple[Sampler, _Tally]:
    """What `measure_subject` does, with the replicates kept."""
    sampler = sampler_of(subject, pairs)
    sampler.fit(fit)
    tally = _Tally(subject, sampler, replicates)
    for start in range(0, replicates, sampler.at_once):
        tally.add(sampler.draw(range(start, min(start + sampler.at_once, replicates))))
    return sampler, tally


@cache
def solved(name: str, replicates: int) -> tuple[list[Pair], _Tally, Reference, Measured]:
    subject = subject_of(TASKS[name])
    pairs = pairs_of(subject.config, subject.agent.spec, None if "entropy" in name else ["all"])
    _, tally = tallied(subject, pairs, replicates)
    exact = true_gradient(subject, 64)
    assert not exact.noise
    return pairs, tally, exact, tally.finished(exact)


def of_returns(pair: Pair) -> bool:
    """Whether its mean is that of the returns, whatever the critic: the value enters, and nothing is declared."""
    return not pair.declared and "value" in pair.config.estimator.needs


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "replicates"), [("lqr", 2500), ("chain", 1500), ("chain, discounted, entropy", 1200), ("grid", 700)]
)
def test_every_unbiased_pair_has_the_exact_gradient_as_its_mean(name: str, replicates: int) -> None:
    pairs, tally, exact, measured = solved(name, replicates)
    error = (tally.batches.variance / replicates).sqrt().numpy()  # [J, n]
    off = np.abs(tally.batches.mean.numpy() - exact.gradient)
    z = off / np.maximum(error, 1e-9 * np.abs(exact.gradient).max())
    unbiased = [i for i, pair in enumerate(pairs) if of_returns(pair)]
    assert len(unbiased) > (5 if name == "lqr" else 10)
    wrong = {pairs[i].name: z[i].max().round(1) for i in unbiased if z[i].max() > QUANTILE}
    assert not wrong
    # It would have been seen.
    power = np.linalg.norm(error[unbiased], axis=1) * QUANTILE / np.linalg.norm(exact.gradient)
    assert np.median(power) < 0.8
    # Declared biases that are plain to see are seen by the interval, and the reported value is the distance.
    bias = measured.quality.estimates["total"]["bias_squared"]
    plainly = [i for i, pair in enumerate(pairs) if z[i].max() > 4 * QUANTILE]
    assert plainly
    for i in plainly:
        assert not of_returns(pairs[i])
        assert bias.low[i] > 0, pairs[i].name
        squared = float((off[i] ** 2).sum() - (error[i] ** 2).sum())
        assert bias.value[i] == pytest.approx(squared, rel=1e-3)
    assert any(pairs[i].declared for i in plainly)


@pytest.mark.statistical
def test_a_closed_form_of_the_critic_is_biased_by_the_critic_and_not_to_it() -> None:
    """Enumeration on an on-policy agent: no noise of actions, and the error of an untrained Q."""
    pairs, _, _, measured = solved("chain", 1500)
    names = [p.name for p in pairs]
    i = names.index("enumeration")
    assert pairs[i].declared == ""
    assert measured.quality.estimates["total"]["bias_squared"].low[i] > 0
    assert measured.to_critic is None


# -- every course of a tiny process


def courses() -> list[tuple[float, list[tuple[int, int, float]]]]:
    """The environment's part of the probability of every course of an episode, and its steps (state, action, reward)."""
    t = Tiny().tables
    going: list[Any] = [(float(p), s, []) for s, p in enumerate(t.initial) if p > 0]
    done: list[Any] = []
    for step in range(TINY_STEPS):
        further = []
        for p, s, past in going:
            for a, j in itertools.product(range(2), range(t.probability.shape[-1])):
                if (q := float(t.probability[s, a, j])) == 0:
                    continue
                course = [*past, (s, a, float(t.reward[s, a, j]))]
                if bool(t.terminated[s, a, j]) or step + 1 == TINY_STEPS:
                    done.append((p * q, course))
                else:
                    further.append((p * q, int(t.next_state[s, a, j]), course))
        going = further
    return done


def exact_moments(agent: OnPolicyAgent, baseline: Tensor) -> tuple[np.ndarray, float]:
    """Mean and trace of the covariance of one episode's gradient, by enumeration; `baseline` `[S]`."""
    w, b = (agent.policy_parameters.views[x][0].detach().double() for x in ("weight0", "bias0"))  # [S, A], [1, A]
    pi = torch.softmax(w + b, -1)
    discount, gamma_t = float(agent.hyper("discount")), agent.settings.discount_states
    mean, square, total = torch.zeros(w.numel() + b.numel(), dtype=torch.float64), 0.0, 0.0
    for p, course in courses():
        for s, a, _ in course:
            p *= float(pi[s, a])
        by_state = torch.zeros_like(w)
        to_go = 0.0
        for t, (s, a, r) in reversed(list(enumerate(course))):
            to_go = r + discount * to_go
            weight = discount**t if gamma_t else 1.0
            by_state[s] += weight * (to_go - float(baseline[s])) * (torch.eye(2)[a] - pi[s])
        g = torch.cat([by_state.flatten(), by_state.sum(0)])
        mean, square, total = mean + p * g, square + p * float(g @ g), total + p
    assert total == pytest.approx(1.0)
    return mean.numpy(), square - float(mean @ mean)


@pytest.mark.statistical
@pytest.mark.parametrize("discounted", [False, True])
def test_mean_and_trace_against_every_course_of_a_tiny_process(discounted: bool) -> None:
    """score_function without a baseline, and with V as it stands, a fixed function of the state."""
    subject = subject_of(merge(TASKS["tiny"], {"agent": {"discount_states": discounted}}))
    agent = subject.agent
    assert isinstance(agent, OnPolicyAgent)
    pairs = pairs_of(subject.config, agent.spec, ["score_function", "score_function/value"])
    assert [p.own for p in pairs] == [False, True]
    r, n = 4000, 3
    sampler, tally = tallied(subject, pairs, r)
    assert tally.alone == [0, 1]
    found = tally.finished(true_gradient(subject, 64)).quality.estimates["total"]
    with torch.no_grad():
        v = agent.v(torch.eye(3)[None, None])[0, 0].double()  # [S]
    squared_errors = [[], []]  # type: ignore[var-annotated]
    for start in range(0, r, sampler.at_once):
        scene = sampler.draw(range(start, min(start + sampler.at_once, r)))
        for i in range(2):
            g = n * scene.jacobian.pull([scene.estimated(i).cotangents], "column")[0].double()  # [U, n]
            squared_errors[i].append((g - tally.batches.mean[i]).square().sum(1))
    for i, baseline in enumerate((torch.zeros(3), v)):
        mean, trace = exact_moments(agent, baseline)
        np.testing.assert_allclose(true_gradient(subject, 64).gradient, mean, rtol=1e-5, atol=1e-6)
        d = torch.cat(squared_errors[i]).numpy()
        assert len(d) == r * n
        # What is reported is this mean over the units, over the columns of a batch.
        assert found["trace"].value[i] == pytest.approx(d.sum() / (len(d) - 1) / n, rel=1e-5)
        error = d.std(ddof=1) / math.sqrt(len(d)) / n
        assert abs(found["trace"].value[i] - trace / n) < QUANTILE * error
        assert QUANTILE * error < 0.2 * trace / n
        # The interval is as wide as this error says.
        half = (found["trace"].high[i] - found["trace"].low[i]) / 2
        assert half == pytest.approx(1.96 * error, rel=0.25)
        nsr = found["nsr"].value[i]
        assert nsr == pytest.approx(trace / n / float(mean @ mean), rel=0.2)
    a, b = (exact_moments(agent, x)[1] for x in (torch.zeros(3), v))
    assert abs(a - b) > 0.02 * a  # the two are told apart


# -- against the older measurement

AGENTS: dict[str, dict[str, Any]] = {
    "steps": {
        "env": {"id": "CartPole-v1", "num_envs": 3, "max_episode_steps": 40},
        "baseline": "value",
        "agent": {"steps": 6, "returns": {"name": "gae"}, "value": {"hidden": [8]}},
    },
    "episodes": {
        "env": {"id": "CartPole-v1", "num_envs": 3, "max_episode_steps": 40},
        "baseline": "leave_one_out",
        "agent": {"collect": "episodes"},
    },
    "replay": {
        "env": {"id": "CartPole-v1", "num_envs": 2, "max_episode_steps": 40},
        "estimator": "gumbel_softmax",
        "entropy_weight": 0.02,
        "agent": {"name": "actor_critic", "critic": {"hidden": [8]}, "replay": {"batch_size": 8, "warmup": 60}},
    },
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", list(AGENTS))
def test_it_agrees_with_the_older_measurement(name: str) -> None:
    config = Config.read(
        {**AGENTS[name], "seeds": [3], "total_steps": 1000, "policy": {"hidden": [4], "output_gain": 1.0}}
    )
    trainer = Trainer(config)
    for _ in range(40):
        trainer._before_update()
        trainer._update()
    r, agent = 600, trainer.agent
    old = gradients(agent, lambda members: trainer.environment(members, config.env.num_envs, training=False), r, 1)[0]
    old = -old.astype(np.float64)  # for ascent
    subject = Subject(config, agent, "middle", 0.5, 500, 1)  # type: ignore[arg-type]
    pairs = pairs_of(config, agent.spec, [f"{config.estimator.name}/{config.baseline.name}"])
    assert pairs[0].own
    _, tally = tallied(subject, pairs, r)
    new_mean, new_variance = tally.batches.mean[0].numpy(), tally.batches.variance[0].numpy()
    z = np.abs(old.mean(0) - new_mean) / np.sqrt((old.var(0, ddof=1) + new_variance) / r + 1e-30)
    assert z.max() < QUANTILE
    d = ((old - old.mean(0)) ** 2).sum(1)
    error = math.sqrt(2) * d.std() / math.sqrt(r)
    assert abs(d.sum() / (r - 1) - new_variance.sum()) < QUANTILE * error
    assert QUANTILE * error < 1.0 * new_variance.sum()
