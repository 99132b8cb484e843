"""Backpropagation through the environment: the pathwise gradient of a whole piece of trajectory.

States, rewards and actions are functions of the policy's parameters and of the noise, so the return of a segment of h
steps is differentiated as it stands (SVG(infinity), Heess et al. 2015; analytic policy gradients). Long products of
Jacobians explode, so a segment is short and a learned V stands for what comes after it (the short-horizon actor-critic,
SHAC, Xu et al. 2022, eq. 5): a row is

    sum_{k < h} gamma^k r(s_k, a_k) + gamma^h V(s_h)

with the gradient through all of it, V(s_h) included (V's own parameters apart). Segments follow one another: the next one
starts, as a constant, from where the last one stopped.

Letters: T time (the horizon h), P population, N environments, O observation, B rows of a minibatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pglab.agents.at_mode import NO_NOISE, at_mode
from pglab.agents.base import Agent, Metrics
from pglab.config import BpttConfig, Config
from pglab.distributions import Distribution
from pglab.environments.contract import Environment, EnvironmentSpec
from pglab.environments.torch_native import TorchEnvironment
from pglab.executors import Count
from pglab.gradients import entropy
from pglab.networks import MLP, Parameters, by_member, by_row
from pglab.noise import Purpose
from pglab.optimizers import clip_by_member
from pglab.population import Population
from pglab.returns import gae, n_step
from pglab.rollout import Act, Position, Rollout, assembled, block_noise


@dataclass(frozen=True)
class Segment:
    """Pieces of trajectory, one a row, with the graph that leads from the policy's parameters to their returns."""

    value: Tensor  # [P, N]: the row's return, with its graph
    rollout: Rollout  # [T, P, N], constants
    obs: Tensor  # [T, P, N, O] as the networks see them, constants
    target: Tensor | None  # [T, P, N]: what V is to learn; None where there is no V
    distributions: list[Distribution]  # of every step, rows [P, N], constants


