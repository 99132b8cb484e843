"""How the functions of a training step are run: as they are, compiled, or captured as a CUDA graph.

What is run is the same: `pglab.rollout.steps` around an environment's dynamics, and the returns of `pglab.returns`.
"""

from __future__ import annotations

import os
import shutil
import types
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

OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"cpp_wrapper": True}
"""The C++ wrapper spares some 20 Python calls a step of the rollout."""

ExecutorName = Literal["auto", "eager", "compile", "cudagraph"]


class Executor:
    """Runs the parts of a training step."""

    name: str

    def block(
        self,
        agent: Agent,
        env: Environment,
        position: Position,
        action_noise: Tensor,
        reset_noise: Tensor | None,
        recorder: Recorder | None = None,
    ) -> tuple[Rollout, Position]:
        """`pglab.rollout.block` under the agent's policy, its forward passes kept by `recorder` where there is one."""
        act = agent.act
        if recorder is not None:
            views, prepare = agent.policy_parameters.views, agent.preprocessor.observations
            parameterized = agent.policy.parameterized

            def act(obs: Tensor, action_mask: Tensor | None) -> Distribution:
                return parameterized(views, recorder.step(prepare(obs)), action_mask)

        return block(env, act, agent.policy.present, position, action_noise, reset_noise)

    def pure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A pure function of tensors as this executor runs it."""
        return function


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
        starts: Tensor,
        into: Sequence[Sequence[Tensor]] | None,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """State `[P, N, S]`, elapsed steps `[P, N]` and observations afterwards; the rollout's columns (see
        `pglab.rollout.assembled`) but the last, `[P, T, N, ...]` each. The network's hidden layers and output of every step are
        written `into` the tensors of its step."""
        agent, env = self.agent, self.env
        policy, views, now = agent.policy, agent.policy_parameters.views, [state, elapsed]
        weights = [views[name] for name in self.names]
        rest = iter(into or ())

        def act(obs: Tensor, action_mask: Tensor | None) -> Distribution:
            hidden, output = policy.network.run(weights, agent.preprocessor.observations(obs))
            if into is not None:
                for x, made in zip(next(rest), (*hidden, output), strict=True):
                    x.copy_(made)
            return policy.parameterized(views, output)

        def advance(action: Tensor, start: Tensor | None) -> Step:
            assert start is not None
            now[0], now[1], step = env.dynamics(now[0], now[1], action, start)
            return step

        rows, _, obs, _ = steps(act, policy.present, advance, obs, None, noise, starts)
        *columns, _ = [torch.stack(column, 1) for column in zip(*rows, strict=True)]
        return now[0], now[1], obs, columns


Play = Callable[..., tuple[Tensor, Tensor, Tensor, list[Tensor]]]
"""What `Playing` is, however it is run."""


class OfTensors(Executor, ABC):
    """Rollouts of torch-native environments as functions of tensors, made once for an agent and its environment. Others are
    stepped operation by operation."""

    def __init__(self) -> None:
        self._made: tuple[Agent, Environment, int, Play, int] | None = None

    @abstractmethod
    def make(self, playing: Playing, length: int) -> tuple[Play, int]:
        """How a block of `length` steps is played, and how many of them at a time."""

    def block(
        self,
        agent: Agent,
        env: Environment,
        position: Position,
        action_noise: Tensor,
        reset_noise: Tensor | None,
        recorder: Recorder | None = None,
    ) -> tuple[Rollout, Position]:
        from pglab.environments.torch_native import TorchEnvironment

        length = len(action_noise)
        if not isinstance(env, TorchEnvironment):
            return super().block(agent, env, position, action_noise, reset_noise, recorder)
        made = self._made
        if made is None or made[0] is not agent or made[1] is not env or made[2] != length:
            self._made = made = (agent, env, length, *self.make(Playing(agent, env), length))
        *_, play, size = made
        parts = []
        with torch.no_grad():
            if reset_noise is None:  # all episodes begin from one state
                reset_noise = action_noise.new_zeros(length, env.num_members, env.num_envs, 0)
            starts, obs = env.starts(reset_noise), position.obs
            for t in range(0, length, size):
                now = slice(t, t + size)
                into = None if recorder is None else recorder.rows[now]
                env.state, env.elapsed, obs, columns = play(
                    env.state, env.elapsed, obs, action_noise[now], starts[now], into
                )
                parts.append(columns)
            whole = [torch.cat(column, 1).transpose(0, 1) for column in zip(*parts, strict=True)]
            whole.append(env.valid.expand(length, -1, -1))
            rollout, time = assembled(whole, action_noise, position.time, None)
        return rollout, Position(obs, time, None)


class Compiled(OfTensors):
    """Compiled by `torch.compile`: rollouts in chunks of at most `chunk` steps, and pure functions.

    Compiling takes some tens of seconds the first time.
    """

    name = "compile"
    chunk = 8

    def __init__(self) -> None:
        super().__init__()
        self._play: tuple[Agent, Environment, Play] | None = None
        self._pure: dict[Callable[..., Any], Callable[..., Any]] = {}

    def make(self, playing: Playing, length: int) -> tuple[Play, int]:
        # One compiled function serves blocks of all lengths: torch keeps a version for each shape.
        if self._play is None or self._play[0] is not playing.agent or self._play[1] is not playing.env:
            self._play = playing.agent, playing.env, _compiled(playing.__call__)
        return self._play[2], min(self.chunk, length)

    def pure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if function not in self._pure:
            self._pure[function] = _compiled(function)
        return self._pure[function]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of a function or method, as a function of its own: torch keeps what it compiled by code object, at
    most eight versions of each, and agents share theirs."""
    f = getattr(function, "__func__", function)
    own: Any = types.FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    bound = own if f is function else types.MethodType(own, getattr(function, "__self__", None))
    return torch.compile(bound, dynamic=False, fullgraph=True, options=OPTIONS)


