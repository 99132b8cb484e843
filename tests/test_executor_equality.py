"""A program gives the training that its functions give, bit for bit: for every estimator, baseline and option.

Each case trains the same small population twice for a few updates, operation by operation and as programs, and compares
every tensor that training changes. That a function really was repeated is asserted too: `AS_THEY_ARE` says which are not,
and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pglab.baselines import BASELINES
from pglab.capabilities import fitting
from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS
from pglab.executors import Block, Eager
from pglab.policy import CLASSES
from pglab.programs import leaves
from pglab.repeating import Programs
from pglab.training import Trainer, resume, train

UPDATES = 6
"""A function is called, recorded, compared, and repeated three times."""

SMALL: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 3, "max_episode_steps": 7},
    "policy": {"hidden": [8]},
    "seeds": 2,
    "learning_rate": 0.01,
    "evaluation": {"episodes": 1, "final_episodes": 1},
}
ON_POLICY = merge(
    SMALL,
    {
        "agent": {
            "name": "on_policy",
            "steps": 5,
            "returns": {"name": "gae"},
            "value": {"hidden": [8]},
            "critic": {"hidden": [8], "twin": False},
        },
        "entropy_weight": 0.01,
    },
)
ACTOR_CRITIC = merge(
    SMALL,
    {
        "agent": {
            "name": "actor_critic",
            "critic": {"hidden": [8]},
            "replay": {"capacity": 40, "batch_size": 8, "warmup": 0},
            "steps_per_round": 2,
        },
        "entropy_weight": 0.01,
    },
)
AGENTS = {"on_policy": ON_POLICY, "actor_critic": ACTOR_CRITIC}
WORLDS: dict[str, dict[str, Any]] = {
    "categorical": {},
    "bernoulli": {"policy": {"distribution": "bernoulli"}},
    "gaussian": {"env": {"id": "Pendulum-v1"}, "policy": {"distribution": "gaussian"}},
    "squashed_gaussian": {"env": {"id": "Pendulum-v1"}, "policy": {"distribution": "squashed_gaussian"}},
}
"""An environment and a policy of every family but beta, which is drawn from eagerly only."""

RUNS = {"on_policy": {"block, learn_after"}, "actor_critic": {"block, store_and_learn"}}
"""What runs as a program where nothing is said in `AS_THEY_ARE`."""


def progress_of(trainer: Trainer) -> tuple[list[float], Tensor | None]:
    """What `Trainer` tells the agent before an update."""
    total = trainer.config.total_steps
    done = trainer.steps >= total
    active = torch.tensor(~done, dtype=torch.float32).unsqueeze(1) if done.any() else None
    return [min(1.0, s / total) for s in trainer.steps.tolist()], active


def trained(config: dict[str, Any], executor: str, updates: int = UPDATES) -> tuple[Trainer, dict[str, Any], list[str]]:
    """A trainer after some updates, all that came of them, and what was said of functions that are not repeated."""
    trainer = Trainer(Config.read(merge(config, {"executor": executor})))
    notes: list[str] = []
    found: dict[str, Any] = {}
    trainer.agent.executor.note = notes.append
    for i in range(updates):
        trainer.agent.begin_update(*progress_of(trainer))
        metrics, rollout = trainer._update()
        found[f"rewards/{i}"] = rollout.reward.clone()
    with torch.no_grad():
        for tag, value in metrics.items():
            found[f"metrics/{tag}"] = (value() if callable(value) else value).clone()
    found |= flat(trainer.agent.state(), "state")
    found |= {"running": trainer.running, "finished": trainer.finished_sum, "steps": torch.from_numpy(trainer.steps)}
    if trainer.replay is not None:
        found["replay"] = trainer.replay.data
    return trainer, found, notes


def flat(tree: Any, name: str) -> dict[str, Any]:
    """A tree's tensors and numbers by their paths."""
    if isinstance(tree, Mapping):
        return {k: v for key, part in tree.items() for k, v in flat(part, f"{name}/{key}").items()}
    if isinstance(tree, list):
        return {k: v for i, part in enumerate(tree) for k, v in flat(part, f"{name}/{i}").items()}
    return {name: tree}


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    other = [name for name, x in expected.items() if not equal(found[name], x)]
    assert not other, f"not equal: {', '.join(other)}"


