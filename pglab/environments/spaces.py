"""Between gymnasium's spaces and pglab's arrays: observations made flat vectors, encoded actions made the space's own.

Letters: n environments, O observation, D action dimensions (factors), K categories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from pglab.environments.contract import ActionSpec
from pglab.errors import PglabError


@dataclass(frozen=True)
class _Leaf:
    """One part of an observation, and the columns of the vector that it fills."""

    path: tuple[str | int, ...]  # keys and indices that lead to it in a batched Dict or Tuple observation
    begin: int
    end: int
    # One-hot parts only: the categories of each component, its first index, and its first column.
    sizes: np.ndarray | None = None
    start: np.ndarray | None = None
    offset: np.ndarray | None = None


class ObservationEncoder:
    """Flattens the batched observations of a vector environment as `gymnasium.spaces.flatten` does one by one."""

    def __init__(self, space: spaces.Space) -> None:
        self.space = space
        self._leaves = tuple(_leaves(space, space, (), 0))
        self.size = self._leaves[-1].end if self._leaves else 0

    def encode(self, batched_obs: Any, n: int) -> np.ndarray:
        """The observations of n environments as a new array `[n, O]` float32.

        Raises PglabError where a discrete observation lies outside of its space; NaN passes through.
        """
        out = np.zeros((n, self.size), dtype=np.float32)
        for leaf in self._leaves:
            part = batched_obs
            for key in leaf.path:
                part = part[key]
            flat = np.asarray(part).reshape(n, -1)
            if leaf.sizes is None:
                with np.errstate(over="ignore"):  # a float64 too large becomes inf, which the caller reports
                    out[:, leaf.begin : leaf.end] = flat
                continue
            index = flat - leaf.start
            if ((index < 0) | (index >= leaf.sizes)).any():
                raise PglabError(f"An observation lies outside of its space {self.space}: got {part!r}.")
            np.put_along_axis(out, index + leaf.offset, 1.0, axis=1)
        return out


def observation_encoder(space: spaces.Space) -> ObservationEncoder:
    """The encoder of a Box, Discrete, MultiDiscrete, MultiBinary, or of a Dict or Tuple of these (nested ones too).

    Raises PglabError for any other space.
    """
    return ObservationEncoder(space)


def _leaves(root: spaces.Space, space: spaces.Space, path: tuple[str | int, ...], begin: int) -> Iterator[_Leaf]:
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        yield _Leaf(path, begin, begin + int(np.prod(space.shape)))
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        sizes = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec).astype(np.int64)
        ends = begin + np.cumsum(sizes)
        start = np.ravel(space.start).astype(np.int64)
        yield _Leaf(path, begin, int(ends[-1]), sizes, start, ends - sizes)
    elif isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            for leaf in _leaves(root, part, (*path, key), begin):
                yield leaf
                begin = leaf.end
    else:
        raise PglabError(
            f"The observation space {root} is not supported ({type(space).__name__}): "
            "use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these."
        )


def action_spec(space: spaces.Space) -> ActionSpec:
    """What `space`'s actions are: Discrete, MultiDiscrete (ragged and of any rank), MultiBinary, or a Box of floats.

    Raises PglabError for any other space, for a Box of integers and for a Box bounded in some directions only.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", (int(space.n),), (), (int(space.start),), dtype=str(space.dtype))
    if isinstance(space, spaces.MultiDiscrete):
        sizes = tuple(int(n) for n in space.nvec.ravel())
        start = tuple(int(s) for s in space.start.ravel())
        return ActionSpec("discrete", sizes, space.shape, start, dtype=str(space.dtype))
    if isinstance(space, spaces.MultiBinary):
        return ActionSpec("binary", (2,) * int(np.prod(space.shape)), space.shape, dtype=str(space.dtype))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        sizes = (1,) * int(np.prod(space.shape))
        low, high = space.low.ravel(), space.high.ravel()
        if np.isfinite(low).all() and np.isfinite(high).all():
            return ActionSpec("continuous", sizes, space.shape, (), low.copy(), high.copy(), dtype=str(space.dtype))
        if np.isinf(low).all() and np.isinf(high).all():
            return ActionSpec("continuous", sizes, space.shape, dtype=str(space.dtype))
        raise PglabError(
            f"The action space {space} is bounded in some directions only: "
            "give it finite bounds in every dimension, or none at all."
        )
    raise PglabError(
        f"The action space {space} is not supported: use Discrete, MultiDiscrete, MultiBinary, "
        "or a Box of floats (bounded in every dimension or in none)."
    )


def to_env_actions(spec: ActionSpec, action: np.ndarray | Tensor) -> np.ndarray:
    """Encoded actions `[n, *event_shape]` as the environment takes them: `[n, *shape]` in the space's dtype and units.

    One-hots become indices counted from `start`, binaries are cut at 0.5, and where the space is bounded the box
    [-1, 1] is mapped onto it, values outside of [-1, 1] being clipped to it first.
    """
    values = action.detach().cpu().numpy() if isinstance(action, Tensor) else np.asarray(action)
    n = len(values)
    if spec.kind == "discrete":
        out = values.argmax(-1) + np.asarray(spec.start)  # [n, D]
    elif spec.kind == "binary":
        out = values > 0.5  # [n, D]
    elif spec.low is None or spec.high is None:
        out = values
    else:
        # In float64, where high - low of a float32 space cannot overflow; clipped again, for rounding to `dtype`.
        low, high = spec.low.astype(np.float64), spec.high.astype(np.float64)
        out = (low + high) / 2 + (high - low) / 2 * np.clip(values, -1, 1)
        out = np.clip(out, low, high)
    return out.astype(spec.dtype).reshape(n, *spec.shape)


def encode_action_mask(spec: ActionSpec, given: np.ndarray) -> np.ndarray:
    """Action masks as environments give them, as `[m, D, K]` bool, False also in padding.

    `given` has one row per environment: `[K]` for Discrete; for MultiDiscrete a tuple or list of one mask per factor
    (an array of objects then), or these joined end to end. Raises PglabError where the sizes do not fit.
    """
    rows = [_joined(row) for row in given] if given.dtype == object else list(given.reshape(len(given), -1))
    for row in rows:
        if row.size != sum(spec.sizes):
            raise PglabError(
                f"info['action_mask'] has {row.size} entries, but the action space has {sum(spec.sizes)} choices "
                f"(factors of {', '.join(map(str, spec.sizes))})."
            )
    real = np.arange(spec.categories)[None, :] < np.asarray(spec.sizes)[:, None]  # [D, K]
    out = np.zeros((len(rows), *real.shape), dtype=bool)
    if rows:
        out[:, real] = np.stack(rows) != 0
    return out


def _joined(mask: Any) -> np.ndarray:
    if isinstance(mask, tuple | list):
        return np.concatenate([_joined(part) for part in mask])
    return np.ravel(mask)
