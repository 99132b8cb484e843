"""Playing whole episodes with a frozen policy.

Letters: P population, E episodes.
"""

from __future__ import annotations

import numpy as np
import torch

from pglab.agents.base import Agent
from pglab.environments.contract import Environment
from pglab.noise import Purpose

BLOCK = 32
LONGEST = 100_000


def evaluate(agent: Agent, env: Environment, counter: int, deterministic: bool) -> tuple[np.ndarray, np.ndarray]:
    """One episode in each of `env`'s environments per member, from fresh starts: undiscounted returns and lengths, both
    `[P, E]`. An episode is cut after 100,000 steps where the environment has no time limit."""
    noise = agent.noise.apart(Purpose.EVALUATION)
    kind, shape = agent.event
    limit = env.spec.max_episode_steps or LONGEST
    with torch.inference_mode():
        obs, mask = env.reset(noise, (counter, 0))
        total = torch.zeros(obs.shape[:2], device=obs.device)
        length = torch.zeros_like(total)
        alive = torch.ones_like(total)
        played = 0
        while played < limit + BLOCK and bool(alive.any()):
            key = (counter, 1, played)
            shape_all = (BLOCK, env.num_envs)
            size = env.spec.reset_noise_size
            resets = noise.uniform(Purpose.RESET, key, (*shape_all, size), axis=1) if size else None
            draws = None if deterministic else noise.of_kind(kind, Purpose.ACTION, key, (*shape_all, *shape), axis=1)
            for t in range(BLOCK):
                distribution = agent.act(obs, mask)
                action = distribution.mode() if draws is None else distribution.sample(draws[t])
                step = env.step(
                    agent.policy.present(distribution.executed(action)), None if resets is None else resets[t]
                )
                total += step.reward * alive
                length += alive * step.valid
                alive = alive * ~(step.terminated | step.truncated)
                obs, mask = step.obs, step.action_mask
            played += BLOCK
    return total.cpu().numpy().astype(np.float64), length.cpu().numpy().astype(np.int64)
