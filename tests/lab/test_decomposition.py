"""The law of total variance of the whole-episode gradient, against every trajectory of a tiny process with its probability."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from pglab_envs import LQR, TORCH_ENVS, Tables, TabularEnv
from scipy import stats
from spine import FALSE_ALARM, normal
from torch import Tensor

from pglab.config import Config
from pglab.errors import PglabError
from pglab.lab import continuations, decomposition
from pglab.lab.decomposition import decompose
from pglab.lab.exact_control import lqr_gradient
from pglab.lab.subject import Subject, of_config

HORIZON, SCALE = 3, 0.5


class Tiny(TabularEnv):
    """Three states, two actions, outcomes by chance, and an end that depends on where one comes from."""

    id = "pglab/TinyProcess-v0"
    max_episode_steps = HORIZON
    options = ("horizon", "certain")

    def __init__(self, num_envs: int = 1, horizon: int = HORIZON, certain: bool = False, **vector: Any) -> None:
        p = torch.softmax(normal(3, 2, 3, key=4), -1)
        if certain:
            p = torch.nn.functional.one_hot(p.argmax(-1), 3).double()
        ends = torch.zeros(3, 2, 3, dtype=torch.bool)
        ends[0, 1, 2] = ends[1, :, 0] = True
        super().__init__(
            num_envs, Tables.dense(p, 2 * normal(3, 2, 3, key=5), ends, [0.7, 0.3, 0.0]), horizon, **vector
        )


@pytest.fixture(autouse=True)
def _tiny_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TORCH_ENVS, Tiny.id, Tiny)


def subject_of(env: dict[str, Any], **changes: Any) -> Subject:
    agent = {"collect": "episodes", "discount_states": True, "value": {"hidden": [4]}}
    base = {
        "env": {"num_envs": 2} | env,
        "seeds": [3],
        "baseline": "value",
        "discount": 0.8,
        "device": "cpu",
        "agent": agent,
        "policy": {"hidden": [3]},
        "preprocessing": {"reward_scale": SCALE, "observation_scale": [1.0, 0.5, 2.0]},
    }
    subject = of_config(Config.read(base | changes))[0]
    flat = subject.agent.policy_parameters.flat
    with torch.no_grad():  # a policy that tells states apart
        flat += 0.7 * normal(*flat.shape, key=8).float()
    return subject


def tiny(**changes: Any) -> Subject:
    return subject_of({"id": Tiny.id}, **changes)


# -- the exact answer, in float64 and by plain automatic differentiation


def scores(subject: Subject) -> tuple[Tensor, np.ndarray]:
    """pi(a | s) `[S, A]`, and grad log pi(a | s) `[S, A, n]` of all parameters."""
    flat = {name: x.detach().double().requires_grad_() for name, x in subject.agent.policy_parameters.views.items()}
    x = torch.eye(3).double() * torch.tensor([1.0, 0.5, 2.0]).double()
    h = torch.tanh(x @ flat["weight0"][0] + flat["bias0"][0])
    log_prob = torch.log_softmax(h @ flat["weight1"][0] + flat["bias1"][0], -1)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(one, list(flat.values()), retain_graph=True)])
        for one in log_prob.flatten()
    ]
    return log_prob.exp().detach(), torch.stack(rows).view(3, 2, -1).numpy()


def values(subject: Subject) -> np.ndarray:
    """The agent's V of every state, `[S]`."""
    views = {name: x.detach().double() for name, x in subject.agent.value_parameters.views.items()}  # type: ignore[union-attr]
    x = torch.eye(3).double() * torch.tensor([1.0, 0.5, 2.0]).double()
    h = torch.tanh(x @ views["weight0"][0] + views["bias0"][0])
    return (h @ views["weight1"][0] + views["bias1"][0])[:, 0].numpy()


