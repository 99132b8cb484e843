"""A2C, PPO and SAC models of stable-baselines3 as pglab's agents, so that the noise of their gradients can be measured.

A saved model is read as data (see `sb3_files`): its pickles stay closed. A model in memory goes the same way through its
state_dict and attributes, so both give the same agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pglab.agent import spaces_of
from pglab.agents import ActorCriticAgent, Agent, OnPolicyAgent, make_agent
from pglab.capabilities import check_fit
from pglab.config import Config
from pglab.environments import make_environment
from pglab.environments.contract import EnvironmentSpec
from pglab.errors import PglabError
from pglab.integrations.sb3_files import Stored, read_statistics, read_stored
from pglab.integrations.sb3_memory import environment_of, in_memory, refill, statistics_of
from pglab.integrations.sb3_networks import Networks, check_sizes, hidden_sizes, named, networks_of, on_policy, put
from pglab.integrations.sb3_settings import (
    ALGORITHMS,
    a2c_or_ppo,
    activation_of,
    algorithm_of,
    check_spaces,
    count,
    number,
    sac,
)
from pglab.population import Population


@dataclass(frozen=True)
class Imported:
    """A model of stable-baselines3 as a population of one."""

    config: Config
    """What the agent was made by; its updates are one step on a whole batch, the first one that the algorithm takes."""
    agent: Agent
    """The agent, with the model's policy, V or Q and target networks, entropy weight and normaliser."""
    notes: list[str]
    """What was taken to be so because the model does not say it, and where pglab's agent differs."""
    algorithm: str
    """A2C, PPO or SAC."""


def read_model(
    path: str | Path,
    env_id: str,
    activation: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    algorithm: str | None = None,
    normalize: str | Path | None = None,
) -> Imported:
    """A saved model (`MODEL.zip`) as an agent. No pickle in it is opened, so it may come from anyone.

    Args:
        path: the zip file; the ending may be left out.
        env_id: the environment whose observations and actions it takes.
        activation: tanh, relu, elu or silu, where the model does not say it.
        env_kwargs: keyword arguments of the environment.
        algorithm: A2C, PPO or SAC, where the model does not tell.
        normalize: statistics of VecNormalize as a `.npz` or `.safetensors` file. A `.pkl` is refused; the message says how
            to export it.

    Raises:
        PglabError: the file cannot be read safely, holds a model that pglab has no agent for, or does not fit `env_id` or
            an argument.
    """
    file = Path(path)
    if not file.exists() and Path(f"{file}.zip").exists():
        file = Path(f"{file}.zip")
    stored = read_stored(file)
    statistics = None if normalize is None else read_statistics(Path(normalize))
    found = _assembled(stored, env_id, dict(env_kwargs or {}), activation, algorithm, statistics)
    if found.algorithm == "SAC":
        found.notes.append(
            "A saved model holds no transitions: its replay is empty, and to be filled before measuring."
        )
    elif statistics is None and stored.fields.get("_last_original_obs", stored.described.get("_last_original_obs")):
        found.notes.append("It was trained with VecNormalize, whose statistics are not in it: give them as normalize.")
    return found


def imported(model: Any, env_id: str | None = None, env_kwargs: Mapping[str, Any] | None = None) -> Imported:
    """A model in memory as an agent: weights, settings, VecNormalize's statistics and, of SAC, the replay buffer.

    Args:
        model: an A2C, PPO or SAC object of stable-baselines3. It is left as it is.
        env_id: the environment; None for that of the model's own.
        env_kwargs: its keyword arguments; None, where `env_id` is None too, for those of the model's own.

    Raises:
        PglabError: another kind of model, one that pglab has no agent for, or one that does not fit `env_id`.
    """
    from stable_baselines3 import A2C, PPO, SAC

    kinds = [kind.__name__ for kind in (A2C, PPO, SAC) if isinstance(model, kind)]
    if not kinds:
        raise PglabError(f"A {type(model).__name__} cannot be imported: models of {', '.join(ALGORITHMS)} can.")
    if env_id is None:
        env_id, own = environment_of(model)
        env_kwargs = own if env_kwargs is None else env_kwargs
    found = _assembled(in_memory(model), env_id, dict(env_kwargs or {}), None, kinds[0], statistics_of(model))
    if isinstance(found.agent, ActorCriticAgent):
        found.notes.append(refill(found.agent, model, found.config))
    return found