def equal(a: Any, b: Any) -> bool:
    """Bit for bit (NaN is equal to NaN)."""
    if not isinstance(b, Tensor):
        return bool(a == b)
    x, y = (np.ascontiguousarray(t.detach().numpy()) for t in (a, b))
    return x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")


def ways(trainer: Trainer) -> dict[str, str]:
    """Every function that the executor was asked for more than twice in one form or in several, and whether it is a `program`
    or called as it is. A block is named with what follows from it."""
    executor = trainer.agent.executor
    assert isinstance(executor, Programs)
    found = {}
    for function, forms in executor._held.items():
        if isinstance(function, Block):
            name = "block" if function.then is None else f"block, {function.then.__name__}"
        else:
            name = function.__name__
        if len(forms) == 1 and not any(h.checked or h.as_it_is for h in forms.values()):
            continue
        repeated = [h.repeat is not None and h.checked and not h.as_it_is for h in forms.values()]
        found[name] = "program" if any(repeated) else "called"
    return found


def pairs() -> dict[str, dict[str, Any]]:
    """Every shipped estimator with each agent, for every family that it serves."""
    return {
        f"{agent}, {name}, {family}": merge(merge(base, world), {"estimator": name})
        for agent, base in AGENTS.items()
        for family, world in WORLDS.items()
        for name in fitting(CLASSES[family])
    }