def trajectories(env: TabularEnv, pi: Tensor) -> list[tuple[float, list[tuple[int, int, float]]]]:
    """Every course of an episode with its probability: its steps (state, action, reward)."""
    t = env.tables
    going: list[Any] = [(float(p), s, []) for s, p in enumerate(t.initial) if p > 0]
    done: list[Any] = []
    for step in range(env.max_episode_steps):
        further = []
        for p, s, past in going:
            for a, j in itertools.product(range(2), range(3)):
                q = p * float(pi[s, a]) * float(t.probability[s, a, j])
                course = [*past, (s, a, SCALE * float(t.reward[s, a, j]))]
                if q > 0 and (bool(t.terminated[s, a, j]) or step + 1 == env.max_episode_steps):
                    done.append((q, course))
                elif q > 0:
                    further.append((q, int(t.next_state[s, a, j]), course))
        going = further
    return done


def exact(
    subject: Subject, env: TabularEnv, b: np.ndarray, weighs: bool = True, discount: float = 0.8
) -> dict[str, Any]:
    """Every part with the baseline `b` `[T, S]`, by conditional means over all trajectories."""
    pi, score = scores(subject)
    p, x, at = [], [], []  # probability, x_t [T, n], (s_t, a_t) of each step
    for probability, course in trajectories(env, pi):
        rows = np.zeros((env.max_episode_steps, score.shape[-1]))
        for t, (s, a, _) in enumerate(course):
            to_go = sum(discount ** (u - t) * r for u, (_, _, r) in enumerate(course) if u >= t)
            rows[t] = (discount**t if weighs else 1.0) * (to_go - b[t, s]) * score[s, a]
        p.append(probability)
        x.append(rows)
        at.append([course[t][:2] if t < len(course) else None for t in range(env.max_episode_steps)])
    weight, rows = np.array(p), np.array(x)
    assert weight.sum() == pytest.approx(1)

    def between(t: int, depth: int) -> float:
        """E |E[x_t | what is known]|^2; nothing for depth 0, the state for 1, state and action for 2."""
        groups: dict[Any, list[int]] = {}
        for i, steps in enumerate(at):
            groups.setdefault(None if steps[t] is None else steps[t][:depth], []).append(i)
        if depth == 0:
            groups = {None: list(range(len(at)))}
        means = [(weight[i].sum(), (weight[i, None] * rows[i, t]).sum(0) / weight[i].sum()) for i in groups.values()]
        return sum(q * float(m @ m) for q, m in means)

    steps = range(env.max_episode_steps)
    nested = np.array([[between(t, depth) for depth in range(3)] for t in steps])  # [T, 3]
    second = np.einsum("i,itk->t", weight, rows**2)
    g = rows.sum(1)
    mean, means = weight @ g, np.einsum("i,itk->tk", weight, rows)
    total = weight @ (g**2).sum(1) - mean @ mean
    pairs = np.einsum("i,itk,iuk->tu", weight, rows, rows) - means @ means.T  # trace Cov(x_t, x_u)
    return {
        "tau": second - nested[:, 2],
        "action": nested[:, 2] - nested[:, 1],
        "state": nested[:, 1] - nested[:, 0],
        "squared_mean": nested[:, 0],
        "cross": pairs.sum() - np.trace(pairs),
        "total": total,
        "mean": mean @ mean,
        "alive": np.array([sum(q for q, s in zip(p, at, strict=True) if s[t] is not None) for t in steps]),
    }


BASELINES = ("none", "value", ("time", lambda obs, time: 0.3 * time - 0.2 * obs[..., 1]))


def predicted(subject: Subject) -> dict[str, np.ndarray]:
    """Those baselines' values by step and state, `[T, S]`."""
    by_time = 0.3 * np.arange(HORIZON)[:, None] - 0.2 * np.array([0.0, 0.5, 0.0])
    return {"none": np.zeros((HORIZON, 3)), "value": np.tile(values(subject), (HORIZON, 1)), "time": by_time}


# -- estimates against it

COMPARED = 400
QUANTILE = float(stats.norm.isf(FALSE_ALARM / COMPARED / 2))
PARTS = ("tau", "action", "state", "squared_mean")


