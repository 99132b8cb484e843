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
from pglab.executors import Eager
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

RUNS = {"on_policy": {"Block", "learn", "count"}, "actor_critic": {"Block", "store", "learn", "count"}}
"""What runs as a program where nothing is said in `AS_THEY_ARE`."""


def progress_of(trainer: Trainer) -> tuple[list[float], Tensor | None]:
    """What `Trainer` tells the agent before an update."""
    total = trainer.config.total_steps
    done = trainer.steps >= total
    active = torch.tensor(~done, dtype=torch.float32).unsqueeze(1) if done.any() else None
    return [min(1.0, s / total) for s in trainer.steps.tolist()], active


def trained(config: dict[str, Any], executor: str, updates: int = UPDATES) -> tuple[Trainer, dict[str, Any], list[str]]:
    """A trainer after some updates, all that came of them, and what was said of functions that are not repeated."""
    trainer, notes, found = Trainer(Config.read(merge(config, {"executor": executor}))), [], {}
    trainer.agent.executor.note = notes.append
    for i in range(updates):
        trainer.agent.begin_update(*progress_of(trainer))
        metrics, rollout = trainer.agent.update(trainer.env)
        trainer._count(rollout)
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
    """Every function that the executor was asked for, and whether it is a `program` or called as it is."""
    executor = trainer.agent.executor
    assert isinstance(executor, Programs)
    found = {}
    for function, forms in executor._held.items():
        name = getattr(function, "__name__", type(function).__name__)
        repeated = [h.repeat is not None and h.checked and not h.as_it_is for h in forms.values()]
        found[name] = "program" if any(repeated) else "called"
    return found
