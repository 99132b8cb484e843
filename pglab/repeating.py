"""Executors that repeat a function instead of calling it: programs, compiled code, CUDA graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pglab.chunks import Chunks
from pglab.executors import Block, Executor, OfTensors, Play, Played, Playing
from pglab.graphs import compiled_recording
from pglab.programs import FORMS, TOO_MANY, Program, Recording, leaves, likewise, mapped, same, write_again

FEW = 200
"""Functions of fewer operations stay programs: a compiled one saves nothing that is worth the seconds."""


@dataclass
class Held:
    """What is known of one form of a function."""

    inputs: list[Tensor] = field(default_factory=list)
    """What a repetition reads."""
    places: list[Tensor | None] = field(default_factory=list)
    """Where they are written to; None for what is there already."""
    repeat: Callable[[], object] | None = None
    recording: Recording | None = None
    result: Any = None
    checked: bool = False
    as_it_is: bool = False
    """It is called, always."""


class Repeating(OfTensors, ABC):
    """Functions are called once, since a first call sets up what is set up once, captured at their second call and repeated
    from then on. Where one keeps changing, or cannot be captured, it is called as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[Callable[..., Any], dict[object, Held]] = {}
        self._full: set[Callable[..., Any]] = set()
        """Functions of which there are forms that are not repeated."""
        self._own: set[int] = set()
        """Ids of the tensors that captured functions returned, which stay where they are."""

    @abstractmethod
    def capture(self, held: Held, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        """Call the function once, and set `held.repeat` to what repeats it on `held.inputs`; or `held.as_it_is`. Returns the
        result, which every repetition overwrites."""

    def check(self, held: Held, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        """The third call: whether repeating is the same as calling may be looked at. Returns the result."""
        return self.repeat(held, inputs)

    def make(self, playing: Playing, length: int) -> Play:
        return playing

    def play(self, block: Block, *now: Any) -> Played:
        played: Played = self.call(block, *now, key=block.key())
        return played

    def kept(self, tree: Any) -> Any:
        return mapped(tree, torch.clone)

    def call(self, function: Callable[..., Any], *inputs: Any, key: object = None) -> Any:
        given = leaves(inputs)
        forms, key = self._held.setdefault(function, {}), (key, *[(x.shape, x.stride(), x.dtype) for x in given])
        held = forms.get(key)
        if held is None:
            if len(forms) < FORMS:
                forms[key] = Held()
            elif function not in self._full:
                self._full.add(function)
                self._tell(function, TOO_MANY)
            return self.first(function, inputs)
        if held.as_it_is:
            return function(*inputs)
        if held.repeat is None:
            # What another captured function made is always in the same place; anything else is copied.
            pairs = [(x, None) if id(x) in self._own else likewise(x) for x in given]
            held.inputs, held.places = [x for x, _ in pairs], [place for _, place in pairs]
            copies = iter(held.inputs)
            result = self.capture(held, function, [mapped(x, lambda _: next(copies)) for x in inputs])
            if held.repeat is not None:
                held.result = result
                self._own |= {id(x) for x in leaves(result) if self.made(held, x)}
            return result
        if not held.checked:
            result = self.check(held, function, inputs)
            held.checked = True
            return result
        return self.repeat(held, inputs)

    def _tell(self, function: Callable[..., Any], why: str) -> None:
        block = getattr(function, "__self__", function)
        if isinstance(block, Block) and block.then is not None:
            block.apart = True  # the block alone may be repeated, and what follows from it says for itself if it is not
            return
        name = getattr(function, "__name__", type(function).__name__).strip("_").removesuffix("_after")
        self.note(f"Part {name!r} runs operation by operation: {why}.")

    def _give_up(self, held: Held, function: Callable[..., Any], why: str) -> None:
        held.as_it_is, held.repeat, held.recording = True, None, None
        self._tell(function, why)

    def made(self, held: Held, x: Tensor) -> bool:
        """Whether a captured function made this result itself, where nobody else writes."""
        return not any(x.untyped_storage()._cdata == y.untyped_storage()._cdata for y in held.inputs)

    def first(self, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        """The first call."""
        return function(*inputs)

    def repeat(self, held: Held, inputs: Sequence[Any]) -> Any:
        """Repeat the function on these inputs."""
        assert held.repeat is not None
        places, given = [], []
        for x, place, y in zip(held.inputs, held.places, leaves(inputs), strict=True):
            if x is not y:
                places.append(x if place is None else place)
                given.append(y)
        if places:
            write_again(places, given)
        held.repeat()
        return held.result


class Programs(Repeating):
    """As programs (see `pglab.programs`): the same operations, bit for bit the same results, without what surrounds an
    operation. Before a program is relied on it is compared with its function."""

    name = "program"

    def capture(self, held: Held, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        recording = Recording.of(function, *inputs)
        why = recording.obstacle
        if why is None:
            try:
                held.repeat = Program(recording).run
                held.recording = recording
            except (RuntimeError, TypeError, ValueError) as error:
                why = f"it cannot be repeated ({str(error).splitlines()[0]})"
        if why is not None:
            self._give_up(held, function, why)
        return recording.result

    def made(self, held: Held, x: Tensor) -> bool:
        assert held.recording is not None
        memory = x.untyped_storage()._cdata
        return any(memory == y.untyped_storage()._cdata for y in held.recording.kept.values())

    def check(self, held: Held, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        assert held.recording is not None
        changed = held.recording.changed
        with torch.no_grad():
            before = [x.clone() for x in changed]
        result = function(*inputs)
        with torch.no_grad():
            expected = [x.clone() for x in (*leaves(result), *changed)]
            for x, y in zip(changed, before, strict=True):
                x.copy_(y)
            try:
                repeated = self.repeat(held, inputs)
                if same([*leaves(repeated), *changed], expected):
                    return repeated
                why = "repeated it gives other numbers"
            except (RuntimeError, TypeError, ValueError) as error:
                why = f"repeating it fails: {str(error).splitlines()[0]}"
            for x, y in zip(changed, expected[len(leaves(result)) :], strict=True):
                x.copy_(y)
        self._give_up(held, function, why)
        return result


class Compiled(Programs):
    """Compiled by torch's compiler: rollouts in chunks of at most `chunk` steps, and the programs of whatever else has many
    operations. Shorter rollouts are programs, of which a call costs less.

    Compiling takes some tens of seconds the first time.
    """

    name = "compile"
    chunk = 8

    def __init__(self) -> None:
        super().__init__()
        self._chunks: Chunks | None = None

    def another(self) -> Executor:
        return Programs()  # compiling takes longer than it would save

    def make(self, playing: Playing, length: int) -> Play:
        if length < self.chunk:
            return playing
        chunks = self._chunks
        if chunks is None or chunks.playing.agent is not playing.agent or chunks.playing.env is not playing.env:
            self._chunks = chunks = Chunks(playing, self.chunk, self._own, self._tell)
        return chunks

    def play(self, block: Block, *now: Any) -> Played:
        if not isinstance(block.play, Chunks):
            return super().play(block, *now)
        block.join = self.call
        return block(*now)

    def check(self, held: Held, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        result = super().check(held, function, inputs)
        if held.recording is not None and len(held.recording.operations) >= FEW:
            compiled = compiled_recording(held.recording)
            held.repeat = lambda: compiled(())
        return result


class CudaGraph(Repeating):
    """Captured as CUDA graphs: one launch for a rollout, and one for the update."""

    name = "cudagraph"

    def first(self, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        # Libraries set themselves up at a first call, which cannot be captured, and do so for each stream.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def capture(self, held: Held, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                result = function(*inputs)
        except RuntimeError as error:
            self._give_up(held, function, f"it cannot be captured ({str(error).splitlines()[0]})")
            return function(*inputs)
        graph.replay()  # a capture does nothing by itself
        held.repeat = graph.replay
        return result
