"""What a stable-baselines3 model says of itself, checked and put in the words of pglab's config."""

from __future__ import annotations

import math
import re
from typing import Any

import gymnasium
import numpy as np

from pglab.environments.contract import ActionSpec
from pglab.errors import PglabError, unknown
from pglab.integrations.sb3_files import Stored
from pglab.integrations.sb3_networks import Networks, hidden_sizes, mean_scale
from pglab.networks import ACTIVATIONS

ALGORITHMS = ("A2C", "PPO", "SAC")
MODULES = {f"torch.nn.modules.activation.{name}": name.lower() for name in ("Tanh", "ReLU", "ELU", "SiLU")}
FLATTEN = "stable_baselines3.common.torch_layers.FlattenExtractor"
KEPT = 100_000
"""Transitions that the replay of a saved model can hold at most; it comes empty."""
MOST = 10**7
"""The largest number of environments, steps or rows that is believed."""


def number(stored: Stored, name: str, default: float | None = None) -> float:
    """A finite number among the fields. Raises PglabError where it is none, or missing without a default."""
    if name in stored.described:
        kind = _class_name(stored.described[name].get(":type:"))
        raise PglabError(
            f"{stored.source} keeps {name} as a pickle ({kind}), which is not opened: it must be a plain number."
        )
    value = stored.fields.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PglabError(f"{stored.source}: {name} is {value!r}, where a number is wanted.")
    return value


def count(stored: Stored, name: str, default: float | None = None, least: int = 1) -> int:
    """A whole number among the fields. Raises PglabError where it is none, or one that nothing could be made of."""
    value = number(stored, name, default)
    if value != int(value) or not least <= value <= MOST:
        raise PglabError(
            f"{stored.source}: {name} is {value:g}, where a whole number from {least} to {MOST:,} is wanted."
        )
    return int(value)


def algorithm_of(stored: Stored, networks: Networks, given: str | None) -> str:
    """A2C, PPO or SAC. Raises PglabError where the model does not tell, or tells of another one than `given`."""
    by_name = {name.lower(): name for name in ALGORITHMS}
    if given is not None and given.lower() not in by_name:
        raise unknown("algorithm", given, ALGORITHMS)
    if networks.critics:
        known: str | None = "SAC"
    elif "n_epochs" in stored.fields and "batch_size" in stored.fields:
        known = "PPO"
    else:
        known = "A2C" if "batch_size" not in stored.fields else None
    if given is not None:
        name = by_name[given.lower()]
        if known is not None and known != name:
            raise PglabError(f"{stored.source} is a model of {known}, but algorithm is {given!r}.")
        return name
    if known is None:
        raise PglabError(f"{stored.source} does not tell its algorithm: set algorithm to A2C or PPO.")
    return known


def _class_name(text: object) -> str:
    """The dotted name in "<class 'a.b'>"; any other text in quotes."""
    name = str(text).removeprefix("<class '").removesuffix("'>")
    return name if re.fullmatch(r"[\w.<>]+", name) else repr(name)


def activation_of(stored: Stored, algorithm: str, given: str | None) -> tuple[str, str]:
    """The activation, and how it is known. Raises PglabError where pglab does not have it, or two say different things."""
    if given is not None and given not in ACTIVATIONS:
        raise unknown("activation", given, ACTIVATIONS)
    default = "relu" if algorithm == "SAC" else "tanh"
    plain, described = stored.fields.get("policy_kwargs"), stored.described.get("policy_kwargs")
    said = described if described is not None else plain if isinstance(plain, dict) else {}
    extractor = _class_name(said.get("features_extractor_class", FLATTEN))
    if extractor != FLATTEN:
        raise PglabError(
            f"{stored.source} has a features extractor of its own, {extractor}: only FlattenExtractor can be read."
        )
    if "activation_fn" in said:
        name = _class_name(said["activation_fn"])
        known = MODULES.get(name)
        if known is not None and given not in (None, known):
            raise PglabError(
                f"{stored.source} has activation {known}, as its policy_kwargs say, but activation is {given!r}."
            )
        if known is None and (given is None or name.startswith("torch.nn.modules.")):
            raise PglabError(
                f"{stored.source} has activation {name}, which is none of pglab's: {', '.join(sorted(ACTIVATIONS))}."
            )
        if known is None:
            return str(given), f"Activation {given}, as given; its policy_kwargs name {name}."
        return known, f"Activation {known}, from the text of its policy_kwargs."
    if given is not None:
        return given, f"Activation {given}, as given."
    if described is not None and set(described) <= {":type:"}:
        return default, (
            f"Activation {default}, stable-baselines3's default for {algorithm}: the model's policy_kwargs are a pickle "
            "without a text, so it could not be read; set activation if it is another."
        )
    return default, f"Activation {default}, stable-baselines3's default for {algorithm}: its policy_kwargs name none."


def _numbers(text: object) -> np.ndarray | None:
    """Numbers in text such as "[-2.  2.]"; None where there is anything else."""
    try:
        return np.array(str(text).translate(str.maketrans("[],", "   ")).split(), dtype=np.float64)
    except ValueError:
        return None


