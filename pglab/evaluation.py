"""Playing whole episodes with a frozen policy.

Letters: P population, E episodes.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from pglab.agents.base import Agent
from pglab.environments.contract import Environment
from pglab.environments.torch_native import TorchEnvironment
from pglab.executors import Executor
from pglab.noise import Purpose
from pglab.programs import mapped
from pglab.trees import kept_in_place

BLOCK = 32
LONGEST = 100_000
REPEATED = 8
"""So many steps at a time are repeated: recording more of them takes longer."""

Scores = tuple[Tensor, Tensor, Tensor]
"""Returns and lengths so far, and 1 where the first episode is under way, `[P, E]` each."""


def evaluate(agent: Agent, env: Environment, counter: int, deterministic: bool) -> tuple[np.ndarray, np.ndarray]:
    """One episode in each of `env`'s environments per member, from fresh starts: undiscounted returns and lengths, both
    `[P, E]`. An episode is cut after 100,000 steps where the environment has no time limit."""
    return Evaluator(env, deterministic)(agent, counter)


class Evaluator:
    """`evaluate` again and again, of agents of one config, in environments of one's own. An `executor` may repeat the steps
    of torch-native ones."""

    def __init__(self, env: Environment, deterministic: bool, executor: Executor | None = None) -> None:
        self.env, self.deterministic = env, deterministic
        self._executor = executor if isinstance(env, TorchEnvironment) else None
        self._player: Agent | None = None

    def __call__(self, agent: Agent, counter: int) -> tuple[np.ndarray, np.ndarray]:
        """See `evaluate`."""
        env, executor, noise = self.env, self._executor, agent.noise.apart(Purpose.EVALUATION)
        kind, shape = agent.event
        limit = env.spec.max_episode_steps or LONGEST
        self._player = agent if executor is None else self._standing_in_for(agent)
        with torch.inference_mode() if executor is None else torch.no_grad():
            obs, mask = env.reset(noise, (counter, 0))
            zero = torch.zeros(obs.shape[:2], device=obs.device)
            scores: Scores = zero, zero, torch.ones_like(zero)
            played = 0
            while played < limit + BLOCK and bool(scores[2].any()):
                key = (counter, 1, played)
                shape_all = (BLOCK, env.num_envs)
                size = env.spec.reset_noise_size
                resets = noise.uniform(Purpose.RESET, key, (*shape_all, size), axis=1) if size else None
                draws = (
                    None
                    if self.deterministic
                    else noise.of_kind(kind, Purpose.ACTION, key, (*shape_all, *shape), axis=1)
                )
                for t in range(0, BLOCK, REPEATED):
                    now = slice(t, t + REPEATED)
                    drawn = None if draws is None else draws[now], None if resets is None else resets[now]
                    if executor is None:
                        obs, mask, scores = self._steps(obs, mask, scores, *drawn)
                    else:
                        assert isinstance(env, TorchEnvironment)
                        env.state, env.elapsed, obs, scores = executor.call(
                            self.evaluation, env.state, env.elapsed, obs, scores, *drawn
                        )
                played += BLOCK
        total, length, _ = scores
        return total.cpu().numpy().astype(np.float64), length.cpu().numpy().astype(np.int64)

    def _standing_in_for(self, agent: Agent) -> Agent:
        """An agent that acts as this one does, and whose parameters lie where they lay the last time."""
        if self._player is None:
            player = copy.copy(agent)
            player.policy_parameters = agent.policy_parameters.frozen_copy()
            player.preprocessor = copy.copy(agent.preprocessor)
            player.preprocessor.state = mapped(agent.preprocessor.state, torch.clone)
            return player
        with torch.no_grad():
            self._player.policy_parameters.flat.copy_(agent.policy_parameters.flat)
            kept_in_place(self._player.preprocessor.state, agent.preprocessor.state)
        return self._player

    def evaluation(
        self, state: Tensor, elapsed: Tensor, obs: Tensor, scores: Scores, draws: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Scores]:
        """Some steps of a torch-native environment as a function of tensors: from states and elapsed steps to those
        afterwards, with observations and scores."""
        env = self.env
        assert isinstance(env, TorchEnvironment)
        env.state, env.elapsed = state, elapsed
        obs, _, scores = self._steps(obs, None, scores, draws, resets)
        return env.state, env.elapsed, obs, scores

    def _steps(
        self, obs: Tensor, mask: Tensor | None, scores: Scores, draws: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Scores]:
        agent, (total, length, alive) = self._player, scores
        assert agent is not None
        for t in range(REPEATED):
            distribution = agent.act(obs, mask)
            action = distribution.mode() if draws is None else distribution.sample(draws[t])
            step = self.env.step(
                agent.policy.present(distribution.executed(action)), None if resets is None else resets[t]
            )
            total = total + step.reward * alive
            length = length + alive * step.valid
            alive = alive * ~(step.terminated | step.truncated)
            obs, mask = step.obs, step.action_mask
        return obs, mask, (total, length, alive)
