"""Recorded operations repeat what their function does, bit for bit; what cannot be repeated is called."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pglab.config import Config
from pglab.executors import Eager
from pglab.graphs import as_graph
from pglab.optimizers import OptimizerConfig, optimizer_state
from pglab.population import Population
from pglab.programs import Program, Recording, leaves, mapped, same
from pglab.repeating import FORMS, Programs
from pglab.replay import Replay
from pglab.trees import kept_in_place

Function = Callable[..., Any]


@dataclass
class Held:
    """A dataclass with a tensor and room for another."""

    x: Tensor
    y: Tensor | None


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=shape)).standard_normal(shape)
    return torch.from_numpy(x).to(dtype)


def identical(a: Any, b: Any) -> bool:
    """Trees of tensors of the same type, shape and numbers, NaN where NaN."""
    xs, ys = ([t.detach().numpy() for t in leaves([tree])] for tree in (a, b))
    return len(xs) == len(ys) and all(
        x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(xs, ys, strict=True)
    )


def program_of(function: Function, *inputs: Any) -> tuple[Program, Recording]:
    recording = Recording.of(function, *inputs)
    assert recording.obstacle is None
    return Program(recording), recording


def assert_repeats(function: Function, *examples: tuple[Tensor, ...]) -> Program:
    """Recorded at the first example, the function's program gives what the function gives at each of them, twice."""
    places = [torch.empty_strided(x.size(), x.stride(), dtype=x.dtype).copy_(x) for x in examples[0]]
    program, recording = program_of(function, *places)
    for example in (*examples, *examples):
        for place, x in zip(places, example, strict=True):
            place.copy_(x)
        program.run()
        assert identical(recording.result, function(*example))
    return program


# -- operations


