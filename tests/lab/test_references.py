"""The references against closed forms, dynamic programming and one another.

False-alarm rate of all comparisons of this file together: 1e-6 (Bonferroni over `COMPARISONS` coordinates), with fixed seeds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pglab_envs import TabularEnv
from scipy import stats
from torch import Tensor

from pglab.agents import ActorCriticAgent, OnPolicyAgent
from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.lab import references
from pglab.lab.critic_errors import critic_errors
from pglab.lab.measuring import measure
from pglab.lab.onward import tail
from pglab.lab.reference import RESOLVED, Reference
from pglab.lab.references import CHUNKS, _sampled, true_gradient
from pglab.lab.subject import Subject, of_config
from pglab.lab.variance_report import markdown, plain
from pglab.noise import Noise

FALSE_ALARM, COMPARISONS = 1e-6, 2000
LEVEL = FALSE_ALARM / COMPARISONS

CHAIN: dict[str, Any] = {
    "env": {"id": "pglab/Chain-v0", "num_envs": 3, "kwargs": {"n": 3, "horizon": 5}},
    "seeds": [2],
    "total_steps": 1000,
    "discount": 0.7,
    "agent": {"collect": "episodes", "reduction": "mean_over_episodes"},
    "policy": {"hidden": [], "output_gain": 1.0},
}
GRID: dict[str, Any] = merge(CHAIN, {"env": {"id": "pglab/GridWorld-v0", "kwargs": {"size": 2, "horizon": 5}}})
GRID["env"]["kwargs"] = {"size": 2, "horizon": 5}
LQR: dict[str, Any] = {
    **CHAIN,
    "env": {"id": "pglab/LQR-v0", "num_envs": 3, "kwargs": {"horizon": 6}},
    "policy": {"hidden": []},
}
STEPWISE: dict[str, Any] = {"agent": {"collect": "steps", "steps": 4, "value": {"hidden": [4]}}}
GAE: dict[str, Any] = {"agent": {"returns": {"name": "gae"}, "value": {"hidden": [4]}}}
CASES: dict[str, dict[str, Any]] = {
    "chain": CHAIN,
    "chain, discounted, entropy": merge(CHAIN, {"agent": {"discount_states": True}, "entropy_weight": 0.5}),
    "grid, over steps, hidden": merge(GRID, {"agent": {"reduction": "mean_over_steps"}, "policy": {"hidden": [4]}}),
    "grid, discounted, no discount": merge(GRID, {"agent": {"discount_states": True}, "discount": 1.0}),
    "grid, shorter limit": merge(GRID, {"env": {"max_episode_steps": 3}, "entropy_weight": 0.3}),
    "chain, steps": merge(CHAIN, merge(STEPWISE, {"agent": {"reduction": "mean_over_steps"}})),
    "grid, steps over episodes, discounted": merge(GRID, merge(STEPWISE, {"agent": {"discount_states": True}, "entropy_weight": 0.2})),
    "grid, gae of episodes": merge(GRID, GAE),
    "chain, bernoulli": merge(CHAIN, {"policy": {"distribution": "bernoulli"}}),
    "chain, scaled": merge(CHAIN, {"preprocessing": {"reward_scale": 0.1, "observation_scale": [1.0, 2.0, 0.5]}}),
    "lqr": LQR,
    "lqr, discounted, entropy, mean scale": merge(
        LQR, {"agent": {"discount_states": True}, "entropy_weight": 2.0, "policy": {"mean_scale": 0.5, "log_std": -0.5}}
    ),
    "lqr, over steps, shorter limit": merge(LQR, {"env": {"max_episode_steps": 3}, "agent": {"reduction": "mean_over_steps"}}),
    "lqr, plane": merge(LQR, {"env": {"kwargs": {"preset": "point_mass", "start_noise": 0.2, "horizon": 6}}, "discount": 0.9, "policy": {"log_std": 1.5}}),
}  # fmt: skip


def subject_of(config: dict[str, Any], noise: float = 0.3) -> Subject:
    """A policy that is neither uniform nor without offset."""
    (subject,) = of_config(Config.read(config))
    flat = subject.agent.policy_parameters.flat
    with torch.no_grad():
        flat.add_(noise * Noise.of_seeds([9]).normal(0, (77,), flat.shape[1:]))  # type: ignore[arg-type]
    return subject


def with_errors(
    monkeypatch: pytest.MonkeyPatch, subject: Subject, draw: Any
) -> tuple[Reference, np.ndarray, np.ndarray]:
    """A sampled reference with the standard errors `[n]` of both its gradients, in the order in which they are made."""
    kept: list[tuple[np.ndarray, np.ndarray]] = []

    class Kept(references._Chunks):
        def ratio(self, index: int, *plus: Any) -> Any:
            found = super().ratio(index, *plus)
            g, c = torch.stack([s[index] for s in self.sums]).numpy(), np.array(self.counts)
            rest = (g - c[:, None] * found[0]) / c.mean()
            kept.append((found[0], np.sqrt((rest**2).sum(0) / (len(c) * (len(c) - 1)))))
            return found

    monkeypatch.setattr(references, "_Chunks", Kept)
    found = draw()
    (value, error), (_, other) = kept
    replays = isinstance(subject.agent, ActorCriticAgent)  # else a reduction may multiply both
    factor = 1.0 if replays else float(np.linalg.norm(found.gradient) / np.linalg.norm(value))
    return found, error * factor, other * factor


def agrees(found: np.ndarray, wanted: np.ndarray, error: np.ndarray, power: float = 0.3) -> None:
    """Every coordinate of a mean over `CHUNKS` chunks is the wanted one; errors of `power` of its norm would be seen."""
    t = float(stats.t.isf(LEVEL / 2, CHUNKS - 1))
    assert t * np.linalg.norm(error) < power * np.linalg.norm(wanted) * math.sqrt(len(wanted))
    off = np.abs(found - wanted)
    assert (off <= t * error + 1e-5 * np.abs(wanted).max()).all(), (off / np.maximum(error, 1e-12)).max()


@pytest.mark.statistical
@pytest.mark.parametrize("name", list(CASES))
def test_exact_references_are_what_episodes_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(CASES[name])
    agent = subject.agent
    assert isinstance(agent, OnPolicyAgent)
    exact = true_gradient(subject, 512)
    found, error, other_error = with_errors(monkeypatch, subject, lambda: _sampled(subject, agent, 32768))
    if "bernoulli" in name:
        assert exact.noise  # no table of it is made
        return
    assert not exact.noise
    assert exact.supported
    assert exact.verdict == "It is exact."
    assert found.other_definition == exact.other_definition
    # What is summed up, and how far, is said in the same words.
    assert found.definition.split(": ", 1)[1] == exact.definition.split(": ", 1)[1]
    agrees(found.gradient, exact.gradient, error)
    agrees(found.other, exact.other, other_error)
    total = float((error**2).sum())
    assert found.noise["total"] == pytest.approx(total, rel=1e-6)
    assert sum(v for k, v in found.noise.items() if k != "total") == pytest.approx(total, rel=1e-6)
    if agent.settings.discount_states or CASES[name]["discount"] == 1:
        assert "gamma^t" in exact.definition
    differ = np.linalg.norm(exact.gradient - exact.other) > 0.02 * np.linalg.norm(exact.gradient)
    assert differ == (CASES[name]["discount"] < 1)


@pytest.mark.statistical
@pytest.mark.parametrize(
    "env", ["pglab/NormBandit-v0", "pglab/BinaryQuadratic-v0", "pglab/Quadratic-v0", "pglab/SimplexProgram-v0"]
)
@pytest.mark.parametrize("collect", ["steps", "episodes"])
def test_one_step_objectives(env: str, collect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs = {"t": 0.2} if "Binary" in env else {}
    config = {
        **CHAIN,
        "env": {"id": env, "num_envs": 3, "kwargs": kwargs},
        "agent": {"collect": collect, "steps": 4, "value": {"hidden": [4]}},
    }
    subject = subject_of(config)
    agent = subject.agent
    assert isinstance(agent, OnPolicyAgent)
    exact = true_gradient(subject, 8192)
    if exact.noise:
        pytest.skip(f"{env} has no closed form for this policy")
    found, error, _ = with_errors(monkeypatch, subject, lambda: _sampled(subject, agent, 16384))
    agrees(found.gradient, exact.gradient, error)
    assert np.array_equal(exact.gradient, exact.other)


# -- replayed states

REPLAY: dict[str, Any] = {
    "env": {"id": "pglab/Chain-v0", "num_envs": 4, "kwargs": {"n": 4, "horizon": 20}},
    "seeds": [2],
    "total_steps": 1000,
    "discount": 0.7,
    "estimator": "enumeration",
    "policy": {"hidden": [4], "output_gain": 1.0},
    "agent": {
        "name": "actor_critic",
        "critic": {"hidden": [6], "twin": True},
        "replay": {"batch_size": 16, "warmup": 400, "capacity": 400},
    },
}
TABULAR = {
    "chain": REPLAY,
    "chain, entropy": merge(REPLAY, {"entropy_weight": 0.8, "preprocessing": {"reward_scale": 0.3}}),
    "grid, tuned entropy": {
        **merge(REPLAY, {"agent": {"auto_entropy": True}}),
        "env": {"id": "pglab/GridWorld-v0", "num_envs": 4, "kwargs": {"size": 3, "horizon": 30}},
    },
    "chain, bernoulli": merge(REPLAY, {"policy": {"distribution": "bernoulli"}, "entropy_weight": 0.2}),
}


class Exact:
    """Everything of a replay agent on a table, by dynamic programming in float64 and plain autograd."""

    def __init__(self, subject: Subject) -> None:
        agent = subject.agent
        assert isinstance(agent, ActorCriticAgent)
        self.agent = agent
        with torch.no_grad():
            env = subject.environment(1).env  # type: ignore[attr-defined]
        assert isinstance(env, TabularEnv)
        self.tables, self.gamma = env.tables, float(agent.hyper("discount"))
        alpha = agent.entropy_weight()
        self.alpha = 0.0 if alpha is None else float(alpha)
        self.scale = agent.config.preprocessing.reward_scale
        self.states = torch.eye(self.tables.states)
        p = self.probabilities().detach().double()
        h = -(p * p.log()).sum(-1)  # [S]
        going = self.tables.probability * ~self.tables.terminated  # [S, A, J]
        later = self.alpha * h
        for _ in range(tail(self.gamma)):
            q = self.scale * self.tables.expected_reward() + self.gamma * (going * later[self.tables.next_state]).sum(
                -1
            )
            later = self.alpha * h + (p * q).sum(-1)
        self.q = q  # [S, A], the entropies of later steps included
        seen = agent.replay.data[0, : agent.replay.size, : self.tables.states]
        self.weight = seen.double().mean(0)  # [S], of the buffer

    def probabilities(self) -> Tensor:
        """`[S, A]` with a graph to the policy's parameters."""
        obs = self.agent.preprocessor.observations(self.states[None])  # [1, S, O]
        d = self.agent.policy.distribution(self.agent.policy_parameters, obs)
        if self.agent.policy.family == "bernoulli":
            one = torch.sigmoid(d.logits[0, :, 0])  # type: ignore[attr-defined]
            return torch.stack([1 - one, one], -1)
        return torch.softmax(d.logits[0, :, 0], -1)  # type: ignore[attr-defined]

    def gradient(self, q: Tensor, weight: Tensor, entropy: bool = True) -> np.ndarray:
        views = self.agent.policy_parameters.views
        for v in views.values():
            v.requires_grad_()
        p = self.probabilities().double()
        objective = (p * q).sum(-1)
        if entropy:
            objective = objective - self.alpha * (p * p.log()).sum(-1)
        grads = torch.autograd.grad((objective * weight).sum(), list(views.values()))
        return torch.cat([g.flatten() for g in grads]).double().numpy()

    def critic(self) -> tuple[Tensor, Tensor]:
        """Q(s, a) `[S, A]` as the actor sees it, and its slope at a towards a', `[S, A, A']`."""
        agent, (s, a) = self.agent, self.q.shape
        obs = agent.preprocessor.observations(self.states[None]).repeat_interleave(a, 1)  # [1, S*A, O]
        action = torch.eye(a).repeat(s, 1)[None].requires_grad_()  # [1, S*A, A]
        q = agent.critic.reduced(agent.critic.parameters, obs, action, agent.settings.critic.actor_value)
        (grad,) = torch.autograd.grad(q.sum(), action)
        grad = grad[0].view(s, a, a)
        along = grad - grad.diagonal(dim1=1, dim2=2).unsqueeze(-1)
        return q[0].view(s, a).detach().double(), along.double()