class BpttAgent(Agent):
    """Play and differentiate, update, learn V; see `pglab.agents.base.Agent` for the calls the training loop makes."""

    def __init__(self, config: Config, spec: EnvironmentSpec, population: Population, num_envs: int) -> None:
        super().__init__(config, spec, population, num_envs, default_continuous="squashed_gaussian")
        assert isinstance(config.agent, BpttConfig)
        self.settings = s = config.agent
        self.value_parameters: Parameters | None = None
        self.value_target: Parameters | None = None
        if s.terminal_value:
            self.value_network = MLP((spec.observation_size, *s.value.hidden, 1), s.value.activation, 1.0, stream=1)
            self.value_parameters = self.value_network.initial(population.noise)
            self.value_target = self.value_parameters.frozen_copy()
            self.value_optimizer = config.optimizer.initial(self.value_parameters.flat)
        self.position = None

    # -- state

    def networks(self) -> dict[str, Parameters]:
        found = {"policy": self.policy_parameters}
        if self.value_parameters is not None and self.value_target is not None:
            found |= {"value": self.value_parameters, "value_target": self.value_target}
        return found

    def take_networks(self, networks: Mapping[str, Parameters]) -> None:
        self.policy_parameters = networks["policy"]
        self.value_parameters, self.value_target = networks.get("value"), networks.get("value_target")

    def state(self) -> dict[str, Any]:
        tree = super().state()
        if self.value_parameters is not None:
            tree["value_optimizer"] = self.value_optimizer
        if self.position is not None:
            tree["position"] = {"obs": self.position.obs, "time": self.position.time}
        return tree

    def load_state(self, tree: Mapping[str, Any]) -> None:
        super().load_state(tree)
        if self.value_parameters is not None:
            self.value_optimizer = self.optimizer_state(tree["value_optimizer"])
        at = tree.get("position")
        self.position = None if at is None else Position(at["obs"], at["time"], None)

    def replicated(self, replicates: range, *prefix: int) -> Self:
        twin = super().replicated(replicates, *prefix)
        if self.value_parameters is not None and self.value_target is not None:
            twin.value_parameters = self.value_parameters.repeated(len(replicates))
            twin.value_target = self.value_target.repeated(len(replicates))
        twin.position = None
        return twin

    @property
    def steps_per_update(self) -> int | None:
        return self.settings.horizon * self.num_envs

    @property
    def rows_per_update(self) -> int:
        # The policy's passes are of one step each, V's of a minibatch.
        return max(self.num_envs, self.settings.horizon * self.num_envs // self.settings.value_minibatches)

    @property
    def behaviour(self) -> Act:
        """The policy that segments are played with."""
        return at_mode(self.act) if self.settings.at_mode else self.act

    # -- playing

    def collect(self, env: Environment, counter: tuple[int, ...]) -> Segment:
        """The next segment of every environment, `[T, P, N]`."""
        assert isinstance(env, TorchEnvironment)
        if self.position is None:
            self.position = Position.start(env.reset(self.noise, (*counter, 0)))
        event = NO_NOISE if self.settings.at_mode else self.event
        noise, resets = block_noise(env, self.noise, counter, self.settings.horizon, event)
        if resets is None:
            resets = noise.new_zeros(*noise.shape[:3], 0)
        return self.segment(env, noise, resets)

    def segment(self, env: TorchEnvironment, noise: Tensor, resets: Tensor) -> Segment:
        """One step per row of `noise` `[T, P, N, *event]` from where the environments stand, and the graph of its return;
        episodes that end are followed by new ones, made from `resets` `[T, P, N, reset_noise_size]`."""
        assert self.position is not None
        policy, at = self.policy, self.position
        # Cloned: what was made in inference mode cannot be part of a graph.
        state, elapsed, obs = env.state.clone(), env.elapsed.clone(), at.obs.clone()
        rows: list[tuple[Tensor, ...]] = []
        seen_rows, distributions = [], []
        with torch.enable_grad():
            for drawn, start in zip(noise, env.starts(resets), strict=True):
                seen = self.preprocessor.observations(obs)
                distribution = policy.distribution(self.policy_parameters, seen)
                action = distribution.mode() if self.settings.at_mode else distribution.rsample(drawn)
                presented = policy.present(distribution.executed(action))
                state, elapsed, step = env.dynamics(state, elapsed, presented, start)
                rows.append((obs, action, step.reward, step.terminated, step.ended, step.final_obs, step.valid))
                seen_rows.append(seen)
                distributions.append(distribution.detach())
                obs = step.obs
            columns = [torch.stack(column, 1).transpose(0, 1) for column in zip(*rows, strict=True)]
            seen_all = torch.stack(seen_rows, 1).transpose(0, 1).detach()  # [T, P, N, O]
            value, target = self._returns(columns, seen_all)
        rollout, time = assembled([c.detach() for c in columns], noise, at.time, None)
        env.state, env.elapsed = state.detach(), elapsed
        self.position = Position(obs.detach(), time, None)
        return Segment(value, rollout, seen_all, target, distributions)

    def v(self, parameters: Parameters, obs: Tensor) -> Tensor:
        """V at normalised observations `[T, P, N, O]`, `[T, P, N]`."""
        return by_row(self.value_network(parameters.views, by_member(obs)), obs.shape[:-1]).squeeze(-1)

    def _returns(self, columns: list[Tensor], seen: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows' returns `[P, N]`, with their graph, and V's targets `[T, P, N]`."""
        _, _, reward, terminated, ended, final, _ = columns
        discount = self.hyper("discount").to(reward.dtype)  # [P, 1]
        reward = self.preprocessor.rewards(reward)
        weight = powers(ended, discount)
        value = (weight * reward).sum(0)
        if self.value_target is None:
            return value, None
        with torch.no_grad():
            v = self.v(self.value_target, seen)
        v_after = self._v_after(self.value_target, v, final, terminated, ended)
        cut = ended.clone()
        cut[-1] = True
        value = value + (weight * discount * (cut & ~terminated) * v_after).sum(0)
        with torch.no_grad():
            r, v_after, s = reward.detach(), v_after.detach(), self.settings.returns
            if s.name == "n_step":
                return value, n_step(r, v_after, terminated, ended, discount, s.n)
            lam = self.hyper("agent.returns.lam").to(r.dtype) if s.name == "gae" else 1.0
            return value, v + gae(r, v, v_after, terminated, ended, discount, lam)

    def _v_after(self, parameters: Parameters, v: Tensor, final: Tensor, terminated: Tensor, ended: Tensor) -> Tensor:
        """V of where each transition led, `[T, P, N]`: with its graph where an episode was cut and at the segment's end,
        elsewhere `v` of the next row. Arbitrary (and finite) where a transition terminated."""
        limit = self.spec.max_episode_steps
        if not self.spec.cut_by_limit_only or limit is None or len(v) > limit:
            return self.v(parameters, self.preprocessor.observations(final))
        cut = ended & ~terminated  # at most once in a column
        index = cut.to(torch.uint8).argmax(0)[None, :, :, None].expand(1, *cut.shape[1:], final.shape[-1])
        asked = torch.cat([final.gather(0, index), final[-1:]])  # [2, P, N, O]
        at_cut, at_end = self.v(parameters, self.preprocessor.observations(asked))
        return torch.where(cut, at_cut, torch.cat([v[1:], at_end.unsqueeze(0)]))

    # -- learning

    def gradient(self, segment: Segment) -> Metrics:
        """Fill the policy's `.grad` `[P, n]` (for descent) with the gradient of the mean over rows of the segment's return:
        what training applies, and what measurements measure. Uses up the segment's graph."""
        value = segment.value
        self.policy_parameters.backward([value], [torch.full_like(value, -1 / value.shape[1])])
        returns, played, noise = value.detach(), segment.distributions, segment.rollout.noise

        def mean_entropy() -> Tensor:
            drawn = [torch.zeros_like(d.mode()) for d in played] if self.settings.at_mode else noise
            return torch.stack([entropy(d, x) for d, x in zip(played, drawn, strict=True)]).mean((0, 2))

        return {"losses/policy_loss": lambda: -returns.mean(1), "policy/entropy": mean_entropy}

    def learn_value(self, segment: Segment) -> Metrics:
        """`value_epochs` passes of V over the segment's rows, towards the targets (half the mean squared error), in
        `value_minibatches` parts each; then the target network follows."""
        s, parameters = self.settings, self.value_parameters
        assert parameters is not None
        assert self.value_target is not None
        assert segment.target is not None
        obs, target = by_member(segment.obs), segment.target.transpose(0, 1).flatten(1)  # [P, T*N, O], [P, T*N]
        rate = self.rate("agent.value.learning_rate")
        for epoch in range(s.value_epochs):
            order = self.noise.uniform(Purpose.MINIBATCH, (self.updates, epoch), target.shape[1:]).argsort(1)
            for part in order.tensor_split(min(s.value_minibatches, target.shape[1]), 1):  # [P, B]
                x = obs.gather(1, part.unsqueeze(2).expand(-1, -1, obs.shape[2]))
                v = self.value_network(parameters.views, x).squeeze(2)
                error = v.detach() - target.gather(1, part)
                grad = parameters.backward([v], [error / part.shape[1]])
                clip_by_member(grad, s.value.max_grad_norm)
                self.config.optimizer.step(parameters.flat, grad, self.value_optimizer, rate)
        share = s.target_rate if self.active is None else s.target_rate * self.active
        with torch.no_grad():
            self.value_target.flat.lerp_(parameters.flat, share)

        def loss() -> Tensor:
            return 0.5 * error.square().mean(1)

        return {"losses/value_loss": loss}

    def update(self, env: Environment, count: Count | None = None) -> tuple[Metrics, Rollout]:
        """Play one segment and learn from it. Returns metrics `[P]` and the rollout."""
        segment = self.collect(env, (self.updates,))
        metrics = self.gradient(segment)
        metrics["gradient/norm"] = self.step_policy()
        if self.value_parameters is not None:
            metrics |= self.learn_value(segment)
        rollout = segment.rollout
        if count is not None:
            count(rollout)
        learned = self.learning(rollout.valid)
        self.preprocessor.update(rollout.obs, rollout.reward, rollout.ended, learned, self.hyper("discount"))
        self.updates += 1
        return metrics, rollout


def powers(ended: Tensor, discount: Tensor) -> Tensor:
    """gamma^k, k the steps since the segment began or, if later, the episode, `[T, P, N]`; `ended` bool `[T, P, N]`."""
    weight = torch.ones_like(ended[0], dtype=discount.dtype)
    found = [weight]
    for over in ended[:-1]:
        weight = torch.where(over, 1.0, weight * discount)
        found.append(weight)
    return torch.stack(found)