def written_rows(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    z[:, 1] = y[:, 0]
    z[1:3].mul_(2)
    z.t()[2].sub_(y[:, 3], alpha=0.5)
    return z


def into_a_view(x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros(2, *x.shape)
    torch.mul(x, y, out=z[1])
    return z.sum(0) + z[0]


def into_itself(x: Tensor, y: Tensor) -> Tensor:
    z = torch.empty_like(x)
    torch.add(x, y, alpha=3, out=z)
    torch.tanh(z, out=z)
    return torch.mul(z, z, out=torch.empty_like(z))


def counted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    n, m = torch.arange(5), torch.full((3,), 2)
    n.add_((x > y).sum(0))
    m += (x > 0).any(1)
    return n, m


def filled(x: Tensor, y: Tensor) -> Tensor:
    z = torch.empty(3, 5)
    z.fill_(1.5)
    z[0] = x[0]
    w = x.new_ones(3, 5)
    w.scatter_add_(1, y.argsort(1), x)
    return z * w


def first_order(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    a, b = x.detach().requires_grad_(), y.detach().requires_grad_()
    loss = (torch.tanh(a @ b.t()) * a.sum(1)).logsumexp(0).sum()
    return torch.autograd.grad(loss, (a, b))


def second_order(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    a, b = x.detach().requires_grad_(), y.detach().requires_grad_()
    (g,) = torch.autograd.grad((torch.sigmoid(a * b).log() * a.pow(2)).sum(), a, create_graph=True)
    return torch.autograd.grad(g.square().sum(), (a, b))


def turns(x: Tensor, y: Tensor) -> Tensor:
    """Values that are asked for again after many others were made."""
    early = x * 3
    z = y
    for i in range(12):
        z = torch.sin(z + i)
    return early - z + early.flip(0)


OPERATIONS: dict[str, Function] = {
    "arithmetic": lambda x, y: (x + y) * 2 - x / (y.square() + 1),
    "numbers of other kinds": lambda x, y: (1 - x, 2 - y.double(), x * 2 + 1, x > 0, y.int() * 1.5, 3 - x.int()),
    "views": lambda x, y: x.t()[1:].reshape(-1) * y[:, 1:].t().flatten(),
    "views of views": lambda x, y: x.view(5, 3)[1:4:2].unsqueeze(1).expand(2, 4, 3).sum(1) + y.diagonal(),
    "strided and unfolded": lambda x, y: x.as_strided((2, 2), (1, 2), 3) @ y.unfold(1, 2, 2)[:2, 0],
    "only a view": lambda x, y: (x[0], y.t()),
    "the inputs": lambda x, y: {"x": x, "sum": x + y},
    "rows written": written_rows,
    "in place": lambda x, y: x.mul(y).add_(y).sqrt_().clamp_(0, 1).mul_(x),
    "out of a view": into_a_view,
    "out into itself": into_itself,
    "factories written to": counted,
    "empty memory filled": filled,
    "constants": lambda x, y: x * torch.arange(5) + torch.eye(5)[y.argmax(1)] + torch.tensor([0.5]) * torch.ones(5),
    "a constant returned": lambda x, y: (torch.zeros(3), x + torch.full((), 2.0)),
    "max and where": lambda x, y: (*torch.max(x, 1), *torch.min(y, 0, keepdim=True), *x.cummax(0)),
    "several results": lambda x, y: (*torch.sort(x, 1), *torch.topk(y, 2), *torch.var_mean(x, 0), *y.split(2, 1)),
    "lists of results": lambda x, y: [a * b for a, b in zip(x.unbind(1), y.chunk(5, 1), strict=True)],
    "many at once": lambda x, y: torch._foreach_mul([x, y], 2.0) + torch._foreach_add([x], [y]),
    "a decomposition": lambda x, y: (*torch.linalg.solve_ex(x.t() @ x + torch.eye(5), y.t()), torch.linalg.slogdet(y @ y.t())[1]),
    "truth": lambda x, y: (x > y, (x > 0) & ~(y > 0), (x > y).any(1), (x > 9).all(), (x > 0).sum(), (x > 0).cumsum(0)),
    "whole numbers": lambda x, y: (x.int() // 2, (x * 9).long() % 4, x.argsort(1), y.argmin(), (x * 9).int() << 1),
    "chosen": lambda x, y: (torch.where(x > 0, x, 0.0), x.gather(1, y.argsort(1)), x[y[0].argsort()[:3] % 3], x[:, [0, 3]]),
    "put": lambda x, y: x.clone().index_put_((y[:, 0].argsort(),), y).index_add(0, torch.tensor([2, 0]), y[:2]),
    "one-hot": lambda x, y: torch.zeros_like(x).scatter_(1, (x + y).argmax(1, keepdim=True), 1.0),
    "sums": lambda x, y: (x.sum(), x.sum(0), y.sum((0, 1)), y.mean(), y.mean(1, keepdim=True), x.prod(), x.amax(1)),
    "products": lambda x, y: (x @ y.t(), torch.bmm(x[None], y.t()[None]), torch.baddbmm(x[:, :3], x[None], y.t()[None])),
    "joined": lambda x, y: (torch.cat([x, y], 1), torch.stack([x, y, x], 2), F.pad(x, (1, 2)), x.repeat(2, 1)),
    "types": lambda x, y: (x.double().sum(), x.half() + 1, x.to(torch.int64), (x > 0).float(), x.bool().to(torch.uint8)),
    "no numbers at all": lambda x, y: (x[:0] * 2, torch.cat([x[:, :0], y], 1), y[3:].sum()),
    "activations": lambda x, y: (F.softmax(x, 1), F.log_softmax(y, 0), F.elu(x), F.silu(y), F.softplus(x), x.logsumexp(0)),
    "first derivatives": first_order,
    "second derivatives": second_order,
    "asked for again": turns,
    "nothing": lambda x, y: None,
}  # fmt: skip


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operations_are_repeated(name: str) -> None:
    assert_repeats(OPERATIONS[name], *[(numbers(3, 5, seed=i), numbers(3, 5, seed=9 + i)) for i in range(3)])


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_nan_and_infinity_are_repeated(name: str) -> None:
    if name in ("a decomposition", "types"):
        pytest.skip("what they are there is nobody's business")
    odd = numbers(3, 5)
    odd[0, 1], odd[1, 2], odd[2, 4] = torch.nan, torch.inf, -torch.inf
    assert_repeats(OPERATIONS[name], (numbers(3, 5, seed=1), numbers(3, 5)), (odd, numbers(3, 5, seed=2)))


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_inputs_may_lie_apart(name: str) -> None:
    """Transposed, and with gaps."""
    if name in ("views of views", "strided and unfolded", "views"):
        pytest.skip("views of memory that lies in order")
    assert_repeats(
        OPERATIONS[name], *[(numbers(5, 3, seed=i).t(), numbers(3, 9, seed=9 + i)[:, 1:6]) for i in range(2)]
    )


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_a_graph_of_the_operations_gives_their_numbers(name: str) -> None:
    """The graph, run on copies of the memory that it is a function of, writes what the function would have returned."""
    x, y, function = numbers(3, 5), numbers(3, 5, seed=9), OPERATIONS[name]
    recording = Recording.of(function, x, y)
    graph, tensors = as_graph(recording)
    at, other = {m.untyped_storage().data_ptr(): m for m in tensors}, (numbers(3, 5, seed=3), numbers(3, 5, seed=4))
    for place, new in zip((x, y), other, strict=True):
        place.copy_(new)
    expected = function(*other)
    copies = {place: m.clone() for place, m in at.items()}
    with torch.no_grad():
        graph(*copies.values())

    def found(r: Tensor) -> Tensor:
        memory = copies.get(r.untyped_storage().data_ptr())
        return r if memory is None else memory.as_strided(r.size(), r.stride(), r.storage_offset())

    for a, b in zip(leaves([recording.result]), leaves([expected]), strict=True):
        torch.testing.assert_close(found(a.detach()), b.detach(), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    "shapes",
    [((3, 6, 2), (3, 2, 5)), ((3, 1, 8), (3, 8, 5)), ((3, 6, 8), (3, 8, 3)), ((3, 6, 8), (3, 8, 7))],
    ids=["thin inside", "one row", "few columns", "wide"],
)
@pytest.mark.parametrize("scale", [None, 1.0, 0.5])
def test_products_in_a_graph_are_products(shapes: tuple[tuple[int, ...], ...], scale: float | None) -> None:
    x, y = (numbers(*shape, seed=i) for i, shape in enumerate(shapes))
    bias = numbers(3, 1, y.shape[2], seed=2)

    def function(x: Tensor, y: Tensor) -> Tensor:
        return torch.bmm(x, y) if scale is None else torch.baddbmm(bias, x, y, beta=scale, alpha=scale)

    recording = Recording.of(function, x, y)
    graph, tensors = as_graph(recording)
    expected = recording.result.clone()
    with torch.no_grad():
        recording.result.zero_()
        graph(*tensors)
    torch.testing.assert_close(recording.result, expected, rtol=1e-5, atol=1e-6)
    assert any("bmm" in str(n.target) for n in graph.graph.nodes) == (min(*x.shape[1:], y.shape[2]) > 4)


def test_a_large_tensor_enters_a_graph_as_it_is_and_is_written_in_place() -> None:
    """A view of its memory would make the compiler copy all of it to write one row."""
    large, at = torch.zeros(2, 1000, 3), torch.tensor([5])

    def function(x: Tensor) -> Tensor:
        large.index_copy_(1, at, x)
        return large.view(-1, 3)[at] + 1

    graph, tensors = as_graph(Recording.of(function, numbers(2, 1, 3)))
    (node,) = [n for n in graph.graph.nodes if "index_copy_" in str(n.target)]
    assert node.args[0].op == "placeholder"
    place = [n for n in graph.graph.nodes if n.op == "placeholder"].index(node.args[0])
    assert tensors[place].data_ptr() == large.data_ptr()
    assert tensors[place].shape == large.shape


@pytest.mark.parametrize("find", [torch.argmax, torch.argmin], ids=["largest", "smallest"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bfloat16, torch.int32, torch.float32], ids=str)
def test_places_are_looked_for_among_numbers_of_four_bytes(dtype: torch.dtype, find: Any) -> None:
    """Among equal smaller ones the compiler takes one that is not there (see `test_one_environment_of_one_member_compiles`)."""
    x = (numbers(9, 2, 3) > 0).to(dtype)
    recording = Recording.of(lambda: find(x, 0))
    graph, tensors = as_graph(recording)
    expected = recording.result.clone()
    with torch.no_grad():
        recording.result.fill_(-1)
        graph(*tensors)
    assert torch.equal(recording.result, expected)
    assert any("_to_copy" in str(n.target) for n in graph.graph.nodes) == (dtype.itemsize < 4)


# -- operations that others do as well


def called(program: Program) -> set[Any]:
    return {function for function, _, _ in program._calls}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_a_number_less_a_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    examples = [((numbers(*shape, seed=i) * 9).to(dtype),) for i in range(3)]
    program = assert_repeats(lambda x: (3 - x, torch.rsub(x, 2, alpha=4), -1.5 - x), *examples)
    assert torch.sub in called(program)


@pytest.mark.parametrize("value", [0.1, -2.0, float("inf"), float("nan"), 1e-45, 16777217.0])
def test_a_number_less_a_tensor_is_rounded_as_torch_does(value: float) -> None:
    assert_repeats(lambda x: value - x, (numbers(7),), (numbers(7, seed=1).sign() * 1e-3,))


@pytest.mark.parametrize("mask", [(3, 4), (4,), (3, 1), (1, 1), ()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool], ids=str)
def test_masks_that_broadcast_are_filled(dtype: torch.dtype, mask: tuple[int, ...]) -> None:
    examples = [((numbers(3, 4, seed=i) * 9).to(dtype), numbers(*mask, seed=i) > 0) for i in range(3)]
    value = 2 if dtype == torch.int64 else 1.5 if dtype.is_floating_point else True
    program = assert_repeats(lambda x, m: x.masked_fill(m, value), *examples)
    assert torch.where in called(program)


def test_a_mask_that_is_larger_than_what_it_fills() -> None:
    assert_repeats(
        lambda x, m: x.masked_fill(m, -torch.inf), *[(numbers(4, seed=i), numbers(3, 4, seed=i) > 0) for i in (0, 1)]
    )


@pytest.mark.parametrize("count", [1, 2, 8, 9, 30])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_stacks_of_few_and_of_many(count: int, dim: int) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.stack([x * i if i % 2 else x.t().contiguous().t() + i for i in range(count)], dim)

    program = assert_repeats(function, (numbers(3, 4),), (numbers(3, 4, seed=1),))
    assert (torch._foreach_copy_ if count <= 8 else torch.cat) in called(program)


@pytest.mark.parametrize("count", [3, 12])
def test_stacks_of_numbers_and_of_mixed_types(count: int) -> None:
    assert_repeats(lambda x: torch.stack(x.unbind(0)[:count]), (numbers(12),), (numbers(12, seed=1),))
    assert_repeats(
        lambda x: torch.stack([x.double() if i == 1 else x > 0 if i == 2 else x for i in range(count)], 1),
        (numbers(2, 3),),
        (numbers(2, 3, seed=1),),
    )


@pytest.mark.parametrize(("dim", "index"), [(0, 0), (0, -1), (1, 2), (-1, -2), (-2, 1)])
def test_the_derivative_of_a_choice(dim: int, index: int) -> None:
    def function(x: Tensor) -> Tensor:
        a = x.detach().requires_grad_()
        return torch.autograd.grad(a.select(dim, index).pow(3).sum(), a)[0]

    program = assert_repeats(function, (numbers(3, 4),), (numbers(3, 4, seed=1),))
    assert Tensor.zero_ in called(program)


# -- memory


def test_memory_is_planned_from_how_long_it_is_needed() -> None:
    def function(x: Tensor) -> Tensor:
        for i in range(40):
            x = torch.sin(x + i)
        return x

    x = numbers(1000)
    program = assert_repeats(function, (x,), (numbers(1000, seed=1),))
    assert len(program) == 80
    assert program.memory <= 3 * 4000
    assert len(assert_repeats(lambda x: (x.sin() + x.cos(), x * 2)[1], (x,))) == 1  # nothing comes of the others


def test_what_somebody_holds_on_to_is_written_where_it_is() -> None:
    """A closure's tensor, and one that was put away, are not among the results."""
    away: list[Tensor] = []

    def function(x: Tensor) -> dict[str, Any]:
        hidden = torch.tanh(x)
        away[:] = [hidden.exp()[1:]]
        return {"late": lambda: hidden.sum(), "now": hidden * 2}

    place = numbers(4)
    program, recording = program_of(function, place)
    (put,) = away
    for seed in (1, 2):
        place.copy_(numbers(4, seed=seed))
        program.run()
        assert torch.equal(recording.result["late"](), torch.tanh(place).sum())
        assert torch.equal(put, torch.tanh(place).exp()[1:])


def test_a_recording_holds_nothing_that_nobody_else_holds() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def function(x: Tensor) -> Tensor:
        y = x * 2
        seen.append(weakref.ref(y))
        return y + 1

    recording = Recording.of(function, numbers(3))
    assert seen[0]() is None
    assert len(recording.kept) == 1


def test_tensors_of_others_are_read_and_written_where_they_lie() -> None:
    state, rate = {"mean": numbers(4), "seen": torch.zeros(2, dtype=torch.int64)}, torch.tensor(0.5)

    def function(x: Tensor) -> Tensor:
        state["mean"].lerp_(x, 0.25).mul_(rate)
        state["seen"][1:] += 1
        return state["mean"] - x

    x = numbers(4, seed=1)
    program, recording = program_of(function, x)
    assert {id(t) for t in recording.changed} >= {id(state["mean"])}
    ours = {k: v.clone() for k, v in state.items()}
    for rated in (2.0, 0.1):
        rate.fill_(rated)
        x.add_(1)
        program.run()
        ours["mean"] = torch.lerp(ours["mean"], x, 0.25) * rate
        ours["seen"][1] += 1
        assert identical(state, ours)
        assert torch.equal(recording.result, ours["mean"] - x)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: x * x.sum().item(), "_local_scalar_dense"),
        (lambda x: x * 2 if bool((x > 0).any()) else x, "_local_scalar_dense"),
        (lambda x: x.nonzero().sum(), "nonzero"),
        (lambda x: x[x > 0].sum(), "nonzero|index"),
        (lambda x: x.masked_select(x > 0).sum(), "masked_select"),
        (lambda x: torch.unique(x).sum(), "unique"),
        (lambda x: torch.repeat_interleave(x, (x > 0).long()).sum(), "repeat_interleave"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x + torch.rand(3), "random"),
        (lambda x: torch.empty(3).normal_() + x, "random"),
        (lambda x: F.dropout(x, 0.5), "random"),
        (lambda x: x[torch.randperm(3)], "random"),
    ],
    ids=["item", "bool", "nonzero", "a mask", "masked_select", "unique", "repeats", "equal", "rand", "normal_", "dropout", "randperm"],
)  # fmt: skip
def test_what_cannot_be_repeated_is_said(function: Function, what: str) -> None:
    obstacle = Recording.of(function, numbers(3)).obstacle
    assert obstacle is not None
    assert any(w in obstacle for w in what.split("|"))


# -- trees


def test_leaves_and_what_is_made_of_them() -> None:
    a, b, c = numbers(2), numbers(3), numbers(1)
    tree = {"a": a, "n": 3, "more": [b, None, ("x", torch.max(c, 0))], "place": Held(a, None)}
    assert [id(x) for x in leaves(tree)][:2] == [id(a), id(b)]
    assert len(leaves(tree)) == 5
    doubled = mapped(tree, lambda x: x * 2)
    assert identical(
        doubled, {"a": a * 2, "more": [b * 2, ("x", [c[0] * 2, torch.tensor(0)])], "place": Held(a * 2, None)}
    )
    assert doubled["n"] == 3
    assert isinstance(doubled["place"], Held)


def test_same_is_bit_for_bit() -> None:
    x, nan = numbers(3), torch.tensor([1.0, torch.nan])
    assert same([x, nan], [x.clone(), nan.clone()])
    assert not same([x], [x + 1e-6])
    assert not same([x], [x, x])
    assert not same([x], [x.unsqueeze(0)])
    assert not same([nan], [torch.tensor([1.0, 7.0])])
    assert not same([torch.tensor(torch.inf)], [torch.tensor(torch.finfo(torch.float32).max)])
    assert not same([torch.ones(2)], [torch.ones(2, dtype=torch.float64)])
    assert not same([torch.ones(2, dtype=torch.int64)], [torch.zeros(2, dtype=torch.int64)])


# -- the executor


class Told(Programs):
    """Keeps what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.note = self.notes.append

    def repeated(self, function: Function) -> list[bool]:
        """Of every form of the function, whether it is repeated."""
        return [h.repeat is not None and h.checked for h in self._held[function].values()]


def examples(count: int, *shape: int) -> list[Tensor]:
    return [numbers(*shape, seed=i) for i in range(count)]


def test_the_third_call_is_the_last_that_calls() -> None:
    calls: list[int] = []

    def function(x: Tensor) -> Tensor:
        calls.append(1)
        return x * 2

    executor, at = Told(), []
    for x in examples(6, 3):
        found = executor.call(function, x)
        assert torch.equal(found, x * 2)
        at.append(id(found))
    assert len(calls) == 3
    assert len(set(at[2:])) == 1  # results stay where they are
    assert executor.notes == []


def test_what_is_kept_is_a_copy() -> None:
    executor = Told()
    results = [executor.kept(executor.call(lambda_of_two, x)) for x in examples(6, 3)]
    for x, found in zip(examples(6, 3), results, strict=True):
        assert identical(found, lambda_of_two(x))
    tree = {"x": numbers(2)}
    assert Eager().kept(tree) is tree


def lambda_of_two(x: Tensor) -> dict[str, Any]:
    return {"a": x + 1, "b": (x[0], [x.sum()])}


def test_results_that_are_anothers_inputs_are_not_copied() -> None:
    executor, grown = Told(), numbers(3)

    def second(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    for x in examples(7, 3):
        a = executor.call(lambda_of_two, x)
        assert torch.equal(executor.call(second, a["a"], x), (x + 1) * x)
    assert any(h.inputs and h.inputs[0] is a["a"] for h in executor._held[second].values())
    # And another's tensor in its place is read as well.
    assert torch.equal(executor.call(second, grown, x), grown * x)
    assert torch.equal(executor.call(second, executor.call(lambda_of_two, grown)["a"], x), (grown + 1) * x)


def test_results_that_are_anothers_tensors_are_not_written_to_by_those_they_are_handed_to() -> None:
    """A function returns its state, which another reads; later that one is given something else to read."""
    state, executor = numbers(3), Told()

    def move(x: Tensor) -> Tensor:
        return state.add_(x)

    def read(x: Tensor) -> Tensor:
        return x * 2

    expected = state.clone()
    for x in examples(6, 3):
        expected += x
        assert torch.equal(executor.call(read, executor.call(move, x)), expected * 2)
    assert torch.equal(executor.call(read, numbers(3, seed=50)), numbers(3, seed=50) * 2)
    assert torch.equal(state, expected)


def test_results_that_do_not_lie_in_order_may_be_replaced_by_others() -> None:
    """An expanded result cannot be written to: what is read in its place lies elsewhere."""
    executor, ones = Told(), torch.ones(3)

    def wide(x: Tensor) -> Tensor:
        return ones.expand(4, 3), x.sum(0).expand(2, 3)  # type: ignore[return-value]

    def read(x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y * 2

    for x in examples(6, 2, 3):
        executor.call(read, *executor.call(wide, x))
    a, b = torch.full((4, 3), 2.0), numbers(2, 3)
    assert torch.equal(executor.call(read, a, b), read(a, b))
    assert torch.equal(ones, torch.ones(3))
    assert executor.notes == []


@pytest.mark.parametrize("lies", ["in order", "transposed", "with gaps", "expanded"])
def test_inputs_are_read_as_they_lie(lies: str) -> None:
    """Operations on numbers side by side may be rounded otherwise than on numbers apart (torch computes several at once,
    and the rest of a row one by one), so a copy lies as the original does."""

    def function(x: Tensor) -> Tensor:
        return torch.exp(torch.log(x.abs() + 1e-3) * 1.7) + torch.sigmoid(x).sum(0)

    def laid(x: Tensor) -> Tensor:
        if lies == "transposed":
            return x.t().contiguous().t()
        if lies == "with gaps":
            return torch.cat([x, x], 1)[:, : x.shape[1]]
        return x[:1].expand_as(x) if lies == "expanded" else x

    executor = Told()
    for x in examples(40, 5, 7):
        assert torch.equal(executor.call(function, laid(x)), function(laid(x)))
    assert executor.notes == []


def test_inputs_of_another_type_are_another_form() -> None:
    executor = Told()
    for dtype in (torch.int64, torch.float32, torch.float64):
        for x in examples(5, 3):
            x = (x * 9).to(dtype)
            assert identical(executor.call(half, x), half(x))


def half(x: Tensor) -> Tensor:
    return x * 0.5


def test_shapes_that_change_are_forms_and_further_ones_are_called() -> None:
    executor = Told()
    for _ in range(5):
        for n in range(1, FORMS + 4):
            x = numbers(n)
            assert torch.equal(executor.call(half, x), x * 0.5)
    assert executor.repeated(half) == [True] * FORMS


def test_a_key_tells_forms_apart() -> None:
    executor, sign = Told(), 1

    def function(x: Tensor) -> Tensor:
        return x * sign

    for sign in (1, -1, 1, -1):
        for x in examples(5, 3):
            assert torch.equal(executor.call(function, x, key=sign), x * sign)
    assert executor.repeated(function) == [True, True]


def test_obstacles_are_noted_once_and_the_function_is_called() -> None:
    executor, state = Told(), torch.zeros(3)

    def reading(x: Tensor) -> Tensor:
        state.add_(x)
        return x / float(x.abs().max())

    expected = torch.zeros(3)
    for x in examples(6, 3):
        expected += x
        assert torch.equal(executor.call(reading, x), x / x.abs().max())
    assert torch.equal(state, expected)
    assert executor.notes == [
        "Part 'reading' runs operation by operation: it reads numbers from tensors (_local_scalar_dense)."
    ]


class Learner:
    """Changes for good: parameters in place, and whatever a way of breaking the rules does."""

    def __init__(self, way: str) -> None:
        self.way, self.calls = way, 0
        self.weight, self.total = numbers(3, seed=7), torch.zeros(())
        self.log: list[float] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.weight.mul_(0.9).add_(x)
        if self.way == "replaces what it returns":
            self.total = self.total + x.sum()
        elif self.way == "replaces what it reads":
            self.total = self.total * 0.5 + self.weight.sum()
            self.weight.add_(self.total)
        elif self.way == "counts and takes turns":
            self.weight.mul_(2.0 if self.calls % 2 else 0.5)
        elif self.way == "counts up":
            self.weight.add_(self.calls)
        elif self.way == "reads what torch does not see":
            self.weight.mul_(torch.from_numpy(x.numpy() + 1))
        elif self.way == "writes to a number that it made":
            t = torch.tensor(1.0)
            t.add_(x.sum())
            self.weight.add_(t)
        return self.weight + self.total


BROKEN = {
    "keeps them": "",
    "replaces what it returns": "repeated it gives other numbers",
    "replaces what it reads": "repeated it gives other numbers",
    "counts and takes turns": "repeated it gives other numbers",
    "counts up": "repeated it gives other numbers",
    "reads what torch does not see": "repeated it gives other numbers",
    "writes to a number that it made": None,
}
"""Ways of keeping the rules or not, and what is said of them; None: either. What is replaced and shows in nothing that is
compared is not found out: `Agent.places` tells such calls apart."""


@pytest.mark.parametrize("way", list(BROKEN))
def test_who_breaks_the_rules_is_found_out_and_called(way: str) -> None:
    executor, ours, theirs = Told(), Learner(way), Learner(way)
    for x in examples(7, 3):
        assert torch.equal(executor.call(ours, x), theirs(x))
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.total, theirs.total)
    why = BROKEN[way]
    if why is not None:
        said = [f"Part 'Learner' runs operation by operation: {why}."]
        assert executor.notes == (said if why else [])
        assert (ours.calls == 7) is bool(why)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_function_that_raises_is_called_again(at: int) -> None:
    executor, state, calls = Told(), torch.zeros(3), 0

    def function(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise ValueError("not now")
        return state.add_(x) * 2

    expected = torch.zeros(3)
    for i, x in enumerate(examples(8, 3), 1):
        if i == at:
            with pytest.raises(ValueError, match="not now"):
                executor.call(function, x)
            continue
        expected += x
        assert torch.equal(executor.call(function, x), expected * 2)
    assert torch.equal(state, expected)
    assert executor.repeated(function) == [True]
    assert calls == (3 if at == 1 else 4)  # whatever was raised, it was recorded and compared once


def test_a_program_that_cannot_be_made_or_run_is_not_relied_on() -> None:
    """Sparse tensors have no memory that could be planned; an operation in place of metadata cannot be done twice."""
    executor, state = Told(), numbers(3)

    def sparse(x: Tensor) -> Tensor:
        return torch.sparse.mm(x.to_sparse(), x)

    def turned(x: Tensor) -> Tensor:
        y = state.mul_(x) + 1
        return y.unsqueeze_(0)

    expected = state.clone()
    for x in examples(6, 3, 3):
        assert torch.equal(executor.call(sparse, x), torch.sparse.mm(x.to_sparse(), x))
        expected *= x[0]
        assert torch.equal(executor.call(turned, x[0]), expected.unsqueeze(0) + 1)
    assert torch.equal(state, expected)


def test_results_hold_closures_that_see_the_newest() -> None:
    executor, state = Told(), torch.zeros(3)

    def function(x: Tensor) -> dict[str, Any]:
        state.add_(x)
        hidden = torch.exp(x)
        return {"late": lambda: hidden.sum() + state.sum(), "now": hidden * 2}

    for x in examples(6, 3):
        found = executor.call(function, x)
        assert torch.equal(found["late"](), torch.exp(x).sum() + state.sum())


# -- what is kept where it lies


def test_a_tree_is_written_where_the_old_one_lies() -> None:
    a, b = numbers(3), numbers(2)
    old = {"a": a, "more": [b, {"n": 3}]}
    new = {"more": [numbers(2, seed=5), {"n": 3}], "a": numbers(3, seed=5)}
    assert kept_in_place(old, new) is old
    assert [id(x) for x in leaves(old)] == [id(a), id(b)]
    assert identical([a, b], [numbers(3, seed=5), numbers(2, seed=5)])


def test_new_tensors_may_be_old_ones_moved_about() -> None:
    """Swapped, and a view of what is written to."""
    x, y = numbers(4), numbers(4, seed=1)
    old = {"a": x, "b": y, "c": numbers(2)}
    expected = {"a": y.clone(), "b": x.clone(), "c": x[1:3].clone()}
    assert kept_in_place(old, {"a": y, "b": x, "c": x[1:3]}) is old
    assert identical(old, expected)
    z = numbers(5)
    old = {"a": z[:4], "b": z[4:]}
    whole = z.clone()
    kept_in_place(old, {"a": z[1:], "b": z[:1]})
    assert identical(old, {"a": whole[1:], "b": whole[:1]})


@pytest.mark.parametrize(
    "new",
    [
        {"a": torch.zeros(4), "n": 1},
        {"a": torch.zeros(3, dtype=torch.float64), "n": 1},
        {"a": torch.zeros(3)},
        {"a": torch.zeros(3), "n": 2},
        {"a": [torch.zeros(3)], "n": 1},
        {"a": torch.zeros(3), "n": torch.zeros(3)},
    ],
    ids=["longer", "another type", "fewer", "another number", "a list", "a tensor for a number"],
)
def test_trees_of_another_shape_are_taken_as_they_are(new: dict[str, Any]) -> None:
    old = {"a": numbers(3), "n": 1}
    assert kept_in_place(old, new) is new
    assert identical(old["a"], numbers(3))


def population() -> Population:
    config = Config.read(
        {
            "env": {"id": "CartPole-v1"},
            "seeds": 2,
            "learning_rate": [0.1, {"kind": "linear", "start": 1.0, "end": 0.0}],
            "entropy_weight": {"kind": "linear", "start": 0.2, "end": 0.1, "until": 0.5},
        }
    )
    return Population.of(config, torch.device("cpu"))


def test_values_stay_where_they_are_while_schedules_move() -> None:
    everyone = population()
    rate, weight = (everyone.value(path, [0.0] * 4) for path in ("learning_rate", "entropy_weight"))
    constant = everyone.value("discount", [0.0] * 4)
    for progress in ([0.25, 0.5, 0.25, 0.5], [1.0] * 4):
        everyone.move_on(progress)
        expected = [
            [s(x)] for m, x in zip(everyone.members, progress, strict=True) for s in [m.schedules["learning_rate"]]
        ]
        torch.testing.assert_close(rate, torch.tensor(expected))
        assert everyone.value("learning_rate", progress) is rate
        assert everyone.value("entropy_weight", progress) is weight
        assert everyone.value("discount", progress) is constant
    torch.testing.assert_close(weight, torch.full((4, 1), 0.1))
    torch.testing.assert_close(constant, torch.full((4, 1), 0.99))


def test_replicates_have_values_of_their_own() -> None:
    everyone = population()
    rate = everyone.value("learning_rate", [0.0] * 4)
    twin = everyone.replicated(range(2))
    assert twin.value("learning_rate", [1.0] * 8).flatten().tolist()[-1] == 0.0
    assert rate.flatten().tolist() == pytest.approx([0.1, 0.1, 1.0, 1.0])


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_a_step_count_of_an_older_checkpoint_goes_on(name: Any) -> None:
    """It was a number; the steps that follow are those of a state that counted in tensors all along."""
    ours = OptimizerConfig(name=name, momentum=0.9)
    flat, rate = numbers(2, 3), torch.full((2, 1), 0.1)
    state = ours.initial(flat)
    for i in range(3):
        ours.step(flat, numbers(2, 3, seed=i), state, rate)
    old: dict[str, Any] = {k: v.clone() for k, v in state.items()} | {"steps": 3}
    went_on, other = optimizer_state(old, 2, torch.device("cpu")), flat.clone()
    assert identical(went_on, state)
    assert old["steps"] == 3
    assert optimizer_state(state, 2, torch.device("cpu")) is state
    for f, s in ((flat, state), (other, went_on)):
        ours.step(f, numbers(2, 3, seed=9), s, rate)
    assert torch.equal(flat, other)


def test_an_optimizers_step_is_repeated() -> None:
    executor, ours = Told(), OptimizerConfig()
    flat, rate = numbers(2, 3), torch.full((2, 1), 0.1)
    state, theirs = ours.initial(flat), flat.clone()
    expected = ours.initial(theirs)

    def step(grad: Tensor) -> None:
        ours.step(flat, grad, state, rate)

    for i in range(20):
        rate.fill_(0.1 / (1 + i))
        executor.call(step, numbers(2, 3, seed=i))
        ours.step(theirs, numbers(2, 3, seed=i), expected, rate)
        assert torch.equal(flat, theirs)
        assert identical(state, expected)
    assert executor.repeated(step) == [True]


# -- the replay


def replay(capacity: int = 7) -> Replay:
    return Replay(2, capacity, 2, 1, False, torch.device("cpu"))


@pytest.mark.parametrize("n", [1, 3, 7, 10])
def test_rows_put_by_a_program_lie_where_rows_appended_do(n: int) -> None:
    """Also where there are more of them than the replay holds."""
    ours, theirs, executor = replay(), replay(), Told()
    for i in range(9):
        rows = numbers(2, n, sum(ours.widths), seed=i)
        executor.call(ours.put, rows)
        ours.have_put(n)
        theirs.append(rows)
        assert ours.count == theirs.count == (i + 1) * n
        assert ours.size == min(7, ours.count)
        assert torch.equal(ours.data, theirs.data)
        for place, number in enumerate(range(ours.count - ours.size, ours.count), 1):
            whole = rows[:, number - i * n] if number >= i * n else None
            assert whole is None or torch.equal(ours.data[:, number % 7], whole), place
        u = torch.from_numpy(np.random.default_rng(i).random((2, 5), dtype=np.float32))
        assert identical(ours.sample(u), theirs.sample(u))
    assert executor.repeated(ours.put) == [True]


def test_a_count_that_is_set_is_where_the_next_rows_go() -> None:
    """As a checkpoint does, also for a program that was recorded before."""
    ours, executor = replay(), Told()
    for i in range(4):
        executor.call(ours.put, numbers(2, 2, sum(ours.widths), seed=i))
        ours.have_put(2)
    ours.count = 12
    rows = numbers(2, 2, sum(ours.widths), seed=9)
    executor.call(ours.put, rows)
    ours.have_put(2)
    assert ours.count == 14
    assert torch.equal(ours.rows(12, 14), rows)
    newest = ours.sample(torch.full((2, 1), 1e-6))
    assert torch.equal(newest.obs[:, 0], rows[:, 1, :2])
    oldest = ours.sample(torch.full((2, 1), 0.99), newest=2)
    assert torch.equal(oldest.obs[:, 0], rows[:, 0, :2])


def test_two_replays_do_not_share_a_place() -> None:
    a, b = replay(), replay()
    a.append(numbers(2, 3, sum(a.widths)))
    assert (a.count, b.count, b.size) == (3, 0, 0)
    assert torch.equal(b.data, torch.zeros_like(b.data))
