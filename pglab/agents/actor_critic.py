"""The actor-critic agent: a learned Q(s, a), climbed with any estimator.

SAC is this agent with `pathwise`, a squashed Gaussian and `auto_entropy`; SVG(0) has no entropy term, DDPG also
`pathwise` with `at_mode` and `target_action: mode`; discrete SAC is `enumeration` with `target_action: expectation`.

Letters: P population, N environments, B minibatch rows (estimator rows are `[1, P, B]`), E flattened action.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pglab.agents.base import Agent, Metrics
from pglab.baselines import Batch, baselined
from pglab.config import ActorCriticConfig, Config
from pglab.critics import QCritic
from pglab.distributions import Distribution
from pglab.environments.contract import Environment, EnvironmentSpec
from pglab.estimators import Draw, Signal
from pglab.estimators.enumeration import enumerated
from pglab.executors import Count
from pglab.gradients import cotangents, entropy, push
from pglab.networks import Parameters
from pglab.noise import ChunkedNoise, Purpose
from pglab.optimizers import OptimizerConfig, clip_by_member
from pglab.population import Population
from pglab.replay import Replay, Transitions
from pglab.rollout import Position, Rollout
from pglab.trees import kept_in_place


@dataclass(frozen=True)
class ActorRows:
    """A minibatch of states as the actor's update needs them."""

    obs: Tensor  # [P, B, O] as the networks see them
    action_mask: Tensor | None  # [P, B, D, K] bool
    noise: Tensor  # [1, P, B, *event]
    extra: dict[str, Tensor]  # [1, P, B, ...] each: what the estimator asks for further
    weight: Tensor  # [1, P, B]: mask / number of valid rows


@dataclass(frozen=True)
class Draws:
    """The noise of one update."""

    update: Tensor  # [P, B, *event]: makes the actor's actions
    extra: dict[str, Tensor]  # [P, B, ...] each: what the estimator asks for further
    target: Tensor | None = None  # [P, B, *event]: makes the actions of the critic's target
    blend: Tensor | None = None  # [P, B] uniform: how far an action is blended
    other: Tensor | None = None  # [P, B, *event] exponential: picks the action that it is blended with


