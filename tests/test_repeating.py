"""Whatever is repeated is what was called: calls of one function after another, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from spine import normal
from torch import Tensor

from pglab.baselines import MovingAverage
from pglab.config import Config, merge
from pglab.executors import Block
from pglab.programs import leaves, same
from pglab.repeating import FORMS, CudaGraph, Held, Programs
from pglab.training import Trainer
from pglab.trees import places

Made = tuple[Callable[..., Any], Callable[[], Any]]
"""A function with a state of its own, and what shows that state."""


def inputs(count: int = 8, *shape: int) -> list[Tensor]:
    return [normal(*(shape or (3,)), key=i).float() for i in range(count)]


def repeated(make: Callable[[], Made], given: Iterable[Any]) -> tuple[list[str], list[str]]:
    """Call a function by an executor as often as there are inputs, and its double as it is. Both give the same, and leave the
    same behind, at each call. Returns what was said, and how each form of the function is run."""
    (plain, expected), (function, found) = make(), make()
    executor = Programs()
    notes: list[str] = []
    executor.note = notes.append
    for i, x in enumerate(given):
        want, got = plain(x.clone()), executor.call(function, x.clone())
        a, b = leaves([want, expected()]), leaves([got, found()])
        assert [t.dtype for t in a] == [t.dtype for t in b]
        assert same(a, b), f"call {i}"
    return notes, ways(executor, function)


def ways(executor: Programs, function: Callable[..., Any]) -> list[str]:
    """How each form of a function is run."""
    forms = executor._held[function].values()
    return ["called" if h.as_it_is else "program" if h.repeat is not None else "seen once" for h in forms]


def stateless(function: Callable[[Tensor], Any]) -> Callable[[], Made]:
    return lambda: ((lambda x: function(x)), list)


# -- functions that keep the rules


def test_state_that_is_written_to_is_repeated() -> None:
    def make() -> Made:
        total = torch.zeros(3)

        def function(x: Tensor) -> Tensor:
            total.lerp_(x, 0.3)
            return total.sum() + x

        return function, lambda: total

    assert repeated(make, inputs()) == ([], ["program"])


def test_state_that_is_made_at_the_first_call_is_repeated() -> None:
    def make() -> Made:
        made: dict[str, Tensor] = {}

        def function(x: Tensor) -> Tensor:
            made.setdefault("total", torch.zeros(3)).add_(x)
            return made["total"] * 2

        return function, lambda: made

    assert repeated(make, inputs()) == ([], ["program"])


def test_a_result_may_be_a_tensor_of_others_an_input_or_nothing() -> None:
    def make() -> Made:
        total = torch.ones(3)
        return (lambda x: (total.add_(x), x, x[1:], None, torch.ones(2))), (lambda: total)

    assert repeated(make, inputs()) == ([], ["program"])


def test_what_a_result_holds_is_overwritten_by_the_next_call_and_what_is_kept_is_not() -> None:
    executor, xs = Programs(), inputs(5)

    def function(x: Tensor) -> dict[str, Any]:
        y = x * 2
        return {"y": y, "late": lambda: y + 1}

    for x in xs[:3]:
        result = executor.call(function, x)
    kept, late = executor.kept(result), result["late"]
    executor.call(function, xs[3])
    assert torch.equal(result["y"], xs[3] * 2)
    assert torch.equal(late(), xs[3] * 2 + 1)
    assert torch.equal(kept["y"], xs[2] * 2)


def test_shapes_that_alternate_are_repeated_side_by_side() -> None:
    sizes = [inputs(1, n + 2)[0] for n in (1, 2, 1, 2, 1, 2, 1, 2)]
    assert repeated(stateless(lambda x: x.cumsum(0)), sizes) == ([], ["program", "program"])


def test_shapes_that_keep_coming_are_called_from_the_ninth_on_and_said_once() -> None:
    some = [inputs(1, n)[0] for n in range(1, FORMS + 6)]
    notes, forms = repeated(stateless(lambda x: x * 2), some * 2)
    assert forms == ["program"] * FORMS
    assert len(notes) == 1
    assert f"more than {FORMS} forms" in notes[0]


def test_two_functions_hand_on_what_they_returned_without_copies() -> None:
    executor = Programs()

    def first(x: Tensor) -> Tensor:
        return x + 1

    def second(y: Tensor) -> Tensor:
        return y * y

    for x in inputs(6):
        assert torch.equal(executor.call(second, executor.call(first, x)), (x + 1) ** 2)
    (held,), (before,) = executor._held[second].values(), executor._held[first].values()
    assert held.inputs[0] is before.result
    assert torch.equal(executor.call(second, torch.full((3,), 5.0)), torch.full((3,), 25.0))  # which lies elsewhere


# -- functions that do not


def test_a_state_that_is_replaced_is_noticed() -> None:
    def make() -> Made:
        state = {"x": torch.zeros(3)}

        def function(x: Tensor) -> Tensor:
            state["x"] = state["x"] * 0.5 + x
            return state["x"] * 1

        return function, lambda: state

    notes, forms = repeated(make, inputs())
    assert forms == ["called"]
    assert notes == ["Part 'function' runs operation by operation: repeated it gives other numbers."]


@pytest.mark.parametrize("even", [True, False])
def test_a_function_that_counts_its_calls_is_noticed(even: bool) -> None:
    def make() -> Made:
        total, calls = torch.zeros(3), [0]

        def function(x: Tensor) -> Tensor:
            calls[0] += 1
            if even:
                total.add_(x) if calls[0] % 2 else total.sub_(x * 2)
            else:
                total.add_(x * calls[0])
            return total.sum()

        return function, lambda: total

    notes, forms = repeated(make, inputs())
    assert forms == ["called"]
    assert len(notes) == 1


def test_an_input_that_is_written_to_is_noticed() -> None:
    assert repeated(stateless(lambda x: x.mul_(2).sum()), inputs())[1] == ["called"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x[0].item(),
        lambda x: x if x[0] > 0 else -x,
        lambda x: x * x.tolist()[0],
        lambda x: x * float(x.numpy()[0]),
        lambda x: torch.bincount((x.abs() * 3).long()),
    ],
    ids=["item", "if", "tolist", "numpy", "bincount"],
)
def test_numbers_read_from_tensors_are_noticed(function: Callable[[Tensor], Any]) -> None:
    notes, forms = repeated(stateless(function), inputs())
    assert forms == ["called"]
    assert len(notes) == 1


@pytest.mark.parametrize("fails", [1, 2, 3, 5])
def test_a_call_that_raises_breaks_nothing(fails: int) -> None:
    """The function's error comes out, and later calls are what they would have been; a repetition does not ask."""
    executor, total, calls = Programs(), torch.zeros(3), [0]

    def function(x: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == fails:
            raise ValueError("once")
        return total.add_(x) * 1

    expected, raised = torch.zeros(3), False
    for x in inputs():
        try:
            found = executor.call(function, x)
        except ValueError:
            raised = True
            continue
        expected += x
        assert torch.equal(found, expected)
    assert raised == (fails <= 3)
    assert torch.equal(total, expected)
    assert ways(executor, function) == ["program"]


def test_a_function_that_raised_is_not_watched_any_longer() -> None:
    executor = Programs()

    def function(x: Tensor) -> Tensor:
        y = x + 1
        if executor._held[function]:
            raise ValueError("always")
        return y

    executor._held[function] = {}
    for x in inputs(3):
        with pytest.raises(ValueError, match="always"):
            executor.call(function, x)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


# -- where numbers lie


@pytest.mark.parametrize("how", ["gaps", "rows of a chunk"])
def test_inputs_that_lie_apart_are_rounded_as_where_they_were(how: str) -> None:
    """torch computes these of numbers side by side otherwise than of numbers that lie apart."""
    many = torch.rand(8, 5, 2, 67, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    given = [x[:, :, ::2] for x in many] if how == "gaps" else list(many.transpose(2, 3)[:, :, :60].transpose(2, 3))
    executor = Programs()

    def function(x: Tensor) -> Tensor:
        return torch.logit(x) + torch.nn.functional.softplus(x)

    for x in given:
        assert torch.equal(executor.call(function, x), function(x))
    assert ways(executor, function) == ["program"]


def test_expanded_inputs_are_repeated() -> None:
    executor = Programs()

    def function(x: Tensor) -> Tensor:
        return (x * 2).sum(1)

    for x in inputs(6, 3, 1):
        assert torch.equal(executor.call(function, x.expand(3, 4)), function(x.expand(3, 4)))
    assert ways(executor, function) == ["program"]


@pytest.mark.parametrize("estimator", ["rebar", "straight_through_gumbel_softmax", "gumbel_rao", "reinmax_cv"])
def test_binary_draws_of_replayed_states(estimator: str) -> None:
    """A row of a chunk of noise lies apart in memory, and the logit of it decides the relaxed action."""
    config = merge(REPLAY, {"policy": {"distribution": "bernoulli"}, "estimator": estimator})
    a, b = (trained(config, executor) for executor in ("eager", "program"))
    assert_same_state(a, b)


# -- agents

SMALL: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 3},
    "policy": {"hidden": [8]},
    "seeds": 2,
    "total_steps": 300,
    "learning_rate": {"kind": "linear", "start": 0.02, "end": 0.0},
}
ON_POLICY = merge(
    SMALL,
    {"agent": {"name": "on_policy", "steps": 5, "value": {"hidden": [8]}, "critic": {"hidden": [8]}}},
)
REPLAY = merge(
    SMALL,
    {
        "agent": {
            "name": "actor_critic",
            "steps_per_round": 2,
            "critic": {"hidden": [8]},
            "replay": {"capacity": 40, "batch_size": 16, "warmup": 6},
        }
    },
)


