"""Which torch-native class answers to which environment id."""

from __future__ import annotations

from pglab_envs.acrobot import Acrobot
from pglab_envs.base import TorchVectorEnv
from pglab_envs.cartpole import CartPole
from pglab_envs.continuous_toys import Cosine, NormBandit, Quadratic
from pglab_envs.discrete_toys import BinaryQuadratic, PolynomialProgram, SharedLogit, SimplexProgram
from pglab_envs.gymnasium_tables import CliffWalkingTable, FrozenLakeTable, TaxiTable
from pglab_envs.lqr import LQR
from pglab_envs.mountain_car import MountainCar
from pglab_envs.mountain_car_continuous import MountainCarContinuous
from pglab_envs.pendulum import Pendulum
from pglab_envs.tabular import Chain, GridWorld

# A plain dict: whoever writes another TorchVectorEnv adds it here under its id.
TORCH_ENVS: dict[str, type[TorchVectorEnv]] = {
    name: env
    for env in (
        Acrobot,
        BinaryQuadratic,
        CartPole,
        Chain,
        CliffWalkingTable,
        Cosine,
        FrozenLakeTable,
        GridWorld,
        LQR,
        MountainCar,
        MountainCarContinuous,
        NormBandit,
        Pendulum,
        PolynomialProgram,
        Quadratic,
        SharedLogit,
        SimplexProgram,
        TaxiTable,
    )
    for name in (env.id, env.id.removeprefix("pglab/"))
}
