"""stable-baselines3: its `evaluate_policy` on gymnasium's own environments, for pglab's agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pglab.agent import load_agent, member_count

PARALLEL = 20  # environments played at the same time


def _single_id(env_id: str) -> str:
    """Gymnasium's id of one such environment: its own where it has a twin, else the torch-native one's."""
    import gymnasium
    from pglab_envs.registry import TORCH_ENVS

    bare = env_id.removeprefix("pglab/")
    return TORCH_ENVS[bare].id if bare in TORCH_ENVS and bare not in gymnasium.registry else bare


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
        e = agent.config.env
        kwargs: dict[str, Any] = dict(e.kwargs)
        if e.max_episode_steps is not None:
            kwargs["max_episode_steps"] = e.max_episode_steps
        env = make_vec_env(_single_id(e.id), n_envs=min(PARALLEL, episodes), seed=seed, env_kwargs=kwargs)
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