PIECES = {"steps": 5, "epochs": 2, "minibatches": 2}
BASELINED: dict[str, dict[str, Any]] = {
    **{name: {"baseline": name} for name in BASELINES.names()},
    "group_normalised by std": {"baseline": {"name": "group_normalised", "std": True}},
    "linear_features of folds": {"baseline": {"name": "linear_features", "folds": 3}},
    "time_dependent, leave one out": {"baseline": {"name": "time_dependent", "leave_one_out": True}},
    "optimal_per_time of few steps": {"baseline": {"name": "optimal_per_time", "steps": 4}},
    "whitened by std": {"baseline": {"name": "whitened", "std": True}},
}
LINEAR = {"kind": "linear", "start": 0.02, "end": 0.001}
SCHEDULED = {
    "learning_rate": LINEAR,
    "entropy_weight": {"kind": "cosine", "start": 0.1, "end": 0.0, "until": 0.5},
    "discount": {"kind": "linear", "start": 0.9, "end": 0.99},
    "total_steps": 100,
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "on_policy": {
        "epochs": {"agent": {"epochs": 3}},
        "minibatches": {"agent": {"minibatches": 3}},
        "epochs of minibatches": {"agent": PIECES, "estimator": "ppo_clip", "baseline": "value"},
        "minibatches with a critic": {"agent": PIECES, "baseline": "critic_mean"},
        "monte_carlo": {"agent": {"collect": "steps", "returns": {"name": "monte_carlo"}}},
        "n_step": {"agent": {"returns": {"name": "n_step", "n": 2}}},
        "v_trace": {"agent": {"returns": {"name": "v_trace"}, **PIECES}, "estimator": "importance_weighted"},
        "v_trace in one step": {"agent": {"returns": {"name": "v_trace"}}, "baseline": "value"},
        "blocks longer than episodes": {"agent": {"steps": 9}},
        "whole episodes": {"agent": {"collect": "episodes", "block": 3, "returns": {"name": "monte_carlo"}}},
        "whole episodes, two each": {"agent": {"collect": "episodes", "episodes": 2}, "baseline": "time_dependent"},
        "whole episodes in minibatches": {"agent": {"collect": "episodes", "minibatches": 2}, "estimator": "ppo_clip"},
        "normalize_advantages": {"agent": {"normalize_advantages": True}, "baseline": "value"},
        "discount_states": {"agent": {"discount_states": True}},
        "mean_over_episodes": {"agent": {"reduction": "mean_over_episodes"}},
        "several steps of the critic": {"agent": {"critic_updates": 3}, "estimator": "arsm"},
        "twin critics": {"agent": {"critic": {"twin": True, "actor_value": "mean"}}, "estimator": "reinmax"},
        "blend": {"agent": {"critic": {"blend": 0.5}}, "estimator": "straight_through"},
        "blend, interpolated": {
            "agent": {"critic": {"blend": 0.5, "blend_target": "interpolated"}},
            "estimator": "straight_through",
        },
        "own rate of V": {"agent": {"value": {"learning_rate": LINEAR, "max_grad_norm": 0.1}}, "total_steps": 100},
        "sweep of lambda": {"agent": {"returns": {"name": "gae", "lam": [0.5, 0.9]}}},
    },
    "actor_critic": {
        "auto_entropy": {"agent": {"auto_entropy": True}},
        "auto_entropy of its own rate": {"agent": {"auto_entropy": True, "entropy_learning_rate": 0.03}},
        "several updates a round": {"agent": {"updates_per_round": 3}},
        "warm-up": {"agent": {"replay": {"warmup": 12}}},
        "on-policy data": {"agent": {"replay": {"data": "on_policy"}}},
        "a buffer that overflows": {"agent": {"replay": {"capacity": 10}}},
        "no target network": {"agent": {"critic": {"target_rate": 1.0, "max_grad_norm": 0.5}}},
        "one critic": {"agent": {"critic": {"twin": False}}},
        "mean of twins": {"agent": {"critic": {"actor_value": "mean"}}},
        "expected target": {"agent": {"critic": {"target_action": "expectation"}}, "estimator": "enumeration"},
        "target at the mode": {"agent": {"critic": {"target_action": "mode"}}},
        "blend": {"agent": {"critic": {"blend": 0.5}}, "estimator": "straight_through"},
        "blend, interpolated": {
            "agent": {"critic": {"blend": 0.5, "blend_target": "interpolated"}},
            "estimator": "straight_through",
        },
        "own rate of Q": {"agent": {"critic": {"learning_rate": [0.1, LINEAR]}}, "total_steps": 50},
        "soft actor-critic": {
            "env": {"id": "Pendulum-v1"},
            "estimator": "pathwise",
            "agent": {"auto_entropy": True, "updates_per_round": 2},
            "policy": {"state_dependent_std": True},
        },
        "deterministic actor": {
            "env": {"id": "Pendulum-v1"},
            "estimator": {"name": "pathwise", "at_mode": True},
            "agent": {"critic": {"target_action": "mode"}},
        },
    },
}
BOTH: dict[str, dict[str, Any]] = {
    "sweep": {"learning_rate": [0.001, LINEAR], "entropy_weight": [0.0, 0.1], "total_steps": 100},
    "schedules": SCHEDULED,
    "scheduled temperature": {
        "estimator": {"name": "straight_through_gumbel_softmax", "temperature": {**LINEAR, "start": 1.0}},
        "total_steps": 100,
    },
    "scheduled slope": {
        "estimator": {"name": "slope_annealed_straight_through", "slope": {**LINEAR, "start": 1.0, "end": 3.0}},
        "total_steps": 100,
    },
    "sgd": {"optimizer": {"name": "sgd"}},
    "momentum": {"optimizer": {"name": "sgd", "momentum": 0.9}},
    "rmsprop": {"optimizer": {"name": "rmsprop"}},
    "clipping": {"max_grad_norm": 0.01},
    "normalisation": {"preprocessing": {"normalize_observations": True, "normalize_returns": True}},
    "scales": {"preprocessing": {"observation_scale": [1.0, 0.5, 2.0, 0.1], "reward_scale": 0.1}},
    "one member": {"seeds": [3]},
    "many members": {"seeds": 5},
    "relu": {"policy": {"activation": "relu", "hidden": [8, 8]}},
    "silu": {"policy": {"activation": "silu", "logit_bound": 2.0}},
    "elu, no hidden layer": {"policy": {"activation": "elu", "hidden": []}},
    "fixed deviation": {"env": {"id": "Pendulum-v1"}, "policy": {"distribution": "gaussian", "learn_std": False}},
    "deviation of the state": {
        "env": {"id": "Pendulum-v1"},
        "policy": {"distribution": "gaussian", "state_dependent_std": True, "log_std_bounds": (-1.0, 1.0)},
    },
    "gymnasium": {"env": {"backend": "gymnasium"}},
    "gymnasium, next step": {"env": {"backend": "gymnasium", "autoreset_mode": "next_step"}},
    "several factors": {"env": {"id": "pglab/PolynomialProgram-v0", "kwargs": {"D": 3}}},
    "bits": {"env": {"id": "pglab/SharedLogit-v0", "max_episode_steps": None}},
    "a table": {"env": {"id": "pglab/GridWorld-v0"}},
    "random transitions": {"env": {"id": "pglab/LQR-v0"}, "policy": {"distribution": "gaussian"}},
    "one state to begin from": {"env": {"id": "pglab/Chain-v0"}},
    "an unbounded action": {"env": {"id": "pglab/Quadratic-v0"}, "policy": {"distribution": "gaussian"}},
    "probe": {"probe": {"every": 2}, "agent": {"replay": {"batch_size": 8}}},
}


