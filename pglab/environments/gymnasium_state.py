"""Saving and restoring single gymnasium environments in the middle of an episode, as plain numbers and strings.

Copying or pickling the object is no way: it fails for many simulators, is not exact for others, and a checkpoint must
never unpickle anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs import classic_control
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from pglab.environments.contract import Tree
from pglab.environments.gymnasium_make import WithoutOptions

# Those whose `step` and `reset` read nothing but what `exact_state` saves. Exact types: a subclass may read more.
CLASSIC = (
    classic_control.AcrobotEnv,
    classic_control.CartPoleEnv,
    classic_control.Continuous_MountainCarEnv,
    classic_control.MountainCarEnv,
    classic_control.PendulumEnv,
)


def is_exact(env: gymnasium.Env) -> bool:
    """Whether `exact_state` holds all there is: classic control, under no wrappers but gymnasium.make's and pglab's."""
    wrappers = (OrderEnforcing, PassiveEnvChecker, TimeLimit, WithoutOptions)
    return type(env.unwrapped) in CLASSIC and all(type(layer) in wrappers for layer in _wrappers(env))


def exact_state(env: gymnasium.Env) -> Tree:
    """All that an environment of classic control depends on."""
    inner: Any = env.unwrapped
    limit = _time_limit(env)
    return {
        # The dtype is kept (it is float32 or float64, by turns): arithmetic differs between them.
        "state": torch.from_numpy(np.array(inner.state)),
        "is_tuple": isinstance(inner.state, tuple),
        "elapsed": None if limit is None else limit._elapsed_steps,
        "random": random_state(env),
        "steps_beyond_terminated": getattr(inner, "steps_beyond_terminated", None),  # CartPole: of the reward
        "last_u": None if getattr(inner, "last_u", None) is None else float(inner.last_u),  # Pendulum: for rendering
    }


def restore_exact(env: gymnasium.Env, tree: Tree) -> None:
    """Put `exact_state`'s values into an environment that has been reset."""
    inner: Any = env.unwrapped
    state = tree["state"].cpu().numpy().copy()
    inner.state = tuple(state) if tree["is_tuple"] else state
    for name in ("steps_beyond_terminated", "last_u"):
        if hasattr(inner, name):
            setattr(inner, name, tree[name])
    limit = _time_limit(env)
    if limit is not None:
        limit._elapsed_steps = tree["elapsed"]
    set_random_state(env, tree["random"])


class Recorder(gymnasium.Wrapper):
    """Remembers how the episode under way came about: the randomness before its reset, and the actions since.

    Its memory grows with the length of an episode.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._seed = 0  # of the last reset that was given one
        self._random: str | None = None  # the generator's state before the last reset, if that was given no seed
        self._actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is None:
            self._random = random_state(self)
        else:
            self._seed, self._random = seed, None
        self._actions = []
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._actions.append(np.array(action))  # a copy, should the environment write to it
        return self.env.step(action)

    def get_recording(self) -> Tree:
        return {
            "seed": self._seed,
            "random": self._random,
            "actions": torch.from_numpy(np.stack(self._actions)) if self._actions else None,  # [t, ...]
            "random_now": random_state(self),
        }

    def replay(self, tree: Tree) -> tuple[Any, bool]:
        """Redo what was recorded; the observation it leads to, and whether the generator ended where it was."""
        obs, _ = self.reset(seed=tree["seed"])
        if tree["random"] is not None:
            set_random_state(self, tree["random"])
            obs, _ = self.reset()
        for action in () if tree["actions"] is None else tree["actions"].cpu().numpy().copy():
            obs, *_ = self.step(action)
        return obs, random_state(self) == tree["random_now"]


def random_state(env: gymnasium.Env) -> str:
    """The state of the environment's bit generator as JSON, whose integers have no limit."""
    return json.dumps(env.unwrapped.np_random.bit_generator.state, default=_array_to_json, sort_keys=True)


def set_random_state(env: gymnasium.Env, state: str) -> None:
    """Put `random_state`'s value back, into the generator object that the environment holds."""
    env.unwrapped.np_random.bit_generator.state = json.loads(state, object_hook=_array_from_json)


def _array_to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):  # of Philox, SFC64, MT19937
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    return value.item()


def _array_from_json(value: dict[str, Any]) -> Any:
    return np.array(value["array"], dtype=value["dtype"]) if "array" in value else value


def _wrappers(env: gymnasium.Env) -> Iterator[gymnasium.Wrapper]:
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env


def _time_limit(env: gymnasium.Env) -> TimeLimit | None:
    return next((layer for layer in _wrappers(env) if isinstance(layer, TimeLimit)), None)
