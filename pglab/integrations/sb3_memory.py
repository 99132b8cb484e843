"""A stable-baselines3 model in memory as data, with the statistics and transitions that a file does not hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from pglab.agent import spaces_of
from pglab.agents import ActorCriticAgent
from pglab.config import Config
from pglab.environments.spaces import observation_encoder
from pglab.errors import PglabError
from pglab.integrations.sb3_files import Stored, checked
from pglab.replay import Transitions

FIELDS = (
    "batch_size", "action_space", "buffer_size", "ent_coef", "gae_lambda", "gamma", "gradient_steps", "learning_rate",
    "learning_starts", "n_envs", "n_epochs", "n_steps", "normalize_advantage", "observation_space", "policy_class",
    "policy_kwargs", "target_entropy", "tau", "use_sde",
)  # fmt: skip
"""Attributes of an algorithm that are read."""


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _as_json(value: Any) -> Any:
    """A plain value as a file gives it back: tuples are lists there."""
    return json.loads(json.dumps(value))


def _described(value: Any) -> dict[str, Any]:
    """An object in words, as stable-baselines3 writes them beside its pickle."""
    items = value.items() if isinstance(value, dict) else getattr(value, "__dict__", {}).items()
    return {":type:": str(type(value)), **{str(key): _as_json(x) if _plain(x) else str(x) for key, x in items}}


def in_memory(model: Any) -> Stored:
    """The model's attributes, as `save` would tell them, and its weights. Raises PglabError where these are not finite."""
    said = {name: getattr(model, name) for name in FIELDS if hasattr(model, name)}
    # The policy knows what it was made with, whoever chose it.
    policy = {name: getattr(model.policy, name) for name in ("activation_fn", "features_extractor_class")}
    said["policy_kwargs"] = {**(said.get("policy_kwargs") or {}), **policy}
    variables = {"log_ent_coef": model.log_ent_coef} if getattr(model, "log_ent_coef", None) is not None else {}
    buffer = getattr(model, "replay_buffer", None)
    return Stored(
        f"The {type(model).__name__} model",
        {name: _as_json(x) for name, x in said.items() if _plain(x)},
        {name: _described(x) for name, x in said.items() if not _plain(x)},
        checked(model.policy.state_dict(), f"The {type(model).__name__} model's policy"),
        checked(variables, f"The {type(model).__name__} model"),
        0 if buffer is None else buffer.size() * buffer.n_envs,
    )


def environment_of(model: Any) -> tuple[str, dict[str, Any]]:
    """Id and arguments of the model's own environment. Raises PglabError where it has none with an id."""
    env = model.get_env()
    try:
        spec = None if env is None else env.get_attr("spec")[0]
    except Exception:  # an environment's own way of not having one
        spec = None
    if spec is None:
        raise PglabError(f"The {type(model).__name__} model has no environment with a gymnasium id: give env_id.")
    return spec.id, {name: x for name, x in spec.kwargs.items() if name != "render_mode"}


def statistics_of(model: Any) -> dict[str, np.ndarray] | None:
    """VecNormalize's statistics as `read_statistics` gives them; None where the model's environment has none."""
    v = model.get_vec_normalize_env()
    if v is None:
        return None
    found: dict[str, Any] = {"clip_obs": v.clip_obs, "epsilon": v.epsilon}
    if v.norm_obs:
        found |= {"mean": v.obs_rms.mean, "var": v.obs_rms.var, "count": v.obs_rms.count}
    if v.norm_reward:
        found |= {"return_var": v.ret_rms.var, "return_count": v.ret_rms.count, "clip_reward": v.clip_reward}
    return {name: np.asarray(x, dtype=np.float64) for name, x in found.items()}


def refill(agent: ActorCriticAgent, model: Any, config: Config) -> str:
    """Copy the model's replay buffer into the agent's, in the order of time. Returns a note."""
    from stable_baselines3.common.buffers import ReplayBuffer

    b = model.replay_buffer
    if not isinstance(b, ReplayBuffer) or not isinstance(b.observations, np.ndarray) or b.optimize_memory_usage:
        return "Its replay buffer is of a kind that is not read: the agent's is empty."
    order = (np.arange(b.size()) + (b.pos if b.full else 0)) % b.buffer_size
    encoder, n = observation_encoder(spaces_of(config)[0]), len(order) * b.n_envs
    if not n:
        return "Its replay buffer is empty, and to be filled before measuring."

    def rows(x: np.ndarray) -> np.ndarray:
        return x[order].reshape(n, -1)

    # An episode cut by its time limit goes on as far as values are concerned.
    terminated = rows(b.dones) * (1 - rows(b.timeouts))
    obs, action, reward, ended, after = (
        torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).unsqueeze(0)  # [1, n, ...]
        for x in (
            encoder.encode(rows(b.observations), n),
            rows(b.actions),
            rows(b.rewards),
            terminated,
            encoder.encode(rows(b.next_observations), n),
        )
    )
    agent.replay.add(Transitions(obs, action, reward[..., 0], ended[..., 0], after, torch.ones(1, n)))
    return f"Its replay buffer's {n:,} transitions were taken over."