def options() -> dict[str, dict[str, Any]]:
    """Every option of the agents, and baselines with every agent that has what they need."""
    found = {}
    for agent, base in AGENTS.items():
        both = BOTH if agent == "actor_critic" else {k: _without_replay(v) for k, v in BOTH.items()}
        for name, change in (both | OPTIONS[agent] | BASELINED).items():
            has = {"distribution", "critic", "action"} | ({"v", "scores", "time"} if agent == "on_policy" else set())
            if name not in BASELINED or BASELINES.build(change["baseline"]).needs <= has:
                found[f"{agent}, {name}"] = merge(base, change)
    return found


def _without_replay(change: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in change.items() if k != "agent"}


ONE_BY_ONE = "steps of several are repeated one by one, between what is done once a batch"
VARIES = "batches of whole episodes are of another length each time"
DRAWS = "the critic's blending draws noise within the update"
STEPPED = "gymnasium steps its environments itself"
SEVERAL = "several updates a round are repeated one by one, after the round's block"
LOOKED_AT = "an update that the probe looks at is called, after a block of its own"
AS_THEY_ARE: dict[str, tuple[set[str], str]] = {
    "on_policy, epochs": ({"block", "step"}, ONE_BY_ONE),
    "on_policy, minibatches": ({"block", "step"}, ONE_BY_ONE),
    "on_policy, epochs of minibatches": ({"block", "step"}, ONE_BY_ONE),
    "on_policy, minibatches with a critic": ({"block", "step"}, ONE_BY_ONE),
    "on_policy, v_trace": ({"block", "step"}, ONE_BY_ONE),
    "on_policy, whole episodes": ({"block"}, VARIES),
    "on_policy, whole episodes, two each": ({"block"}, VARIES),
    "on_policy, whole episodes in minibatches": ({"block"}, VARIES),
    "on_policy, blend": ({"block"}, DRAWS),
    "on_policy, blend, interpolated": ({"block"}, DRAWS),
    "on_policy, probe": ({"block", "block, learn_after"}, LOOKED_AT),
    "on_policy, gymnasium": ({"learn_after", "count"}, STEPPED),
    "on_policy, gymnasium, next step": ({"learn_after", "count"}, STEPPED),
    "actor_critic, several updates a round": ({"block, store", "learn"}, SEVERAL),
    "actor_critic, soft actor-critic": ({"block, store", "learn"}, SEVERAL),
    "actor_critic, probe": ({"block, store", "block, store_and_learn"}, LOOKED_AT),
    "actor_critic, gymnasium": ({"store_and_learn", "count"}, STEPPED),
    "actor_critic, gymnasium, next step": ({"store_and_learn", "count"}, STEPPED),
}
"""What alone runs as a program, and why the rest does not. Nothing is given up on."""
PAIRS, CHOICES = pairs(), options()


@pytest.mark.parametrize("name", list(PAIRS | CHOICES))
def test_a_program_trains_as_its_functions_do(name: str) -> None:
    config = (PAIRS | CHOICES)[name]
    _, expected, _ = trained(config, "eager")
    trainer, found, notes = trained(config, "program")
    assert_equal(found, expected)
    assert notes == []
    runs = AS_THEY_ARE.get(name, (RUNS[config["agent"]["name"]], ""))[0]
    assert ways(trainer) == dict.fromkeys(runs, "program")


def test_every_shipped_part_is_among_the_cases() -> None:
    configs = [Config.read(c) for c in (PAIRS | CHOICES).values()]
    assert {c.estimator.name for c in configs} == set(ESTIMATORS.names())
    assert {c.baseline.name for c in configs} == set(BASELINES.names())
    assert set(AS_THEY_ARE) <= set(CHOICES)


# -- members that stop, checkpoints, whole runs