@pytest.mark.statistical
@pytest.mark.parametrize("name", list(TABULAR))
def test_replayed_states_against_dynamic_programming(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(TABULAR[name])
    exact = Exact(subject)
    found, error, _ = with_errors(monkeypatch, subject, lambda: true_gradient(subject, 16384))
    wanted = exact.gradient(exact.q, exact.weight)
    agrees(found.gradient, wanted, error)
    assert "as in the buffer" in found.definition
    assert ("entrop" in found.definition) == (exact.alpha > 0)
    assert found.supported
    # The share that is the critic's, up to its noise.
    wrong = exact.gradient(exact.q - exact.critic()[0], exact.weight, entropy=False)
    assert found.critic_share is not None
    assert found.critic_share == pytest.approx(float(wrong @ wrong / (wanted @ wanted)), rel=0.15)


@pytest.mark.statistical
def test_states_weighted_as_the_policy_visits_them_against_dynamic_programming() -> None:
    subject = subject_of(TABULAR["chain, entropy"])
    exact = Exact(subject)
    occupancy = torch.zeros(exact.tables.states, dtype=torch.float64)
    p, now = exact.probabilities().detach().double(), exact.tables.initial.clone()
    for _ in range(20):
        occupancy += now
        flow = now[:, None, None] * p[:, :, None] * exact.tables.probability * ~exact.tables.terminated
        now = torch.zeros_like(now).index_add(0, exact.tables.next_state.flatten(), flow.flatten())
    wanted = exact.gradient(exact.q, occupancy / occupancy.sum())
    # Its noise is not known to it: it is that of a few hundred episodes.
    found = np.stack([true_gradient(replace(subject, number=k), 4096).other for k in range(16)])
    error = found.std(0, ddof=1) / 4
    t = float(stats.t.isf(LEVEL / 2, 15))
    assert (np.abs(found.mean(0) - wanted) < t * error + 1e-5).all()
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["chain", "grid, tuned entropy", "chain, bernoulli"])
def test_the_critics_errors_against_dynamic_programming(name: str) -> None:
    subject = subject_of(TABULAR[name])
    exact = Exact(subject)
    if "entropy" in name:
        assert exact.alpha > 0
    p = exact.probabilities().detach().double()
    a = p.shape[1]
    q, slope = exact.critic()
    if "bernoulli" in name:  # the one number that such a policy draws moves both parts of the one-hot
        slope = torch.stack([torch.stack([slope[:, i, j] for j in range(a)], -1) for i in range(a)], 1)
    true = exact.q[:, None, :] - exact.q[:, :, None]  # [S, A, A']: of another one less the drawn
    believed = q[:, None, :] - q[:, :, None]
    weight = exact.weight[:, None, None] * p[:, :, None] * (1 - torch.eye(a)) / (a - 1)
    norm = (weight * true**2).sum()
    wanted = [float(((weight * (true - x) ** 2).sum() / norm).sqrt()) for x in (slope, believed)]
    found = [critic_errors(replace(subject, number=k), 2000) for k in range(10)]
    got = np.array([[e.slope[0], e.difference[0]] for e in found if e is not None])
    assert len(got) == 10
    error = got.std(0, ddof=1) / math.sqrt(len(got))
    t = float(stats.t.isf(LEVEL / 2, len(got) - 1))
    assert (np.abs(got.mean(0) - wanted) < t * error + 0.005 * np.array(wanted)).all(), (got.mean(0), wanted, error)
    assert (error < 0.03 * np.array(wanted)).all()
    assert found[0] is not None
    assert f"{found[0].slope[0]:.2g} ({found[0].slope[1]:.2g} to" in found[0].said


