"""A function of tensors as the list of torch operations that it makes, on memory that is allocated once.

Small networks are bound by what surrounds an operation: Python, torch's dispatcher and its graph, memory that is asked for
and given back. A function that makes the same operations at every call is *recorded* once, below torch's graph (so a
backward pass is recorded like a forward pass), and from then on only its operations are repeated: views are made
beforehand, every result is written to memory that was planned from how long it is needed. What a CUDA graph is to a GPU,
a program is to a CPU, and the same rules hold:

- tensors that the function reads elsewhere than from its inputs are read where they lie: they may be written to between
  calls, but not replaced;
- so what it changes for good, it changes in place;
- numbers are not read from tensors, and nothing else that differs from call to call decides what is done.

A recording that reads a number says so in `Recording.obstacle`; most of what else breaks the rules shows when a program is
compared with its function, bit for bit, which `pglab.repeating.Programs` does before it relies on one. What does not: a tensor
that is replaced and seen by nobody, and what differs for the first time after that comparison.
"""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
"""Operations that allocate and do nothing more."""
FACTORIES = EMPTY | {
    "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full", "arange",
    "scalar_tensor", "eye",
}  # fmt: skip
"""Operations whose result does not depend on what any tensor holds."""
COPIES = {"clone", "_to_copy", "lift_fresh_copy"}
"""Operations that are `copy_` to where the result lies."""
READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "item", "masked_select", "unique_dim", "_unique2"}
"""Operations that tell the host something, or whose result's shape depends on what tensors hold."""

FORMS = 8
"""So many forms of a function (other shapes of its inputs, other places of what it reads or changes) are repeated; further
ones are called as they are."""
TOO_MANY = f"it has taken more than {FORMS} forms; further ones are not repeated"

QUICK = {
    name: getattr(torch, name)
    for name in (
        "add", "sub", "mul", "div", "neg", "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos", "abs", "sign", "pow",
        "square", "reciprocal", "floor", "baddbmm", "bmm", "sum", "mean", "amax", "amin", "argmax", "argmin", "cumsum", "cat",
        "where", "gather", "lerp", "addcmul", "addcdiv", "clamp", "clamp_min", "clamp_max", "minimum", "maximum", "eq", "ne",
        "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "bitwise_not", "bitwise_and", "bitwise_or",
        "remainder", "any", "all", "index_select", "log1p", "expm1", "erf", "atan2", "fmod",
    )
}  # fmt: skip
"""torch's own Python functions, which cost half a microsecond less a call than the operations that they are."""
REDUCTIONS = {"sum", "mean", "any", "all", "prod"}
QUICK_IN_PLACE = {
    name: getattr(Tensor, name)
    for name in (
        "add_", "sub_", "mul_", "div_", "neg_", "exp_", "sqrt_", "sigmoid_", "tanh_", "lerp_", "addcmul_", "clamp_", "copy_",
        "fill_", "zero_", "masked_fill_", "scatter_", "clamp_min_", "clamp_max_",
    )
}  # fmt: skip


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree of mappings, sequences and dataclasses, in order; whatever else it holds is passed over."""
    found: list[Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
        return
    parts: Iterable[Any]
    if isinstance(tree, dict):
        parts = tree.values()
    elif isinstance(tree, (list, tuple)):
        parts = tree
    elif hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        parts = vars(tree).values()
    else:
        return
    for part in parts:
        if isinstance(part, Tensor):
            found.append(part)
        elif part is not None:
            _gather(part, found)


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tree (see `leaves`) with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        made = [mapped(value, change) for value in tree]
        return type(tree)(*made) if hasattr(tree, "_fields") else type(tree)(made)
    if hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        new = {name: mapped(part, change) for name, part in vars(tree).items() if leaves(part)}
        return replace(tree, **new) if new else tree
    return tree


@dataclass(eq=False)
class Value:
    """A tensor that the function made: where it lies in which memory."""

    memory: int
    """Number of the memory; tensors that are views of each other share one."""
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device


@dataclass
class Operation:
    """One operation. Tensors among its arguments are `Value`s where the function made them, themselves otherwise."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Value | Tensor]
    kind: str
    """`view` of an argument; `constant`, whatever tensors hold; `changes` an argument; `makes` its results anew."""
    constant: Tensor | None = None
    """What a `constant` that is written to later begins as."""


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Watched] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No compiler is at work here, so torch's need not be imported (most of a second) to be told to stay away."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A copy of what a constant begins as: it may be written to later.
        name = _name(func)
        begins = out.clone() if name in FACTORIES and name not in EMPTY and isinstance(out, Tensor) else None
        # Tensors are held until the recording is over, so that no two of them lie at the same place.
        self.calls.append((func, args, kwargs or {}, out, begins))
        return out