@pytest.mark.parametrize("agent", list(AGENTS))
def test_members_that_are_done_stand_still_in_a_program_too(agent: str) -> None:
    """Four updates of three members, four of two, three of one: two forms of the update."""
    who = [[1.0, 1.0, 1.0]] * 4 + [[0.0, 1.0, 1.0]] * 4 + [[0.0, 1.0, 0.0]] * 3
    config = merge(AGENTS[agent], {"seeds": 3, "preprocessing": {"normalize_observations": True}})
    found = {}
    for executor in ("eager", "program"):
        trainer = Trainer(Config.read(merge(config, {"executor": executor})))
        seen = []
        for now in who:
            active = None if all(now) else torch.tensor(now).unsqueeze(1)
            trainer.agent.begin_update([0.5] * 3, active)
            trainer.agent.update(trainer.env)
            seen.append(trainer.agent.policy_parameters.flat.clone())
        for i in (8, 9, 10):
            assert torch.equal(seen[i][0], seen[3][0])
            assert torch.equal(seen[i][2], seen[7][2])
            assert not torch.equal(seen[i][1], seen[i - 1][1])
        found[executor] = flat(trainer.agent.state(), "state")
    assert_equal(found["program"], found["eager"])
    executor_used = trainer.agent.executor
    assert isinstance(executor_used, Programs)
    learning = [
        held
        for function, forms in executor_used._held.items()
        if "learn" in getattr(getattr(function, "then", function), "__name__", "")
        for held in forms.values()
    ]
    assert [h.repeat is not None for h in learning] == [True, True]


RUN = {
    "total_steps": 90,
    "log_every": 30,
    "checkpoint": {"every": 30},
    "evaluation": {"every": 40, "episodes": 2, "final_episodes": 2, "deterministic": False},
    "preprocessing": {"normalize_observations": True, "normalize_returns": True},
    "measurement": {"at": [0.0, 0.6, 1.0], "replicates": 4},
    "probe": {"every": 3},
}


@pytest.mark.parametrize("agent", list(AGENTS))
@pytest.mark.parametrize(("first", "second"), [("eager", "program"), ("program", "eager"), ("program", "program")])
def test_a_run_that_another_executor_goes_on_with_is_the_uninterrupted_run(
    tmp_path: Path, agent: str, first: str, second: str
) -> None:
    config = merge(AGENTS[agent], RUN | {"measurement": {"at": []}, "baseline": BASELINE[agent]})
    whole = train(merge(config, {"executor": "eager"}))
    train(merge(config, {"executor": first, "total_steps": 45}), tmp_path / "run")
    went_on = resume(tmp_path / "run", overrides={"executor": second, "total_steps": 90})
    assert went_on.agent.executor.name == second
    assert_equal(flat(went_on.agent.state(), "state"), flat(whole.agent.state(), "state"))
    assert went_on.evaluations[-1] == whole.evaluations[-1]


BASELINE = {"on_policy": "moving_average", "actor_critic": "moving_average"}


@pytest.mark.parametrize("agent", list(AGENTS))
def test_whole_runs_are_the_same_under_auto(agent: str) -> None:
    """With evaluations, measurements and probes in between, and everything scheduled."""
    config = merge(AGENTS[agent], merge(RUN, SCHEDULED | {"total_steps": 90}))
    expected, found = (train(merge(config, {"executor": executor})) for executor in ("eager", "auto"))
    assert isinstance(expected.agent.executor, Eager)
    assert isinstance(found.agent.executor, Programs)
    assert_equal(flat(found.agent.state(), "state"), flat(expected.agent.state(), "state"))
    assert found.evaluations == expected.evaluations
    assert repr(found.measurements) == repr(expected.measurements)
    assert len(found.measurements) == 3


EVALUATED: dict[str, dict[str, Any]] = {
    "modes": {},
    "draws": {"evaluation": {"deterministic": False}},
    "normalisation": {"preprocessing": {"normalize_observations": True}},
    "gaussian": {"env": {"id": "Pendulum-v1"}, "evaluation": {"deterministic": False}},
    "random transitions": {"env": {"id": "pglab/LQR-v0"}, "policy": {"distribution": "gaussian"}},
    "one state to begin from": {"env": {"id": "pglab/Chain-v0"}},
    # Members are what they were at different updates, so an agent of its own is evaluated every time.
    "whole episodes": {"agent": {"collect": "episodes", "returns": {"name": "monte_carlo"}}},
    "gymnasium": {"env": {"backend": "gymnasium"}},
}


