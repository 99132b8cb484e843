"""Noise as a function: every random block is a pure function of (member, purpose, counter).

A member of the population is named by its seed (and, in measurements, by a prefix that tells replicates apart). A block
of noise is drawn from `numpy.random.SeedSequence(seed, spawn_key=(purpose, *prefix, *counter))`, so

- the same seed under two estimators sees the same noise (common random numbers);
- a member's noise does not depend on who else is in the population, nor on its position in it;
- a checkpoint holds counters, never generator states.

Drawing is done by numpy on the host, in float32 or float64, and copied to the device: the same numbers on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

Counter = tuple[int, ...]


class Purpose(IntEnum):
    """What a block of noise is for. The numbers are part of every result: never renumber, only append."""

    PARAMETERS = 0  # initial weights of the networks
    ACTION = 1  # the noise that makes the rollout's actions
    EXTRA = 2  # further noise an estimator asks for
    RESET = 3  # initial states of torch-native environments
    ENVIRONMENT = 4  # integer seeds of gymnasium environments
    REPLAY = 5  # which transitions a minibatch takes from the replay
    UPDATE = 6  # actions drawn anew at an update (actor-critic)
    TARGET = 7  # actions drawn for the critic's target
    MINIBATCH = 8  # the order of the rows of an on-policy batch
    EVALUATION = 9  # evaluation episodes
    BLEND = 10  # weights that blend actions for the critic
    MEASUREMENT = 11  # replicates of the variance measurement
    FIT = 12  # what estimators and baselines are fitted on before a plain objective's estimates


APART = 2**31
"""Counters stay below this, so a prefix that starts from it cannot meet a counter of training."""


@dataclass(frozen=True)
class Member:
    """One member of the population: `seed`, and a `prefix` that keeps its replicates' noise apart (empty in training)."""

    seed: int
    prefix: Counter = ()


def generator(member: Member, purpose: Purpose, counter: Counter) -> np.random.Generator:
    """The numpy generator of one block. A pure function of its arguments."""
    key = (int(purpose), *member.prefix, *counter)
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(member.seed, spawn_key=key)))


Draw1 = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Noise:
    """The noise of a whole population.

    Every method returns a tensor whose member axis stands at `axis` (default 0) of `shape`, the shape for *one* member
    standing around it: `uniform(p, c, (T, N), axis=1)` is `[T, P, N]`.
    """

    members: tuple[Member, ...]
    device: torch.device = torch.device("cpu")

    @classmethod
    def of_seeds(cls, seeds: Sequence[int], device: torch.device | str = "cpu") -> Noise:
        return cls(tuple(Member(int(s)) for s in seeds), torch.device(device))

    def __len__(self) -> int:
        return len(self.members)

    def apart(self, purpose: Purpose, *prefix: int) -> Noise:
        """The same members with noise that training never draws (for evaluation and measurement)."""
        return Noise(tuple(Member(m.seed, (APART + purpose, *prefix)) for m in self.members), self.device)

    def replicated(self, replicates: range) -> Noise:
        """Each member once for every number in `replicates`, in a row, each with noise of its own."""
        return Noise(tuple(Member(m.seed, (*m.prefix, r)) for m in self.members for r in replicates), self.device)

    def _block(self, draw: Draw1, purpose: Purpose, counter: Counter, shape: tuple[int, ...], axis: int) -> Tensor:
        blocks = [draw(generator(member, purpose, counter), shape) for member in self.members]
        # The member comes first in memory, as in all that a network reads.
        return torch.from_numpy(np.stack(blocks)).to(self.device).movedim(0, axis)

    def uniform(
        self, purpose: Purpose, counter: Counter, shape: tuple[int, ...], axis: int = 0, dtype: type = np.float32
    ) -> Tensor:
        """Uniform on the open interval (0, 1): zero is lifted to the smallest step, one cannot occur."""
        step = np.finfo(dtype).eps / 2

        def draw(g: np.random.Generator, s: tuple[int, ...]) -> np.ndarray:
            return np.maximum(g.random(s, dtype=dtype), step)

        return self._block(draw, purpose, counter, shape, axis)

    def normal(
        self, purpose: Purpose, counter: Counter, shape: tuple[int, ...], axis: int = 0, dtype: type = np.float32
    ) -> Tensor:
        """Standard normal."""
        return self._block(lambda g, s: g.standard_normal(s, dtype=dtype), purpose, counter, shape, axis)

    def exponential(
        self, purpose: Purpose, counter: Counter, shape: tuple[int, ...], axis: int = 0, dtype: type = np.float32
    ) -> Tensor:
        """Standard exponential, clamped off zero so that -log of it (a Gumbel) is finite."""
        tiny = np.finfo(dtype).tiny

        def draw(g: np.random.Generator, s: tuple[int, ...]) -> np.ndarray:
            return np.maximum(g.standard_exponential(s, dtype=dtype), tiny)

        return self._block(draw, purpose, counter, shape, axis)

    def integers(self, purpose: Purpose, counter: Counter, shape: tuple[int, ...], high: int, axis: int = 0) -> Tensor:
        """Integers of [0, high), int64."""
        return self._block(lambda g, s: g.integers(high, size=s), purpose, counter, shape, axis)

    def of_kind(
        self,
        kind: str,
        purpose: Purpose,
        counter: Counter,
        shape: tuple[int, ...],
        axis: int = 0,
        dtype: type = np.float32,
    ) -> Tensor:
        """The kind of noise a distribution names: `exponential`, `uniform` or `normal`."""
        return {"exponential": self.exponential, "uniform": self.uniform, "normal": self.normal}[kind](
            purpose, counter, shape, axis, dtype
        )


class ChunkedNoise:
    """Small blocks that are wanted one after another, drawn many at a time: the i-th block of a purpose is row i % size
    of chunk i // size, still a pure function of (member, purpose, i)."""

    def __init__(self, noise: Noise, size: int = 64) -> None:
        self.noise, self.size = noise, size
        self._chunks: dict[tuple[Purpose, int, str, tuple[int, ...]], tuple[int, Tensor]] = {}

    def take(self, kind: str, purpose: Purpose, index: int, shape: tuple[int, ...], stream: int = 0) -> Tensor:
        """Block number `index`, `[P, *shape]`; `stream` tells several uses of one purpose apart."""
        chunk, row = divmod(index, self.size)
        use = (purpose, stream, kind, shape)
        held = self._chunks.get(use)
        if held is None or held[0] != chunk:
            held = (chunk, self.noise.of_kind(kind, purpose, (chunk, stream), (self.size, *shape), axis=1))
            self._chunks[use] = held
        return held[1][row]
