"""Environments of pure functions of tensors (`pglab_envs`), stepped on the device for a whole population.

Letters: P population, N environments per member, S state, O observation, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pglab.environments.contract import Environment, EnvironmentSpec, Reset, Resumed, Step, Tree
from pglab.environments.spaces import action_spec
from pglab.errors import PglabError, unknown
from pglab.noise import Counter, Noise, Purpose

if TYPE_CHECKING:
    from pglab_envs.base import TorchVectorEnv


def make_torch(
    env_class: type[TorchVectorEnv], kwargs: Mapping[str, Any] | None = None, **vector: Any
) -> TorchVectorEnv:
    """One environment of a class of `pglab_envs` with the arguments `kwargs` of its own.

    Raises:
        PglabError: it takes no such argument, or not such a value.
    """
    kwargs = kwargs or {}
    for name in sorted(set(kwargs) - set(env_class.options)):
        if not env_class.options:
            raise PglabError(f"{env_class.id} takes no arguments, but env.kwargs has {name!r}.")
        raise unknown(f"argument of {env_class.id}", name, env_class.options)
    try:
        return env_class(num_envs=1, **kwargs, **vector)
    except ValueError as error:
        raise PglabError(f"{env_class.id}: {error}.") from None


class TorchEnvironment(Environment):
    """P x N environments of one `pglab_envs` class.

    All that changes is in two tensors, `state` `[P, N, S]` and `elapsed` `[P, N]` int32. They are replaced by `step`,
    never written to, so tensors once handed out stay what they were (but those of a repeated rollout, which the next one
    overwrites; see `pglab.repeating`); where observation and state are the same thing `obs` *is* the state, so callers must not
    write to it either. No operation waits for the device, and nothing is checked for NaN.

    Args:
        env_class: a class of `pglab_envs`.
        num_members: P.
        num_envs: N.
        device: where everything is.
        dtype: of state, observation and reward.
        max_episode_steps: the limit after which episodes are truncated; None for the environment's own.
        kwargs: arguments of the class itself, those in its `options`.

    Raises:
        PglabError: P, N or the limit is below 1; an argument's name or value is not one that the class takes.
    """

    def __init__(
        self,
        env_class: type[TorchVectorEnv],
        num_members: int,
        num_envs: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_episode_steps: int | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.env = make_torch(env_class, kwargs, dtype=dtype, device=torch.device(device))
        limit = self.env.max_episode_steps if max_episode_steps is None else max_episode_steps
        for name, value in (("num_members", num_members), ("num_envs", num_envs), ("max_episode_steps", limit)):
            if value < 1:
                raise PglabError(f"{name} must be at least 1, got {value}.")
        self.num_members, self.num_envs = num_members, num_envs
        self.device = torch.device(device)
        self._dtype = dtype
        self._limit = limit
        action = action_spec(self.env.single_action_space)
        self.spec = EnvironmentSpec(
            id=self.env.id,
            observation_size=self.env.observation_size,
            action=action,
            max_episode_steps=limit,
            resume="exact",
            description=f"{self.env.id}{_said(kwargs)}, torch-native on {self.device}",
            reset_noise_size=self.env.reset_noise_size + self.env.step_noise_size,
            cut_by_limit_only=True,
            differentiable=self.env.differentiable,
            terminates=self.env.terminates,
        )
        self._start: int | Tensor | None = None
        if any(action.start):
            self._start = torch.tensor(action.start, device=self.device) if action.shape else action.start[0]
        self._middle = self._half = None
        if action.low is not None and action.high is not None:
            low = torch.from_numpy(action.low).double()  # [A]
            high = torch.from_numpy(action.high).double()
            self._middle = ((low + high) / 2).to(self.device, dtype)
            self._half = ((high - low) / 2).to(self.device, dtype)
        self.valid = torch.ones(num_members, num_envs, dtype=torch.bool, device=self.device)  # [P, N]
        self.state = torch.zeros(num_members, num_envs, self.env.state_size, dtype=dtype, device=self.device)
        self.elapsed = torch.zeros(num_members, num_envs, dtype=torch.int32, device=self.device)

    def reset(self, noise: Noise, counter: Counter) -> Reset:
        """Start every environment anew, from uniforms of `Purpose.RESET`."""
        self.state = self._initial(noise, counter)  # [P, N, S]
        self.elapsed = torch.zeros_like(self.elapsed)
        return Reset(self.env.observe(self.state), None)

    def reset_where(self, mask: Tensor, noise: Noise, counter: Counter) -> Reset:
        """Start anew where `mask` `[P, N]` is True; an environment's new episode does not depend on the mask."""
        self.state = torch.where(mask.unsqueeze(-1), self._initial(noise, counter), self.state)
        self.elapsed = self.elapsed.masked_fill(mask, 0)
        return Reset(self.env.observe(self.state), None)

    def step(self, action: Tensor, reset_noise: Tensor | None = None) -> Step:
        """Step with encoded actions: one-hot `[P, N, D, K]`, zeros and ones `[P, N, D]`, or `[P, N, A]`, which is clipped to
        [-1, 1] where the space is bounded.

        As with gymnasium's `TimeLimit`, an episode that terminates in its last step is also truncated, unless the
        environment has an end of its own.

        Raises:
            PglabError: `reset_noise` `[P, N, spec.reset_noise_size]`, uniform on (0, 1), is missing.
        """
        if reset_noise is None:
            if self.spec.reset_noise_size:
                raise PglabError(f"{self.spec.id} draws no random numbers: step needs reset_noise.")
            return self.advance(action)
        return self.advance(action, self.starts(reset_noise))

    def starts(self, reset_noise: Tensor) -> Tensor:
        """What one step each takes, `[T, P, N, S + step_noise_size]`: the initial states, and beside them the noise of the
        transitions."""
        if not self.env.step_noise_size:
            return self.env.initial_state(reset_noise)
        resets, steps = reset_noise.split((self.env.reset_noise_size, self.env.step_noise_size), -1)
        return torch.cat((self.env.initial_state(resets), steps), -1)

    def advance(self, action: Tensor, start: Tensor | None = None) -> Step:
        """`step` with a row of `starts`, `[P, N, S + step_noise_size]`; None where all episodes begin from one state and
        transitions are not random."""
        if start is None:
            start = self.env.initial_state(self.state.new_zeros(self.num_members, self.num_envs, 0))
        self.state, self.elapsed, step = self.dynamics(self.state, self.elapsed, action, start)
        return step

    def dynamics(self, state: Tensor, elapsed: Tensor, action: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Step]:
        """`advance` as a function: `state` `[P, N, S]` and `elapsed` `[P, N]` to what they are afterwards, and the step."""
        inputs: tuple[Tensor, ...] = (state, self._env_action(action))
        if self.env.step_noise_size:
            start, noise = start.split((self.env.state_size, self.env.step_noise_size), -1)
            inputs = (*inputs, noise)
        next_state, reward, terminated = self.env.transition(*inputs)
        elapsed = elapsed + 1  # [P, N]
        truncated = elapsed >= self._limit
        if self.env.own_end:
            truncated = truncated & ~terminated
        done = terminated | truncated
        state = torch.where(done.unsqueeze(-1), start, next_state)  # [P, N, S]
        elapsed = elapsed.masked_fill(done, 0)
        # Observing the state after resets costs no more than choosing between two observations, often nothing.
        obs, final_obs = self.env.observe(state), self.env.observe(next_state)  # [P, N, O]
        return state, elapsed, Step(obs, reward, terminated, truncated, final_obs, self.valid, None, done)

    def get_state(self) -> Tree:
        """Copies of `state` and `elapsed`, on the CPU."""
        # `.cpu()` of a tensor that is there already is no copy.
        return {
            "id": self.spec.id,
            "state": self.state.detach().cpu().clone(),
            "elapsed": self.elapsed.cpu().clone(),
        }

    def set_state(self, state: Tree) -> Resumed:
        """Go on from `get_state`'s tree, exactly.

        Raises:
            PglabError: the tree is of another environment, or of another number of them.
        """
        if state.get("id") != self.spec.id or state["state"].shape != self.state.shape:
            raise PglabError(
                f"The saved state is of {state.get('id')!r}, {tuple(state['state'].shape)}, "
                f"but this is {self.spec.id!r}, {tuple(self.state.shape)}."
            )
        self.state = state["state"].to(self.device, self._dtype, copy=True)
        self.elapsed = state["elapsed"].to(self.device, torch.int32, copy=True)
        lost = torch.zeros(self.elapsed.shape, dtype=torch.bool, device=self.device)
        return Resumed(self.env.observe(self.state), None, lost)

    def _env_action(self, action: Tensor) -> Tensor:
        """`[P, N]` int64 for Discrete and `[P, N, D]` for MultiDiscrete, `[P, N, A]` in the environment's units for a Box."""
        if self.spec.action.kind == "discrete":
            index = (action if self.spec.action.shape else action[..., 0, :]).argmax(-1)
            return index if self._start is None else index + self._start
        if self._middle is None or self._half is None:
            return action
        return torch.addcmul(self._middle, self._half, action.clamp(-1, 1))  # [P, N, A]

    def _initial(self, noise: Noise, counter: Counter) -> Tensor:
        uniform = noise.uniform(Purpose.RESET, counter, (self.num_envs, self.env.reset_noise_size))
        return self.env.initial_state(uniform.to(self.device, self._dtype))  # [P, N, S]


def _said(kwargs: Mapping[str, Any] | None) -> str:
    return f" ({', '.join(f'{name}={value}' for name, value in kwargs.items())})" if kwargs else ""