def trainer_of(config: dict[str, Any], executor: str) -> Trainer:
    return Trainer(Config.read(merge(config, {"executor": executor})))


def trained(config: dict[str, Any], executor: str, updates: int = 8) -> Trainer:
    trainer = trainer_of(config, executor)
    for i in range(updates):
        trainer.agent.begin_update([i / updates] * 2, None)
        trainer.agent.update(trainer.env)
    return trainer


def assert_same_state(a: Trainer, b: Trainer) -> None:
    assert same(leaves(a.agent.state()), leaves(b.agent.state()))


def older(tree: Any) -> Any:
    """A tree as checkpoints held it that had one number for all members' counts."""
    if isinstance(tree, dict):
        whole = {k: v for k, v in tree.items() if k in ("steps", "batches")}
        return {k: int(v.max()) if k in whole else older(v) for k, v in tree.items()}
    return tree.clone() if isinstance(tree, Tensor) else tree


@pytest.mark.parametrize("executor", ["eager", "program"])
@pytest.mark.parametrize(
    "config",
    [
        merge(ON_POLICY, {"estimator": "relax"}),
        merge(ON_POLICY, {"baseline": "moving_average"}),
        merge(REPLAY, {"estimator": "enumeration", "agent": {"auto_entropy": True}}),
    ],
    ids=["relax", "moving_average", "auto_entropy"],
)
def test_an_older_checkpoint_goes_on_as_a_newer_one(config: dict[str, Any], executor: str) -> None:
    """Taken over by agents that have been trained already, whose functions are programs by then."""
    first, rest = trained(config, "eager", 4), []
    tree, env = first.agent.state(), first.env.get_state()
    rows = first.agent.replay.data.clone() if hasattr(first.agent, "replay") else None
    for saved in (older(tree), _copied(tree)):
        trainer = trained(config, executor, 5)
        trainer.agent.load_state(saved)
        trainer.env.set_state(env)
        if rows is not None:
            trainer.agent.replay.data.copy_(rows)  # type: ignore[attr-defined]
        for i in range(5):
            trainer.agent.begin_update([0.1 * i] * 2, None)
            trainer.agent.update(trainer.env)
        rest.append(trainer)
    assert_same_state(*rest)
    for i in range(5):
        first.agent.begin_update([0.1 * i] * 2, None)
        first.agent.update(first.env)
    assert_same_state(first, rest[0])


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _copied(v) for k, v in tree.items()}
    return tree.clone() if isinstance(tree, Tensor) else tree