class ActorCriticAgent(Agent):
    """Act, store, learn; see `pglab.agents.base.Agent` for the calls the training loop makes."""

    def __init__(self, config: Config, spec: EnvironmentSpec, population: Population, num_envs: int) -> None:
        super().__init__(config, spec, population, num_envs, default_continuous="squashed_gaussian")
        assert isinstance(config.agent, ActorCriticConfig)
        self.settings = config.agent
        action_size = math.prod(spec.action.event_shape)
        self.critic = QCritic(self.settings.critic, spec.observation_size, action_size, self.noise)
        self.critic_optimizer = config.optimizer.initial(self.critic.parameters.flat)
        self.round_rows = self.settings.steps_per_round * num_envs
        replay, on_policy = self.settings.replay, self.settings.replay.data == "on_policy"
        capacity = max(self.round_rows, replay.batch_size) if on_policy else replay.capacity
        masked = spec.has_action_mask
        self.replay = Replay(len(population), capacity, spec.observation_size, action_size, masked, self.noise.device)
        self.newest = self.round_rows if on_policy else None
        self.chunks = ChunkedNoise(self.noise)
        self.position = None
        self.rounds = 0
        start = self.hyper("entropy_weight")
        # log alpha moves by small steps, so it cannot start from a weight of 0: then it starts from 1.
        self.log_alpha = torch.where(start > 0, start, 1.0).log()  # [P, 1]
        self.alpha_optimizer = OptimizerConfig().initial(self.log_alpha)
        target = self.settings.target_entropy
        if target is None:
            a = spec.action
            target = -float(a.factors) if a.kind == "continuous" else 0.5 * sum(math.log(n) for n in a.sizes)
        self.target_entropy = target
        self.uses_entropy = self.uses_entropy or self.settings.auto_entropy

    # -- state

    def networks(self) -> dict[str, Parameters]:
        return {"policy": self.policy_parameters, "critic": self.critic.parameters, "target": self.critic.target}

    def take_networks(self, networks: Mapping[str, Parameters]) -> None:
        self.policy_parameters = networks["policy"]
        self.critic = copy.copy(self.critic)
        self.critic.parameters, self.critic.target = networks["critic"], networks["target"]

    def state(self) -> dict[str, Any]:
        tree = super().state() | {
            "critic_optimizer": self.critic_optimizer,
            "alpha": {"log": self.log_alpha, "optimizer": self.alpha_optimizer},
            "replay": self.replay.state(),
            "rounds": self.rounds,
        }
        if self.position is not None:
            tree["position"] = {"obs": self.position.obs, "time": self.position.time, "mask": self.position.action_mask}
        return tree

    def load_state(self, tree: Mapping[str, Any]) -> None:
        super().load_state(tree)
        self.critic_optimizer = self.optimizer_state(tree["critic_optimizer"])
        self.log_alpha = tree["alpha"]["log"].clone()
        self.alpha_optimizer = self.optimizer_state(tree["alpha"]["optimizer"])
        self.replay.count, self.rounds = tree["replay"]["count"], tree["rounds"]
        at = tree.get("position")
        self.position = None if at is None else Position(at["obs"], at["time"], at["mask"])

    def replicated(self, replicates: range, *prefix: int) -> Self:
        twin = super().replicated(replicates, *prefix)
        twin.critic = copy.copy(self.critic)
        twin.critic.parameters = self.critic.parameters.repeated(len(replicates))
        twin.critic.target = self.critic.target.repeated(len(replicates))
        twin.log_alpha = self.log_alpha.repeat_interleave(len(replicates), 0)
        twin.chunks = ChunkedNoise(twin.noise)
        twin.position = None
        return twin

    def frozen_state(self) -> dict[str, Any]:
        return super().frozen_state() | {"log_alpha": self.log_alpha}

    def frozen(self, tree: Mapping[str, Any]) -> Self:
        twin = super().frozen(tree)
        twin.log_alpha = tree.get("log_alpha", self.log_alpha)
        return twin

    @property
    def steps_per_update(self) -> int | None:
        return self.round_rows

    @property
    def rows_per_update(self) -> int:
        return self.settings.replay.batch_size * self.critic.copies

    def changing(self) -> list[Any]:
        networks = [self.critic_optimizer, self.log_alpha, self.alpha_optimizer]
        return [*super().changing(), *networks]

    # -- collecting

    def collect(
        self, env: Environment, count: Count | None = None, learning: tuple[Tensor, Draws] | None = None
    ) -> tuple[Rollout, Metrics]:
        """`steps_per_round` vector steps of the current policy, which `count` takes note of, added to the replay; with what
        `learn` takes, one update from the replay then. Returns the steps, `[T, P, N]`, and the update's metrics."""
        if self.position is None:
            self.position = Position.start(env.reset(self.noise, (0,)))
        (kind, shape), steps, n = self.event, self.settings.steps_per_round, self.num_envs
        actions = self.chunks.take(kind, Purpose.ACTION, self.rounds, (steps, n, *shape)).transpose(0, 1)
        size, resets = env.spec.reset_noise_size, None
        if size:
            resets = self.chunks.take("uniform", Purpose.RESET, self.rounds, (steps, n, size)).transpose(0, 1)
        then = self.store if learning is None else self.store_and_learn
        rollout, self.position, metrics = self.executor.block(
            self, env, self.position, actions, resets, count=count, then=then, inputs=learning or ()
        )
        self.replay.have_put(self.round_rows)
        self.rounds += 1
        return rollout, metrics or {}

    def store_and_learn(self, rollout: Rollout, after: Position, u: Tensor, draws: Draws) -> Metrics:
        """`store`, then `learn`."""
        self.store(rollout, after)
        return self.learn(u, draws)

    def store(self, rollout: Rollout, after: Position) -> None:
        """Put a rollout into the replay."""
        self.replay.put(self.replay.pack(self._transitions(rollout, after)))

    def _transitions(self, rollout: Rollout, after: Position) -> Transitions:
        def rows(x: Tensor) -> Tensor:
            return x.transpose(0, 1).flatten(1, 2)  # [P, T*N, ...]

        action = rows(self.policy.present(self.policy.executed(rollout.action))).flatten(2)  # [P, T*N, E]
        mask = next_mask = None
        if rollout.action_mask is not None and after.action_mask is not None:
            later = torch.cat([rollout.action_mask[1:], after.action_mask.unsqueeze(0)])
            # What is allowed where an episode was cut is not known: everything that exists.
            exists = torch.ones_like(later) if self.policy.padding is None else self.policy.padding.expand_as(later)
            later = torch.where(rollout.ended[..., None, None], exists, later)
            mask, next_mask = rows(rollout.action_mask).flatten(2), rows(later).flatten(2)
        return Transitions(
            rows(rollout.obs),
            action,
            rows(rollout.reward),
            rows(rollout.terminated),
            rows(rollout.final_obs),
            rows(rollout.valid),
            mask,
            next_mask,
        )

    # -- learning

    def entropy_weight(self) -> Tensor | None:
        """alpha, `[P, 1]`; None where there is no entropy term."""
        if not self.uses_entropy:
            return None
        return self.log_alpha.exp() if self.settings.auto_entropy else self.hyper("entropy_weight")

    def _mask(self, flat: Tensor | None) -> Tensor | None:
        return None if flat is None else flat.unflatten(-1, self.spec.action.event_shape) > 0.5

    def draws(self, b: int) -> Draws:
        """The next update's noise, for `b` rows."""
        (kind, shape), c, at = self.event, self.settings.critic, self.updates
        return Draws(
            update=self.chunks.take(kind, Purpose.UPDATE, at, (b, *shape)),
            extra=self.extra_noise(lambda i, k, s: self.chunks.take(k, Purpose.EXTRA, at, (b, *s), stream=i)),
            target=self.chunks.take(kind, Purpose.TARGET, at, (b, *shape)) if c.target_action == "sample" else None,
            blend=self.chunks.take("uniform", Purpose.BLEND, at, (b,)) if c.blend else None,
            other=self.chunks.take("exponential", Purpose.BLEND, at, (b, *self.spec.action.event_shape), stream=1)
            if c.blend and c.blend_target == "interpolated"
            else None,
        )

    def _next_update(self) -> tuple[Tensor, Draws]:
        """What `learn` takes, for the next update."""
        b = self.settings.replay.batch_size
        return self.chunks.take("uniform", Purpose.REPLAY, self.updates, (b,)), self.draws(b)

    def target(self, rows: Transitions, noise: Tensor | None) -> Tensor:
        """The critic's regression target, `[P, B]`: r + gamma (1 - terminated) (Q_target(s', a') + alpha H). `noise`
        `[P, B, *event]` makes a' where it is drawn."""
        c, discount, alpha = self.settings.critic, self.hyper("discount"), self.entropy_weight()
        obs = self.preprocessor.observations(rows.final_obs)
        policy = self.policy.distribution(self.policy_parameters, obs, self._mask(rows.next_mask))

        def q(action: Tensor) -> Tensor:
            return self.critic.reduced(self.critic.target, obs, self.policy.present(action).flatten(-self._event_ndim))

        if c.target_action == "expectation":
            values, log_prob = enumerated(policy, q)
            value = (values * log_prob.exp()).sum(0)
            if alpha is not None:
                value = value + alpha * policy.entropy().sum(-1)
        else:
            action = policy.mode() if noise is None else policy.sample(noise)
            value = q(policy.executed(action))
            if alpha is not None and c.target_action == "sample":
                value = value - alpha * policy.log_prob(action, noise).sum(-1)
        reward = self.preprocessor.rewards(rows.reward)
        return reward + discount * (1 - rows.terminated) * value

    @property
    def _event_ndim(self) -> int:
        return len(self.spec.action.event_shape)

    def learn_critic(self, rows: Transitions, draws: Draws) -> Metrics:
        """One step of every copy of Q towards the target (half the mean squared error)."""
        c, parameters = self.settings.critic, self.critic.parameters
        with torch.no_grad():
            y = self.target(rows, draws.target)
            obs, action, weight = self.preprocessor.observations(rows.obs), rows.action, rows.valid
            if draws.blend is not None:
                allowed = self._mask(rows.action_mask)
                mixed, worth = self.critic.between(
                    self.critic.target,
                    obs,
                    action,
                    y,
                    draws.blend,
                    self.spec.action,
                    self.policy.padding if allowed is None else allowed,
                    draws.other,
                )
                obs, action = torch.cat([obs, obs], 1), torch.cat([action, mixed], 1)
                y, weight = torch.cat([y, worth], 1), torch.cat([weight, weight], 1)
            weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
            q, grad = self.critic.regression(obs, action, y, weight)
        clip_by_member(grad, c.max_grad_norm)
        rate = self.rate("agent.critic.learning_rate")
        self.config.optimizer.step(parameters.flat, grad, self.critic_optimizer, rate)
        return {
            "losses/critic_loss": lambda: (0.5 * (q - y).square() * weight).sum(-1).mean(0),
            "critic/q_mean": lambda: (q[0] * weight).sum(-1),
        }

    def actor_rows(self, rows: Transitions, noise: Tensor, extra: Mapping[str, Tensor]) -> ActorRows:
        """The actor's view of a minibatch; `noise` `[P, B, *event]` makes the actions drawn anew, `extra` is what the
        estimator asks for further, `[P, B, ...]` each."""
        weight = rows.valid / rows.valid.sum(1, keepdim=True).clamp_min(1)
        return ActorRows(
            self.preprocessor.observations(rows.obs),
            self._mask(rows.action_mask),
            noise.unsqueeze(0),
            {name: x.unsqueeze(0) for name, x in extra.items()},
            weight.unsqueeze(0),
        )

    def estimate(self, distribution: Distribution, draw: Draw, signal: Signal) -> tuple[list[Tensor], Tensor]:
        """The cotangents at the parameters of `distribution`, and the surrogate (see `pglab.gradients.cotangents`); `draw` and
        `signal` are what `signal` gives."""
        state, alpha = self.estimator_state(), self.entropy_weight()
        return cotangents(self.config.estimator, distribution, draw, signal, state, alpha, draw.noise)

    def gradient(self, rows: ActorRows) -> Metrics:
        """Fill the policy's `.grad` `[P, n]` (for descent) with the estimate at these states: what training applies, and
        what measurements measure."""
        mask = None if rows.action_mask is None else rows.action_mask.unsqueeze(0)
        distribution = self.policy.distribution(self.policy_parameters, rows.obs.unsqueeze(0), mask)  # rows [1, P, B]
        draw, signal = self.signal(distribution.detach(), rows)
        grads, value = self.estimate(distribution, draw, signal)
        push(self.policy_parameters, distribution, grads, rows.weight)
        frozen = distribution.detach()
        if self.config.estimator.learns:
            self._used = (frozen, draw, signal, rows.weight)
        return {
            "losses/policy_loss": lambda: -(value * rows.weight).sum((0, 2)),
            "policy/entropy": lambda: (entropy(frozen, draw.noise) * rows.weight).sum((0, 2)),
        }

    def signal(self, distribution: Distribution, rows: ActorRows) -> tuple[Draw, Signal]:
        """An action drawn anew at each state, and what the critic knows of it."""
        estimator, part = self.config.estimator, self.config.baseline
        on_rows = self.critic.at(
            self.critic.parameters, rows.obs.unsqueeze(0), self._event_ndim, self.settings.critic.actor_value
        )

        def critic(action: Tensor) -> Tensor:
            return on_rows(self.policy.present(action))

        draw = Draw(distribution.sample(rows.noise), rows.noise, rows.extra)
        value = None
        obs = rows.obs.unsqueeze(0)
        with torch.no_grad():
            if "value" in estimator.needs or estimator.uses_baseline:
                value = critic(distribution.executed(draw.action))
            signal = Signal(value=value, critic=critic, obs=obs)
            if estimator.uses_baseline and value is not None:
                self._batch = Batch(
                    obs=obs,
                    value=value,
                    valid=rows.weight > 0,
                    time=torch.zeros_like(value, dtype=torch.int64),
                    distribution=distribution,
                    critic=critic,
                    action=draw.action,
                )
                signal = baselined(part, self.baseline_state, self._batch, signal)
        return draw, signal

    def learn_baseline(self) -> Metrics:
        """Let the baseline learn from the rows whose gradient was estimated last."""
        state, info = self.config.baseline.update(self.baseline_state, self._batch)
        self.baseline_state = kept_in_place(self.baseline_state, state)
        return dict(info)

    def tune_entropy(self, h: Tensor) -> None:
        """Move log alpha so that the entropy `h` `[P]` approaches its target (Haarnoja et al. 2018b, eq. 18)."""
        grad = (h - self.target_entropy).unsqueeze(1)  # [P, 1]
        rate = self.settings.entropy_learning_rate
        step = self.rate() if rate is None else torch.full_like(self.log_alpha, rate)
        if rate is not None and self.active is not None:
            step = step * self.active
        OptimizerConfig().step(self.log_alpha, grad, self.alpha_optimizer, step)

    def update(self, env: Environment, count: Count | None = None) -> tuple[Metrics, Rollout]:
        """One round: collect, then `updates_per_round` updates of critic and actor. Metrics are the last update's."""
        s = self.settings
        due = s.updates_per_round if (self.rounds + 1) * self.round_rows >= s.replay.warmup else 0
        if due == 1 and not self.looked_at():
            rollout, metrics = self.collect(env, count, self._next_update())
            self.updates += 1
        else:
            rollout, metrics = self.collect(env, count)
            for _ in range(due):
                u, draws = self._next_update()
                if self.looked_at():
                    metrics = self.learn(u, draws)
                else:
                    metrics = self.executor.call(self.learn, u, draws, key=self.places())
                self.updates += 1
        learned = self.learning(rollout.valid)
        self.preprocessor.update(rollout.obs, rollout.reward, rollout.ended, learned, self.hyper("discount"))
        return dict(metrics), rollout

    def learn(self, u: Tensor, draws: Draws) -> Metrics:
        """One update of critic and actor from the rows of the replay that uniforms `u` `[P, B]` pick. Returns metrics `[P]`."""
        rows = self.replay.sample(u, self.newest)
        metrics = self.learn_critic(rows, draws)
        states = self.actor_rows(rows, draws.update, draws.extra)
        if self.probe is not None:
            self.probe(self, states)
        metrics |= self.gradient(states)
        metrics["gradient/norm"] = self.step_policy()
        metrics |= self.learn_estimator()
        if self.settings.auto_entropy:
            h = metrics["policy/entropy"]
            with torch.no_grad():
                metrics["policy/entropy"] = h = h() if callable(h) else h
            self.tune_entropy(h)
            metrics["policy/entropy_weight"] = lambda: self.log_alpha.exp().squeeze(1)
        if self.config.estimator.uses_baseline:
            metrics |= self.learn_baseline()
        self.critic.move_target()
        return metrics