def _assembled(
    stored: Stored,
    env_id: str,
    env_kwargs: dict[str, Any],
    activation: str | None,
    algorithm: str | None,
    statistics: dict[str, np.ndarray] | None,
) -> Imported:
    if stored.fields.get("use_sde") or stored.described.get("use_sde"):
        raise PglabError(f"{stored.source} explores by gSDE, which pglab does not have: use_sde must be false.")
    networks = networks_of(stored)
    name = algorithm_of(stored, networks, algorithm)
    act, note = activation_of(stored, name, activation)
    notes = [note]
    module = stored.described.get("policy_class", {}).get("__module__", "stable_baselines3.")
    if not str(module).startswith("stable_baselines3."):
        notes.append(
            f"Its policy is a class of {str(module)!r}, taken to compute what stable-baselines3's MlpPolicy does."
        )
    n_envs = count(stored, "n_envs", 1)
    if stored.fields.get("n_envs") is None:
        notes.append("It does not say how many environments it learned from: taken as one.")
    base: dict[str, Any] = {
        "env": {"id": env_id, "num_envs": n_envs, "kwargs": env_kwargs},
        "seeds": 1,
        "discount": number(stored, "gamma"),
    }
    check_spaces(stored, env_id, *spaces_of(Config.read(base, where=stored.source)))
    env = make_environment(env_id, 1, 1, kwargs=env_kwargs)
    env.close()
    spec = env.spec
    _check_networks(networks, spec, stored, env_id)
    if isinstance(stored.fields.get("learning_rate"), int | float):
        base["learning_rate"] = stored.fields["learning_rate"]
    if name == "SAC":
        base |= sac(stored, networks, act, notes)
    else:
        base |= a2c_or_ppo(stored, networks, act, notes, name, spec.action)
    if statistics is not None:
        base["preprocessing"] = {
            "normalize_observations": "mean" in statistics,
            "normalize_returns": "return_var" in statistics,
        }
    config = Config.read(base, where=stored.source)
    check_fit(config, spec)
    agent = make_agent(config, spec, Population.of(config, torch.device("cpu")), n_envs)
    if isinstance(agent, OnPolicyAgent):
        assert networks.value is not None
        assert agent.value_parameters is not None
        put(agent.policy_parameters, [on_policy(networks, spec.action)])
        put(agent.value_parameters, [named(networks.value)])
    else:
        assert isinstance(agent, ActorCriticAgent)
        put(agent.policy_parameters, [named(networks.policy)])
        put(agent.critic.parameters, [named(c) for c in networks.critics])
        put(agent.critic.target, [named(c) for c in networks.targets])
        if agent.settings.auto_entropy:
            agent.log_alpha.fill_(stored.variables["log_ent_coef"].item())
    if statistics is not None:
        _normalise(agent, statistics, notes)
    notes += [
        f"Observations and rewards are those of {env_id}: wrappers and time limits of the training environment are not read.",
        "Optimizer, clipping and schedules are not taken over: they come after the gradient that is measured.",
    ]
    return Imported(config, agent, notes, name)


def _check_networks(networks: Networks, spec: EnvironmentSpec, stored: Stored, env_id: str) -> None:
    """PglabError unless the networks take the environment's observations to what its actions want."""
    o, action = spec.observation_size, spec.action
    d, k = action.factors, sum(action.sizes) if action.kind == "discrete" else action.factors
    if (networks.log_std is not None or bool(networks.critics)) != (action.kind == "continuous"):
        raise PglabError(f"{stored.source} is a policy of other actions than {env_id}'s, which are {action.kind}.")
    if networks.log_std is not None and len(networks.log_std) != d:
        raise PglabError(
            f"{stored.source}: its log_std has {len(networks.log_std)} numbers, but {env_id} has {d} actions."
        )
    check_sizes(networks.policy, o, 2 * d if networks.critics else k, "policy", stored, env_id)
    if networks.value is not None:
        check_sizes(networks.value, o, 1, "value network", stored, env_id)
    for critic in (*networks.critics, *networks.targets):
        check_sizes(critic, o + d, 1, "critic", stored, env_id)
    if len({tuple(hidden_sizes(c)) for c in (*networks.critics, *networks.targets)}) > 1:
        raise PglabError(
            f"{stored.source}: its critics and targets have different hidden layers, where equal ones are wanted."
        )


def _normalise(agent: Agent, s: dict[str, np.ndarray], notes: list[str]) -> None:
    """Put VecNormalize's statistics into the agent's normaliser. Raises PglabError where they do not fit."""

    def one(name: str, default: float) -> float:
        x = s.get(name, np.asarray(default))
        if x.size != 1 or not np.isfinite(x).all():
            raise PglabError(f"VecNormalize's {name} is {x.tolist()}, where one number is wanted.")
        return x.item()

    epsilon, state = one("epsilon", 1e-8), agent.preprocessor.state
    if "obs" not in state and "returns" not in state:
        raise PglabError("VecNormalize's statistics hold neither mean and var of observations nor return_var.")
    if "obs" in state:
        size = agent.spec.observation_size
        mean, var = s["mean"].ravel(), s.get("var", np.empty(0)).ravel()
        if mean.size != size or var.size != size or not np.isfinite([mean, var]).all() or (var < 0).any():
            raise PglabError(
                f"VecNormalize's mean and var have {mean.size} and {var.size} numbers; {agent.config.env.id} wants {size} each, "
                "finite, var not negative."
            )
        for key, x in (("mean", mean), ("var", var + epsilon - 1e-8), ("count", np.full(size, one("count", 1)))):
            state["obs"][key].copy_(torch.from_numpy(x))  # [1, O]; 1e-8 is what the normaliser adds to var itself
        if one("clip_obs", 10) != 10:
            notes.append(f"VecNormalize clips observations to +-{one('clip_obs', 10):g}, pglab to +-10.")
    if "returns" in state:
        state["returns"]["var"].fill_(one("return_var", 1) + epsilon - 1e-8)
        state["returns"]["count"].fill_(one("return_count", 1))
        notes.append(f"VecNormalize clips scaled rewards to +-{one('clip_reward', 10):g}, pglab does not.")