def agree(parts: decomposition.Parts, wanted: dict[str, Any], resolution: float) -> int:
    """Every number within its error times the quantile, which is below `resolution` times the total; how many there were."""
    counted = 0
    for name in PARTS:
        found = getattr(parts, name)
        assert QUANTILE * found.error.max() < resolution * wanted["total"], name
        assert (np.abs(found.value - wanted[name]) <= QUANTILE * found.error + 1e-9).all(), name
        counted += len(found.value)
    sums = {name: wanted[name].sum() for name in PARTS[:3]}
    sums |= {"cross": wanted["cross"], "total": wanted["total"], "gap": 0.0, "squared_mean": wanted["mean"]}
    assert sums.keys() == parts.sums.keys()
    for name, interval in parts.sums.items():
        within = QUANTILE * (interval.high - interval.low) / 2 / float(stats.norm.isf(0.025))
        assert within < 2 * resolution * wanted["total"], name
        assert abs(interval.value - sums[name]) <= within, name
    return counted + len(sums)


@pytest.mark.statistical
@pytest.mark.parametrize(("weighs", "states"), [(True, None), (True, 50_000), (False, None)])
def test_every_part_is_what_all_trajectories_give(weighs: bool, states: int | None) -> None:
    subject = tiny(agent={"collect": "episodes", "discount_states": weighs, "value": {"hidden": [4]}})
    found = decompose(subject, 150_000, BASELINES, states)
    compared = 0
    for name, b in predicted(subject).items():
        wanted = exact(subject, Tiny(), b, weighs)
        compared += agree(found.baselines[name], wanted, 0.03 if states else 0.018)
    error = np.sqrt(wanted["alive"] * np.maximum(1 - wanted["alive"], 0) / 150_000) + 1e-9
    assert (np.abs(found.alive - wanted["alive"]) <= QUANTILE * error).all()
    assert 0.5 < found.alive[2] < found.alive[1] < 0.9  # steps after the end play their part
    assert 3 * (compared + HORIZON) <= COMPARED
    time = found.baselines["time"]
    assert time.removable == time.sums["action"]
    assert time.removable_share.value == pytest.approx(time.removable.value / time.sums["total"].value)
    per_step = sum(time.sums[name].value for name in PARTS[:3])
    assert time.removable_share_of_steps.value == pytest.approx(time.removable.value / per_step)
    assert time.removable_share.low < time.removable_share.value < time.removable_share.high


def test_the_exact_parts_add_up_and_a_baseline_changes_what_it_should() -> None:
    subject = tiny()
    all_exact = {name: exact(subject, Tiny(), b) for name, b in predicted(subject).items()}
    for wanted in all_exact.values():
        assert sum(wanted[name].sum() for name in PARTS[:3]) + wanted["cross"] == pytest.approx(wanted["total"], 1e-12)
        for name in ("tau", "squared_mean"):
            np.testing.assert_allclose(wanted[name], all_exact["none"][name], rtol=1e-9)
        assert (wanted["tau"] > 0.01).all()
    for name in ("action", "cross"):
        assert np.abs(all_exact["value"][name] - all_exact["none"][name]).max() > 1e-3
    found = decompose(subject, 64, BASELINES).baselines
    for parts in found.values():
        assert np.array_equal(parts.tau.value, found["none"].tau.value)  # free of the baseline, draw by draw


@pytest.mark.statistical
def test_intervals_cover_and_estimates_are_unbiased_at_few_episodes() -> None:
    """150 decompositions of 48 episodes. Intervals cover about 93 % here (the jackknife's skewness is itself an estimate);
    85 % would be far off."""
    subject, repeats = tiny(), 150
    wanted = exact(subject, Tiny(), np.zeros((HORIZON, 3)))
    true = {name: wanted[name].sum() for name in PARTS[:3]} | {"cross": wanted["cross"], "total": wanted["total"]}
    true |= {"gap": 0.0, "squared_mean": wanted["mean"]}
    drawn = [decompose(subject, 48, ("none",), seed_offset=r).baselines["none"].sums for r in range(repeats)]
    for name, x in true.items():
        off = np.array([one[name].value - x for one in drawn])
        assert abs(off.mean()) <= QUANTILE * off.std() / math.sqrt(repeats), name
        covered = sum(one[name].low <= x <= one[name].high for one in drawn)
        assert stats.binom.cdf(covered, repeats, 0.9) > FALSE_ALARM, (name, covered)
        assert covered > 0.85 * repeats, (name, covered)