def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__)


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@dataclass
class Recording:
    """What a function did, and what it returned."""

    operations: list[Operation]
    kept: dict[int, Tensor]
    """Memory that somebody holds on to, by number, with a tensor that lies in it: it has to stay where it is."""
    changed: list[Tensor]
    """Tensors of others that the function wrote to."""
    result: Any
    obstacle: str | None = None
    """Why it cannot be repeated, or None."""

    @classmethod
    def of(cls, function: Callable[..., Any], *inputs: Any) -> Recording:
        """Call the function, and record what it does."""
        with _Watch() as watch:
            result = function(*inputs)
        try:
            found, made = _understood(watch.calls, result)
        except (RuntimeError, TypeError) as error:  # a tensor without memory of its own, for one
            return cls([], {}, [], result, f"it cannot be recorded ({str(error).splitlines()[0]})")
        watch.calls.clear()
        gc.collect(1)  # what was made since is young
        for number, x in made:
            alive = x()
            if alive is not None:
                found.kept[number] = alive
        return found


Watched = tuple[Any, tuple[Any, ...], dict[str, Any], Any, Tensor | None]
"""An operation, its arguments, keywords and result, and a copy of what a constant begins as."""


def _understood(calls: list[Watched], result: Any) -> tuple[Recording, list[tuple[int, weakref.ref[Tensor]]]]:
    """A recording of these calls, which holds none of the tensors that they made, and those tensors, by their memory."""
    recording = Recording([], {}, [], result)
    values: dict[int, Value] = {}  # by id of the tensor
    made: set[int] = set()  # memory that the function made
    numbers: dict[int, int] = {}  # of that memory
    changed: dict[int, Tensor] = {}
    written = {
        _memory(x)
        for func, args, kwargs, _, _ in calls
        if func._schema.is_mutable
        for x in _written(func, args, kwargs)
    }

    def value(x: Tensor) -> Value | Tensor:
        if _memory(x) not in made:
            return x
        if id(x) not in values:
            number = numbers.setdefault(_memory(x), len(numbers))
            values[id(x)] = Value(
                number, tuple(x.size()), tuple(x.stride()), int(x.storage_offset()), x.dtype, x.device
            )
        return values[id(x)]

    for func, args, kwargs, out, begins in calls:
        name, results = _name(func), leaves([out])
        if name in READS:
            recording.obstacle = recording.obstacle or f"it reads numbers from tensors ({name})"
            continue
        varies = torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags
        if name == "index":  # by a mask, not by numbers
            varies = any(x.dtype in (torch.bool, torch.uint8) for x in leaves(args[1]))
        if varies:
            recording.obstacle = recording.obstacle or f"what tensors hold decides on the shape of a result ({name})"
        if torch.Tag.nondeterministic_seeded in func.tags:
            recording.obstacle = recording.obstacle or f"it draws random numbers itself ({name})"
        given = {_memory(x) for x in leaves([args, kwargs])}
        if func._schema.is_mutable:
            kind = "changes"
            changed |= {id(x): x for x in _written(func, args, kwargs) if _memory(x) not in made}
        elif results and all(_memory(x) in given for x in results):
            kind = "view"
        elif name in FACTORIES:
            kind = "constant"
            if all(_memory(x) not in written for x in results):
                continue  # nobody writes to it: it is read where it lies
            made |= {_memory(x) for x in results}
        else:
            kind = "makes"
            made |= {_memory(x) for x in results}
        operation = Operation(
            func, _swapped(args, value), _swapped(kwargs, value), [value(x) for x in results], kind, begins
        )
        recording.operations.append(operation)
    recording.changed = list(changed.values())
    tensors = {id(x): x for _, args, kwargs, out, _ in calls for x in leaves([args, kwargs, out])}
    return recording, [(numbers[_memory(x)], weakref.ref(x)) for x in tensors.values() if _memory(x) in numbers]


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kinds: Any = Tensor) -> list[Any]:
    """The tensors (or other `kinds` that stand for them) that a call writes to."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [x for x in (given if isinstance(given, (list, tuple)) else [given]) if isinstance(x, kinds)]
    return found


def _swapped(tree: Any, value: Callable[[Tensor], Any]) -> Any:
    if isinstance(tree, Tensor):
        return value(tree)
    if isinstance(tree, dict):
        return {key: _swapped(x, value) for key, x in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_swapped(x, value) for x in tree)
    return tree


def _values(tree: Any) -> list[Value]:
    if isinstance(tree, Value):
        return [tree]
    if isinstance(tree, dict):
        return [v for x in tree.values() for v in _values(x)]
    if isinstance(tree, (list, tuple)):
        return [v for x in tree for v in _values(x)]
    return []


class Program:
    """A recording's operations on memory of their own. `run` repeats them."""

    def __init__(self, recording: Recording) -> None:
        self.memory = 0
        """Bytes planned for what is not needed afterwards."""
        operations = _needed(recording)
        last: dict[int, int] = {}  # the last operation that needs each memory
        for i, op in enumerate(operations):
            for v in _values([op.args, op.kwargs, op.results]):
                last[v.memory] = i
        ends: defaultdict[int, list[int]] = defaultdict(list)
        for number, i in last.items():
            ends[i].append(number)
        extent: dict[int, int] = {}  # bytes of each memory
        for op in operations:
            for v in _values([op.args, op.kwargs, op.results]):
                extent[v.memory] = max(extent.get(v.memory, 0), _extent(v))
        storage: dict[int, Any] = {number: x.untyped_storage() for number, x in recording.kept.items()}
        free: defaultdict[tuple[int, torch.device], list[Any]] = defaultdict(list)
        tensors: dict[int, Tensor] = {}  # by id of the value

        def place(v: Value) -> None:
            if v.memory in storage:
                return
            key = (extent[v.memory], v.device)
            if free[key]:
                storage[v.memory] = free[key].pop()
            else:
                storage[v.memory] = torch.empty(key[0], dtype=torch.uint8, device=v.device).untyped_storage()
                self.memory += key[0]

        def tensor(v: Value | Tensor) -> Tensor:
            if isinstance(v, Tensor):
                return v
            if id(v) not in tensors:
                place(v)
                with torch.no_grad():
                    x = torch.empty(0, dtype=v.dtype, device=v.device)
                    tensors[id(v)] = x.set_(storage[v.memory], v.offset, v.size, v.stride)
            return tensors[id(v)]

        def concrete(tree: Any) -> Any:
            if isinstance(tree, Value):
                return tensor(tree)
            if isinstance(tree, dict):
                return {key: concrete(x) for key, x in tree.items()}
            if isinstance(tree, (list, tuple)):
                return type(tree)(concrete(x) for x in tree)
            return tree

        self._calls: list[Call] = []
        for i, op in enumerate(operations):
            if op.kind != "view":
                args, kwargs, results = concrete(op.args), concrete(op.kwargs), [tensor(v) for v in op.results]
                self._calls += _calls(op, args, kwargs, results)
            for number in ends[i]:
                if number not in recording.kept:
                    sample = storage[number]
                    free[(sample.nbytes(), sample.device)].append(sample)
        self._hold = (
            recording.result,
            recording.kept,
        )  # what others hold is to be written again, whoever lets go of it

    def __len__(self) -> int:
        return len(self._calls)

    def run(self) -> None:
        """Repeat the operations."""
        with torch.inference_mode():
            for function, args, kwargs in self._calls:
                function(*args, **kwargs)


