"""stable-baselines3 models as subjects of the variance laboratory: a saved one, or one in memory.

A model in memory and the file it is saved to give the same numbers, since noise is a function of the config's seed and the
subject's number. Of SAC this wants the same states: a file holds no transitions, so its model plays some for itself, and so
does one in memory where `fill_buffer` says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium

from pglab.agents import ActorCriticAgent, OnPolicyAgent
from pglab.errors import PglabError
from pglab.integrations.sb3_files import read_stored
from pglab.integrations.sb3_memory import environment_of
from pglab.integrations.sb3_models import Imported, imported, read_model
from pglab.lab.subject import Subject, fill
from pglab.replay import Replay

PLAYED = 5_000
"""Transitions that a model without a replay buffer plays for itself."""


def of_sb3(
    path: str | Path,
    env_id: str,
    activation: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    algorithm: str | None = None,
    normalize: str | Path | None = None,
    number: int = 0,
    fill_buffer: int = PLAYED,
) -> list[Subject]:
    """A saved model (`MODEL.zip`) as the one subject to measure.

    Args:
        path, env_id, activation, env_kwargs, algorithm, normalize: see `pglab.integrations.sb3_models.read_model`.
        number: keeps the noise of several models' measurements apart.
        fill_buffer: of SAC, the transitions that the frozen policy plays, from which states are drawn (at least a
            minibatch).

    Raises:
        PglabError: the file cannot be read safely, holds a model that pglab has no agent for, or does not fit `env_id` or
            an argument.
    """
    file = Path(path)
    if not file.exists() and Path(f"{file}.zip").exists():
        file = Path(f"{file}.zip")
    _check_arguments(env_kwargs)
    found = read_model(file, env_id, activation, env_kwargs, algorithm, normalize)
    fields = read_stored(file).fields
    played = fill_buffer if found.algorithm == "SAC" else None
    why = "its replay buffer is not in the zip"
    return [_subject(found, fields.get("num_timesteps"), fields.get("_total_timesteps"), number, played, why)]


def of_model(
    model: Any,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    number: int = 0,
    fill_buffer: int | None = None,
) -> list[Subject]:
    """A model in memory as the one subject to measure. The model, its environment and its buffer are left as they are.

    Args:
        model: an A2C, PPO or SAC object of stable-baselines3.
        env_id, env_kwargs: see `pglab.integrations.sb3_models.imported`.
        number: keeps the noise of several measurements apart.
        fill_buffer: of SAC, so many transitions played by the frozen policy take the place of the model's own, as for a
            saved model (`PLAYED` there); None: states are drawn from the model's replay buffer.

    Raises:
        PglabError: another kind of model, one that pglab has no agent for, one that does not fit `env_id`, or a replay
            buffer that is empty or cannot be read.
    """
    found = live(model, env_id, env_kwargs)
    played = fill_buffer if found.algorithm == "SAC" else None
    agent = found.agent
    if played is None and isinstance(agent, ActorCriticAgent) and not agent.replay.count:
        kind = type(model.replay_buffer).__name__
        raise PglabError(
            f"No transitions could be read from the {found.algorithm} model's {kind}, which is empty or of another kind than "
            f"ReplayBuffer without optimize_memory_usage: set fill_buffer, for example to {PLAYED:,}."
        )
    total = getattr(model, "_total_timesteps", None)
    return [_subject(found, model.num_timesteps, total, number, played, "its own replay buffer is left out")]


def live(model: Any, env_id: str | None = None, env_kwargs: Mapping[str, Any] | None = None) -> Imported:
    """As `imported`. Raises PglabError also for arguments of the environment that cannot be written into a config."""
    if env_id is None and hasattr(model, "get_env"):
        env_id, own = environment_of(model)
        env_kwargs = _unregistered(env_id, own) if env_kwargs is None else env_kwargs
    _check_arguments(env_kwargs)
    return imported(model, env_id, env_kwargs)


def _unregistered(env_id: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that the id does not stand for already: an environment's spec has both."""
    spec = gymnasium.registry.get(env_id)
    known = {} if spec is None else spec.kwargs
    return {name: value for name, value in kwargs.items() if name not in known or not _equal(value, known[name])}


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # such as arrays, of which only the elements are equal
        return False


def _check_arguments(kwargs: Mapping[str, Any] | None) -> None:
    for name, value in (kwargs or {}).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise PglabError(
                f"The environment's argument {name} is of type {type(value).__name__}, where numbers, text, lists and "
                "mappings are wanted: register an id that stands for it, and give that as env_id."
            ) from None


def empty(agent: ActorCriticAgent, capacity: int) -> None:
    """Give the agent a replay of its own that holds nothing."""
    spec, old = agent.spec, agent.replay
    observation, action, *_ = old.widths
    agent.replay = Replay(1, capacity, observation, action, spec.has_action_mask, old.data.device)
    agent.position = None


def _subject(found: Imported, steps: Any, total: Any, number: int, played: int | None, why: str) -> Subject:
    """`steps` and `total` are what the model says of its training; None, or anything but a count, where it says nothing."""
    agent, notes = found.agent, list(found.notes)
    assert isinstance(agent, OnPolicyAgent | ActorCriticAgent)
    done, wanted = _count(steps), _count(total)
    at = min(1.0, done / wanted) if done and wanted else 1.0
    subject = Subject(found.config, agent.at_progress([at]), "model", at, done, number, notes)
    if played is not None:
        assert isinstance(subject.agent, ActorCriticAgent)
        if played < 1:
            raise PglabError(f"fill_buffer must be at least 1 transition, not {played}.")
        # Of as many as asked for, so that it does not depend on the size of the buffer that the model has or had.
        empty(subject.agent, max(played, subject.agent.settings.replay.batch_size))
        with closing(subject.environment(1)) as env:
            fill(subject.agent, env, played)
        notes.pop()  # the last one tells of the buffer that this one replaces
        notes.append(f"States are those of {subject.agent.replay.size:,} steps played by the model itself; {why}.")
    elif isinstance(agent, ActorCriticAgent):
        notes.append("States are redrawn from them.")
    return subject


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
