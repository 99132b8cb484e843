"""A vector environment whose dynamics are three pure functions of tensors.

Letters: N environments, S state variables, O observation variables, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

Seed = int | Sequence[int | None] | None


class TorchVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Two interfaces to the same environment.

    *Of tensors*: `observe`, `initial_state` and `transition` take any leading batch shape, hold no state and draw no
    random numbers, and run in the precision and on the device of their arguments. Where there are no `options` they may
    be called on the class. The caller counts the steps and cuts episodes at `max_episode_steps`.

    *Of gymnasium*: `reset` and `step` of `num_envs` environments, numpy in and out, which count, cut and reset episodes
    as `gymnasium.vector.SyncVectorEnv` does over `gymnasium.make`'s environments: the same three autoreset modes, the
    same infos, and one generator per environment, so that the same seeds give the same initial states. Where transitions
    are random, a step takes its noise from the same generator.

    A subclass sets the attributes below, which belong to the class, and defines the three functions.

    Args:
        num_envs: N.
        max_episode_steps: the time limit; the environment's own if None.
        autoreset_mode: what becomes of an episode that has ended: `NEXT_STEP` (the next step only resets it),
            `SAME_STEP` (it is reset at once, the last observation is `infos["final_obs"]`) or `DISABLED` (it waits for
            `reset(options={"reset_mask": ...})`).
        render_mode: None; there is nothing to look at.
        dtype: of the state.
        device: of the state.

    Raises:
        ValueError: `num_envs` or `max_episode_steps` below 1, an unknown `autoreset_mode`, a `render_mode`.
    """

    id: str
    max_episode_steps: int
    state_size: int  # S
    reset_noise_size: int  # uniforms that one initial state takes
    step_noise_size: int = 0  # uniforms that one transition takes; `transition` has a third argument where above 0
    observation_size: int  # O
    differentiable: bool  # next state and reward have useful derivatives in the action
    terminates: bool = True  # when episodes terminate depends on what is done in them
    own_end: bool = False  # episodes terminate by the time limit of themselves, and are then not reported as truncated
    single_observation_space: spaces.Box
    single_action_space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box
    options: tuple[str, ...] = ()  # names of the arguments that the environment itself takes

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if max_episode_steps is not None:
            if max_episode_steps < 1:
                raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
            self.max_episode_steps = max_episode_steps
        if render_mode is not None:
            raise ValueError(f"{self.id} cannot be rendered: render_mode must be None, got {render_mode!r}")
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.dtype = dtype
        self.device = torch.device(device)
        # Spaces carry a generator for `sample`; instances must not share the class's.
        self.single_observation_space = deepcopy(self.single_observation_space)
        self.single_action_space = deepcopy(self.single_action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int] = [-1] * num_envs
        self._started = False
        # These tensors are replaced, never written to, so that whoever was handed one keeps what was handed out.
        self._state = torch.zeros(num_envs, self.state_size, dtype=dtype, device=self.device)  # [N, S]
        self._elapsed = torch.zeros(num_envs, dtype=torch.int64, device=self.device)  # [N]
        self._ended = np.zeros(num_envs, dtype=np.bool_)  # [N]; on the host, where it is asked

    def observe(self, state: Tensor) -> Tensor:
        """The observation `[..., O]` of a state `[..., S]`."""
        raise NotImplementedError

    def state_of(self, observation: Tensor) -> Tensor | None:
        """A state `[..., S]` with this observation `[..., O]` that goes on in the same way; None where an observation does
        not tell."""
        return None

    def initial_state(self, noise: Tensor) -> Tensor:
        """A draw `[..., S]` from the initial distribution, from `noise` `[..., reset_noise_size]` uniform on [0, 1)."""
        raise NotImplementedError

    def transition(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step, without time limit and without checks.

        Args:
            state: `[..., S]`.
            action: `[...]` int64 where the action space is Discrete, `[..., A]` int64 where it is MultiDiscrete, `[..., A]`
                of zeros and ones where it is MultiBinary, `[..., A]` in the space's units where it is a Box.
            noise: only where `step_noise_size` is above 0, as a third argument: `[..., step_noise_size]` uniform on
                [0, 1), of any precision.

        Returns:
            The next state `[..., S]`, the reward `[...]`, and `[...]` bool, whether the episode terminated.
        """
        raise NotImplementedError

    def reset(self, *, seed: Seed = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: an int for the seeds `seed, seed + 1, ...`, or one int or None for each environment. Where it is None,
                that environment's generator goes on (at first: with a seed from the operating system).
            options: `{"reset_mask": mask}` resets only where `mask` (`[N]` numpy bool) is True.

        Returns:
            Observations of all environments, `[N, O]` float32, and an empty dict.

        Raises:
            ValueError: the number of seeds is not N; `reset_mask` has another shape or is nowhere True; another option.
            TypeError: `reset_mask` is not a numpy array of bool.
            gymnasium.error.ResetNeeded: a partial reset before the first one.
        """
        seeds = self._each_seed(seed)
        mask = self._checked_mask(options)
        if not (self._started or mask.all()):
            raise gymnasium.error.ResetNeeded("the first reset must be of all environments")
        for i in np.flatnonzero(mask):
            if (own := seeds[i]) is not None:
                self._generators[i], self._seeds[i] = seeding.np_random(own)
        self._begin(mask)
        self._started = True
        return self._observations(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment.

        Args:
            actions: `[N]` integers where the action space is Discrete, `[N, A]` where it is MultiDiscrete or MultiBinary;
                `[N, A]` numbers where it is a Box, which the dynamics clip as gymnasium's do. The action of an environment
                that this step resets is not used.

        Returns:
            Observations `[N, O]` float32, rewards `[N]` float64, terminations `[N]` and truncations `[N]` bool, infos.
            An episode that terminates with the time limit's last step is also truncated, as gymnasium's `TimeLimit` has
            it, unless the environment has an end of its own (`own_end`). With `SAME_STEP`, where episodes end, infos has `final_obs` (object array, None elsewhere) and
            `final_info`, and masks of the same names with an underscore before.

        Raises:
            ValueError: actions of another shape or kind, an index out of range, a NaN.
            gymnasium.error.ResetNeeded: before the first reset; with `DISABLED`, where an ended episode was not reset.
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("reset the environments before the first step")
        resets = self._ended  # [N], only with NEXT_STEP
        if self.autoreset_mode is AutoresetMode.DISABLED and resets.any():
            raise gymnasium.error.ResetNeeded(
                f"autoreset is disabled and the episodes of environments {np.flatnonzero(resets).tolist()} have ended: "
                'reset them with reset(options={"reset_mask": mask})'
            )
        inputs: tuple[Tensor, ...] = (self._state, self._checked_actions(actions))  # [N, S], [N] or [N, A]
        if self.step_noise_size:
            inputs = (*inputs, self._step_noise(~resets))
        with torch.no_grad():
            self._state, reward, terminated = self.transition(*inputs)
        self._elapsed = self._elapsed + 1
        rewards = _on_host(reward, torch.float64)  # [N]
        terminations = _on_host(terminated, torch.bool)
        truncations = _on_host(self._elapsed >= self.max_episode_steps, torch.bool)
        if self.own_end:
            truncations &= ~terminations
        if resets.any():
            self._begin(resets)
            rewards[resets] = 0.0
            terminations[resets] = truncations[resets] = False

        observations = self._observations()  # [N, O]
        self._ended = terminations | truncations
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            for i in np.flatnonzero(self._ended):
                infos = self._add_info(infos, {"final_obs": observations[i], "final_info": {}}, int(i))
            self._begin(self._ended)
            observations = self._observations()
        return observations, rewards, terminations, truncations, infos

    @property
    def elapsed(self) -> Tensor:
        """`[N]` int64: the steps taken in each episode under way."""
        return self._elapsed.clone()

    @property
    def ended(self) -> np.ndarray:
        """`[N]` bool: the episode has ended and its reset is still to come (never with `SAME_STEP`)."""
        return self._ended.copy()

    def get_state(self) -> Tensor:
        """A copy of the state, `[N, S]`. With `elapsed`, `ended` and the states of `np_random` it is all there is."""
        return self._state.clone()

    def set_state(
        self,
        state: Tensor | np.ndarray,
        elapsed: Tensor | np.ndarray | int | None = None,
        ended: np.ndarray | None = None,
    ) -> None:
        """Put every environment into a given state; takes the place of a first reset.

        Args:
            state: `[N, S]`; copied, and cut from any graph.
            elapsed: steps already taken, `[N]` or one for all; None for 0, an episode that begins here.
            ended: `[N]` bool, as the property `ended`; None for nowhere.

        Raises:
            ValueError: another shape.
        """
        new_state = torch.as_tensor(state).detach().to(self.device, self.dtype, copy=True)  # [N, S]
        if new_state.shape != self._state.shape:
            raise ValueError(f"state must be {tuple(self._state.shape)}, got {tuple(new_state.shape)}")
        steps = torch.as_tensor(0 if elapsed is None else elapsed).to(self.device, torch.int64)  # [] or [N]
        if steps.shape not in ((), (self.num_envs,)):
            raise ValueError(f"elapsed must be one number or ({self.num_envs},), got {tuple(steps.shape)}")
        flags = np.array(np.zeros(self.num_envs) if ended is None else ended, dtype=np.bool_)  # [N]
        if flags.shape != (self.num_envs,):
            raise ValueError(f"ended must be ({self.num_envs},), got {flags.shape}")
        self._state, self._ended, self._started = new_state, flags, True
        self._elapsed = steps.expand(self.num_envs).clone()

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The generator of each environment, from which its initial states and the noise of its transitions come; N others
        may be put in their place."""
        return tuple(self._generator(i) for i in range(self.num_envs))

    @np_random.setter  # type: ignore[override]
    def np_random(self, value: Sequence[np.random.Generator]) -> None:
        if len(value) != self.num_envs:
            raise ValueError(
                f"np_random needs one generator for each of {self.num_envs} environments, got {len(value)}"
            )
        self._generators, self._seeds = list(value), [-1] * self.num_envs

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each generator, -1 where it is not known."""
        return tuple(self._seeds[i] for i, _ in enumerate(self.np_random))

    def _generator(self, i: int) -> np.random.Generator:
        generator = self._generators[i]
        if generator is None:
            generator, self._seeds[i] = seeding.np_random()
            self._generators[i] = generator
        return generator

    def _begin(self, mask: np.ndarray) -> None:
        """New episodes where `mask` `[N]` is True."""
        rows = np.flatnonzero(mask)  # [R]
        # As many numbers, in double precision, as gymnasium's own reset takes: the streams stay together.
        noise = np.stack([self._generator(i).random(self.reset_noise_size) for i in rows.tolist()])  # [R, noise]
        state = self.initial_state(torch.from_numpy(noise)).to(self.device, self.dtype)  # [R, S]
        index = torch.from_numpy(rows).to(self.device)
        self._state = self._state.index_copy(0, index, state)
        self._elapsed = self._elapsed.index_fill(0, index, 0)
        self._ended = self._ended & ~mask

    def _step_noise(self, mask: np.ndarray) -> Tensor:
        """`[N, step_noise_size]` float64; zeros where `mask` `[N]` is False, whose generators are not touched."""
        noise = np.zeros((self.num_envs, self.step_noise_size))
        for i in np.flatnonzero(mask).tolist():
            noise[i] = self._generator(i).random(self.step_noise_size)
        return torch.from_numpy(noise).to(self.device)

    def _observations(self) -> np.ndarray:
        return _on_host(self.observe(self._state), torch.float32)  # [N, O]

    def _each_seed(self, seed: Seed) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"a list of seeds needs one for each of {self.num_envs} environments, got {len(seed)}")
        return [None if s is None else int(s) for s in seed]

    def _checked_mask(self, options: dict[str, Any] | None) -> np.ndarray:
        """`[N]` bool: the environments that `options` wants reset."""
        options = options or {}
        if unknown := sorted(map(str, options.keys() - {"reset_mask"})):
            raise ValueError(f"{self.id} knows the reset option 'reset_mask' only (see also set_state), got {unknown}")
        if "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"reset_mask must be a numpy array of bool, got {getattr(mask, 'dtype', type(mask))}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must be ({self.num_envs},), got {mask.shape}")
        if not mask.any():
            raise ValueError("reset_mask must be True somewhere")
        return mask

    def _checked_actions(self, actions: np.ndarray) -> Tensor:
        actions = np.asarray(actions)
        space = self.single_action_space
        shape = (self.num_envs, *(space.shape or ()))
        if actions.shape != shape:
            raise ValueError(f"actions must be {shape}, got {actions.shape}")
        if not isinstance(space, spaces.Box):
            if not np.issubdtype(actions.dtype, np.integer):
                raise ValueError(f"actions must be integers, got {actions.dtype}")
            low, high = _range(space)
            if ((actions < low) | (actions > high)).any():
                raise ValueError(f"actions must lie in {low}..{high}, got {actions.tolist()}")
            dtype = self.dtype if isinstance(space, spaces.MultiBinary) else torch.int64
            return torch.from_numpy(actions.astype(np.int64)).to(self.device, dtype)  # [N] or [N, A]
        if not np.issubdtype(actions.dtype, np.floating) and not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions must be real numbers, got {actions.dtype}")
        if np.isnan(actions).any():
            raise ValueError(f"actions must not be NaN, got {actions.tolist()}")
        return torch.from_numpy(actions.astype(np.float64)).to(self.device, self.dtype)  # [N, A]


def _range(space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> tuple[Any, Any]:
    """The first and the last index; of each factor where the space is MultiDiscrete."""
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    return space.start, space.start + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1


def _on_host(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """A copy of its own: callers may write to what they get without reaching the environment."""
    return tensor.to("cpu", dtype, copy=True).numpy()