def _check_space(stored: Stored, name: str, space: gymnasium.Space, env_id: str) -> None:
    """PglabError where the text of the model's space tells of another one than the environment's."""
    said = stored.described.get(name)
    if said is None:
        return
    kind, real = _class_name(said.get(":type:")).rpartition(".")[2], type(space).__name__
    shape, real_shape = said.get("_shape"), list(space.shape or ())
    parts = [(kind, real)]
    if kind == real:
        if isinstance(shape, list):
            parts.append((f"{kind} of shape {shape}", f"{real} of shape {real_shape}"))
        if hasattr(space, "n") and str(said.get("n")).isdecimal():
            parts.append((f"{kind}({said['n']})", f"{real}({space.n})"))
        # Observations are taken as they are, whatever their bounds; actions are measured by theirs.
        for key in ("nvec", "low", "high") if name == "action_space" else ("nvec",):
            if hasattr(space, key) and (found := _numbers(said.get(key))) is not None:
                wanted = getattr(space, key).ravel()
                if found.shape == wanted.shape and not np.allclose(found, wanted, rtol=1e-4):
                    parts.append((f"{kind} with {key} {found.tolist()}", f"{real} with {key} {wanted.tolist()}"))
    for own, wanted in parts:
        if own != wanted:
            raise PglabError(f"{stored.source}: its {name} is {own}, but that of {env_id} is {wanted}.")


def check_spaces(stored: Stored, env_id: str, space: gymnasium.Space, action_space: gymnasium.Space) -> None:
    """PglabError where the model's spaces are not the environment's, or cannot be read."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        raise PglabError(
            f"{env_id} has {type(space).__name__} observations: models with a MultiInputPolicy cannot be read."
        )
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8:
        raise PglabError(f"{env_id} has images as observations, which stable-baselines3 scales: they cannot be read.")
    _check_space(stored, "observation_space", space, env_id)
    _check_space(stored, "action_space", action_space, env_id)
    if isinstance(action_space, gymnasium.spaces.Box) and (action_space.low >= action_space.high).any():
        raise PglabError(f"{env_id} has an action with low = high, which has no density.")


def a2c_or_ppo(
    stored: Stored, networks: Networks, act: str, notes: list[str], name: str, action: ActionSpec
) -> dict[str, Any]:
    """Settings of agent on_policy for A2C and PPO."""
    assert networks.value is not None
    n, lam, rows = count(stored, "n_steps"), number(stored, "gae_lambda"), count(stored, "n_envs", 1)
    policy: dict[str, Any] = {"hidden": hidden_sizes(networks.policy), "activation": act}
    if networks.log_std is not None:
        # log_std is not clamped in stable-baselines3; float32 ends where it would be.
        scale = mean_scale(action)
        policy |= {"distribution": "gaussian", "log_std_bounds": [-80.0, 80.0], "mean_scale": scale}
        if scale == 1 and action.high is not None and (action.high - action.low != 2).any():
            notes.append(
                "Its mean is in the environment's units, pglab's in those in which the box is [-1, 1]: the last layer, and with "
                "it the gradient there, is scaled direction by direction."
            )
    if name == "PPO":
        size = count(stored, "batch_size")
        if size < n * rows:
            notes.append(
                f"PPO steps on {size:,} of a rollout's {n * rows:,} rows at a time; the gradient here is that of all of them "
                "before the first step, where no ratio is clipped."
            )
    # A lambda of 1 is a return of as many steps as the rollout has.
    returns: dict[str, Any] = {"name": "n_step", "n": n} if lam == 1 else {"name": "gae", "lam": lam}
    return {
        "estimator": "score_function",
        "baseline": "value",
        "entropy_weight": number(stored, "ent_coef"),
        "policy": policy,
        "agent": {
            "name": "on_policy",
            "collect": "steps",
            "steps": n,
            "returns": returns,
            "value": {"hidden": hidden_sizes(networks.value), "activation": act},
            "normalize_advantages": bool(stored.fields.get("normalize_advantage", name == "PPO")),
            "reduction": "mean_over_steps",
            "epochs": 1,
            "minibatches": 1,
        },
    }


def sac(stored: Stored, networks: Networks, act: str, notes: list[str]) -> dict[str, Any]:
    """Settings of agent actor_critic for SAC."""
    ent_coef = stored.fields.get("ent_coef")
    auto = isinstance(ent_coef, str) and ent_coef.startswith("auto")
    learned = stored.variables.get("log_ent_coef")
    if auto and (learned is None or learned.numel() != 1):
        raise PglabError(
            f"{stored.source} learns its entropy weight (ent_coef {ent_coef!r}), but holds no log_ent_coef."
        )
    steps = number(stored, "gradient_steps", 1)
    agent: dict[str, Any] = {
        "name": "actor_critic",
        "critic": {
            "hidden": hidden_sizes(networks.critics[0]),
            "activation": act,
            "twin": len(networks.critics) == 2,
            "actor_value": "min",
            "target_rate": number(stored, "tau"),
            "target_action": "sample",
        },
        "replay": {
            "batch_size": count(stored, "batch_size"),
            "capacity": max(stored.transitions, min(int(number(stored, "buffer_size", KEPT)), KEPT), 1),
            "warmup": count(stored, "learning_starts", 0, least=0),
        },
        "updates_per_round": count(stored, "gradient_steps", 1)
        if steps > 0
        else count(stored, "n_envs", 1),  # -1: one per transition
        "auto_entropy": auto,
    }
    if auto:
        agent["target_entropy"] = number(stored, "target_entropy")
    notes += [
        "A round is one step of the environments: train_freq is not read, and plays no part in the gradient.",
        "stable-baselines3 adds 1e-6 within the logarithm of tanh's derivative, pglab does not: densities differ where |action| "
        "is near 1.",
    ]
    if number(stored, "n_steps", 1) > 1:
        notes.append(
            "Its critic learns from n-step returns, pglab's from one step: only the actor's gradient is the same."
        )
    return {
        "estimator": "pathwise",
        "entropy_weight": learned.exp().item() if auto and learned is not None else number(stored, "ent_coef"),
        "policy": {
            "hidden": hidden_sizes(networks.policy),
            "activation": act,
            "distribution": "squashed_gaussian",
            "state_dependent_std": True,
            "log_std": 0.0,
            "log_std_bounds": [-20.0, 2.0],
        },
        "agent": agent,
    }
