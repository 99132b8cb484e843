"""One way to make an environment, whatever it is made of."""

from __future__ import annotations

from typing import Any, Literal

import torch

from pglab.devices import available_cores
from pglab.environments.contract import Environment
from pglab.errors import PglabError, unknown

Backend = Literal["auto", "torch", "gymnasium"]


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

    Backend `auto` takes the torch-native twin where `pglab_envs` has one for the id and no `kwargs` are given, else
    gymnasium. `vectorization` and `autoreset_mode` are gymnasium's; torch-native environments need neither. Vectorization
    `auto` times a few steps and says in the spec's description what it chose and why.

    Raises:
        PglabError: the id or an option is unknown, the environment cannot be made, or its spaces are not supported.
    """
    # Imported here: a run on torch-native environments needs no adapter to gymnasium, and the other way round.
    from pglab_envs.registry import TORCH_ENVS

    if backend not in ("auto", "torch", "gymnasium"):
        raise unknown("environment backend", backend, ("auto", "torch", "gymnasium"))
    if backend == "torch" and env_id not in TORCH_ENVS:
        raise unknown("torch-native environment", env_id, TORCH_ENVS)
    if backend == "torch" and kwargs:
        raise PglabError(f"Torch-native environments take no arguments, but {env_id} was given {kwargs}.")
    if backend == "torch" or (backend == "auto" and env_id in TORCH_ENVS and not kwargs):
        from pglab.environments.torch_native import TorchEnvironment

        return TorchEnvironment(
            TORCH_ENVS[env_id], num_members, num_envs, device=device, max_episode_steps=max_episode_steps
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
