"""How the functions of a training step are run: operation by operation, as programs, compiled, or as CUDA graphs.

What is run is the same: `pglab.rollout.steps` around an environment's dynamics, and what an agent hands to `Executor.call`.
Whatever repeats a function instead of calling it asks the same of it; see `pglab.programs` for the rules.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.environments.contract import Environment, Step
from pglab.errors import PglabError
from pglab.networks import Recorder
from pglab.rollout import Position, Rollout, assembled, block, steps

if TYPE_CHECKING:
    from pglab.agents.base import Agent
    from pglab.config import Config
    from pglab.environments.torch_native import TorchEnvironment

ExecutorName = Literal["auto", "eager", "program", "compile", "cudagraph"]


class Executor:
    """Runs the parts of a training step."""

    name: str
    note: Callable[[str], None] = staticmethod(lambda text: None)
    """Told, in one sentence, what the executor cannot do as it was asked to."""

    def block(
        self,
        agent: Agent,
        env: Environment,
        position: Position,
        action_noise: Tensor,
        reset_noise: Tensor | None,
        recorder: Recorder | None = None,
        count: Count | None = None,
        then: Then | None = None,
        inputs: Sequence[Any] = (),
    ) -> tuple[Rollout, Position, Any]:
        """`pglab.rollout.block` under the agent's policy, its forward passes kept by `recorder` where there is one; then
        `count(rollout)`, and the result of `then(rollout, position, *inputs)`. Both are functions as `call` takes them, and
        are repeated with the block where it is repeated. What is returned is overwritten by the next block (see `kept`)."""
        act = agent.act
        if recorder is not None:
            views, prepare = agent.policy_parameters.views, agent.preprocessor.observations
            parameterized = agent.policy.parameterized

            def act(obs: Tensor, action_mask: Tensor | None) -> Distribution:
                return parameterized(views, recorder.step(prepare(obs)), action_mask)

        rollout, position = block(env, act, agent.policy.present, position, action_noise, reset_noise)
        if count is not None:
            self.call(count, rollout)
        found = None if then is None else self.call(then, rollout, position, *inputs, key=agent.places())
        return rollout, position, found

    def call(self, function: Callable[..., Any], *inputs: Any, key: object = None) -> Any:
        """`function(*inputs)`, a function that keeps the rules of `pglab.programs`. Its inputs and results are trees of
        tensors (see `pglab.programs.leaves`); results are overwritten by the next call. `key` names whatever besides the
        inputs' shapes decides which operations are made, and where what it changes lies."""
        return function(*inputs)

    def another(self) -> Executor:
        """One of this kind for what is not training."""
        return type(self)()

    def kept(self, tree: Any) -> Any:
        """What `block` or `call` returned, to be kept beyond the next one."""
        return tree


class Eager(Executor):
    """Operation by operation."""

    name = "eager"


