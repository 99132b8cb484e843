"""A recording (see `pglab.programs`) as a graph for torch's compiler, which so gets forward and backward pass together without
having to understand Python."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pglab.programs import Operation, Recording, Value, leaves

aten = torch.ops.aten

OPTIONS: dict[str, Any] = {"cpp_wrapper": True}
"""The C++ wrapper spares some 20 Python calls a step of a rollout."""

PRODUCTS = (aten.bmm.default, aten.baddbmm.default)
PLACES = (aten.argmax.default, aten.argmin.default)
THIN = 4
"""A product over so few columns is written as a sum for a compiler, which makes it with what comes before and after."""


def _product(graph: torch.fx.Graph, op: Operation, swapped: Callable[[Any], Any]) -> torch.fx.Node:
    """A batched product as a compiler makes most of it: thin operands as operations element by element, and what is added
    afterwards, where it is added with what follows."""
    *bias, a, b = op.args
    inner, rows, columns = _size(a)[2], _size(a)[1], _size(b)[2]
    x, y = swapped(a), swapped(b)

    def call(function: Any, *args: Any) -> torch.fx.Node:
        return graph.call_function(function, args)

    def part(z: torch.fx.Node, dim: int, i: int) -> torch.fx.Node:
        return call(aten.slice.Tensor, z, dim, i, i + 1)

    def summed(p: torch.fx.Node, q: torch.fx.Node) -> torch.fx.Node:
        return call(aten.sum.dim_IntList, call(aten.mul.Tensor, p, q), [2])

    if inner <= THIN:
        total = call(aten.mul.Tensor, part(x, 2, 0), part(y, 1, 0))
        for i in range(1, inner):
            total = call(aten.add.Tensor, total, call(aten.mul.Tensor, part(x, 2, i), part(y, 1, i)))
    elif rows <= THIN // 2 and inner <= WIDE:
        turned = call(aten.transpose.int, y, 1, 2)  # [P, columns, inner]
        total = call(aten.stack.default, [summed(turned, part(x, 1, i)) for i in range(rows)], 1)
    elif columns <= THIN and inner <= WIDE:
        turned = call(aten.transpose.int, y, 1, 2)
        total = call(aten.stack.default, [summed(x, part(turned, 1, i)) for i in range(columns)], 2)
    else:
        total = call(aten.bmm.default, x, y)
    if bias:
        scale = {"beta": 1, "alpha": 1} | op.kwargs
        if scale["alpha"] != 1:
            total = call(aten.mul.Tensor, total, scale["alpha"])
        offset = swapped(bias[0])
        total = call(
            aten.add.Tensor, total, offset if scale["beta"] == 1 else call(aten.mul.Tensor, offset, scale["beta"])
        )
    return total


def _size(x: Value | Tensor) -> tuple[int, ...]:
    return tuple(x.size) if isinstance(x, Value) else tuple(x.size())


WIDE = 128
"""A row times a matrix of at most so many rows is written as a sum too."""


def compiled_recording(recording: Recording, given: Sequence[Tensor] = ()) -> Callable[[Sequence[Tensor]], None]:
    """The recording compiled, as a function of tensors that lie as those `given` do and take their places; whatever else it
    reads or writes is where it was."""
    graph, memory = as_graph(recording, given)
    # Where those that are given lie within a memory, and beside what, is no part of what is compiled.
    alike = [torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device) for x in given]
    with torch.no_grad():
        compiled = torch._inductor.compile(graph, [*memory, *alike], options=OPTIONS)

    def run(given: Sequence[Tensor]) -> None:
        with torch.no_grad():
            compiled(*memory, *given)

    return run


def as_graph(recording: Recording, given: Sequence[Tensor] = ()) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """The recording as a graph for a compiler, and the tensors that it is a function of besides those `given`, which come
    last: one for each memory that it reads or writes. It writes where the function wrote, and to all that somebody holds on
    to. Memory that the `given` ones lie in is reached through them alone."""
    graph = torch.fx.Graph()
    tensors: list[Tensor] = []
    bases: dict[int, torch.fx.Node] = {}
    shapes: dict[torch.fx.Node, tuple[int, ...]] = {}
    nodes: dict[int, torch.fx.Node] = {}  # by id of the value or tensor

    def base(x: Tensor) -> torch.fx.Node:
        storage = x.untyped_storage()
        if storage._cdata not in bases:
            whole = x.detach()
            if not x.is_contiguous() or x.numel() * x.element_size() != storage.nbytes():
                whole = torch.empty(0, dtype=x.dtype, device=x.device)
                whole.set_(storage, 0, (storage.nbytes() // x.element_size(),), (1,))
            tensors.append(whole)
            bases[storage._cdata] = graph.placeholder(f"memory_{len(tensors)}")
            shapes[bases[storage._cdata]] = tuple(whole.size())
        return bases[storage._cdata]

    def lying(x: Tensor | Value, at: torch.fx.Node) -> torch.fx.Node:
        if isinstance(x, Tensor) and x.is_contiguous() and tuple(x.size()) == shapes.get(at):
            return at
        size, stride, offset = (
            (x.size, x.stride, x.offset)
            if isinstance(x, Value)
            else (list(x.size()), list(x.stride()), x.storage_offset())
        )
        return graph.call_function(aten.as_strided.default, (at, list(size), list(stride), offset))

    # Placeholders come before everything else.
    theirs = {x.untyped_storage()._cdata for x in given}
    for op in recording.operations:
        for x in leaves([op.args, op.kwargs, op.results]):
            if x.untyped_storage()._cdata not in theirs:
                base(x)
    homes = {number: base(x) for number, x in recording.kept.items()}
    nodes |= {id(x): graph.placeholder(f"given_{i}") for i, x in enumerate(given)}

    def node(x: Value | Tensor) -> torch.fx.Node:
        if id(x) not in nodes:
            assert isinstance(x, Tensor)
            nodes[id(x)] = lying(x, base(x))
        return nodes[id(x)]

    def swapped(tree: Any) -> Any:
        if isinstance(tree, (Value, Tensor)):
            return node(tree)
        if isinstance(tree, dict):
            return {key: swapped(x) for key, x in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(swapped(x) for x in tree)
        return tree

    last: dict[int, Value] = {}
    for op in recording.operations:
        if op.function in PRODUCTS:
            made = _product(graph, op, swapped)
        else:
            args = tuple(swapped(op.args))
            if op.function in PLACES and op.args[0].dtype.itemsize < 4:
                # Among equal bytes torch's compiler takes one that is not there (torch 2.13).
                wider = torch.float32 if op.args[0].dtype.is_floating_point else torch.int32
                args = (graph.call_function(aten._to_copy.default, args[:1], {"dtype": wider}), *args[1:])
            made = graph.call_function(op.function, args, swapped(op.kwargs))
        if op.kind == "changes":
            continue
        several = len(op.function._schema.returns) > 1 or isinstance(
            op.function._schema.returns[0].type, torch.ListType
        )
        for i, v in enumerate(op.results):
            nodes[id(v)] = graph.call_function(operator.getitem, (made, i)) if several else made
            if isinstance(v, Value) and op.kind != "view":
                last[v.memory] = v
    for number, home in homes.items():
        v = last[number]
        graph.call_function(aten.copy_.default, (lying(v, home), nodes[id(v)]))
    graph.output(())
    return torch.fx.GraphModule(torch.nn.Module(), graph), tensors
