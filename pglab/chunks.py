"""Rollouts of a torch-native environment in parts that are compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pglab.executors import Playing
from pglab.graphs import compiled_recording
from pglab.programs import FORMS, TOO_MANY, Recording, leaves


@dataclass(frozen=True)
class Part:
    """Where some steps' results are written."""

    columns: list[Tensor]  # [P, T, N, ...]
    into: Sequence[Sequence[Tensor]] | None  # hidden layers and output of every step
    fixed: list[Tensor]  # all of it, and the states, elapsed steps and observations


class Chunks:
    """Plays as `playing` does, at most `steps` steps at a time, by a function that is compiled once for all parts.

    What it returns lies in memory of its own, which the next rollout overwrites; ids of those tensors are added to `own`.
    `tell` hears of a part that cannot be compiled, and why.
    """

    def __init__(
        self, playing: Playing, steps: int, own: set[int], tell: Callable[[Callable[..., Any], str], object]
    ) -> None:
        self.playing, self.steps, self._own, self._tell = playing, steps, own, tell
        self._now: list[Tensor] = []  # states, elapsed steps and observations
        # By length and identity of `into`, which is held so that no other takes its identity.
        self._rollouts: dict[tuple[int, int], tuple[list[Tensor], list[Part], object]] = {}
        self._forms: dict[object, Callable[..., object]] = {}
        self._told: set[str] = set()

    def __call__(
        self,
        state: Tensor,
        elapsed: Tensor,
        obs: Tensor,
        noise: Tensor,
        resets: Tensor | None,
        into: Sequence[Sequence[Tensor]] | None,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """See `pglab.executors.Playing`."""
        now, known = [state, elapsed, obs], self._rollouts.get((len(noise), id(into)))
        if known is None:  # a first call sets up what is set up once
            *now, columns = self.playing(state, elapsed, obs, noise, resets, into)
            self._now = self._now or [x.clone() for x in now]
            self._rollouts[len(noise), id(into)] = columns, self._parts(len(noise), columns, into), into
            self._own |= {id(x) for x in (*self._now, *columns)}
        for mine, x in zip(self._now, now, strict=True):
            if mine is not x:
                mine.copy_(x)
        if known is not None:
            columns, parts, _ = known
            drawn = [x.split(self.steps) for x in (noise, resets) if x is not None]
            acting = self.playing.agent.acting_places()
            for part, given in zip(parts, zip(*drawn, strict=True), strict=True):
                key = acting, into is None, part.columns[0].stride(), *[(x.shape, x.stride()) for x in given]
                if key in self._forms:
                    self._forms[key](part, given)
                else:
                    self._forms[key] = self._compiled(part, given)
        return self._now[0], self._now[1], self._now[2], columns

    def _parts(self, length: int, columns: list[Tensor], into: Sequence[Sequence[Tensor]] | None) -> list[Part]:
        found = []
        for t in range(0, length, self.steps):
            now = slice(t, t + self.steps)
            mine, rows = [x[:, now] for x in columns], None if into is None else into[now]
            found.append(Part(mine, rows, [*self._now, *mine, *leaves(rows)]))
        return found

    def _play(self, part: Part, given: Sequence[Tensor]) -> None:
        """Some steps from where the environments stand, with their noise and, where there is one, the resets'."""
        (state, elapsed, obs), (noise, *resets) = self._now, given
        *now, columns = self.playing(state, elapsed, obs, noise, resets[0] if resets else None, part.into)
        for mine, x in zip((*self._now, *part.columns), (*now, *columns), strict=True):
            mine.copy_(x)

    def _compiled(self, part: Part, given: Sequence[Tensor]) -> Callable[..., object]:
        """Play, and make a function that does so for any part."""
        if len(self._forms) >= FORMS:
            why: str | None = TOO_MANY
            self._play(part, given)
        else:
            recording = Recording.of(self._play, part, given)
            why = recording.obstacle
        if why is not None:
            if why not in self._told:
                self._told.add(why)
                self._tell(self._play, why)
            return self._play
        compiled = compiled_recording(recording, [*part.fixed, *given])
        return lambda part, given: compiled([*part.fixed, *given])