class Playing:
    """A rollout of a torch-native environment as a function of tensors alone."""

    def __init__(self, agent: Agent, env: TorchEnvironment) -> None:
        self.agent, self.env, self.names = agent, env, agent.policy.network.layer_names

    def __call__(
        self,
        state: Tensor,
        elapsed: Tensor,
        obs: Tensor,
        noise: Tensor,
        resets: Tensor | None,
        into: Sequence[Sequence[Tensor]] | None,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """State `[P, N, S]`, elapsed steps `[P, N]` and observations afterwards; the rollout's columns (see
        `pglab.rollout.assembled`) but the last, `[P, T, N, ...]` each. `noise` and `resets` `[T, P, N, ...]` are those of
        `pglab.rollout.block`. The network's hidden layers and output of every step are written `into` the tensors of its
        step."""
        agent, env = self.agent, self.env
        policy, views, now = agent.policy, agent.policy_parameters.views, [state, elapsed]
        weights = [views[name] for name in self.names]
        rest = iter(into or ())
        if resets is None:  # all episodes begin from one state
            resets = noise.new_zeros(len(noise), *env.valid.shape, 0)
        starts = env.starts(resets)

        def act(obs: Tensor, action_mask: Tensor | None) -> Distribution:
            seen = agent.preprocessor.observations(obs)
            if into is None:
                # As a row of its own: torch picks the largest of few numbers ten times faster where they lie side by side.
                return policy.parameterized(views, policy.network.run(weights, seen)[1].contiguous())
            *places, place = next(rest)
            return policy.parameterized(views, place.copy_(policy.network.run(weights, seen, places)[1]))

        def advance(action: Tensor, start: Tensor | None) -> Step:
            assert start is not None
            now[0], now[1], step = env.dynamics(now[0], now[1], action, start)
            return step

        rows, _, obs, _ = steps(act, policy.present, advance, obs, None, noise, starts)
        *columns, _ = [torch.stack(column, 1) for column in zip(*rows, strict=True)]
        return now[0], now[1], obs, columns


Count = Callable[[Rollout], None]
"""What takes note of a rollout."""
Then = Callable[..., Any]
"""What follows from a rollout, where it stopped, and whatever inputs it has."""
Played = tuple[Tensor, Tensor, Tensor, Tensor, Rollout, Any]
"""What a `Block` returns."""
Play = Callable[..., tuple[Tensor, Tensor, Tensor, list[Tensor]]]
"""What `Playing` is, however it is run."""


class Block:
    """A whole block of a torch-native environment, and what follows from it (see `Executor.block`)."""

    apart = False
    """Whether `then` is called by itself, since it cannot be repeated with the block."""
    join: Callable[..., Any] = staticmethod(lambda function, *inputs, key=None: function(*inputs))
    """How its `end` is called where the block is not repeated as a whole."""

    def __init__(
        self,
        agent: Agent,
        env: TorchEnvironment,
        recorder: Recorder | None,
        count: Count | None,
        then: Then | None,
        play: Play,
    ) -> None:
        self.agent, self.env, self.recorder, self.count, self.then = agent, env, recorder, count, then
        self.play = play

    def __call__(
        self,
        state: Tensor,
        elapsed: Tensor,
        obs: Tensor,
        time: Tensor,
        noise: Tensor,
        resets: Tensor | None,
        *inputs: Any,
    ) -> Played:
        """State `[P, N, S]`, elapsed steps, observations and steps in the episode afterwards, the rollout, and what `then`
        makes of it."""
        with torch.no_grad():
            into = None if self.recorder is None else self.recorder.rows
            state, elapsed, obs, columns = self.play(state, elapsed, obs, noise, resets, into)
        rollout, time, found = self.join(self.end, columns, noise, time, obs, *inputs, key=self.key())
        return state, elapsed, obs, time, rollout, found

    def key(self) -> object:
        """Names what decides which operations the block makes, and where what it changes lies."""
        return self.agent.acting_places(), None if self.then is None else self.agent.places()

    def end(
        self, columns: list[Tensor], noise: Tensor, time: Tensor, obs: Tensor, *inputs: Any
    ) -> tuple[Rollout, Tensor, Any]:
        """The rollout of its columns, the environments' steps in their episodes afterwards, and what `then` makes of them."""
        with torch.no_grad():
            whole = [x.transpose(0, 1) for x in columns]
            whole.append(self.env.valid.expand(len(noise), -1, -1))
            rollout, time = assembled(whole, noise, time, None)
            if self.count is not None:
                self.count(rollout)
        return rollout, time, None if self.then is None else self.then(rollout, Position(obs, time, None), *inputs)


class OfTensors(Executor, ABC):
    """Rollouts of torch-native environments as functions of tensors, made once for an agent and its environment. Others are
    stepped operation by operation."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[Any, ...], Block] = {}

    @abstractmethod
    def make(self, playing: Playing, length: int) -> Play:
        """How blocks are played, the first of them `length` steps long."""

    def play(self, block: Block, *now: Any) -> Played:
        """Call the block."""
        return block(*now)

    def block(
        self,
        agent: Agent,
        env: Environment,
        position: Position,
        action_noise: Tensor,
        reset_noise: Tensor | None,
        recorder: Recorder | None = None,
        count: Count | None = None,
        then: Then | None = None,
        inputs: Sequence[Any] = (),
    ) -> tuple[Rollout, Position, Any]:
        from pglab.environments.torch_native import TorchEnvironment

        if not isinstance(env, TorchEnvironment):
            return super().block(agent, env, position, action_noise, reset_noise, recorder, count, then, inputs)
        which = agent, env, recorder, count, then
        made = self._blocks.get(which)
        if made is None:
            made = self._blocks[which] = Block(*which, self.make(Playing(agent, env), len(action_noise)))
        if made.apart:
            assert then is not None
            rollout, position, _ = self.block(agent, env, position, action_noise, reset_noise, recorder, count)
            return rollout, position, self.call(then, rollout, position, *inputs, key=agent.places())
        env.state, env.elapsed, obs, time, rollout, found = self.play(
            made, env.state, env.elapsed, position.obs, position.time, action_noise, reset_noise, *inputs
        )
        return rollout, Position(obs, time, None), found


REPEATED_ROWS = 2**19
"""`auto` runs updates of at most so many rows (of all members together) as programs: with more, arithmetic is what takes the
time, and a recording holds every intermediate result at once."""


def pick_executor(name: ExecutorName, device: torch.device, env: Environment, config: Config, rows: int) -> Executor:
    """The executor of this name, for updates of so many `rows`. `auto` is `program` on a CPU where it can be and pays, else
    `eager`: compiling takes longer than most runs it would shorten, and CUDA graphs have not been measured yet.

    Raises:
        PglabError: `compile` or `cudagraph` where the environment is not torch-native, `compile` without a C++ compiler,
            `program` without a CPU, `cudagraph` without a GPU; all of them with a Beta policy.
    """
    from pglab.environments.torch_native import TorchEnvironment

    scipy, native = config.policy.distribution == "beta", isinstance(env, TorchEnvironment)
    if name == "auto":
        repeated = device.type == "cpu" and not scipy and config.agent.name in REPEATED and rows <= REPEATED_ROWS
        name = "program" if repeated else "eager"
    if name == "eager":
        return Eager()
    from pglab.repeating import Compiled, CudaGraph, Programs

    if scipy:
        raise PglabError(
            f"executor {name!r} cannot draw from policy.distribution 'beta', which scipy does: choose eager."
        )
    if name == "program":
        if device.type != "cpu":
            raise PglabError(f"executor 'program' needs device cpu, not {device}: choose eager or cudagraph.")
        return Programs()
    if not native:
        raise PglabError(f"executor {name!r} needs a torch-native environment, not {env.spec.id}: choose eager.")
    if name == "cudagraph":
        if device.type != "cuda":
            raise PglabError(f"executor 'cudagraph' needs device cuda, not {device}: choose program or compile.")
        return CudaGraph()
    if device.type == "cpu" and not any(shutil.which(c) for c in (os.environ.get("CXX"), "g++", "clang++") if c):
        raise PglabError("executor 'compile' needs a C++ compiler (g++ or clang++) and finds none: choose program.")
    return Compiled()


REPEATED = ("on_policy", "actor_critic")
"""Agents whose updates are made of parts that can be repeated."""
