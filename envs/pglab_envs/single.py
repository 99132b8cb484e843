"""One of a batch: the single environment that `gymnasium.make` gives for ids that gymnasium has no twin of."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from pglab_envs.base import TorchVectorEnv


class Single(gymnasium.Env[np.ndarray, Any]):
    """A torch-native environment on its own, as an ordinary `gymnasium.Env`.

    Args:
        env_class: of `pglab_envs`.
        render_mode: None.
        options: arguments of the class.

    Raises:
        ValueError: an argument has a wrong value.
        TypeError: a `render_mode`, as from an environment that knows no such argument (stable-baselines3 then does without).
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, env_class: type[TorchVectorEnv], render_mode: str | None = None, **options: Any) -> None:
        if render_mode is not None:
            raise TypeError(f"{env_class.id} cannot be rendered: render_mode must be None, got {render_mode!r}")
        self.batch = env_class(1, autoreset_mode=AutoresetMode.DISABLED, **options)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode; see `TorchVectorEnv.reset`."""
        super().reset(seed=seed)
        self._share_generator()
        obs, info = self.batch.reset(options=options)
        return obs[0], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; see `TorchVectorEnv.step`."""
        self._share_generator()
        obs, reward, terminated, truncated, _ = self.batch.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def _share_generator(self) -> None:
        """Whoever saves or sets `np_random` has all the randomness there is: that of initial states and transitions."""
        self.batch.np_random = (self.np_random,)
