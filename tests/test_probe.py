"""The gradient probe: its figures held to plain autograd and numpy, and that it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import (
    EPISODES,
    EPOCHS,
    GYM,
    LEARNED,
    PENDULUM,
    PER_PARAMETER,
    REPLAY,
    STEPS,
    assert_same,
    final_state,
    killed_after,
    logged,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pglab.agents import ActorCriticAgent, Agent, OnPolicyAgent
from pglab.capabilities import equal_parts
from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.gradients import entropy
from pglab.lab import probe
from pglab.lab.gradient_statistics import noise_to_signal
from pglab.networks import Parameters
from pglab.tracking import read_log
from pglab.training import Trainer, resume, train
from pglab.watching import Watcher

SCORES = merge(
    {k: v for k, v in REPLAY.items() if k != "estimator"},
    {"estimator": "score_function", "baseline": "critic_mean", "agent": {"replay": {"warmup": 40}}},
)
SAC = merge(PENDULUM, {"entropy_weight": 0.1, "agent": {"replay": {"warmup": 20}}})
CONTINUOUS = merge(
    EPISODES,
    {
        "env": {"id": "Pendulum-v1", "max_episode_steps": 20, "num_envs": 5},
        "agent": {"reduction": "mean_over_episodes", "discount_states": True},
    },
)
WHITENED = merge(STEPS, {"agent": {"normalize_advantages": True}})
CASES = {
    "steps, discrete": STEPS,
    "steps, no baseline": merge(STEPS, {"baseline": "none"}),
    "whole episodes, discrete": EPISODES,
    "whole episodes, continuous": CONTINUOUS,
    "several episodes in a column": merge(EPISODES, {"agent": {"episodes": 2}}),
    "several steps on a batch": EPOCHS,
    "whitened advantages": WHITENED,
    "whitened, no baseline": merge(WHITENED, {"baseline": "none"}),
    "a baseline that scales": merge(STEPS, {"baseline": "whitened"}),
    "a coefficient per parameter": PER_PARAMETER,
    "replay, discrete": SCORES,
    "replay, pathwise": SAC,
}


def seen_at(config: dict[str, Any], update: int) -> tuple[Agent, Any]:
    """An agent and the rows that its gradient is about to be estimated from, at an update counted from 0."""
    trainer = Trainer(Config.read(merge(config, {"total_steps": 10**8})))
    found: list[tuple[Agent, Any]] = []

    class Seen(Exception):
        pass

    def look(agent: Agent, rows: Any) -> None:
        if agent.updates == update:
            found.append((agent, rows))
            raise Seen

    trainer.agent.probe = look
    try:
        while True:
            trainer._before_update()
            trainer._update()
    except Seen:
        return found[0]
    finally:
        trainer.env.close()
        if trainer.evaluator is not None:
            trainer.evaluator.env.close()


def policy_at(agent: Agent, p: int, obs: torch.Tensor, mask: torch.Tensor | None) -> tuple[Any, list[torch.Tensor]]:
    """One member's policy at observations `[B, O]` in plain operations of float64, rows `[1, 1, B]`, and its leaves."""
    views = {k: v[p : p + 1].detach().double().requires_grad_() for k, v in agent.policy_parameters.views.items()}
    network = agent.policy.network
    h = network.plain([views[name] for name in network.layer_names], obs.double().unsqueeze(0))
    return agent.policy.parameterized(views, h.unsqueeze(0), mask), list(views.values())


def gradient(objective: torch.Tensor, leaves: list[torch.Tensor]) -> np.ndarray:
    found = torch.autograd.grad(objective, leaves, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(v).flatten() if g is None else g.flatten() for g, v in zip(found, leaves, strict=True)]
    ).numpy()


