"""Gymnasium's toy texts as finite Markov decision processes, from the tables that they have themselves.

The tables are read from gymnasium's environment when one is made. Outcomes keep gymnasium's order and a step draws one
uniform, as gymnasium's does: the same seeds give the same episodes as `FrozenLake-v1`, `CliffWalking-v1` and `Taxi-v4`.

Letters: S states, A actions, J outcomes.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import torch

from pglab_envs.tabular import Tables, TabularEnv


def gymnasium_tables(env_id: str, **options: Any) -> Tables:
    """The tables `env.unwrapped.P` and the initial distribution of an environment of gymnasium.

    Raises:
        ValueError: the installed gymnasium does not have it.
    """
    try:
        env = gymnasium.make(env_id, disable_env_checker=True, **options)
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium {gymnasium.__version__} has no {env_id} ({error})") from None
    inner: Any = env.unwrapped
    table: dict[int, dict[int, list[tuple[float, int, float, bool]]]] = inner.P
    initial = torch.as_tensor(inner.initial_state_distrib).double()
    env.close()
    outcomes = [[table[s][a] for a in sorted(table[s])] for s in sorted(table)]  # [S][A][J]
    most = max(len(listed) for row in outcomes for listed in row)
    padded = [[[*listed, *[(0.0, 0, 0.0, False)] * (most - len(listed))] for listed in row] for row in outcomes]
    columns = torch.tensor(
        [[[[float(x) for x in outcome] for outcome in listed] for listed in row] for row in padded], dtype=torch.float64
    )  # [S, A, J, 4]
    probability, next_state, reward, terminated = columns.unbind(-1)
    return Tables(probability, next_state.long(), reward, terminated.bool(), initial)


class FrozenLakeTable(TabularEnv):
    """Gymnasium's FrozenLake-v1: cross the ice to the goal (reward 1) without falling into a hole.

    Actions 0 to 3 move left, down, right, up. Where the ice is slippery a move goes, with probability 1/3 each, in its
    direction or to one of its sides. Holes and goal terminate.

    Args:
        num_envs: N.
        map_name: `4x4` (16 states) or `8x8` (64 states).
        is_slippery: whether the ice is.
        horizon: the time limit in steps; None for gymnasium's, 100 or (FrozenLake8x8-v1) 200.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: gymnasium's `toy_text/frozen_lake.py`.
    """

    id = "pglab/FrozenLakeTable-v1"
    max_episode_steps = 100
    options = ("map_name", "is_slippery", "horizon")
    limits = {"4x4": 100, "8x8": 200}

    def __init__(
        self,
        num_envs: int = 1,
        map_name: str = "4x4",
        is_slippery: bool = True,
        horizon: int | None = None,
        **vector: Any,
    ) -> None:
        if map_name not in self.limits:
            raise ValueError(f"map_name must be one of {', '.join(self.limits)}, got {map_name!r}")
        tables = gymnasium_tables("FrozenLake-v1", map_name=map_name, is_slippery=yes_or_no("is_slippery", is_slippery))
        super().__init__(num_envs, tables, self.limits[map_name] if horizon is None else horizon, **vector)


class CliffWalkingTable(TabularEnv):
    """Gymnasium's CliffWalking-v1: walk along a cliff from one end to the other, at reward -1 a step.

    48 states, 4 rows of 12; actions 0 to 3 move up, right, down, left. Stepping off the cliff costs 100 and leads back to
    the start; the goal terminates.

    Args:
        num_envs: N.
        is_slippery: with probability 1/3 each, a move goes in its direction or to one of its sides.
        horizon: the time limit in steps. Gymnasium has none; here it is 200 unless given.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: gymnasium's `toy_text/cliffwalking.py`, after Sutton & Barto (2018), "Reinforcement learning", example 6.6.
    """

    id = "pglab/CliffWalkingTable-v1"
    max_episode_steps = 200
    options = ("is_slippery", "horizon")

    def __init__(self, num_envs: int = 1, is_slippery: bool = False, horizon: int = 200, **vector: Any) -> None:
        tables = gymnasium_tables("CliffWalking-v1", is_slippery=yes_or_no("is_slippery", is_slippery))
        super().__init__(num_envs, tables, horizon, **vector)


class TaxiTable(TabularEnv):
    """Gymnasium's Taxi-v4: fetch a passenger and drop them where they want to go (reward 20), at reward -1 a step.

    500 states; actions 0 to 3 move down, up, right, left, 4 picks up, 5 drops off, at reward -10 where it is not possible.

    Args:
        num_envs: N.
        is_rainy: moves go sideways now and then. (Gymnasium's fickle passenger is not in its table.)
        horizon: the time limit in steps, gymnasium's 200 unless given.
        vector: further arguments of `TorchVectorEnv`.

    Raises:
        ValueError: an argument is not of that kind.

    Source: gymnasium's `toy_text/taxi.py`, after Dietterich (2000), "Hierarchical reinforcement learning with the MAXQ
    value function decomposition".
    """

    id = "pglab/TaxiTable-v4"
    max_episode_steps = 200
    options = ("is_rainy", "horizon")

    def __init__(self, num_envs: int = 1, is_rainy: bool = False, horizon: int = 200, **vector: Any) -> None:
        tables = gymnasium_tables("Taxi-v4", is_rainy=yes_or_no("is_rainy", is_rainy))
        super().__init__(num_envs, tables, horizon, **vector)


def yes_or_no(name: str, value: Any) -> bool:
    """`value` if it is True or False. ValueError otherwise."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value
