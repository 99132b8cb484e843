"""stable-baselines3: its `evaluate_policy` on gymnasium's own environments, for pglab's agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pglab.agent import load_agent, member_count
from pglab.config import EnvironmentConfig

PARALLEL = 20  # environments played at the same time


def single_environment(e: EnvironmentConfig) -> tuple[str, dict[str, Any]]:
    """What `gymnasium.make` takes to make one environment of a config: the id and the keyword arguments.

    The id is gymnasium's own where it has a twin of a torch-native environment, else the torch-native one's.
    """
    import gymnasium
    from pglab_envs.registry import TORCH_ENVS

    bare = e.id.removeprefix("pglab/")
    env_id = TORCH_ENVS[bare].id if bare in TORCH_ENVS and bare not in gymnasium.registry else bare
    limit: dict[str, Any] = {} if e.max_episode_steps is None else {"max_episode_steps": e.max_episode_steps}
    return env_id, {**e.kwargs, **limit}


def evaluate_run(path: str | Path, episodes: int, deterministic: bool, seed: int) -> list[dict[str, Any]]:
    """Every member's returns over `episodes` episodes, by stable-baselines3's `evaluate_policy` on `gymnasium.make(id)`.

    Returns one mapping per member: its seed and swept values, `mean`, `std` and `returns`. The environments are seeded
    alike for every member. Raises PglabError where there is no agent at `path` or its environment cannot be made.
    """
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    rows = []
    for member in range(member_count(path)):
        agent = load_agent(path, member)
        env_id, kwargs = single_environment(agent.config.env)
        env = make_vec_env(env_id, n_envs=min(PARALLEL, episodes), seed=seed, env_kwargs=kwargs)
        try:
            played, _ = evaluate_policy(
                agent,
                env,
                n_eval_episodes=episodes,
                deterministic=deterministic,
                return_episode_rewards=True,
            )
        finally:
            env.close()
        returns = np.asarray(played, dtype=np.float64)
        rows.append(
            {**agent.member, "mean": returns.mean().item(), "std": returns.std().item(), "returns": returns.tolist()}
        )
    return rows