# -- special cases


def test_where_nothing_comes_after_the_action_the_trajectory_adds_nothing() -> None:
    subject = subject_of({"id": Tiny.id, "kwargs": {"certain": True, "horizon": 1}})
    found = decompose(subject, 500)
    for parts in found.baselines.values():
        assert parts.tau.value.tolist() == [0.0]
        assert parts.tau.error.tolist() == [0.0]
        assert parts.sums["tau"] == decomposition.Interval(0.0, 0.0, 0.0)
        assert parts.sums["cross"].value == pytest.approx(0, abs=1e-6)
        assert parts.action.value[0] > 0
    chance = decompose(subject_of({"id": Tiny.id, "kwargs": {"horizon": 1}}), 500)
    assert chance.baselines["none"].tau.value[0] > 0.1


@pytest.mark.statistical
def test_without_chance_in_the_environment_the_trajectory_is_later_actions() -> None:
    subject = subject_of({"id": Tiny.id, "kwargs": {"certain": True}})
    wanted = exact(subject, Tiny(certain=True), np.zeros((HORIZON, 3)))
    found = decompose(subject, 20_000, ("none",))
    agree(found.baselines["none"], wanted, 0.05)
    tau = found.baselines["none"].tau.value
    assert tau[-1] == 0 < tau[0]


class Steady(TabularEnv):
    """Reward 1 in every step; action 1 in state 0 leads to state 1, whose next step ends the episode."""

    id = "pglab/Steady-v0"
    max_episode_steps = 70

    def __init__(self, num_envs: int = 1, **vector: Any) -> None:
        p = torch.zeros(2, 2, 2).double()
        p[0, 0, 0] = p[0, 1, 1] = p[1, :, 0] = 1.0
        ends = torch.zeros(2, 2, 2, dtype=torch.bool)
        ends[1] = True
        super().__init__(num_envs, Tables.dense(p, np.ones((2, 2)), ends), 70, **vector)


def test_continuations_go_on_to_the_time_limit_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the action that stays made certain, over several blocks, from different steps at once; with states that end
    after one and two steps among them. And an episode's dead steps weigh nothing whatever their baseline."""
    monkeypatch.setitem(TORCH_ENVS, Steady.id, Steady)
    scaled = {"reward_scale": SCALE}
    subject = subject_of({"id": Steady.id}, policy={"hidden": []}, preprocessing=scaled)
    with torch.no_grad():
        subject.agent.policy_parameters.flat.zero_()
        subject.agent.policy_parameters.views["bias0"][..., 0] = 60.0
    env = subject.environment(1, 3)
    assert isinstance(env, continuations.TorchEnvironment)
    player = continuations.Player(subject.agent, env, subject.agent.noise)
    state = torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0], [0.0], [0.0]])
    elapsed = torch.tensor([0, 5, 37, 69, 3, 3, 69])
    stay, leave = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    first = torch.stack([stay, stay, stay, stay, stay, leave, leave])
    found = player.continued(state, elapsed, first, 0.9, (0,))
    lengths = np.array([70, 65, 33, 1, 1, 2, 1])
    np.testing.assert_allclose(found, SCALE * (1 - 0.9**lengths) / 0.1, rtol=1e-5)

    with torch.no_grad():
        subject.agent.policy_parameters.views["bias0"][..., 0] = 3.0
    huge = ("huge", lambda obs, time: torch.where(obs[..., 1] > 0, 1e6, 0.0))  # the last step of who left
    main = player.episodes((1,))
    alive = main.alive
    assert bool((alive[1:] <= alive[:-1]).all())
    assert bool((main.reward == SCALE * alive).all())
    left = alive.sum(0)
    np.testing.assert_allclose(main.to_go(0.5)[0], SCALE * (1 - 0.5**left) / 0.5, rtol=1e-6)
    parts = decompose(subject, 16, ("none", huge)).baselines
    assert parts["huge"].sums["total"].value > 1e3 * parts["none"].sums["total"].value

    ended = ("ended", lambda obs, time: torch.where(alive_of(subject, 16)(time), 0.0, 1e6))
    found_none, found_ended = (decompose(subject, 16, (one,)).plain()["baselines"] for one in ("none", ended))
    assert found_none["none"] == found_ended["ended"]