class CudaGraph(OfTensors):
    """Rollouts captured once as a CUDA graph and replayed: one launch for a block."""

    name = "cudagraph"

    def make(self, playing: Playing, length: int) -> tuple[Play, int]:
        return Captured(playing), length


class Captured:
    """A function of tensors, captured at its first call and replayed by every further one.

    Inputs are copied into the memory that was captured; outputs are copies. Tensors that the function reads elsewhere
    (parameters) are read where they lie, so they may be written to, but not replaced. So agents whose normaliser is
    replaced at every update are not captured.
    """

    def __init__(self, function: Play) -> None:
        self._function = function
        self._graph: Any = None

    def __call__(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        *tensors, into = inputs
        if self._graph is None:
            self._inputs = [x.clone() for x in tensors]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries set themselves up at a first call, which cannot be captured
                for _ in range(3):
                    self._function(*self._inputs, into)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = self._function(*self._inputs, into)
        for held, given in zip(self._inputs, tensors, strict=True):
            held.copy_(given)
        self._graph.replay()
        state, elapsed, obs, columns = self._outputs
        return state.clone(), elapsed.clone(), obs.clone(), [x.clone() for x in columns]


def pick_executor(name: ExecutorName, device: torch.device, env: Environment, config: Config) -> Executor:
    """The executor of this name. `auto` is eager: on a CPU compiling takes longer than most runs it would shorten, and
    CUDA graphs have not been measured yet.

    Raises:
        PglabError: `compile` or `cudagraph` where the environment is not torch-native, `compile` without a C++ compiler,
            `cudagraph` without a GPU or with an observation normaliser; both with a Beta policy.
    """
    from pglab.environments.torch_native import TorchEnvironment

    native, normalised = isinstance(env, TorchEnvironment), config.preprocessing.normalize_observations
    if name in ("auto", "eager"):
        return Eager()
    if config.policy.distribution == "beta":
        raise PglabError(
            f"executor {name!r} cannot draw from policy.distribution 'beta', which scipy does: choose eager."
        )
    if not native:
        raise PglabError(f"executor {name!r} needs a torch-native environment, not {env.spec.id}: choose eager.")
    if name == "cudagraph":
        if device.type != "cuda":
            raise PglabError(f"executor 'cudagraph' needs device cuda, not {device}: choose eager or compile.")
        if normalised:
            raise PglabError(
                "executor 'cudagraph' does not go with preprocessing.normalize_observations: choose eager or compile."
            )
        return CudaGraph()
    if device.type == "cpu" and not any(shutil.which(c) for c in (os.environ.get("CXX"), "g++", "clang++") if c):
        raise PglabError("executor 'compile' needs a C++ compiler (g++ or clang++) and finds none: choose eager.")
    return Compiled()