def plain_on_policy(agent: OnPolicyAgent, prepared: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """A score function's columns `[P, N, n]`, one column after another: with what is subtracted and without."""
    signal, valid = prepared.signal, prepared.batch.valid
    value = subtracted = signal.value.double()
    if signal.baseline is not None:
        subtracted = value - signal.baseline.double()
    if agent.settings.normalize_advantages:  # everything that is subtracted, and the same divisor
        b = prepared.batch.v if agent.config.baseline.name == "value" else torch.zeros_like(prepared.batch.value)
        value = prepared.batch.value.double()
        rows = [(value - b)[:, p][valid[:, p]] for p in range(value.shape[1])]
        value = value / torch.stack([r.std() for r in rows])[:, None]
    weight_of_entropy = agent.hyper("entropy_weight").double()
    everyone, columns = [], valid.shape[2]

    def column(p: int, n: int, f: torch.Tensor, bonus: bool = True) -> np.ndarray:
        d, leaves = policy_at(agent, p, prepared.obs[:, p, n], None)
        action, noise = (x[:, p, n].double()[None, None] for x in (prepared.draw.action, prepared.noise))
        rows = d.log_prob(action).sum(-1) * f[:, p, n]
        if bonus:
            rows = rows + weight_of_entropy[p] * entropy(d, noise)
        return gradient((rows * prepared.weight[:, p, n].double()).sum() * columns, leaves)

    for f in (subtracted, value):
        found = [[column(p, n, f) for n in range(columns)] for p in range(valid.shape[1])]
        everyone.append(np.array(found))
    if agent.config.baseline.per_parameter:
        b = agent.config.baseline.coefficient(agent.baseline_state).double().numpy()
        one = torch.ones_like(value)
        scores = np.array([[column(p, n, one, False) for n in range(columns)] for p in range(valid.shape[1])])
        everyone[0] = everyone[0] - b[:, None] * scores
    subtracts = agent.config.baseline.name != "none" or agent.settings.normalize_advantages
    return everyone[0], everyone[1] if subtracts else None


def plain_actor_critic(agent: ActorCriticAgent, rows: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The parts of a minibatch, one after another."""
    members, size = rows.obs.shape[:2]
    parts, critic = equal_parts(size), agent.critic
    each = size // parts
    shapes, flat = critic.parameters.shapes, critic.parameters.flat.double()  # [P, copies x n]
    alpha, pathwise = agent.entropy_weight(), agent.config.estimator.name == "pathwise"
    assert alpha is not None
    found: list[list[list[np.ndarray]]] = [[], []]
    for p in range(members):
        q = Parameters(shapes, flat[p : p + 1], critic.copies)
        for out in found:
            out.append([])
        for k in range(parts):
            at = slice(k * each, (k + 1) * each)
            noise = rows.noise[0, p, at].double()[None, None]
            obs = rows.obs[p, at].double()
            for i in range(1 if pathwise else 2):
                d, leaves = policy_at(agent, p, obs, None)

                def f(action: torch.Tensor, obs: torch.Tensor = obs, q: Parameters = q) -> torch.Tensor:
                    return critic.reduced(q, obs[None], agent.policy.present(action)[0].flatten(2))[None]

                if pathwise:
                    value = f(d.executed(d.rsample(noise)))
                else:
                    action = d.detach().sample(noise)
                    value = f(action).detach()
                    if i == 0:  # less E_a[Q]
                        ways = torch.eye(2).double()[:, None, None, None].expand(2, 1, 1, each, 2)[..., None, :]
                        probability = d.detach().log_prob(ways).sum(-1).exp()  # [2, 1, 1, B]
                        value = value - sum(probability[a] * f(ways[a]).detach() for a in range(2))
                    value = d.log_prob(action).sum(-1) * value
                total = (value + alpha[p].double() * entropy(d, noise)) * rows.weight[0, p, at].double()
                found[i][-1].append(gradient(total.sum() * parts, leaves))
    return np.array(found[0]), None if pathwise else np.array(found[1])


def in_numpy(g: np.ndarray, without: np.ndarray | None) -> dict[str, np.ndarray]:
    n = g.shape[1]
    one = noise_to_signal(g)  # of one column; the batch's is their mean
    even, odd = g[:, ::2].mean(1), g[:, 1::2].mean(1)
    lengths = np.linalg.norm(even, axis=1) * np.linalg.norm(odd, axis=1)
    found = {
        "probe/nsr": one["nsr"] / n,
        "probe/cosine_halves": (even * odd).sum(1) / lengths,
        "probe/trace": one["trace_variance"] / n,
    }
    if without is not None:
        found["probe/trace_without_baseline"] = noise_to_signal(without)["trace_variance"] / n
        found["probe/baseline_gain"] = found["probe/trace_without_baseline"] / found["probe/trace"]
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_the_figures_are_those_of_plain_autograd_column_by_column(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"seeds": 2, "policy": {"hidden": [6], "output_gain": 1.0}}
    agent, rows = seen_at(merge(CASES[name], small), 3)
    found = probe.figures(probe.columns(agent, rows))
    monkeypatch.setattr(probe, "HELD", 1)  # one member at a time
    apart = probe.figures(probe.columns(agent, rows))
    plain = plain_on_policy if isinstance(agent, OnPolicyAgent) else plain_actor_critic
    g, without = plain(agent, rows)  # type: ignore[arg-type]
    wanted = in_numpy(g, without)
    assert found.keys() == wanted.keys()
    for tag, value in wanted.items():
        for got in (found[tag], apart[tag]):
            assert got.shape == (2,)
            # 1 / NSR is a difference over the trace: it cancels, and is 0 where the ratio is infinite.
            a, b = (1 / x if tag == "probe/nsr" else x for x in (got.double().numpy(), value))
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * (tag != "probe/trace"), err_msg=tag)
    assert (found["probe/trace"] > 0).all()


@pytest.mark.parametrize(
    "name", ["steps, discrete", "whole episodes, continuous", "replay, discrete", "replay, pathwise"]
)
def test_the_columns_mean_is_the_gradient_that_training_applies(name: str) -> None:
    agent, rows = seen_at(CASES[name], 2)
    found = probe.columns(agent, rows)
    means = torch.cat([g.mean(1) for g, _ in found.by_members()])
    agent.gradient(rows)  # type: ignore[attr-defined]
    torch.testing.assert_close(-means, agent.policy_parameters.grad, rtol=1e-4, atol=1e-6)


def test_no_signal_no_noise_and_no_gradient_follow_the_conventions_of_the_laboratory() -> None:
    g = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[2.0, 1.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = probe._figures(g)
    assert found["probe/nsr"][0] == torch.inf
    assert found["probe/nsr"][1] == 0
    assert found["probe/nsr"][2].isnan()
    assert found["probe/cosine_halves"][:2].tolist() == pytest.approx([-1, 1])
    assert found["probe/cosine_halves"][2].isnan()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(STEPS, id="steps"),
        pytest.param(merge(EPISODES, GYM), id="episodes-gymnasium"),
        pytest.param(EPOCHS, id="epochs"),
        pytest.param(LEARNED, id="rebar"),
        pytest.param(PER_PARAMETER, id="optimal-per-parameter"),
        pytest.param(SCORES, id="replay"),
        pytest.param(SAC, id="sac"),
    ],
)
def test_training_is_the_same_bit_for_bit_with_the_probe(config: dict[str, Any], tmp_path: Path) -> None:
    config = merge(config, {"total_steps": 320})
    without, with_it = tmp_path / "without", tmp_path / "with"
    train(config, without)
    train(merge(config, {"probe": {"every": 1}}), with_it)
    assert_same(final_state(without), final_state(with_it))
    a, b = logged(without), logged(with_it)
    assert any(tag.startswith("probe/") for tag in b)
    assert a == {tag: x for tag, x in b.items() if not tag.startswith("probe/")}


@pytest.mark.parametrize("config", [STEPS, EPISODES, SCORES], ids=["steps", "episodes", "replay"])
def test_a_probe_that_is_not_logged_yet_survives_a_resume(config: dict[str, Any], tmp_path: Path) -> None:
    # Longer between log lines than between checkpoints, so that checkpoints hold figures to be logged.
    config = merge(config, {"probe": {"every": 2}, "log_every": 450, "total_steps": 700})
    train(config, tmp_path / "whole")
    killed_after(config, tmp_path / "broken", checkpoints=2)
    newest = sorted((tmp_path / "broken" / "checkpoints").glob("*.pt"))[-1]
    assert torch.load(newest, weights_only=True)["loop"]["probe"]
    resume(tmp_path / "broken")
    a, b = logged(tmp_path / "whole"), logged(tmp_path / "broken")
    assert a == b
    assert len(a["probe/trace"]["seed0"][0]) == 2


def test_a_probe_is_logged_once_and_its_cost_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    # 32 steps an update, a log line every 5 of them: of probes at 8, 16, .. each is logged with the next line.
    config = merge(STEPS, {"probe": {"every": 8}, "baseline": "none", "total_steps": 640})
    trained = train(config, tmp_path / "run", watcher=Watcher(note=notes.append))
    log = read_log(tmp_path / "run")
    assert {t for t in log if t.startswith("probe/")} == {"probe/nsr", "probe/cosine_halves", "probe/trace"}
    assert log["probe/trace"]["seed0"].steps.tolist() == [320, 640]
    assert len(log["gradient/norm"]["seed0"].steps) == 4
    assert trained.results()["seconds"]["probe"] > 0
    (note,) = [n for n in notes if "probe" in n]
    assert note.startswith("The gradient probe took ")
    assert note.endswith(" %).")
    assert "probe" not in " ".join(_notes_without())


def _notes_without() -> list[str]:
    notes: list[str] = []
    train(merge(STEPS, {"total_steps": 64}), watcher=Watcher(note=notes.append))
    return notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": "evolution", "baseline": "none"}, "agent 'evolution' does not have: leave it unset"),
        ({"env": {"id": "Pendulum-v1"}, "agent": "bptt", "baseline": "none"}, "agent 'bptt' does not have"),
        ({"env": {"num_envs": 1}}, "set env.num_envs to 2 or more"),
        ({"agent": {"name": "actor_critic", "replay": {"batch_size": 257}}, "baseline": "none"}, "257 rows have none"),
    ],
)
def test_a_batch_without_comparable_parts_is_refused(changes: dict[str, Any], message: str) -> None:
    config = merge({"env": {"id": "CartPole-v1"}, "baseline": "value", "probe": {"every": 5}}, changes)
    with pytest.raises(PglabError, match=message):
        train(config)


def test_parts_are_equal_and_at_most_sixteen() -> None:
    assert [equal_parts(n) for n in (1, 2, 15, 16, 100, 256, 257)] == [1, 2, 15, 16, 10, 16, 1]


def test_looking_leaves_the_agent_and_its_rows_as_they_are() -> None:
    agent, rows = seen_at(SAC, 2)
    state, kept = agent.state(), replace(rows, obs=rows.obs.clone(), noise=rows.noise.clone())
    flat, grad = agent.policy_parameters.flat.clone(), agent.policy_parameters.grad.clone()
    probe.Probe(1)(agent, rows)
    assert_same(agent.state(), state)
    assert torch.equal(flat, agent.policy_parameters.flat)
    assert torch.equal(grad, agent.policy_parameters.grad)
    assert torch.equal(rows.obs, kept.obs)
    assert torch.equal(rows.noise, kept.noise)


@pytest.mark.parametrize(
    "name", ["steps, discrete", "whole episodes, continuous", "replay, discrete", "replay, pathwise"]
)
def test_no_operation_waits_for_the_device(name: str) -> None:
    agent, rows = seen_at(CASES[name], 2)
    waits = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "is_nonzero"}
    called: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with Watch():
        probe.Probe(1)(agent, rows)
    assert "bmm" in called
    assert not called & waits
    with Watch():
        rows.obs.sum().item()  # it would have been seen
    assert called & waits
