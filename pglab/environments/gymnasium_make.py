"""Making and closing gymnasium's vector environments, with errors in one sentence and no way to hang."""

from __future__ import annotations

import contextlib
import difflib
import queue
import time
from multiprocessing.connection import wait
from typing import Any, Literal

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from pglab.errors import PglabError, unknown

# Seconds that a worker has to close its environment, and that an exception has to come out of a worker.
PATIENCE = 5.0


class WithoutOptions(gymnasium.Wrapper):
    """Hides the empty dict of options that a masked reset leaves: resets are then the same in all autoreset modes."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options=options or None)


ASYNC_PAYS = 500e-6
"""Seconds a step of one environment must take before worker processes pay: sending an action and an observation through
a pipe takes some 50 to 100 microseconds, and worker processes begin their episodes again when a run is resumed."""


def choose_vectorization(
    env_id: str, n: int, kwargs: dict[str, Any] | None, max_episode_steps: int | None, cores: int
) -> tuple[Literal["sync", "async"], str]:
    """`sync` or `async` for `n` environments, from the time that steps of one take, and the reason in words.

    Raises:
        PglabError: as `make_vector`.
    """
    if n == 1 or cores == 1:
        return "sync", f"{n} environment{'s' * (n > 1)} on {cores} core{'s' * (cores > 1)}"
    vector = make_vector(env_id, 1, "sync", "next_step", kwargs, max_episode_steps)
    try:
        vector.action_space.seed(0)
        vector.reset(seed=0)
        times: list[float] = []
        while len(times) < 50 and sum(times) < 0.2:
            action = vector.action_space.sample()
            began = time.perf_counter()
            vector.step(action)
            times.append(time.perf_counter() - began)
    except Exception as error:
        raise PglabError(f"Environment {env_id!r} failed at a step: {type(error).__name__}: {error}") from error
    finally:
        vector.close()
    step = sorted(times)[len(times) // 2]
    chosen: Literal["sync", "async"] = "async" if step > ASYNC_PAYS else "sync"
    return chosen, f"a step takes {step * 1e6:.0f} us, worker processes pay above {ASYNC_PAYS * 1e6:.0f} us"


def make_vector(
    env_id: str,
    n: int,
    vectorization: str,
    autoreset_mode: str,
    kwargs: dict[str, Any] | None,
    max_episode_steps: int | None,
) -> SyncVectorEnv | AsyncVectorEnv:
    """`n` environments as gymnasium's own vector environment.

    The vectorization is always named: left to choose, gymnasium takes the environment's own vector class if there is
    one, and CartPole's ignores `reset_mask`.

    Raises:
        PglabError: an unknown id or mode, or whatever making the environment raises.
    """
    if vectorization not in ("sync", "async"):
        raise unknown("vectorization", vectorization, ("sync", "async"))
    modes = {mode.name.lower(): mode for mode in AutoresetMode}
    if autoreset_mode not in modes:
        raise unknown("autoreset mode", autoreset_mode, modes)
    limit: dict[str, Any] = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    try:
        vector = gymnasium.make_vec(
            env_id,
            num_envs=n,
            vectorization_mode=vectorization,
            vector_kwargs={"autoreset_mode": modes[autoreset_mode]},
            wrappers=(WithoutOptions,),
            **limit,
            **(kwargs or {}),
        )
    except gymnasium.error.UnregisteredEnv as error:
        raise PglabError(f"Unknown environment {env_id!r}: gymnasium has none of that id.{_nearest(env_id)}") from error
    except ImportError as error:  # of the package that registers it, or of one that it needs
        raise PglabError(f"Environment {env_id!r} cannot be imported: {error}") from error
    except Exception as error:
        raise PglabError(f"Environment {env_id!r} cannot be made: {type(error).__name__}: {error}") from error
    assert isinstance(vector, SyncVectorEnv | AsyncVectorEnv)
    if isinstance(vector, AsyncVectorEnv):
        _limit_waiting(vector.error_queue)
    return vector


def dead_workers(vector: VectorEnv) -> str:
    """Which worker processes of `vector` have ended, in words; empty if none has."""
    if not isinstance(vector, AsyncVectorEnv) or vector.closed:
        return ""
    # A process ends in steps: first its pipes, then the sentinel, then it has an exit code.
    ready = wait([process.sentinel for process in vector.processes], timeout=1.0)
    for process in vector.processes:
        if process.sentinel in ready:
            process.join(1.0)
    ended = [f"{i} (exit code {p.exitcode})" for i, p in enumerate(vector.processes) if p.exitcode is not None]
    return f"the worker process of environment {', '.join(ended)} died" if ended else ""


def close_vector(vector: VectorEnv) -> None:
    """Close `vector`, whatever became of its worker processes. Closing twice does nothing.

    `AsyncVectorEnv.close` waits forever for a worker that has died or hangs. Here all get the command to close and some
    seconds to follow it, and are then ended.
    """
    if vector.closed:
        return
    if isinstance(vector, AsyncVectorEnv):
        for pipe in vector.parent_pipes:
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(OSError):  # the worker is dead
                    pipe.send(("close", None))
        deadline = time.monotonic() + PATIENCE
        for process in vector.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
        vector._state = AsyncState.DEFAULT  # else it would wait for the answer to a command under way
        vector.close(terminate=True)
    else:
        vector.close()


def _limit_waiting(errors: Any) -> None:
    """Keep gymnasium from waiting forever for a worker's exception that cannot be pickled, and so never arrives."""
    get = errors.get

    def get_soon() -> Any:
        try:
            return get(True, PATIENCE)
        except queue.Empty:
            raise RuntimeError("an exception that cannot be sent between processes; it is printed above") from None

    errors.get = get_soon


def _nearest(env_id: str) -> str:
    env_id = env_id.rpartition(":")[2]
    ids = {name.lower(): name for name in gymnasium.registry}
    near = difflib.get_close_matches(env_id.lower(), ids, n=1)
    return f" Did you mean {ids[near[0]]!r}?" if near else ""
