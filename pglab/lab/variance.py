"""How noisy a training gradient is, at the policy that training has reached.

Independent replicates of one training-size gradient are drawn at frozen parameters, normaliser, V, critic and baseline,
through the agent's own `gradient`: the function training calls. The replicate is always a whole batch, which is right
for baselines that couple rows as well.

On-policy agents: replicates are members of a larger population, each with its own fresh environments. Whole-episode
collection starts them afresh, as training does. Step-wise collection goes on from where episodes happen to be, so the
environments are first played under the frozen policy from starts at random phases (training's own may keep step with one
another where all episodes last equally long). With minibatches, the gradient is that of an update's first step. Evolution
is measured like whole-episode collection, bptt like step-wise.
Actor-critic agents: states are redrawn from the frozen replay, actions anew; with on-policy data, from the last round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pglab.agents import ActorCriticAgent, Agent, BpttAgent, EvolutionAgent, OnPolicyAgent
from pglab.environments.contract import Environment
from pglab.lab.gradient_statistics import noise_to_signal
from pglab.noise import Purpose
from pglab.rollout import Act, Position, block, block_noise

MakeEnvironment = Callable[[int], Environment]
"""Members to an environment with the training's number of environments per member."""

DEFINITION = (
    "NSR of one training-size gradient: trace of the covariance / squared norm of the mean, both unbiased estimates from "
    "independent replicates (whole batches) at a frozen policy; 95 % intervals."
)
ROWS = 120_000  # rows [T x P x N] held at a time
INSTANCES = 4096  # environments at a time
PHASES = 8  # at most so many steps between starts while environments are brought to random phases


def gradients(agent: Agent, make_env: MakeEnvironment, replicates: int, snapshot: int) -> np.ndarray:
    """`[P, R, n]` float32: independent replicates of the policy gradient that training would apply, before clipping.

    `snapshot` numbers the measurement, so that each has noise of its own. The agent is left as it was.
    """
    if isinstance(agent, ActorCriticAgent):
        return _replayed(agent, replicates, snapshot)
    assert isinstance(agent, OnPolicyAgent | EvolutionAgent | BpttAgent)
    return _collected(agent, make_env, replicates, snapshot)


def measure(agent: Agent, make_env: MakeEnvironment, replicates: int, snapshot: int) -> dict[str, Any]:
    """Noise-to-signal ratio with its interval, trace variance and squared norm, each a list of one number per member."""
    found = noise_to_signal(gradients(agent, make_env, replicates, snapshot))
    return {name: np.asarray(value).tolist() for name, value in found.items()}


def _replayed(agent: ActorCriticAgent, replicates: int, snapshot: int) -> np.ndarray:
    (kind, shape), b = agent.event, agent.settings.replay.batch_size
    noise = agent.noise.apart(Purpose.MEASUREMENT, snapshot)
    found = []
    saved = agent.policy_parameters.grad
    assert saved is not None
    for r in range(replicates):
        rows = agent.replay.sample(noise.uniform(Purpose.REPLAY, (r,), (b,)), agent.newest)

        def extra(i: int, kind: str, shape: tuple[int, ...], r: int = r) -> torch.Tensor:
            return noise.of_kind(kind, Purpose.EXTRA, (r, i), (b, *shape))

        agent.gradient(
            agent.actor_rows(rows, noise.of_kind(kind, Purpose.UPDATE, (r,), (b, *shape)), agent.extra_noise(extra))
        )
        found.append(saved.cpu().numpy().copy())
    return np.stack(found, axis=1)


def _collected(
    agent: OnPolicyAgent | EvolutionAgent | BpttAgent, make_env: MakeEnvironment, replicates: int, snapshot: int
) -> np.ndarray:
    members, steps = len(agent.population), agent.steps_per_update
    if steps is not None:
        longest = steps // agent.num_envs
    else:
        assert not isinstance(agent, BpttAgent)
        longest = (agent.spec.max_episode_steps or 1000) * agent.settings.episodes
    at_once = max(1, min(ROWS // (members * agent.num_envs * longest), INSTANCES // (members * agent.num_envs)))
    found = []
    for start in range(0, replicates, at_once):
        numbers = range(start, min(start + at_once, replicates))
        twin = agent.replicated(numbers, snapshot)
        env = make_env(members * len(numbers))
        try:
            if isinstance(twin, EvolutionAgent):
                twin.gradient(twin.collect(env, (2,))[0])
            elif isinstance(twin, BpttAgent):
                twin.position = random_phases(twin, env, twin.behaviour)
                twin.gradient(twin.collect(env, (2,)))
            else:
                if steps is not None:
                    twin.position = random_phases(twin, env, twin.act)
                # The first step's rows: all of them, or the first minibatch.
                twin.gradient(twin.minibatches(twin.prepare(twin.collect(env, (2,))), 0)[0])
        finally:
            env.close()
        assert twin.policy_parameters.grad is not None
        found.append(twin.policy_parameters.grad.cpu().numpy().reshape(members, len(numbers), -1).copy())
    return np.concatenate(found, axis=1)


def random_phases(agent: Agent, env: Environment, act: Act) -> Position:
    """Environments at random steps of their episodes: each is started anew at a uniformly drawn moment of a time as long
    as the longest episode (at most 1,000 steps), and played on by the frozen policy `act`."""
    length = min(env.spec.max_episode_steps or 1000, 1000)
    few = max(1, min(PHASES, length // PHASES))  # of a short episode, every step is a start
    waves = -(-length // few)
    position = Position.start(env.reset(agent.noise, (0,)))
    starts = agent.noise.integers(Purpose.ENVIRONMENT, (1,), (env.num_envs,), waves)  # [P, N]
    for wave in range(waves):
        with torch.inference_mode():
            fresh = starts == wave
            obs, mask = env.reset_where(fresh, agent.noise, (0, wave))
            position = Position(obs.clone(), position.time * ~fresh, mask)
        drawn = block_noise(env, agent.noise, (1, wave), few, agent.event)
        _, position = block(env, act, agent.policy.present, position, *drawn)
    return position
