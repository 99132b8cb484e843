"""Evolution strategies: the random z is the network's parameters, and f(z) the return of an episode played with them.

Perturbed networks theta + sigma eps, eps ~ N(0, I), play whole episodes. The agent climbs the smoothed objective
J_sigma(theta) = E_eps[J(theta + sigma eps)] with the score function of the search distribution N(theta, sigma^2):

    d/d theta     = E[J(theta + sigma eps) eps] / sigma
    d/d log sigma = E[J(theta + sigma eps) (eps^2 - 1)]

With sigma fixed these are evolution strategies (Rechenberg 1973; Salimans et al. 2017), with a learned sigma per
parameter policy gradients with parameter-based exploration (PGPE; Sehnke et al. 2010). No backward pass is made.

Letters: T time, P population, M perturbed networks of a member, K draws of eps (M / 2 where they are mirrored, else M),
N environments of a member, n parameters. A member's environments are M groups of N / M columns, one for each network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pglab.agents.at_mode import NO_NOISE, at_mode
from pglab.agents.base import Agent, Metrics
from pglab.config import Config, EvolutionConfig
from pglab.distributions import Distribution
from pglab.environments.contract import Environment, EnvironmentSpec
from pglab.executors import Count
from pglab.networks import Parameters
from pglab.noise import Counter, Draw1, Noise, Purpose
from pglab.population import Population
from pglab.returns import discount_powers
from pglab.rollout import Position, Rollout, block, whole_episodes


@dataclass(frozen=True)
class SharedNoise(Noise):
    """Noise that several columns share: a member's columns are `[groups, repeats, each]`, and what is drawn for a group is
    repeated in it. So networks of one group start from the same states and draw their actions with the same noise."""

    groups: int = 1
    repeats: int = 1

    def _block(self, draw: Draw1, purpose: Purpose, counter: Counter, shape: tuple[int, ...], axis: int) -> Tensor:
        # Columns stand right behind the member axis.
        columns = shape[axis] // self.repeats
        drawn = super()._block(draw, purpose, counter, (*shape[:axis], columns, *shape[axis + 1 :]), axis)
        apart = drawn.unflatten(axis + 1, (self.groups, -1)).unsqueeze(axis + 2)
        wide = apart.expand(*apart.shape[: axis + 2], self.repeats, *apart.shape[axis + 3 :])
        return wide.flatten(axis + 1, axis + 3)


@dataclass(frozen=True)
class Tried:
    """Perturbed networks and what they are worth."""

    epsilon: Tensor  # [P, K, n]
    value: Tensor  # [P, M]: mean return of the network's episodes; mirrored pairs (eps, -eps) stand side by side


class EvolutionAgent(Agent):
    """Perturb, play, update; see `pglab.agents.base.Agent` for the calls the training loop makes."""

    def __init__(self, config: Config, spec: EnvironmentSpec, population: Population, num_envs: int) -> None:
        super().__init__(config, spec, population, num_envs, default_continuous="gaussian")
        assert isinstance(config.agent, EvolutionConfig)
        self.settings = s = config.agent
        self.networks_tried = s.perturbations or num_envs  # M
        self.position = None
        self.search: Parameters | None = None
        if s.learn_sigma:
            n = self.policy_parameters.size
            log_sigma = self.hyper("agent.sigma").log().expand(-1, n).contiguous()  # [P, n]
            self.search = Parameters({"log_sigma": (1, n)}, log_sigma)
            self.search_optimizer = config.optimizer.initial(log_sigma)
        self._free = self._perturbed_coordinates()

    def _perturbed_coordinates(self) -> Tensor:
        """`[n]`: 1 where a parameter is perturbed, 0 where the networks' actions do not depend on it (log_std where they
        play their mode) or it is not to be learned."""
        policy = self.policy
        marks = Parameters(
            self.policy_parameters.shapes, torch.ones_like(self.policy_parameters.flat[:1]), trainable=False
        )
        if policy.gaussian and (self.settings.deterministic or not policy.config.learn_std):
            d = policy.action.factors
            if policy.std_from_network:
                *_, weight, bias = (marks.views[name] for name in policy.network.layer_names)
                weight[..., d:] = bias[..., d:] = 0
            else:
                marks.views["log_std"].zero_()
        return marks.flat[0]

    # -- state

    def networks(self) -> dict[str, Parameters]:
        found = {"policy": self.policy_parameters}
        if self.search is not None:
            found["search"] = self.search
        return found

    def take_networks(self, networks: Mapping[str, Parameters]) -> None:
        self.policy_parameters = networks["policy"]
        self.search = networks.get("search")

    def state(self) -> dict[str, Any]:
        tree = super().state()
        if self.search is not None:
            tree["search_optimizer"] = self.search_optimizer
        return tree

    def load_state(self, tree: Mapping[str, Any]) -> None:
        super().load_state(tree)
        if self.search is not None:
            self.search_optimizer = self.optimizer_state(tree["search_optimizer"])

    def replicated(self, replicates: range, *prefix: int) -> Self:
        twin = super().replicated(replicates, *prefix)
        if self.search is not None:
            twin.search = self.search.repeated(len(replicates))
        return twin

    @property
    def steps_per_update(self) -> int | None:
        return None

    @property
    def rows_per_update(self) -> int:
        return self.num_envs  # nothing is computed from several steps at once

    # -- trying

    def sigma(self) -> Tensor:
        """The search distribution's standard deviation, `[P, 1]` where it is fixed, `[P, n]` where it is learned."""
        return self.hyper("agent.sigma") if self.search is None else self.search.flat.exp()

    def collect(self, env: Environment, counter: tuple[int, ...]) -> tuple[Tried, Rollout]:
        """Perturbed networks and their whole episodes, `[T, P, N]`."""
        s, m = self.settings, self.networks_tried
        draws = m // 2 if s.mirrored else m
        epsilon = self.noise.normal(Purpose.EXTRA, counter, (draws, self.policy_parameters.size)) * self._free
        theta, step = self.policy_parameters.flat.unsqueeze(1), self.sigma().unsqueeze(1) * epsilon
        tried = torch.stack([theta + step, theta - step], 2).flatten(1, 2) if s.mirrored else theta + step  # [P, M, n]
        act = self._acting(Parameters(self.policy_parameters.shapes, tried.flatten(0, 1), trainable=False))
        if s.deterministic:
            act = at_mode(act)

        def play(position: Position, actions: Tensor, resets: Tensor | None) -> tuple[Rollout, Position]:
            return block(env, act, self.policy.present, position, actions, resets)

        event = NO_NOISE if s.deterministic else self.event
        rollout = whole_episodes(env, play, self._shared(), (*counter, 0), s.block, event, s.episodes, own=True)
        reward = self.preprocessor.rewards(rollout.reward) * discount_powers(rollout.time, self.hyper("discount"))
        value = reward.sum(0).unflatten(1, (m, -1)).mean(2) / s.episodes  # rows that are not valid have reward 0
        return Tried(epsilon, value), rollout

    def _acting(self, networks: Parameters) -> Any:
        """What the perturbed networks `[P*M, n]` do in their columns: observations `[P, N, O]` to distributions `[P, N]`."""
        policy, views = self.policy, networks.views
        weights = [views[name] for name in policy.network.layer_names]
        each = self.num_envs // self.networks_tried
        own: dict[str, Tensor] = {}
        if "log_std" in views:
            own["log_std"] = views["log_std"].expand(-1, each, -1).reshape(len(self.population), self.num_envs, -1)

        def act(obs: Tensor, action_mask: Tensor | None) -> Distribution:
            seen = self.preprocessor.observations(obs)  # [P, N, O]
            output = policy.network.run(weights, seen.reshape(len(networks.flat), each, -1))[1]  # [P*M, N/M, outputs]
            return policy.parameterized(own, output.reshape(*obs.shape[:2], -1), action_mask)

        return act

    def _shared(self) -> Noise:
        """The episodes' noise: each column's own, or shared as `common_starts` says."""
        s, m = self.settings, self.networks_tried
        if s.common_starts == "all":
            return SharedNoise(self.noise.members, self.noise.device, 1, m)
        if s.common_starts == "pair" and s.mirrored:
            return SharedNoise(self.noise.members, self.noise.device, m // 2, 2)
        return self.noise

    # -- learning

    def gradient(self, tried: Tried) -> Metrics:
        """Fill the policy's `.grad` `[P, n]` (for descent), and the search distribution's where it is learned, with the
        estimate from these networks: what training applies, and what measurements measure."""
        s, value = self.settings, shaped(tried.value, self.settings.shaping)
        sigma = self.sigma()
        mean, log_sigma = search_gradient(
            tried.epsilon, value, sigma, s.mirrored, self.config.baseline.name == "leave_one_out"
        )
        assert self.policy_parameters.grad is not None
        torch.neg(mean, out=self.policy_parameters.grad)
        if self.search is not None:
            assert self.search.grad is not None
            torch.mul(log_sigma, -self._free, out=self.search.grad)
        returns = tried.value
        return {
            "losses/policy_loss": lambda: -returns.mean(1),
            "search/return_std": lambda: returns.std(1) if returns.shape[1] > 1 else torch.zeros_like(returns[:, 0]),
            "search/sigma": lambda: sigma.mean(1),
        }

    def step_search(self) -> None:
        """Move log sigma, and keep it within its bounds."""
        if self.search is None:
            return
        assert self.search.grad is not None
        rate = self.rate("agent.sigma_learning_rate")
        self.config.optimizer.step(self.search.flat, self.search.grad, self.search_optimizer, rate)
        low, high = self.settings.sigma_bounds
        self.search.flat.clamp_(math.log(low), math.log(high))

    def update(self, env: Environment, count: Count | None = None) -> tuple[Metrics, Rollout]:
        """Try one batch of perturbed networks and learn from it. Returns metrics `[P]` and the rollout."""
        tried, rollout = self.collect(env, (self.updates,))
        if count is not None:
            count(rollout)
        metrics = self.gradient(tried)
        metrics["gradient/norm"] = self.step_policy()
        self.step_search()
        learned = self.learning(rollout.valid)
        self.preprocessor.update(rollout.obs, rollout.reward, rollout.ended, learned, self.hyper("discount"))
        self.updates += 1
        return metrics, rollout


def shaped(value: Tensor, how: str) -> Tensor:
    """Values `[P, M]` as the estimate uses them: `returns` as they are; `standardized`, (value - mean) / std over a
    member's networks; `centered_ranks` in [-1/2, 1/2] (Salimans et al. 2017, section 2.1), where equal values share the
    middle of their ranks, so that networks nobody can tell apart give no gradient."""
    if how == "returns":
        return value
    if how == "standardized":
        return (value - value.mean(1, keepdim=True)) / (value.std(1, keepdim=True) + 1e-8)
    below = torch.sign(value.unsqueeze(2) - value.unsqueeze(1)).sum(2)  # [P, M]: networks below less networks above
    return below / (2 * max(value.shape[1] - 1, 1))


def search_gradient(
    epsilon: Tensor, value: Tensor, sigma: Tensor, mirrored: bool, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    """The estimate of the smoothed objective's gradient at the search distribution's mean and log standard deviation,
    `[P, n]` each (ascent).

    Plain: the mean over draws of (value - b) eps / sigma and of (value - b) (eps^2 - 1). Mirrored, with the values v+ and
    v- of theta +- sigma eps (Sehnke et al. 2010, section 2.4): of (v+ - v-) eps / (2 sigma), where any baseline cancels,
    and of ((v+ + v-) / 2 - b) (eps^2 - 1). b is 0, or with `leave_one_out` the mean over the other draws (pairs, where
    they are mirrored: a network's mirror image depends on the same eps). Unbiased in all cases.

    Args:
        epsilon: `[P, K, n]`.
        value: `[P, K]`, or mirrored `[P, 2 K]`, with pairs side by side.
        sigma: `[P, n]` or `[P, 1]`.
    """
    odd = even = value
    if mirrored:
        plus, minus = value.unflatten(1, (-1, 2)).unbind(2)  # [P, K]
        odd, even = (plus - minus) / 2, (plus + minus) / 2
    k = even.shape[1]
    if leave_one_out:
        even = (even - even.mean(1, keepdim=True)) * (k / max(k - 1, 1))  # less the mean of the others
        odd = odd if mirrored else even
    mean = torch.einsum("pk,pkn->pn", odd, epsilon) / (k * sigma)
    log_sigma = torch.einsum("pk,pkn->pn", even, epsilon.square() - 1) / k
    return mean, log_sigma