def test_no_critics_errors_where_a_state_cannot_be_set() -> None:
    config = merge(
        REPLAY, {"env": {"id": "CartPole-v1", "backend": "gymnasium", "kwargs": {}, "max_episode_steps": 30}}
    )
    config["env"]["kwargs"] = {}
    config["agent"] = merge(config["agent"], {"replay": {"warmup": 32}})
    (subject,) = of_config(Config.read(config))
    assert critic_errors(subject, 32) is None
    found = true_gradient(subject, 32)
    assert "its own episodes, not over the buffer's states" in found.definition
    assert found.critic_share is None


# -- what is not resolved


def test_a_reference_that_is_too_noisy_supports_nothing_and_nothing_is_printed_of_it() -> None:
    config = {"env": {"id": "CartPole-v1", "num_envs": 2, "max_episode_steps": 30}, "seeds": [1], "total_steps": 100,
              "agent": {"collect": "episodes"}, "policy": {"hidden": [16]}}  # fmt: skip
    measurement = measure(
        config, pairs=["score_function", "score_function/leave_one_out"], replicates=8, reference=32, fit=1
    )
    (m,) = measurement.measured
    assert not m.reference.supported
    assert m.reference.relative_noise > RESOLVED
    statistics = m.quality.estimates["total"]
    assert not {"bias_squared", "mse", "cosine", "mean_cosine"} & statistics.keys()
    assert m.efficiencies() == {}
    page = markdown(measurement, "title", "command", [])
    table = page[page.index("| pair") :]
    assert "grad J" not in table
    assert "cosine to" not in table
    assert "weighting" not in table
    assert "are not given" in page or "no cosine or bias" in page
    (data,) = plain(measurement)["measured"]
    assert not data["reference"]["supported"]
    for row in data["pairs"]:
        for key in ("mse", "bias_squared", "cosine", "mean_cosine", "other_cosine", "mse_ratio"):
            assert row[key] is None
    assert all(point["cosine"] is None for point in data["curve"])


def test_verdicts() -> None:
    g = np.array([1.0, 0.0])
    fine = Reference("", g, g, "", {"total": 0.01}, 0.99, None, 100)
    assert fine.supported
    assert fine.verdict == "Its halves agree with cosine 0.990; its noise is 1.0% of its squared norm."
    noisy = Reference("", g, g, "", {"total": 0.5}, 0.5, None, 100)
    assert not noisy.supported
    assert "about --reference 2,000 would do" in noisy.verdict
    nothing = Reference("", g, g, "", {"total": 2.0}, math.nan, None, 100)
    assert not nothing.supported
    assert (
        nothing.verdict == "No signal is resolved in its noise, so no cosine or bias to it is given; raise --reference."
    )
    zero = Reference("", 0 * g, 0 * g, "")
    assert not zero.supported
    assert zero.verdict == "It is exactly zero, so no cosine or bias to it is given."
    with pytest.raises(PglabError, match="at least 32 episodes or states, not 5"):
        true_gradient(of_config(Config.read(CHAIN))[0], 5)
