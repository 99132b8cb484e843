"""The on-policy agent: returns of what the current policy just did, any estimator that takes their value, any baseline.

Letters: T time, P population, N environments, O observation, D factors; B rows of a minibatch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from pglab.agents.base import Agent, Metrics
from pglab.baselines import Batch, Scores, baselined
from pglab.baselines.base import BaselineState
from pglab.config import Config, OnPolicyConfig
from pglab.critics import QCritic
from pglab.distributions import Distribution
from pglab.environments.contract import Environment, EnvironmentSpec
from pglab.errors import PglabError
from pglab.estimators import Critic, Draw, Signal
from pglab.executors import Count, Then
from pglab.gradients import cotangents, entropy, push, row_gradients
from pglab.networks import MLP, Parameters, Recorded, Recorder, by_member, by_row
from pglab.noise import Purpose
from pglab.optimizers import clip_by_member
from pglab.population import Population
from pglab.returns import discount_powers, gae, monte_carlo, n_step, v_trace
from pglab.rollout import Position, Rollout, block_noise, whole_episodes
from pglab.trees import kept_in_place


@dataclass(frozen=True)
class Prepared:
    """A rollout with everything an update needs, all of it computed before the first step."""

    obs: Tensor  # [T, P, N, O] as the networks see them
    action_mask: Tensor | None
    draw: Draw  # rows [T, P, N]
    noise: Tensor  # [T, P, N, *event]: what made the actions, for the entropy where it has no closed form
    signal: Signal
    weight: Tensor  # [T, P, N]: mask x gamma^t / count
    value_weight: Tensor  # [T, P, N]: mask / number of valid rows
    batch: Batch
    target: Tensor  # [T, P, N]: what V is moved towards
    v: tuple[Tensor, int] | None = None  # V at `obs`, [T, P, N], with its graph, and the version of its parameters
    recorded: Recorded | None = None  # the policy's forward pass over `obs`


@dataclass(frozen=True)
class Seen:
    """A rollout and what is known of it whatever estimator and baseline are used."""

    rollout: Rollout
    obs: Tensor  # [T, P, N, O] as the networks see them
    v: Tensor | None  # [T, P, N] with its graph where the update is one step
    value: Tensor  # [T, P, N]: of the drawn action
    target: Tensor  # [T, P, N]: what V is moved towards
    recorded: Recorded | None  # the policy's forward pass over `obs`


class OnPolicyAgent(Agent):
    """Collect, prepare, update; see `pglab.agents.base.Agent` for the calls the training loop makes."""

    def __init__(self, config: Config, spec: EnvironmentSpec, population: Population, num_envs: int) -> None:
        super().__init__(config, spec, population, num_envs, default_continuous="gaussian")
        assert isinstance(config.agent, OnPolicyConfig)
        self.settings = config.agent
        s = self.settings
        self.bootstraps = s.collect == "steps" or s.returns.name != "monte_carlo"
        self.value_parameters: Parameters | None = None
        if self.bootstraps or "v" in config.baseline.needs:
            self.value_network = MLP((spec.observation_size, *s.value.hidden, 1), s.value.activation, 1.0, stream=1)
            self.value_parameters = self.value_network.initial(population.noise)
            self.value_optimizer = config.optimizer.initial(self.value_parameters.flat)
        self.critic: QCritic | None = None
        if any(need.startswith("critic") for need in config.estimator.needs | config.baseline.needs):
            self.critic = QCritic(s.critic, spec.observation_size, math.prod(spec.action.event_shape), self.noise)
            self.critic_optimizer = config.optimizer.initial(self.critic.parameters.flat)
        self.position = None
        self._recorder: Recorder | None = None
        self._recorded: Recorded | None = None  # of the rollout just collected

    # -- state

    def networks(self) -> dict[str, Parameters]:
        found = {"policy": self.policy_parameters}
        if self.value_parameters is not None:
            found["value"] = self.value_parameters
        if self.critic is not None:
            found["critic"] = self.critic.parameters
        return found

    def take_networks(self, networks: Mapping[str, Parameters]) -> None:
        self.policy_parameters = networks["policy"]
        self.value_parameters = networks.get("value")
        if self.critic is not None:
            self.critic = copy.copy(self.critic)
            self.critic.parameters = networks["critic"]

    def state(self) -> dict[str, Any]:
        tree = super().state()
        if self.value_parameters is not None:
            tree["value_optimizer"] = self.value_optimizer
        if self.critic is not None:
            tree["critic_optimizer"] = self.critic_optimizer
        if self.position is not None:
            tree["position"] = {"obs": self.position.obs, "time": self.position.time, "mask": self.position.action_mask}
        return tree

    def load_state(self, tree: Mapping[str, Any]) -> None:
        super().load_state(tree)
        if self.value_parameters is not None:
            self.value_optimizer = self.optimizer_state(tree["value_optimizer"])
        if self.critic is not None:
            self.critic_optimizer = self.optimizer_state(tree["critic_optimizer"])
        at = tree.get("position")
        self.position = None if at is None else Position(at["obs"], at["time"], at["mask"])

    def replicated(self, replicates: range, *prefix: int) -> Self:
        twin = super().replicated(replicates, *prefix)
        if self.value_parameters is not None:
            twin.value_parameters = self.value_parameters.repeated(len(replicates))
        if self.critic is not None:
            twin.critic = copy.copy(self.critic)
            twin.critic.parameters = self.critic.parameters.repeated(len(replicates))
        twin.position = twin._recorder = None
        return twin

    def changing(self) -> list[Any]:
        found = super().changing()
        if self.value_parameters is not None:
            found.append(self.value_optimizer)
        if self.critic is not None:
            found.append(self.critic_optimizer)
        return found

    # -- collecting

    @property
    def steps_per_update(self) -> int | None:
        return self.settings.steps * self.num_envs if self.settings.collect == "steps" else None

    @property
    def rows_per_update(self) -> int:
        s = self.settings
        return max(1, self.num_envs * (s.steps if s.collect == "steps" else s.block) // s.minibatches)

    def collect(self, env: Environment, counter: tuple[int, ...], count: Count | None = None) -> Rollout:
        """A training-size rollout `[T, P, N]` of the current policy, which `count` takes note of."""
        s = self.settings
        if s.collect == "episodes":

            def play(position: Position, actions: Tensor, resets: Tensor | None) -> tuple[Rollout, Position]:
                rollout, after, _ = self.executor.block(self, env, position, actions, resets)
                return self.executor.kept(rollout), after

            rollout = whole_episodes(env, play, self.noise, (*counter, 0), s.block, self.event, s.episodes)
            if count is not None:
                count(rollout)
            return rollout
        rollout, _ = self._steps(env, counter, count)
        if self._recorder is not None:
            self._recorded = self._recorder.take()
        return rollout

    def _steps(
        self,
        env: Environment,
        counter: tuple[int, ...],
        count: Count | None,
        then: Then | None = None,
        inputs: tuple[Any, ...] = (),
    ) -> tuple[Rollout, Any]:
        """A block of steps, and what `then` makes of it (see `Executor.block`)."""
        steps = self.settings.steps
        if self.position is None:
            self.position = Position.start(env.reset(self.noise, (*counter, 0)))
        drawn = block_noise(env, self.noise, counter, steps, self.event)
        if self._one_step:
            if self._recorder is None:
                members = len(self.population)
                self._recorder = Recorder(self.policy.network, members, steps, self.num_envs, self.noise.device)
            self._recorder.begin(self.policy.network, self.policy_parameters)
        rollout, self.position, found = self.executor.block(
            self, env, self.position, *drawn, self._recorder, count, then, inputs
        )
        return rollout, found

    @property
    def _one_step(self) -> bool:
        """Whether an update is one step on the whole batch: then what was computed before it still holds in it."""
        return self.settings.epochs == self.settings.minibatches == 1

    @property
    def _varies(self) -> bool:
        """Whether updates differ in shape, or draw noise while they learn: then they are not repeated."""
        return self.settings.collect == "episodes" or (self.critic is not None and self.settings.critic.blend > 0)

    # -- learning

    def v(self, obs: Tensor) -> Tensor:
        """V at normalised observations `[T, P, N, O]`, `[T, P, N]`."""
        assert self.value_parameters is not None
        return by_row(self.value_network(self.value_parameters.views, by_member(obs)), obs.shape[:-1]).squeeze(-1)

    def returns(self, rollout: Rollout, v: Tensor | None, ratio: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The value of every drawn action and V's target there, `[T, P, N]` each. `v` is V at the observations, `ratio` the
        policy's probability of what was drawn over the one it was drawn with (None: 1); only V-trace reads it."""
        s, discount = self.settings, self.hyper("discount")
        reward = self.preprocessor.rewards(rollout.reward)
        if not self.bootstraps:
            value = monte_carlo(reward, rollout.ended, discount)
        else:
            assert v is not None
            v_tp1 = self.v_next(rollout, v)
            if s.returns.name == "v_trace":
                ratio = torch.ones_like(reward) if ratio is None else ratio
                target, value = v_trace(
                    reward,
                    v,
                    v_tp1,
                    ratio,
                    rollout.terminated,
                    rollout.ended,
                    discount,
                    self.hyper("agent.returns.lam"),
                    s.returns.rho_clip,
                    s.returns.c_clip,
                )
                return torch.where(rollout.valid, value, 0.0), torch.where(rollout.valid, target, 0.0)
            if s.returns.name == "n_step":
                value = n_step(reward, v_tp1, rollout.terminated, rollout.ended, discount, s.returns.n)
            else:
                lam = self.hyper("agent.returns.lam") if s.returns.name == "gae" else 1.0
                value = v + gae(reward, v, v_tp1, rollout.terminated, rollout.ended, discount, lam)
        value = torch.where(rollout.valid, value, 0.0)
        return value, value

    def v_next(self, rollout: Rollout, v: Tensor) -> Tensor:
        """V of the observation that each transition led to, before any reset, `[T, P, N]`, from `v`, V at the rollout's
        observations: the next step's, but where the rollout stops or an episode was cut.

        Where a transition terminated, or is no transition, what is returned is arbitrary (and finite).
        """
        limit = self.spec.max_episode_steps
        if self.spec.cut_by_limit_only and limit is not None and len(rollout) <= limit:
            # At most one cut in a column: V is asked once for it and once for the end.
            cut = rollout.ended & ~rollout.terminated
            when = cut.to(torch.uint8).argmax(0)  # [P, N]: 0 also where there is none
            index = when[None, :, :, None].expand(1, *when.shape, rollout.final_obs.shape[-1])
            asked = torch.cat([rollout.final_obs.gather(0, index), rollout.final_obs[-1:]])  # [2, P, N, O]
            at_cut, at_end = self.v(self.preprocessor.observations(asked))
            return torch.where(cut, at_cut, torch.cat([v[1:], at_end.unsqueeze(0)]))
        return self.v(self.preprocessor.observations(rollout.final_obs))

    def look(self, rollout: Rollout) -> Seen:
        """What is known of a rollout whatever is made of it, from the normaliser and V as they are now."""
        with torch.no_grad():
            obs = self.preprocessor.observations(rollout.obs)
            v_graph = None
            if self.value_parameters is not None:
                with torch.set_grad_enabled(self._one_step):
                    v_graph = self.v(obs)
            v = None if v_graph is None else v_graph.detach()
            value, target = self.returns(rollout, v)
        recorded, self._recorded = self._recorded, None
        return Seen(rollout, obs, v_graph, value, target, recorded)

    def prepare(
        self, rollout: Rollout, seen: Seen | None = None, extra: Mapping[str, Tensor] | None = None
    ) -> Prepared:
        """Values, baselines and weights of a rollout, from the normaliser, V and baseline as they are now; `seen` where it
        was looked at already, `extra` where the estimator's further noise was drawn already."""
        s, part, valid = self.settings, self.config.baseline, rollout.valid
        several = not self._one_step
        seen = self.look(rollout) if seen is None else seen
        obs, value, v_graph = seen.obs, seen.value, seen.v
        with torch.no_grad():
            distribution = None
            if several or {"distribution", "critic", "critic_gradient"} & part.needs:
                distribution = self.policy.distribution(self.policy_parameters, obs, rollout.action_mask).detach()
            whole = s.collect == "episodes"
            batch = Batch(
                obs,
                value,
                valid,
                rollout.time,
                None if v_graph is None else v_graph.detach(),
                distribution,
                None if self.critic is None else self.q(obs),
                rollout.action,
                whole_episodes=whole,
            )
            signal = Signal(value=value)
            if self.config.estimator.uses_baseline:
                signal = baselined(part, self.baseline_state, batch, signal)
            baseline = signal.baseline
            if s.normalize_advantages:
                value = value if signal.value is None else signal.value
                if baseline is not None and baseline.ndim != value.ndim:
                    raise PglabError(
                        f"agent.normalize_advantages whitens one advantage per row, but baseline {part.name!r} gives one "
                        "per action factor: set it to false."
                    )
                signal = Signal(value=whitened(value if baseline is None else value - baseline, valid))
            signal = replace(signal, obs=obs)
            if several and distribution is not None:
                signal = replace(signal, behaviour_log_prob=distribution.log_prob(rollout.action).sum(-1))
            weight = value_weight = valid / valid.sum((0, 2)).clamp_min(1).unsqueeze(1)
            if s.reduction == "mean_over_episodes":
                weight = valid / (self.num_envs * (s.episodes if whole else 1))
            if s.discount_states:
                weight = weight * discount_powers(rollout.time, self.hyper("discount"))
        draw = Draw(rollout.action, rollout.noise, dict(self.further(len(rollout)) if extra is None else extra))
        parameters = self.value_parameters
        graph = None if several or v_graph is None or parameters is None else (v_graph, parameters.version)
        return Prepared(
            obs, rollout.action_mask, draw, rollout.noise, signal, weight, value_weight, batch, seen.target, graph,
            seen.recorded,
        )  # fmt: skip

    def further(self, steps: int) -> dict[str, Tensor]:
        """The further noise that the estimator asks for, for a rollout of so many steps."""
        return self.extra_noise(
            lambda i, kind, shape: self.noise.of_kind(
                kind, Purpose.EXTRA, (self.updates, i), (steps, self.num_envs, *shape), axis=1
            )
        )

    def estimate(self, prepared: Prepared, distribution: Distribution) -> tuple[list[Tensor], Tensor]:
        """The cotangents at the parameters of `distribution`, the policy at these rows, and the surrogate (see
        `pglab.gradients.cotangents`)."""
        weight = self.hyper("entropy_weight") if self.uses_entropy else None
        signal, state = self._with_critic(prepared), self.estimator_state()
        return cotangents(self.config.estimator, distribution, prepared.draw, signal, state, weight, prepared.noise)

    def estimate_of_one(self, prepared: Prepared, distribution: Distribution) -> list[Tensor]:
        """The cotangents for the value 1 in place of the values, without the entropy: the rows' scores."""
        signal = self._with_critic(prepared)
        assert signal.value is not None
        ones = replace(signal, value=torch.ones_like(signal.value))
        return cotangents(self.config.estimator, distribution, prepared.draw, ones, self.estimator_state())[0]

    def _with_critic(self, prepared: Prepared) -> Signal:
        if self.critic is None:
            return prepared.signal
        return replace(prepared.signal, critic=self.q(prepared.obs))

    def gradient(self, prepared: Prepared) -> Metrics:
        """Fill the policy's `.grad` `[P, n]` (for descent) with the estimate from these rows: what training applies, and
        what measurements measure."""
        distribution = self.policy.distribution(
            self.policy_parameters, prepared.obs, prepared.action_mask, prepared.recorded
        )
        grads, value = self.estimate(prepared, distribution)
        push(self.policy_parameters, distribution, grads, prepared.weight)
        if self.config.baseline.per_parameter:
            self._subtract(prepared)
        frozen = distribution.detach()
        if self.config.estimator.learns:
            self._used = (frozen, prepared.draw, self._with_critic(prepared), prepared.value_weight)
        metrics: Metrics = {
            "losses/policy_loss": lambda: -(value * prepared.weight).sum((0, 2)),
            "policy/entropy": lambda: (entropy(frozen, prepared.noise) * prepared.value_weight).sum((0, 2)),
        }
        behaviour = prepared.signal.behaviour_log_prob
        if behaviour is not None:

            def importance_weights() -> Tensor:
                """`[P, T*N]`, NaN where a row is no step."""
                ratio = torch.exp(frozen.log_prob(prepared.draw.action).sum(-1) - behaviour)
                return torch.where(prepared.batch.valid, ratio, torch.nan).transpose(0, 1).flatten(1)

            metrics["policy/importance_weights"] = importance_weights
        return metrics

    def _subtract(self, prepared: Prepared) -> None:
        """Take b x grad S(1) from `.grad`, for a baseline that is a coefficient b per parameter."""
        b = self.config.baseline.coefficient(self.baseline_state)  # [P, n]
        parameters = self.policy_parameters
        if not b.shape[1] or parameters.grad is None or prepared.signal.value is None:
            return  # before the first batch
        values = parameters.grad.clone()
        distribution = self.policy.distribution(parameters, prepared.obs, prepared.action_mask, prepared.recorded)
        push(parameters, distribution, self.estimate_of_one(prepared, distribution), prepared.weight)
        parameters.grad.copy_(torch.addcmul(values, b, parameters.grad, value=-1))

    def scores(self, prepared: Prepared) -> Scores:
        """The columns' gradients at the policy's parameters, which must still be those that acted: N times each column's
        sum of weight x cotangent, so that the gradient is the columns' mean; before any baseline, without the entropy."""
        policy, parameters, mask = self.policy, self.policy_parameters, prepared.action_mask
        with torch.no_grad():
            distribution = policy.distribution(parameters, prepared.obs, mask, prepared.recorded).detach()
        critic = None if self.critic is None else self.q(prepared.obs)
        value = prepared.batch.value
        signal = Signal(value=torch.ones_like(value), critic=critic, obs=prepared.obs)
        grads, _ = cotangents(self.config.estimator, distribution, prepared.draw, signal, self.estimator_state())
        weight = prepared.weight * self.num_envs
        # An estimate that is linear in the value is, row by row, the value times that of the value 1.
        ones = row_gradients(policy, parameters, prepared.obs, grads, weight, mask, prepared.recorded)

        def along(baseline: Tensor) -> tuple[Tensor, Tensor]:
            return ones.along(ones.column_sums(value - baseline)), ones.squared_norms()

        return Scores(ones.column_sums(value), ones.column_sums(), along)

    def q(self, obs: Tensor) -> Critic:
        """Q at normalised observations `[T, P, N, O]`, of actions as a distribution gives them."""
        assert self.critic is not None
        event = self.spec.action.event_shape
        on_rows = self.critic.at(self.critic.parameters, obs, len(event), self.settings.critic.actor_value)
        return lambda action: on_rows(self.policy.present(action))

    def learn_critic(self, prepared: Prepared) -> Metrics:
        """Steps of every copy of Q towards the values of the actions that were drawn (half the mean squared error)."""
        assert self.critic is not None
        s, c, parameters = self.settings, self.settings.critic, self.critic.parameters
        with torch.no_grad():
            executed = self.policy.present(self.policy.executed(prepared.draw.action))
            obs, action = by_member(prepared.obs), by_member(executed.flatten(3))  # [P, T*N, ...]
            y, weight = (by_member(x.unsqueeze(-1)).squeeze(-1) for x in (prepared.batch.value, prepared.value_weight))
            if c.blend:
                rows, event = (prepared.obs.shape[0], prepared.obs.shape[2]), self.spec.action.event_shape
                w = by_member(self.noise.uniform(Purpose.BLEND, (self.updates,), rows, axis=1).unsqueeze(-1)).squeeze(
                    -1
                )
                mask = self.policy.padding
                if prepared.action_mask is not None:
                    mask = by_member(prepared.action_mask.flatten(3)).unflatten(-1, event)

                noise = None
                if c.blend_target == "interpolated":
                    drawn = self.noise.exponential(Purpose.BLEND, (self.updates, 1), (*rows, *event), axis=1)
                    noise = by_member(drawn.flatten(3)).unflatten(-1, event)
                mixed, worth = self.critic.between(parameters, obs, action, y, w, self.spec.action, mask, noise)
                obs, action = torch.cat([obs, obs], 1), torch.cat([action, mixed], 1)
                y, weight = torch.cat([y, worth], 1), torch.cat([weight, weight], 1) / 2
        rate = self.rate("agent.critic.learning_rate")
        for _ in range(s.critic_updates):
            with torch.no_grad():
                q, grad = self.critic.regression(obs, action, y, weight)
            clip_by_member(grad, c.max_grad_norm)
            self.config.optimizer.step(parameters.flat, grad, self.critic_optimizer, rate)
        return {
            "losses/critic_loss": lambda: (0.5 * (q - y).square() * weight).sum(-1).mean(0),
            "critic/q_mean": lambda: (q[0] * weight).sum(-1),
        }

    def learn_value(self, prepared: Prepared) -> Metrics:
        """One step of V towards the returns (half the mean squared error)."""
        assert self.value_parameters is not None
        parameters = self.value_parameters
        target, w = prepared.target, prepared.value_weight
        kept = prepared.v
        v = kept[0] if kept is not None and kept[1] == parameters.version else self.v(prepared.obs)
        error = v.detach() - target
        grad = parameters.backward([v], [error * w])
        clip_by_member(grad, self.settings.value.max_grad_norm)
        rate = self.rate("agent.value.learning_rate")
        self.config.optimizer.step(parameters.flat, grad, self.value_optimizer, rate)

        def loss() -> Tensor:
            return (0.5 * error.square() * w).sum((0, 2))

        def explained() -> Tensor:
            mean = (target * w).sum((0, 2)).unsqueeze(1)
            variance = ((target - mean).square() * w).sum((0, 2)).clamp_min(1e-8)
            return 1 - 2 * loss() / variance

        return {"losses/value_loss": loss, "losses/explained_variance": explained}

    def update(self, env: Environment, count: Count | None = None) -> tuple[Metrics, Rollout]:
        """Collect one batch and learn from it. Returns metrics `[P]` and the rollout."""
        if self._one_step and not self._varies and not self.looked_at():
            extra = self.further(self.settings.steps)
            rollout, metrics = self._steps(env, (self.updates,), count, self.learn_after, (extra,))
        else:
            rollout = self.collect(env, (self.updates,), count)
            metrics = self.learn(rollout, self.further(len(rollout)))
        self.updates += 1
        return dict(metrics), rollout

    def learn_after(self, rollout: Rollout, after: Position, extra: Mapping[str, Tensor]) -> Metrics:
        """`learn` as what follows from a block."""
        assert self._recorder is not None
        self._recorded = self._recorder.take()
        return self.learn(rollout, extra)

    def learn(self, rollout: Rollout, extra: Mapping[str, Tensor]) -> Metrics:
        """Learn from a rollout with the estimator's further noise. Returns metrics `[P]`."""
        s, baseline = self.settings, self.config.baseline
        prepared = self.prepare(rollout, extra=extra)
        if self.probe is not None:
            self.probe(self, prepared)
        learned, found = self.learning(rollout.valid), None
        if "scores" in baseline.needs:
            # Scores are those of the policy that acted, before its parameters move. What is found now is used from the
            # next batch on.
            found = self.baseline_after(prepared, learned)
        metrics: Metrics = {}
        for epoch in range(s.epochs):
            if epoch and s.returns.name == "v_trace":
                prepared = self.retraced(prepared, rollout)
            for part in self.minibatches(prepared, epoch):
                if self._one_step or self._varies:
                    metrics = self.step(part)
                else:
                    # The noise that made the actions is there in the very first step only.
                    key = (*self.places(), part.draw.noise is None)
                    metrics = self.executor.call(self.step, part, key=key)
        metrics = dict(metrics)
        if found is None:
            found = self.baseline_after(prepared, learned)
        self.baseline_state = kept_in_place(self.baseline_state, found[0])
        metrics |= found[1]
        self.preprocessor.update(rollout.obs, rollout.reward, rollout.ended, learned, self.hyper("discount"))
        return metrics

    def step(self, part: Prepared) -> Metrics:
        """One step of every network on these rows."""
        metrics = self.gradient(part)
        metrics["gradient/norm"] = self.step_policy()
        metrics |= self.learn_estimator()
        if self.critic is not None:
            metrics |= self.learn_critic(part)
        if self.value_parameters is not None:
            metrics |= self.learn_value(part)
        return metrics

    def baseline_after(self, prepared: Prepared, learned: Tensor) -> tuple[BaselineState, Mapping[str, Tensor]]:
        """The baseline's state after this batch, of whose rows it learns from `learned` `[T, P, N]`, and what to log."""
        scores = partial(self.scores, prepared) if "scores" in self.config.baseline.needs else None
        return self.config.baseline.update(self.baseline_state, replace(prepared.batch, valid=learned, scores=scores))

    def retraced(self, prepared: Prepared, rollout: Rollout) -> Prepared:
        """Values, targets and baselines of a rollout under the policy and V as they are now (V-trace)."""
        part, signal = self.config.baseline, prepared.signal
        assert signal.behaviour_log_prob is not None
        with torch.no_grad():
            v = self.v(prepared.obs)
            now = self.policy.distribution(self.policy_parameters, prepared.obs, prepared.action_mask)
            ratio = torch.exp(now.log_prob(rollout.action).sum(-1) - signal.behaviour_log_prob)
            ratio = torch.where(rollout.valid, ratio, 1.0)
            value, target = self.returns(rollout, v, ratio)
            batch = replace(prepared.batch, value=value, v=v)
            signal = replace(signal, value=value, baseline=None)
            if self.config.estimator.uses_baseline:
                signal = baselined(part, self.baseline_state, batch, signal)
        return replace(prepared, signal=signal, batch=batch, target=target)

    def minibatches(self, prepared: Prepared, epoch: int) -> list[Prepared]:
        """The batch itself, or its rows shuffled into parts with rows `[1, P, B]`. Only the very first step may use the
        noise that made the actions: afterwards the parameters have moved.

        A member's valid rows are spread evenly over the parts, whatever padding the others' longer episodes bring.
        """
        m = self.settings.minibatches
        if m == 1:
            return [
                prepared
                if epoch == 0
                else replace(prepared, draw=Draw(prepared.draw.action, None, prepared.draw.extra))
            ]
        t, _, n = prepared.weight.shape
        keys = self.noise.uniform(Purpose.MINIBATCH, (self.updates, epoch), (t, n), axis=1)  # [T, P, N]
        keys = torch.where(prepared.batch.valid, keys, 2.0).transpose(0, 1).flatten(1)  # [P, T*N], not valid last
        order = keys.argsort(dim=1, stable=True)
        total = prepared.batch.valid.sum((0, 2))[:, None]  # [P, 1]

        def cut(x: Tensor, index: Tensor) -> Tensor:
            flat = x.transpose(0, 1).flatten(1, 2)  # [P, T*N, ...]
            wide = index.reshape(*index.shape, *([1] * (flat.ndim - 2))).expand(-1, -1, *flat.shape[2:])
            return flat.gather(1, wide).unsqueeze(0)  # [1, P, B, ...]

        def part(index: Tensor) -> Prepared:
            def maybe(x: Tensor | None) -> Tensor | None:
                return None if x is None else cut(x, index)

            signal, batch = prepared.signal, prepared.batch
            obs, valid = cut(prepared.obs, index), cut(batch.valid, index)
            # Weights hold one over the whole batch's count; a part of it weighs as much as the whole.
            share = total / valid.sum((0, 2))[:, None].clamp_min(1)  # [P, 1]
            return Prepared(
                obs,
                maybe(prepared.action_mask),
                Draw(
                    cut(prepared.draw.action, index), None, {k: cut(x, index) for k, x in prepared.draw.extra.items()}
                ),
                cut(prepared.noise, index),
                Signal(
                    value=maybe(signal.value),
                    baseline=maybe(signal.baseline),
                    behaviour_log_prob=maybe(signal.behaviour_log_prob),
                    obs=maybe(signal.obs),
                ),
                cut(prepared.weight, index) * share,
                cut(prepared.value_weight, index) * share,
                replace(
                    batch,
                    obs=obs,
                    value=cut(batch.value, index),
                    valid=valid,
                    distribution=None,
                    critic=None,
                    action=None,
                ),
                cut(prepared.target, index),
            )

        return [part(order[:, i::m]) for i in range(min(m, t * n))]


def whitened(advantage: Tensor, valid: Tensor) -> Tensor:
    """(A - mean) / std over each member's valid rows, `[T, P, N]`."""
    mean, scale = whitening(advantage, valid)
    return torch.where(valid, (advantage - mean) * scale, 0.0)


def whitening(advantage: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each member's valid rows and one over their standard deviation, `[P, 1]` each."""
    count = valid.sum((0, 2)).clamp_min(2).unsqueeze(1)  # [P, 1]
    mean = (advantage * valid).sum((0, 2)).unsqueeze(1) / count
    variance = ((advantage - mean).square() * valid).sum((0, 2)).unsqueeze(1) / (count - 1)
    return mean, torch.rsqrt(variance + 1e-8)
