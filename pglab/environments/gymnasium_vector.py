"""Any gymnasium environment, P x N of them, under the contract and in all three autoreset modes.

Letters: P population, N environments per member, n = P*N, O observation, D action dimensions (factors), K categories.
Environment (p, i) of the population has index p*N + i in the vector environment.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor

from pglab.environments.contract import Environment, EnvironmentSpec, Reset, Resumed, Step, Tree
from pglab.environments.gymnasium_make import close_vector, dead_workers, make_vector
from pglab.environments.gymnasium_state import Recorder, exact_state, is_exact, restore_exact
from pglab.environments.spaces import action_spec, encode_action_mask, observation_encoder, to_env_actions
from pglab.errors import PglabError
from pglab.noise import Counter, Noise, Purpose

Vectorization = Literal["sync", "async"]
Autoreset = Literal["disabled", "next_step", "same_step"]


class GymnasiumEnvironment(Environment):
    """P x N environments made by `gymnasium.make`, each seeded by its member, the reset's counter and its own index.

    After a reset, episode follows episode from the environment's own generator. Apart from the rows of `next_step`
    that are not valid, the three autoreset modes give the same stream. Tensors of one `Step` may share memory with each
    other, never with those of another.

    With `sync`, the episodes under way can be resumed: those of classic control from their state, others by redoing the
    actions since the last reset, which are kept in memory for this. With `async` they are begun again.

    Args:
        env_id: a registered id, or `module:id`, where importing the module registers it.
        num_members: P.
        num_envs: N.
        vectorization: `sync` steps one after the other in this process, `async` each in a process of its own.
        autoreset_mode: how gymnasium's vector environment is driven.
        kwargs: arguments of the environment.
        max_episode_steps: the limit after which episodes are truncated; None for the registered one.
        device: where tensors go.
        why: the reason for this vectorization, for the description.

    Raises:
        PglabError: the id is unknown, the environment cannot be made or reset, or it has spaces that are not supported.
    """

    def __init__(
        self,
        env_id: str,
        num_members: int,
        num_envs: int,
        vectorization: Vectorization = "sync",
        autoreset_mode: Autoreset = "disabled",
        kwargs: dict[str, Any] | None = None,
        max_episode_steps: int | None = None,
        device: torch.device | str = "cpu",
        why: str = "",
    ) -> None:
        limit = ("max_episode_steps", 1 if max_episode_steps is None else max_episode_steps)
        for name, value in (("num_members", num_members), ("num_envs", num_envs), limit):
            if value < 1:
                raise PglabError(f"{name} must be at least 1, got {value}.")
        self.num_members, self.num_envs = num_members, num_envs
        self.device = torch.device(device)
        self._id, self._mode, self.vectorization = env_id, autoreset_mode, vectorization
        self._n = n = num_members * num_envs
        self.vector = make_vector(env_id, n, vectorization, autoreset_mode, kwargs, max_episode_steps)
        try:
            self._encoder = observation_encoder(self.vector.single_observation_space)
            self._action = action_spec(self.vector.single_action_space)
            resume = self._prepare_resume()
            self._seeds, self._steps = [0] * n, 0  # of the last reset, and steps since
            self._pending = np.zeros(n, dtype=bool)  # [n] NEXT_STEP: the next step only resets
            self._masks: np.ndarray | None = None  # [n, D, K] action masks of what the policy sees
            obs, info = self._call("reset", self.vector.reset, seed=self._seeds)  # to see whether there are masks
            self._obs = self._encode(obs)  # [n, O] what the policy sees
            if "action_mask" in info:
                if self._action.kind != "discrete":
                    raise PglabError(
                        f"{env_id} gives info['action_mask'], which is for Discrete and MultiDiscrete actions, "
                        f"but its actions are {self.vector.single_action_space}."
                    )
                self._masks = np.ones((n, *self._action.event_shape), dtype=bool)
                self._read_masks(info, np.ones(n, dtype=bool))
        except BaseException:
            self.close()
            raise
        self.spec = EnvironmentSpec(
            id=env_id,
            observation_size=self._encoder.size,
            action=self._action,
            max_episode_steps=max_episode_steps or getattr(self.vector.spec, "max_episode_steps", None),
            resume=resume,
            description=f"{env_id} through gymnasium, {vectorization}{f' ({why})' if why else ''}, autoreset {autoreset_mode}",
            has_action_mask=self._masks is not None,
        )

    def reset(self, noise: Noise, counter: Counter) -> Reset:
        """Start every environment anew, seeded by `Purpose.ENVIRONMENT`.

        Raises:
            PglabError: the environment raised, gave a non-finite observation, or a mask that allows no action.
        """
        return self._reset_all(self._draw_seeds(noise, counter))

    def reset_where(self, mask: Tensor, noise: Noise, counter: Counter) -> Reset:
        """Start anew where `mask` `[P, N]` is True, with the seeds that `reset` would use.

        Raises:
            PglabError: as `reset`; or the autoreset mode is not `disabled`.
        """
        if self._mode != "disabled":
            raise PglabError(f"{self._id}: single resets need the autoreset mode 'disabled', this is {self._mode!r}.")
        rows = mask.reshape(-1).cpu().numpy()  # [n]
        if rows.any():
            drawn = self._draw_seeds(noise, counter)
            self._seeds = [new if row else old for new, old, row in zip(drawn, self._seeds, rows, strict=True)]
            self._obs = self._reset_rows(rows, self._seeds)
        return self._as_reset()

    def step(self, action: Tensor, reset_noise: Tensor | None = None) -> Step:
        """Step with encoded actions `[P, N, *event]`; `reset_noise` is not used.

        Raises:
            PglabError: the environment raised, a worker process died, a reward or observation is not finite, an action
                mask allows nothing, or is missing though the first reset gave one.
        """
        action = action.reshape(self._n, *self._action.event_shape)
        if self._action.kind == "continuous":
            # A member that has diverged must not end the others' training: the training loop says so, not the environment.
            action = torch.nan_to_num(action)
        env_action = to_env_actions(self._action, action)
        obs, rewards, terminated, truncated, info = self._call("step", self.vector.step, env_action)
        done = terminated | truncated  # [n]
        valid = ~self._pending  # [n]
        final_obs = seen = self._encode(obs)  # [n, O]
        self._pending = done if self._mode == "next_step" else np.zeros_like(done)
        if self._mode == "disabled":
            self._read_masks(info, ~done)
            if done.any():
                seen = self._reset_rows(done, [None] * self._n)
        else:
            if self._mode == "same_step" and done.any():
                final_obs = seen.copy()
                final_obs[done] = self._encode_each(info["final_obs"][done])
                self._check_finite("observation", final_obs)
            self._read_masks(info, np.ones_like(done))
        with np.errstate(over="ignore"):  # too large for float32: reported in the next line
            reward = rewards.astype(np.float32)
        self._check_finite("reward", reward)
        self._obs = seen.copy()  # the caller's tensor shares memory with `seen`
        self._steps += 1
        return Step(
            obs=self._tensor(seen),
            reward=self._tensor(reward),
            terminated=self._tensor(terminated),
            truncated=self._tensor(truncated),
            final_obs=self._tensor(final_obs),
            valid=self._tensor(valid),
            action_mask=None if self._masks is None else self._tensor(self._masks.copy()),
            ended=self._tensor(done),
        )

    def get_state(self) -> Tree:
        """Tensors, numbers and strings; with resume `replay` they hold the actions of the episodes under way."""
        environments: list[Tree] = []
        if isinstance(self.vector, SyncVectorEnv):
            for env in self.vector.envs:
                environments.append(env.get_recording() if isinstance(env, Recorder) else exact_state(env))
        return {
            "id": self._id,
            "shape": [self.num_members, self.num_envs],
            "autoreset_mode": self._mode,
            "resume": self.spec.resume,
            "seeds": list(self._seeds),
            "steps": self._steps,
            "obs": torch.from_numpy(self._obs.copy()),
            "action_mask": None if self._masks is None else torch.from_numpy(self._masks.copy()),
            "pending": torch.from_numpy(self._pending.copy()),
            "environments": environments,
        }

    def set_state(self, state: Tree) -> Resumed:
        """Go on from `get_state`'s tree.

        Where `resume` is `restart`, all episodes are begun again, with seeds that follow from those of the last reset
        and the number of steps since. That is also done, with a warning, where redoing an episode did not lead to the
        observation that was saved, or the state was saved under another way to resume.

        Raises:
            PglabError: the state is of another environment, number of environments or autoreset mode.
        """
        ours = {"id": self._id, "shape": [self.num_members, self.num_envs], "autoreset_mode": self._mode}
        for name, value in ours.items():
            if state.get(name) != value:
                raise PglabError(
                    f"The saved state of {state.get('id')!r} has {name} {state.get(name)!r}, not {value!r}."
                )
        seeds = [
            int(np.random.SeedSequence([seed, state["steps"]]).generate_state(1)[0]) >> 1 for seed in state["seeds"]
        ]
        if self.spec.resume != state["resume"] or not isinstance(self.vector, SyncVectorEnv):
            if self.spec.resume != "restart":
                self._warn_begun_again(np.ones(self._n, dtype=bool), f"the state was saved as {state['resume']!r}")
            return self._resumed(self._reset_all(seeds), np.ones(self._n, dtype=bool))
        # The vector environment's own bookkeeping starts from a clean slate, and wrappers ask for a reset.
        self._reset_all(list(state["seeds"]))
        self._steps = state["steps"]
        self._obs = state["obs"].cpu().numpy().copy()
        self._pending = state["pending"].cpu().numpy().copy()
        self._masks = None if state["action_mask"] is None else state["action_mask"].cpu().numpy().copy()
        lost = self._restore_environments(self.vector, state["environments"])
        self.vector._autoreset_envs = self._pending.copy()
        if lost.any():
            self._warn_begun_again(lost, "redoing the actions since the last reset led elsewhere")
            self._pending &= ~lost
            self._seeds = [new if row else old for new, old, row in zip(seeds, self._seeds, lost, strict=True)]
            self._obs = self._reset_rows(lost, self._seeds)
        return self._resumed(self._as_reset(), lost)

    def _resumed(self, reset: Reset, lost: np.ndarray) -> Resumed:
        shaped = lost.reshape(self.num_members, self.num_envs)
        return Resumed(*reset, torch.from_numpy(shaped.copy()).to(self.device))

    def close(self) -> None:
        """Close the environments; worker processes that do not answer within seconds, or died, are terminated."""
        close_vector(self.vector)

    def _prepare_resume(self) -> Literal["exact", "replay", "restart"]:
        if not isinstance(self.vector, SyncVectorEnv):
            return "restart"
        if all(is_exact(env) for env in self.vector.envs):
            return "exact"
        self.vector.envs = [Recorder(env) for env in self.vector.envs]
        return "replay"

    def _restore_environments(self, vector: SyncVectorEnv, trees: list[Tree]) -> np.ndarray:
        """Restore each environment; `[n]` bool, True where the observation came out otherwise than it was."""
        lost = np.zeros(self._n, dtype=bool)
        for i, (env, tree) in enumerate(zip(vector.envs, trees, strict=True)):
            if isinstance(env, Recorder):
                obs, same_randomness = self._call("replay", env.replay, tree)
                lost[i] = not (same_randomness and np.array_equal(self._encode_each([obs])[0], self._obs[i]))
            else:
                restore_exact(env, tree)
                obs = self._obs[i].reshape(vector.single_observation_space.shape)  # float32 Boxes, all of them
            vector._env_obs[i] = obs  # what a masked reset returns for the others
        return lost

    def _warn_begun_again(self, rows: np.ndarray, why: str) -> None:
        warnings.warn(
            f"{self._id}: {rows.sum()} of {self._n} episodes under way could not be resumed and begin again: {why}.",
            stacklevel=3,
        )

    def _draw_seeds(self, noise: Noise, counter: Counter) -> list[int]:
        drawn = noise.integers(Purpose.ENVIRONMENT, counter, (self.num_envs,), 2**31 - 1)  # [P, N]
        if len(drawn) != self.num_members:
            raise PglabError(f"The noise is of {len(drawn)} members, the environment of {self.num_members}.")
        return drawn.reshape(-1).tolist()

    def _reset_all(self, seeds: list[int]) -> Reset:
        obs, info = self._call("reset", self.vector.reset, seed=seeds)
        self._seeds, self._steps = seeds, 0
        self._pending = np.zeros(self._n, dtype=bool)
        self._obs = self._encode(obs)
        self._read_masks(info, np.ones(self._n, dtype=bool))
        return self._as_reset()

    def _reset_rows(self, rows: np.ndarray, seeds: list[int] | list[None]) -> np.ndarray:
        """Reset where `rows` `[n]`; the observations `[n, O]` of all environments."""
        obs, info = self._call("reset", self.vector.reset, seed=seeds, options={"reset_mask": rows.copy()})
        self._read_masks(info, rows)
        return self._encode(obs)

    def _read_masks(self, info: dict[str, Any], rows: np.ndarray) -> None:
        """Take the action masks of the environments in `rows` `[n]` from what a reset or step told of them."""
        told = info.get("_action_mask", np.zeros(self._n, dtype=bool))
        if self._masks is None:
            if told.any():
                raise PglabError(f"{self._id} gives info['action_mask'] now, but not when it was first reset.")
            return
        everything = np.arange(self._action.categories) < np.array(self._action.sizes)[:, None]  # [D, K]
        self._masks[rows] = False
        if (here := rows & told).any():
            self._masks[here] = self._call("info", encode_action_mask, self._action, info["action_mask"][here])
        nothing = rows & ~self._masks.any(-1).all(-1)  # [n]
        # The policy's answer to the end of an episode is not used (NEXT_STEP), so no mask is needed there.
        self._masks[nothing & self._pending] = everything
        for i in np.flatnonzero(nothing & ~self._pending):
            what = "that allows no action" if told[i] else "no longer, though it did when first reset"
            raise PglabError(f"{self._id} gives info['action_mask'] {what}, in {self._place(int(i))}.")

    def _call(self, what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call into the environment, whatever it raises becoming a PglabError that names it."""
        try:
            return function(*args, **kwargs)
        except PglabError as error:
            raise PglabError(f"{self._id}: {error}") from error
        except Exception as error:
            dead = dead_workers(self.vector) if isinstance(error, EOFError | OSError) else ""
            if isinstance(self.vector, AsyncVectorEnv):
                self.close()  # after an error the other workers' answers are left in the pipes
            text = f"{type(error).__name__}: {error}".rstrip(": .")
            if dead:
                raise PglabError(f"{self._id}: {dead} in {what} ({text}).") from error
            raise PglabError(f"{self._id} raised an error in {what} ({text}).") from error

    def _encode(self, obs: Any) -> np.ndarray:
        encoded = self._call("encoding", self._encoder.encode, obs, self._n)  # [n, O]
        self._check_finite("observation", encoded)
        return encoded

    def _encode_each(self, observations: Any) -> np.ndarray:
        """Single observations, as they are in infos, `[m, O]`."""
        space, m = self.vector.single_observation_space, len(observations)
        batch = self._call("encoding", concatenate, space, observations, create_empty_array(space, n=m))
        return self._call("encoding", self._encoder.encode, batch, m)

    def _check_finite(self, what: str, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            i = int(np.argmin(finite.reshape(self._n, -1).all(1)))
            raise PglabError(f"{self._id} gave the {what} {values[i].tolist()} in {self._place(i)}: not finite.")

    def _place(self, i: int) -> str:
        return f"environment {i % self.num_envs} of member {i // self.num_envs}"

    def _as_reset(self) -> Reset:
        masks = None if self._masks is None else self._tensor(self._masks.copy())
        return Reset(self._tensor(self._obs.copy()), masks)

    def _tensor(self, array: np.ndarray) -> Tensor:
        """`[n, ...]` as `[P, N, ...]` on the device."""
        return torch.from_numpy(array).to(self.device).reshape(self.num_members, self.num_envs, *array.shape[1:])