def alive_of(subject: Subject, episodes: int) -> Any:
    """The main episodes' own mask, as a function of the step."""
    noise = subject.agent.noise.apart(decomposition.Purpose.MEASUREMENT, subject.number, decomposition.DECOMPOSE, 0)
    env = subject.environment(1, episodes)
    assert isinstance(env, continuations.TorchEnvironment)
    alive = continuations.Player(subject.agent, env, noise).episodes((0,)).alive
    return lambda time: alive.unsqueeze(1)


@pytest.mark.statistical
@pytest.mark.parametrize("discount_states", [True, False])
def test_continuous_actions_with_a_learned_standard_deviation(discount_states: bool) -> None:
    """|E g|^2 is that of the exact gradient, and the parts make up the total."""
    env = {"id": "pglab/LQR-v0", "kwargs": {"horizon": 4}}
    agent = {"collect": "episodes", "discount_states": discount_states}
    subject = subject_of(
        env, agent=agent, baseline="none", policy={"hidden": [], "log_std": -0.5}, preprocessing={}, discount=0.9
    )
    views = subject.agent.policy_parameters.views
    gain, offset, log_std = views["weight0"][0].mT, views["bias0"][0, 0], views["log_std"][0, 0]
    truth = lqr_gradient(LQR(horizon=4), gain, offset, log_std, 0.9, discount_states)
    wanted = sum(float(x.square().sum()) for x in (truth.gain, truth.offset, truth.log_std))
    sums = decompose(subject, 10_000, ("none",)).baselines["none"].sums
    for name, value in (("squared_mean", wanted), ("gap", 0.0)):
        within = QUANTILE * (sums[name].high - sums[name].low) / 2 / float(stats.norm.isf(0.025))
        assert abs(sums[name].value - value) <= within < 0.6 * max(wanted, sums["total"].value), name
    assert all(sums[name].low > 0 for name in ("tau", "action"))


def test_actor_critic_in_a_bounded_space() -> None:
    """Its policy and normaliser are all that is used; every episode lasts as long as any other."""
    config = {
        "env": {"id": "Pendulum-v1", "num_envs": 2, "max_episode_steps": 40},
        "seeds": [1],
        "device": "cpu",
        "agent": {"name": "actor_critic", "replay": {"warmup": 10, "batch_size": 4}},
        "estimator": "pathwise",
    }
    subject = of_config(Config.read(config))[0]
    found = decompose(subject, 16, ("none", lambda obs, time: -obs[..., 0]), states_per_step=4)
    assert found.alive.tolist() == [1.0] * 40
    assert list(found.baselines) == ["none", "<lambda>"]
    total = found.baselines["none"].sums["total"]
    assert 0 < total.low < total.value < total.high
    assert abs(found.baselines["none"].sums["gap"].value) < 0.2 * total.value
    with pytest.raises(PglabError, match=r"this actor_critic agent has none"):
        decompose(subject)


# -- as a function of its arguments