def _needed(recording: Recording) -> list[Operation]:
    """The operations without those of whose results nothing comes."""
    needed, found = set(recording.kept), []
    for op in reversed(recording.operations):
        touched = {v.memory for v in _values([op.args, op.kwargs, op.results])}
        if op.kind == "changes":
            into = _written(op.function, op.args, op.kwargs, (Value, Tensor))
            wanted = any(isinstance(x, Tensor) or x.memory in needed for x in into)
        else:
            wanted = not op.results or any(isinstance(x, Tensor) or x.memory in needed for x in op.results)
        if wanted:
            found.append(op)
            needed |= touched
    return found[::-1]


def _extent(v: Value) -> int:
    if 0 in v.size:
        return 0
    return (v.offset + sum((n - 1) * s for n, s in zip(v.size, v.stride, strict=True)) + 1) * v.dtype.itemsize


Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A function, its arguments and its keywords."""


def _calls(op: Operation, args: Any, kwargs: Any, results: list[Tensor]) -> list[Call]:
    """What repeats the operation."""
    func, name = op.function, _name(op.function)
    if op.kind == "changes":
        return [(_quick(func, QUICK_IN_PLACE) or _quick(func, QUICK) or func._op, args, kwargs)]
    if op.kind == "constant":
        return [] if op.constant is None else [(Tensor.copy_, (results[0], op.constant), {})]
    if name in COPIES:
        return [(Tensor.copy_, (results[0], args[0]), {})]
    special = SPECIAL.get(func)
    if special is not None:
        calls = special(results[0], *args, **kwargs)
        if calls:
            return calls
    several = isinstance(func._schema.returns[0].type, torch.ListType)
    found = None if several else _out(func, len(results))
    if found is None:
        plain = func._op

        def copied(*args: Any, **kwargs: Any) -> None:
            made = plain(*args, **kwargs)
            for x, y in zip(results, [made] if isinstance(made, Tensor) else made, strict=True):
                x.copy_(y)

        return [(copied, args, kwargs)]
    out, names = found
    # torch's functions cannot reduce everything to one number and write it where they are told.
    whole = func._overloadname == "default" and name in REDUCTIONS
    return [((None if whole else _quick(out, QUICK)) or out._op, args, kwargs | dict(zip(names, results, strict=True)))]


def _quick(func: Any, functions: dict[str, Any]) -> Any:
    """torch's own Python function for the operation, if it is among these; None for another one."""
    outs = [a.name for a in func._schema.arguments if a.is_out]
    return functions.get(_name(func)) if outs == (["out"] if functions is QUICK else []) else None