@pytest.mark.parametrize("name", list(EVALUATED))
def test_evaluations_are_the_same_while_their_steps_are_repeated(name: str) -> None:
    base = {"total_steps": 120, "env": {"max_episode_steps": 30}, "evaluation": {"every": 15, "episodes": 3}}
    config = merge(merge(ON_POLICY, base), EVALUATED[name])
    found = []
    for executor in ("eager", "program"):
        trainer = Trainer(Config.read(merge(config, {"executor": executor})))
        found.append(trainer.run().evaluations)
        evaluator = trainer.evaluator
        assert evaluator is not None
        held = getattr(evaluator._executor, "_held", {})
        if executor == "eager" or name == "gymnasium":
            assert held == {}
        else:
            (forms,) = held.values()
            assert [h.checked and not h.as_it_is for h in forms.values()] == [True]
    assert len(found[0]) >= 5
    assert found[0] == found[1]


def test_looking_at_members_as_they_were_does_not_move_the_schedules_of_training() -> None:
    """Under next-step resets members make their steps at different rounds, so that a measurement is of earlier moments."""
    config = merge(
        merge(ACTOR_CRITIC, RUN | SCHEDULED),
        {
            "env": {"backend": "gymnasium", "autoreset_mode": "next_step", "num_envs": 2, "max_episode_steps": None},
            "total_steps": 150,
            "entropy_weight": {"kind": "linear", "start": 1.0, "end": 0.0, "until": 1.0},
            "measurement": {"at": [0.3, 0.5, 0.7, 0.9]},
            "probe": {"every": None},
        },
    )
    expected, found = (train(merge(config, {"executor": executor})) for executor in ("eager", "program"))
    assert any(len(set(m["steps"])) > 1 for m in expected.measurements)
    assert_equal(flat(found.agent.state(), "state"), flat(expected.agent.state(), "state"))
    assert repr(found.measurements) == repr(expected.measurements)


@pytest.mark.parametrize("agent", list(AGENTS))
def test_an_agent_may_be_taken_to_other_environments(agent: str) -> None:
    """Whose blocks are another function, and whose results lie elsewhere."""
    found = {}
    for executor in ("eager", "program"):
        trainer = Trainer(Config.read(merge(AGENTS[agent], {"executor": executor})))
        for _ in range(5):
            trainer.agent.update(trainer.env)
        other = trainer.environment(2, 3)
        trainer.agent.position = None
        for _ in range(5):
            trainer.agent.update(other)
        found[executor] = flat(trainer.agent.state(), "state")
    assert_equal(found["program"], found["eager"])


@pytest.mark.parametrize("agent", list(AGENTS))
def test_what_was_taken_down_does_not_move_with_training(agent: str) -> None:
    """A frozen agent made of a copy, replicates, and an evaluation's environment share nothing that programs write to."""
    config = merge(AGENTS[agent], {"executor": "program", "preprocessing": {"normalize_observations": True}})
    trainer = Trainer(Config.read(config))
    live = trainer.agent
    for _ in range(5):
        live.update(trainer.env)
    twin, saved = live.replicated(range(2)), trainer.env.get_state()
    frozen = live.frozen({key: _copied(part) for key, part in live.frozen_state().items()})
    before = [{k: _copied(v) for k, v in flat(a.frozen_state(), "state").items()} for a in (twin, frozen)]
    held = [x.clone() for x in leaves(saved)]
    for _ in range(5):
        live.update(trainer.env)
    for a, b in zip((twin, frozen), before, strict=True):
        assert_equal(flat(a.frozen_state(), "state"), b)
    assert all(torch.equal(a, b) for a, b in zip(leaves(saved), held, strict=True))


def _copied(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.clone()
    return {key: _copied(part) for key, part in tree.items()} if isinstance(tree, Mapping) else tree


def test_probed_updates_are_called_and_the_others_repeated() -> None:
    trainer, _, notes = trained(merge(ON_POLICY, {"probe": {"every": 2}}), "program", 8)
    assert trainer.probe is not None
    assert trainer.probe.found.keys() >= {"probe/nsr", "probe/trace"}
    assert ways(trainer)["block, learn_after"] == "program"
    assert notes == []


def test_agents_of_their_own_are_not_made_programs() -> None:
    for agent in ("evolution", "bptt"):
        config = merge(SMALL, {"env": {"id": "Pendulum-v1", "num_envs": 4}, "agent": {"name": agent}})
        assert isinstance(Trainer(Config.read(config)).agent.executor, Eager)
        with pytest.raises(PglabError, match="choose executor auto or eager"):
            Trainer(Config.read(merge(config, {"executor": "program"})))