def test_a_baseline_that_counts_in_python_is_not_repeated_past_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in its first batches, and from the fifth on a constant: what is compared early on is the same."""

    def initial(self: Any, members: int, device: Any) -> dict[str, Any]:
        return {"count": 0}

    def predict(self: Any, state: Any, batch: Any) -> Tensor:
        return torch.full_like(batch.value, 0.0 if state["count"] < 5 else 3.0)

    def update(self: Any, state: Any, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"count": state["count"] + 1}, {}

    for name, function in (("initial", initial), ("predict", predict), ("update", update)):
        monkeypatch.setattr(MovingAverage, name, function)
    config = merge(ON_POLICY, {"baseline": "moving_average"})
    a, b = (trained(config, executor, 12) for executor in ("eager", "program"))
    assert b.agent.baseline_state["count"] == 12
    assert_same_state(a, b)


@pytest.mark.parametrize("way", ["reads", "counts"])
def test_a_block_is_repeated_where_what_follows_from_it_cannot_be(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A baseline that reads a number from a tensor, or has another state at each update."""

    def initial(self: Any, members: int, device: Any) -> dict[str, Any]:
        return {"count": 0}

    def predict(self: Any, state: Any, batch: Any) -> Tensor:
        return torch.full_like(batch.value, float(batch.value.mean()) if way == "reads" else state["count"] % 3)

    def update(self: Any, state: Any, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"count": state["count"] + (way == "counts")}, {}

    for name, function in (("initial", initial), ("predict", predict), ("update", update)):
        monkeypatch.setattr(MovingAverage, name, function)
    config = merge(REPLAY, {"baseline": "moving_average", "estimator": "score_function"})
    a = trained(config, "eager", 24)
    b = trainer_of(config, "program")
    notes: list[str] = []
    b.agent.executor.note = notes.append
    for i in range(24):
        b.agent.begin_update([i / 24] * 2, None)
        b.agent.update(b.env)
    assert_same_state(a, b)
    executor = b.agent.executor
    assert isinstance(executor, Programs)
    alone = [f for f in executor._held if isinstance(f, Block) and f.then is None]
    assert [ways(executor, f) for f in alone] == [["program"]]
    (note,) = notes
    assert "'store_and_learn'" in note
    assert ("reads numbers" if way == "reads" else f"more than {FORMS} forms") in note


