"""What both agents share: the policy and its optimizer, the estimator's state, the tree of everything that is trained."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from pglab.config import Config
from pglab.distributions import Distribution
from pglab.environments.contract import Environment, EnvironmentSpec, Resumed
from pglab.errors import PglabError
from pglab.estimators import Draw, Signal
from pglab.executors import Count, Eager, Executor
from pglab.networks import Parameters
from pglab.optimizers import clip_by_member, optimizer_state
from pglab.policy import CLASSES, Policy
from pglab.population import Population
from pglab.preprocessing import Preprocessor
from pglab.programs import leaves, mapped
from pglab.rollout import Position, Rollout
from pglab.trees import kept_in_place, places, repeat_members, where_members

Metrics = dict[str, Tensor | Callable[[], Tensor]]
"""What an update reports: tag -> `[P]`, or how to compute it, which is only done for updates that are logged."""


class Agent(ABC):
    """A population of agents. The training loop calls `update`; measurements call `gradient` at frozen parameters."""

    def __init__(
        self, config: Config, spec: EnvironmentSpec, population: Population, num_envs: int, default_continuous: str
    ) -> None:
        self.config, self.spec, self.population, self.noise = config, spec, population, population.noise
        self.num_envs = num_envs
        self.executor: Executor = Eager()
        self.policy = Policy(config.policy, spec.observation_size, spec.action, default_continuous)
        self.policy_parameters = self.policy.initial(self.noise)
        self.policy_optimizer = config.optimizer.initial(self.policy_parameters.flat)
        self.baseline_state = config.baseline.initial(len(population), self.noise.device)
        self.preprocessor = Preprocessor(
            config.preprocessing, len(population), num_envs, spec.observation_size, self.noise.device
        )
        event = self.event[1]
        self.estimator_learned = config.estimator.initial(self.noise, event, spec.observation_size)
        self._used: tuple[Distribution, Draw, Signal, Tensor] | None = None  # what the last gradient was estimated from
        self.updates = 0
        self.probe: Callable[[Agent, Any], None] | None = None
        """Shown the agent and what its gradient is about to be estimated from, before the step; changes neither."""
        self.progress = [0.0] * len(population)
        self.active: Tensor | None = None  # [P, 1], 0. for members that have had all their steps; None: all train on
        self.uses_entropy = any(s.start or s.end for m in population.members for s in [m.schedules["entropy_weight"]])

    @property
    def event(self) -> tuple[str, tuple[int, ...]]:
        """Kind and shape of one action's noise."""
        family = self.policy.family
        d, k = self.policy.action.factors, self.policy.action.categories
        return CLASSES[family].noise_kind, ((d, k) if family == "categorical" else (d,))

    def begin_update(self, progress: list[float], active: Tensor | None) -> None:
        """What the next update is to know: how far each member is, and which members (`[P, 1]`, None: all) still train."""
        self.progress = progress
        self.population.move_on(progress)
        self.active = active if active is None or self.active is None else self.active.copy_(active)

    def looked_at(self) -> bool:
        """Whether the probe looks at the next update."""
        due = getattr(self.probe, "due", None)
        return self.probe is not None and (due is None or due(self))

    def changing(self) -> list[Any]:
        """The trees of tensors that an update changes, in place where their shapes stay what they were."""
        networks = [p.flat for p in self.networks().values()]
        return [networks, self.policy_optimizer, self.baseline_state, self.estimator_learned, self.preprocessor.state]

    def places(self) -> tuple[object, ...]:
        """Where what an update changes lies, and the numbers among it: as long as they are the same, the update may be
        repeated instead of called."""
        return (None if self.active is None else id(self.active), *places(self.changing()))

    def acting_places(self) -> tuple[int, ...]:
        """Where what acting reads lies."""
        return (id(self.policy_parameters), *map(id, leaves(self.preprocessor.state)))

    def act(self, obs: Tensor, action_mask: Tensor | None) -> Distribution:
        """The policy at raw observations `[P, N, O]`."""
        return self.policy.distribution(self.policy_parameters, self.preprocessor.observations(obs), action_mask)

    def hyper(self, path: str) -> Tensor:
        """A swept or scheduled field's current value, `[P, 1]`."""
        return self.population.value(path, self.progress)

    def rate(self, path: str = "learning_rate") -> Tensor:
        """A learning rate, `[P, 1]`: the policy's where the path is not set; 0 for members that are done."""
        rate = self.hyper(path if path in self.population else "learning_rate")
        return rate if self.active is None else rate * self.active

    def estimator_state(self) -> dict[str, Any]:
        """The estimator's scheduled options at this moment, `[P, 1]` each, and what it has learned."""
        options = {name: self.hyper(f"estimator.{name}") for name in self.config.estimator.scheduled}
        return options | self.estimator_learned

    def extra_noise(self, draw: Callable[[int, str, tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
        """The further noise that the estimator asks for; `draw(i, kind, shape)` gives the i-th, with rows in front."""
        wanted = self.config.estimator.extra_noise(*self.event)
        return {name: draw(i, kind, shape) for i, (name, (kind, shape)) in enumerate(sorted(wanted.items()))}

    def learn_estimator(self) -> Metrics:
        """Let the estimator learn from the rows whose gradient was estimated last."""
        if not self.config.estimator.learns:
            return {}
        assert self._used is not None
        state = self.estimator_state()
        learned, info = self.config.estimator.update(state, *self._used)
        self._used = None
        if self.active is not None:
            learned = where_members(self.active.squeeze(1) > 0, learned, self.estimator_learned)
        self.estimator_learned = kept_in_place(self.estimator_learned, learned)
        return dict(info)

    def step_policy(self) -> Tensor:
        """Clip, step; returns the gradient norms before clipping, `[P]`."""
        parameters = self.policy_parameters
        assert parameters.grad is not None
        norm = clip_by_member(parameters.grad, self.config.max_grad_norm)
        self.config.optimizer.step(parameters.flat, parameters.grad, self.policy_optimizer, self.rate())
        return norm

    @abstractmethod
    def networks(self) -> dict[str, Parameters]:
        """Every network by name; "policy" among them."""

    @property
    @abstractmethod
    def steps_per_update(self) -> int | None:
        """Environment steps per member of one update; None where it varies, because the update plays whole episodes."""

    @property
    @abstractmethod
    def rows_per_update(self) -> int:
        """Rows per member that one step of the networks is computed from (for whole episodes: of one block)."""

    @abstractmethod
    def update(self, env: Environment, count: Count | None = None) -> tuple[Metrics, Rollout]:
        """Collect one batch, have it counted (`count` is called with every rollout, and keeps what it finds where it is read
        from), and learn from it. Returns metrics `[P]` and what was collected."""

    position: Position | None
    """Where the environments stand between two updates; None before the first."""

    def begin_again(self, resumed: Resumed) -> None:
        """Start from the environments' own observations where episodes could not be gone on with."""
        if self.position is not None:
            at = self.position
            obs = torch.where(resumed.lost.unsqueeze(-1), resumed.obs, at.obs)
            self.position = Position(obs, at.time * ~resumed.lost, resumed.action_mask)

    def replicated(self, replicates: range, *prefix: int) -> Self:
        """This agent, frozen, with each member once for every number in `replicates` and noise of its own for each: what
        a measurement collects with and differentiates. Shares nothing that `gradient` changes."""
        r = len(replicates)
        twin = copy.copy(self)
        twin.population = self.population.replicated(replicates, *prefix)
        twin.noise = twin.population.noise
        twin.policy_parameters = self.policy_parameters.repeated(r)
        twin.baseline_state = repeat_members(self.baseline_state, r)
        twin.estimator_learned = repeat_members(self.estimator_learned, r)
        twin.preprocessor = copy.copy(self.preprocessor)
        twin.preprocessor.state = repeat_members(self.preprocessor.state, r)
        twin.progress = [x for x in self.progress for _ in replicates]
        twin.executor = Eager()  # used a few times only
        twin.updates = 0  # counts noise; the replicates' own tells them apart
        return twin

    def at_progress(self, progress: list[float]) -> Self:
        """This agent as it is at these fractions of training (for its schedules)."""
        twin = copy.copy(self)
        twin.progress = progress
        twin.population = Population(
            self.population.members, self.population.noise
        )  # whose values move apart from ours
        return twin

    def frozen_state(self) -> dict[str, Any]:
        """What `frozen` needs: networks, baseline and normaliser, tensors with the member axis first."""
        return {
            "networks": {name: p.flat for name, p in self.networks().items()},
            "baseline": self.baseline_state,
            "estimator": self.estimator_learned,
            "preprocessor": self.preprocessor.state,
        }

    def frozen(self, tree: Mapping[str, Any]) -> Self:
        """An agent that is what this one was when `tree` was taken; to be evaluated or measured, not trained."""
        twin = copy.copy(self)
        twin.take_networks(
            {
                name: Parameters(p.shapes, tree["networks"][name], p.copies, p.trainable)
                for name, p in self.networks().items()
            }
        )
        twin.baseline_state = tree["baseline"]
        twin.estimator_learned = tree["estimator"]
        twin.preprocessor = copy.copy(self.preprocessor)
        twin.preprocessor.state = tree["preprocessor"]
        return twin

    @abstractmethod
    def take_networks(self, networks: Mapping[str, Parameters]) -> None:
        """Use these in place of `networks()`."""

    def learning(self, valid: Tensor) -> Tensor:
        """Rows `[T, P, N]` that normalisers and baselines learn from: not those of members that are done."""
        return valid if self.active is None else valid & (self.active > 0)

    def state(self) -> dict[str, Any]:
        """Everything that training changes, as a tree of tensors and numbers."""
        return {
            "networks": {name: p.flat for name, p in self.networks().items()},
            "policy_optimizer": self.policy_optimizer,
            "baseline": self.baseline_state,
            "estimator": self.estimator_learned,
            "preprocessor": self.preprocessor.state,
            "updates": self.updates,
            "progress": self.progress,
        }

    def optimizer_state(self, saved: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state as a checkpoint holds it."""
        return mapped(optimizer_state(saved, len(self.population), self.noise.device), torch.clone)

    def load_state(self, tree: Mapping[str, Any]) -> None:
        """Take over a tree made by `state` of an agent with the same config and as many members. PglabError if it is of
        another shape."""
        for name, p in self.networks().items():
            saved = tree["networks"].get(name)
            if saved is None or saved.shape != p.flat.shape:
                given = "none" if saved is None else list(saved.shape)
                raise PglabError(
                    f"The checkpoint does not fit the config: its {name} network has shape {given}, the config's "
                    f"{list(p.flat.shape)} (members, parameters)."
                )
        learned = dict(tree.get("estimator", {}))
        if learned.keys() != self.estimator_learned.keys():
            raise PglabError(
                f"The checkpoint does not fit the config: it holds {', '.join(learned) or 'nothing'} of what the estimator "
                f"learns, estimator {self.config.estimator.name!r} has {', '.join(self.estimator_learned) or 'nothing'}."
            )
        if tree["preprocessor"].keys() != self.preprocessor.state.keys():
            raise PglabError("The checkpoint does not fit the config: preprocessing's normalisation was changed.")
        with torch.no_grad():
            for name, p in self.networks().items():
                p.flat.copy_(tree["networks"][name])
        # Copies: what is taken over is written to from here on.
        self.policy_optimizer = self.optimizer_state(tree["policy_optimizer"])
        self.baseline_state = mapped(tree["baseline"], torch.clone)
        if "optimizer" in learned:
            learned["optimizer"] = self.optimizer_state(learned["optimizer"])
        self.estimator_learned = mapped(learned, torch.clone)
        self.preprocessor.state = mapped(tree["preprocessor"], torch.clone)
        self.updates = tree["updates"]
        self.progress = tree["progress"]
