"""Environments as batched PyTorch functions that are also gymnasium vector environments.

Importing this package registers three kinds of ids. Gymnasium's classic control: `pglab/Acrobot-v1`, `pglab/CartPole-v1`,
`pglab/MountainCar-v0`, `pglab/MountainCarContinuous-v0` and `pglab/Pendulum-v1`, so that

    import gymnasium, pglab_envs
    envs = gymnasium.make_vec("pglab/CartPole-v1", num_envs=4)

gives an ordinary `gymnasium.vector.VectorEnv` (numpy in, numpy out) that can take the place of gymnasium's own
environment in a `SyncVectorEnv`: the same seeds give the same episodes. And objectives E[f(z)] as environments of one
step, z being the action and f(z) its reward: `pglab/BinaryQuadratic-v0`, `pglab/Cosine-v0`, `pglab/NormBandit-v0`,
`pglab/PolynomialProgram-v0`, `pglab/Quadratic-v0`, `pglab/SharedLogit-v0` (of three steps) and `pglab/SimplexProgram-v0`.
They take arguments, `gymnasium.make_vec("pglab/BinaryQuadratic-v0", num_envs=4, D=10)`, have `objective` (f itself) and
`exact_gradient`, and `gymnasium.make` gives single ones. And control tasks of many steps whose exact policy gradients
`pglab.lab.exact_control` has: `pglab/LQR-v0`, and, as tables, `pglab/Chain-v0`, `pglab/GridWorld-v0`,
`pglab/FrozenLakeTable-v1`, `pglab/CliffWalkingTable-v1` and `pglab/TaxiTable-v4`, of which `gymnasium.make` gives single ones
too.

The classes (`CartPole`, `Quadratic`, ...) hold the dynamics as functions of tensors, and the dict `TORCH_ENVS` finds a
class by its id, with or without `pglab/`. Torch is imported when one of these names is first used.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import gymnasium

if TYPE_CHECKING:
    from pglab_envs.acrobot import Acrobot
    from pglab_envs.base import TorchVectorEnv
    from pglab_envs.cartpole import CartPole
    from pglab_envs.continuous_toys import Cosine, NormBandit, Quadratic, random_fourier_features
    from pglab_envs.discrete_toys import BinaryQuadratic, PolynomialProgram, SharedLogit, SimplexProgram
    from pglab_envs.gymnasium_tables import CliffWalkingTable, FrozenLakeTable, TaxiTable
    from pglab_envs.lqr import LQR
    from pglab_envs.mountain_car import MountainCar
    from pglab_envs.mountain_car_continuous import MountainCarContinuous
    from pglab_envs.pendulum import Pendulum
    from pglab_envs.registry import TORCH_ENVS
    from pglab_envs.tabular import Chain, GridWorld, Tables, TabularEnv

__all__ = [
    "LQR",
    "TORCH_ENVS",
    "Acrobot",
    "BinaryQuadratic",
    "CartPole",
    "Chain",
    "CliffWalkingTable",
    "Cosine",
    "FrozenLakeTable",
    "GridWorld",
    "MountainCar",
    "MountainCarContinuous",
    "NormBandit",
    "Pendulum",
    "PolynomialProgram",
    "Quadratic",
    "SharedLogit",
    "SimplexProgram",
    "Tables",
    "TabularEnv",
    "TaxiTable",
    "TorchVectorEnv",
    "random_fourier_features",
]

_HOME = {
    "LQR": "lqr",
    "TORCH_ENVS": "registry",
    "Acrobot": "acrobot",
    "BinaryQuadratic": "discrete_toys",
    "CartPole": "cartpole",
    "Chain": "tabular",
    "CliffWalkingTable": "gymnasium_tables",
    "Cosine": "continuous_toys",
    "FrozenLakeTable": "gymnasium_tables",
    "GridWorld": "tabular",
    "MountainCar": "mountain_car",
    "MountainCarContinuous": "mountain_car_continuous",
    "NormBandit": "continuous_toys",
    "Pendulum": "pendulum",
    "PolynomialProgram": "discrete_toys",
    "Quadratic": "continuous_toys",
    "SharedLogit": "discrete_toys",
    "SimplexProgram": "discrete_toys",
    "Tables": "tabular",
    "TabularEnv": "tabular",
    "TaxiTable": "gymnasium_tables",
    "TorchVectorEnv": "base",
    "random_fourier_features": "continuous_toys",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


def refuse_single(**kwargs: Any) -> NoReturn:
    """What `gymnasium.make` finds under the ids of classic control: here it exists only as batches.

    Raises:
        gymnasium.error.Error: always, with what to write instead.
    """
    raise gymnasium.error.Error(
        "the torch-native twins of gymnasium's environments are batched: write gymnasium.make_vec(id, num_envs=...) with the "
        "default vectorization mode, or gymnasium.make(id without 'pglab/') for gymnasium's own single environment "
        "with the same dynamics"
    )


def single(name: str, **kwargs: Any) -> gymnasium.Env:
    """What `gymnasium.make` finds under the other ids: one environment of the class of this name."""
    from pglab_envs.single import Single

    return Single(__getattr__(name), **kwargs)


gymnasium.register(
    id="pglab/Acrobot-v1",
    entry_point="pglab_envs:refuse_single",
    vector_entry_point="pglab_envs.acrobot:Acrobot",
    max_episode_steps=500,
    reward_threshold=-100.0,
)
gymnasium.register(
    id="pglab/CartPole-v1",
    entry_point="pglab_envs:refuse_single",
    vector_entry_point="pglab_envs.cartpole:CartPole",
    max_episode_steps=500,
    reward_threshold=475.0,
)
gymnasium.register(
    id="pglab/MountainCar-v0",
    entry_point="pglab_envs:refuse_single",
    vector_entry_point="pglab_envs.mountain_car:MountainCar",
    max_episode_steps=200,
    reward_threshold=-110.0,
)
gymnasium.register(
    id="pglab/MountainCarContinuous-v0",
    entry_point="pglab_envs:refuse_single",
    vector_entry_point="pglab_envs.mountain_car_continuous:MountainCarContinuous",
    max_episode_steps=999,
    reward_threshold=90.0,
)
gymnasium.register(
    id="pglab/Pendulum-v1",
    entry_point="pglab_envs:refuse_single",
    vector_entry_point="pglab_envs.pendulum:Pendulum",
    max_episode_steps=200,
)
for _name, _version in {
    "BinaryQuadratic": 0,
    "Chain": 0,
    "CliffWalkingTable": 1,
    "Cosine": 0,
    "FrozenLakeTable": 1,
    "GridWorld": 0,
    "LQR": 0,
    "NormBandit": 0,
    "PolynomialProgram": 0,
    "Quadratic": 0,
    "SharedLogit": 0,
    "SimplexProgram": 0,
    "TaxiTable": 4,
}.items():
    gymnasium.register(
        id=f"pglab/{_name}-v{_version}",
        entry_point=partial(single, _name),
        vector_entry_point=f"pglab_envs.{_HOME[_name]}:{_name}",
    )