def _number(x: Tensor, value: float) -> Tensor:
    """A number as the tensor that takes its part in arithmetic with `x`."""
    return torch.tensor(value, dtype=x.dtype, device=x.device)


def _rsub(out: Tensor, x: Tensor, value: float, alpha: float = 1) -> list[Call]:
    """`value - x`, of which torch has no quick form."""
    if alpha != 1 or out.dtype != x.dtype:
        return []
    return [(torch.sub, (_number(x, value), x), {"out": out})]


def _masked_fill(out: Tensor, x: Tensor, mask: Tensor, value: float) -> list[Call]:
    return [(torch.where, (mask, _number(x, value), x), {"out": out})] if x.shape == out.shape else []


def _stack(out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> list[Call]:
    """Few parts one by one, in one call; many by `cat`."""
    if len(parts) <= 8:
        return [(torch._foreach_copy_, (list(out.unbind(dim)), list(parts)), {})]
    dim = dim if dim >= 0 else dim + out.ndim
    return [(torch.cat, ([x.unsqueeze(dim) for x in parts], dim), {"out": out})]


def _select_backward(out: Tensor, g: Tensor, sizes: Sequence[int], dim: int, index: int) -> list[Call]:
    return [(Tensor.zero_, (out,), {}), (Tensor.copy_, (out.select(dim, index), g), {})]


SPECIAL: dict[Any, Callable[..., list[Call]]] = {
    aten.rsub.Scalar: _rsub,
    aten.masked_fill.Scalar: _masked_fill,
    aten.stack.default: _stack,
    aten.select_backward.default: _select_backward,
}
"""Operations that other operations do as well, bit for bit, at half of the cost or less."""


def _out(func: Any, results: int) -> tuple[Any, list[str]] | None:
    """The operation that writes its results where it is told, and the names of those arguments; None where there is none."""
    packet = func.overloadpacket
    plain = [(a.name, str(a.type)) for a in func._schema.arguments]
    for overload in packet.overloads():
        candidate = getattr(packet, overload)
        arguments = candidate._schema.arguments
        outs = [a.name for a in arguments if a.is_out]
        if len(outs) == results and [(a.name, str(a.type)) for a in arguments if not a.is_out] == plain:
            return candidate, outs
    return None


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether tensors are equal, NaN to NaN."""
    return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))


def _same(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if torch.equal(x, y) or not x.is_floating_point():
        return torch.equal(x, y)
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(_whole(x), _whole(y))


def _whole(x: Tensor) -> Tensor:
    return x.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)


def likewise(x: Tensor) -> tuple[Tensor, Tensor]:
    """A copy that lies in memory as `x` does, gaps and repetitions included (arithmetic may round by how numbers lie), and the
    part of it that is to be written to."""
    once = _once(x)
    copy = torch.empty_strided(once.size(), once.stride(), dtype=x.dtype, device=x.device).copy_(once)
    return copy.as_strided(x.size(), x.stride()), copy


def _once(x: Tensor) -> Tensor:
    """What repeats itself along an axis, one time."""
    for dim, (n, stride) in enumerate(zip(x.size(), x.stride(), strict=True)):
        if stride == 0 and n > 1:
            x = x.narrow(dim, 0, 1)
    return x


def write_again(places: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Write to the second of what `likewise` gave for each, from tensors that lie as those did."""
    with torch.inference_mode():
        torch._foreach_copy_(
            list(places), [x if x.shape == p.shape else _once(x) for p, x in zip(places, given, strict=True)]
        )