def test_the_same_arguments_give_the_same_numbers_and_leave_the_agent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny()
    before = {name: p.flat.clone() for name, p in subject.agent.networks().items()}
    found = decompose(subject, 40).plain()
    assert found == decompose(subject, 40).plain() == decompose(subject, 40, states_per_step=99).plain()
    assert found == decompose(tiny(), 40).plain()
    assert found["baselines"]["none"] == decompose(subject, 40, ("none",)).plain()["baselines"]["none"]
    assert found != decompose(subject, 40, seed_offset=1).plain()
    few = decompose(subject, 40, states_per_step=10)
    assert few.plain()["baselines"]["none"]["sums"]["total"] == found["baselines"]["none"]["sums"]["total"]
    assert few.steps < found["steps"]
    assert all(torch.equal(p.flat, before[name]) for name, p in subject.agent.networks().items())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "discounted by 0.8, w_t = 0.8^t" in found["definition"]
    monkeypatch.setattr(decomposition, "ROWS", 50)
    for name, sums in decompose(subject, 40).plain()["baselines"].items():
        for part, interval in sums["sums"].items():
            assert interval["value"] == pytest.approx(
                found["baselines"][name]["sums"][part]["value"], rel=1e-4, abs=1e-4
            )


def test_what_is_refused_and_how() -> None:
    config = {"env": {"id": "CartPole-v1", "num_envs": 2, "backend": "gymnasium"}, "seeds": [0], "device": "cpu"}
    with pytest.raises(PglabError, match=r"CartPole-v1 \(gymnasium's\) cannot be put into a given state.*torch-native"):
        decompose(of_config(Config.read(config))[0])
    subject = tiny()
    nan = lambda obs, time: time / 0.0  # noqa: E731
    for arguments, says in (
        ({"baselines": ("values",)}, "Unknown state baseline 'values': choose one of none, value.*'value'"),
        ({"baselines": ("none", "none")}, "Two baselines are named 'none'"),
        ({"baselines": ()}, "no baseline to decompose with"),
        (
            {"baselines": (("flat", lambda obs, time: obs[0, 0, :, 0]),)},
            r"'flat' gave shape \[8\]; the rows want \[3, 1, 8\]",
        ),
        ({"baselines": (("bad", nan),)}, "'bad' gave a number that is not finite"),
        ({"episodes": 7}, "at least 8 episodes for its intervals, got 7"),
        ({"states_per_step": 1}, "states_per_step must be at least 2, got 1"),
    ):
        with pytest.raises(PglabError, match=says):
            decompose(subject, **{"episodes": 8, **arguments})  # type: ignore[arg-type]
    without = tiny(baseline="none", agent={"collect": "episodes"})
    with pytest.raises(PglabError, match=r"needs a learned V, and this on_policy agent has none"):
        decompose(without)
    assert list(decompose(without, 8, ("none",)).baselines) == ["none"]


def test_errors_are_those_of_leaving_out_one_episode_at_a_time() -> None:
    """Squared means by all pairs, and both statistics anew without each episode."""
    y = normal(9, 4, key=30).numpy() + 0.3  # [E, n]

    def by_pairs(y: np.ndarray) -> float:
        products = [float(a @ b) for a, b in itertools.permutations(y, 2)]
        return float(np.mean(products))

    def jackknifed(without: list[float]) -> np.ndarray:
        e = len(without)
        return math.sqrt((e - 1) / e) * (np.mean(without) - np.array(without))

    found = decomposition._squared_mean((y**2).sum(1), y @ y.sum(0))
    assert float(found.value) == pytest.approx(by_pairs(y), rel=1e-12)
    without = [by_pairs(np.delete(y, i, 0)) for i in range(len(y))]
    np.testing.assert_allclose(found.contributions, jackknifed(without), rtol=1e-9, atol=1e-12)

    x, chosen = y[:, 0], np.arange(9) % 2 == 0
    mean = decomposition._mean(x[None], chosen[None])
    assert mean.value[0] == pytest.approx(x[chosen].mean())
    assert not mean.contributions[0, ~chosen].any()
    without = [float(np.delete(x[chosen], i).mean()) for i in range(5)]
    np.testing.assert_allclose(mean.contributions[0, chosen], jackknifed(without), rtol=1e-9, atol=1e-12)
    ratio = found.over(decomposition._Statistic(np.array(2.0), 0 * found.contributions))
    assert float(ratio.value) == pytest.approx(float(found.value) / 2)
    np.testing.assert_allclose(ratio.contributions, found.contributions / 2)
