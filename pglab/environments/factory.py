"""One way to make an environment, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from pglab.devices import available_cores
from pglab.environments.contract import Environment
from pglab.errors import unknown

if TYPE_CHECKING:
    from pglab_envs.base import TorchVectorEnv

Backend = Literal["auto", "torch", "gymnasium"]


def torch_class(
    env_id: str, backend: Backend = "auto", kwargs: Mapping[str, Any] | None = None
) -> type[TorchVectorEnv] | None:
    """The torch-native class that serves an id; None where gymnasium does.

    Backend `auto` takes the class that `pglab_envs` has for the id, but leaves gymnasium's own ids to gymnasium where
    arguments are given that the class does not take.

    Raises:
        PglabError: backend `torch`, and there is no such class.
    """
    from pglab_envs.registry import TORCH_ENVS

    found = TORCH_ENVS.get(env_id)
    if backend == "gymnasium":
        return None
    if found is None:
        if backend == "torch":
            raise unknown("torch-native environment", env_id, TORCH_ENVS)
        return None
    twin = not found.options and not env_id.startswith("pglab/")
    return None if backend == "auto" and twin and kwargs else found


def make_environment(
    env_id: str,
    num_members: int,
    num_envs: int,
    backend: Backend = "auto",
    vectorization: Literal["auto", "sync", "async"] = "sync",
    autoreset_mode: Literal["disabled", "next_step", "same_step"] = "disabled",
    kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Environment:
    """`num_members` x `num_envs` environments.

    Backend `auto` takes the torch-native class where `pglab_envs` has one for the id (see `torch_class`), else gymnasium.
    `vectorization` and `autoreset_mode` are gymnasium's; torch-native environments need neither. Vectorization
    `auto` times a few steps and says in the spec's description what it chose and why.

    Raises:
        PglabError: the id or an option is unknown, the environment cannot be made, or its spaces are not supported.
    """
    if backend not in ("auto", "torch", "gymnasium"):
        raise unknown("environment backend", backend, ("auto", "torch", "gymnasium"))
    # Imported here: a run on torch-native environments needs no adapter to gymnasium, and the other way round.
    if (env_class := torch_class(env_id, backend, kwargs)) is not None:
        from pglab.environments.torch_native import TorchEnvironment

        return TorchEnvironment(
            env_class, num_members, num_envs, device=device, max_episode_steps=max_episode_steps, kwargs=kwargs
        )
    from pglab.environments.gymnasium_make import choose_vectorization
    from pglab.environments.gymnasium_vector import GymnasiumEnvironment

    why = ""
    if vectorization == "auto":
        n, cores = num_members * num_envs, available_cores()
        vectorization, why = choose_vectorization(env_id, n, kwargs, max_episode_steps, cores)
    return GymnasiumEnvironment(
        env_id, num_members, num_envs, vectorization, autoreset_mode, kwargs, max_episode_steps, device, why
    )