def test_members_that_go_on_again_are_told_from_those_before() -> None:
    """Which members train is another tensor after all of them have."""
    who: list[Any] = [[1.0, 0.0]] * 4 + [None] + [[0.0, 1.0]] * 2
    found = []
    for executor in ("eager", "program"):
        trainer = trainer_of(ON_POLICY, executor)
        for now in who:
            trainer.agent.begin_update([0.3] * 2, None if now is None else torch.tensor(now).unsqueeze(1))
            trainer.agent.update(trainer.env)
        found.append(trainer)
    assert_same_state(*found)


@pytest.mark.parametrize("executor", ["eager", "program"])
def test_asking_a_twin_what_it_would_learn_with_does_not_change_what_the_agent_learns_with(executor: str) -> None:
    """Between the beginning of an update and the update itself, as a look at the policy is."""
    undisturbed = trained(ON_POLICY, executor)
    trainer = trainer_of(ON_POLICY, executor)
    for i in range(8):
        trainer.agent.begin_update([i / 8] * 2, None)
        now = trainer.agent.rate()
        then = trainer.agent.at_progress([1.0, 1.0])
        assert then.rate().tolist() == [[0.0], [0.0]]
        assert now.tolist() == trainer.agent.rate().tolist() == [[pytest.approx(0.02 * (1 - i / 8))]] * 2
        trainer.agent.update(trainer.env)
    assert_same_state(undisturbed, trainer)


def test_a_rate_first_asked_for_in_inference_mode_moves_on() -> None:
    agent = trainer_of(ON_POLICY, "program").agent
    with torch.inference_mode():
        rate = agent.rate()
    agent.begin_update([0.5, 0.5], None)
    assert rate.tolist() == [[pytest.approx(0.01)]] * 2


def test_what_cuda_cannot_capture_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refused(graph: object) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refused)
    executor, held, notes = CudaGraph(), Held(), []
    executor.note = notes.append

    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    assert executor.capture(held, doubled, [torch.ones(2)]).tolist() == [2, 2]
    assert held.as_it_is
    (note,) = notes
    assert "'doubled'" in note
    assert note.endswith("(operation not permitted when stream is capturing).")


def test_places_tell_tensors_and_numbers_apart() -> None:
    a, b = torch.zeros(2), torch.zeros(2)
    tree = {"a": a, "more": [b, {"n": 3, "name": "x"}, (a, None)]}
    same_places = list(places({"a": a, "more": [b, {"n": 3, "name": "x"}, (a, None)]}))
    assert list(places(tree)) == same_places
    for other in (
        {"a": b, "more": tree["more"]},
        {"a": a, "more": [b, {"n": 4, "name": "x"}, (a, None)]},
        {"a": a, "more": [b, {"n": 3, "name": "x"}]},
    ):
        assert list(places(other)) != same_places
