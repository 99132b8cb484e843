"""One network Jacobian for many estimators, held to plain autograd row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from spine import make, normal
from torch import Tensor

from pglab.environments.contract import ActionSpec
from pglab.lab import jacobian as module
from pglab.lab.jacobian import Jacobian, Unit, pair_cotangents, sections
from pglab.networks import Parameters
from pglab.noise import Noise
from pglab.policy import Policy, PolicyConfig

T, P, N, SIZE = 3, 2, 2, 4
BOX = ActionSpec("continuous", (1, 1), low=-normal(2).abs().numpy(), high=normal(2).abs().numpy())
FAMILIES: dict[str, tuple[str, ActionSpec, dict[str, Any]]] = {
    "categorical": ("categorical", ActionSpec("discrete", (3,)), {}),
    "padded": ("categorical", ActionSpec("discrete", (2, 4, 3)), {}),
    "bounded logits": ("categorical", ActionSpec("discrete", (3, 3)), {"logit_bound": 1.5}),
    "bernoulli": ("bernoulli", ActionSpec("binary", (2, 2)), {}),
    "gaussian": ("gaussian", ActionSpec("continuous", (1, 1)), {"mean_scale": 0.7}),
    "std not learned": ("gaussian", BOX, {"learn_std": False}),
    "std from the network": ("gaussian", BOX, {"state_dependent_std": True}),
    "squashed": ("squashed_gaussian", BOX, {}),
    "beta": ("beta", BOX, {}),
}
HIDDEN: list[tuple[int, ...]] = [(), (5,), (5, 3), (4, 6, 3)]


class Case:
    """A policy of one member at rows `[T, P, N]`, in float64."""

    def __init__(self, name: str, hidden: tuple[int, ...] = (5, 3), activation: str = "tanh", masked: bool = False):
        family, action, options = FAMILIES[name]
        config = PolicyConfig(hidden=hidden, activation=activation, distribution=family, output_gain=1.0, **options)  # type: ignore[arg-type]
        self.policy = Policy(config, SIZE, action, "gaussian")
        made = self.policy.initial(Noise.of_seeds([5]))
        flat = made.flat.double() + 0.2 * normal(*made.flat.shape, key=70)  # biases are not 0
        self.parameters = Parameters(made.shapes, flat)
        self.obs = normal(T, P, N, SIZE, key=60)
        self.mask = (
            make("categorical", (T, P, N), action.factors, action.categories, masked=True).mask if masked else None
        )  # type: ignore[attr-defined]
        self.jacobian = Jacobian(self.policy, self.parameters, self.obs, self.mask)

    def cotangents(self, count: int, centred: bool = True) -> list[list[Tensor]]:
        """Random ones; of categories they sum to zero, as those of estimators do, unless not `centred`."""
        d = self.jacobian.distribution
        found = []
        for j in range(count):
            one = [normal(*getattr(d, p).shape, key=100 + 7 * j + i) for i, p in enumerate(d.parameters)]
            if centred and self.policy.family == "categorical":
                one = [g - g.mean(-1, keepdim=True) for g in one]
            found.append(one)
        return found

    def rows(self, cotangents: Sequence[Tensor]) -> Tensor:
        """`[T, P, N, n]`, a backward pass of plain operations a row."""
        found = torch.zeros(T, P, N, self.parameters.size, dtype=torch.float64)
        for t in range(T):
            for p in range(P):
                for n in range(N):
                    views = {k: v.detach().clone().requires_grad_() for k, v in self.parameters.views.items()}
                    weights = [views[name] for name in self.policy.network.layer_names]
                    h = self.policy.network.plain(weights, self.obs[t, p, n].view(1, 1, -1))
                    mask = None if self.mask is None else self.mask[t, p, n].view(1, 1, 1, *self.mask.shape[3:])
                    d = self.policy.parameterized(views, h.view(1, 1, 1, -1), mask)
                    heads = [getattr(d, name)[0, 0, 0] for name in d.parameters]
                    objective = sum((x * g[t, p, n]).sum() for x, g in zip(heads, cotangents, strict=True))
                    leaves = list(views.values())
                    parts = torch.autograd.grad(objective, leaves, allow_unused=True)  # type: ignore[arg-type]
                    whole = [torch.zeros_like(v) if g is None else g for g, v in zip(parts, leaves, strict=True)]
                    found[t, p, n] = torch.cat([g.flatten() for g in whole])
        return found

    def check(self, sets: list[list[Tensor]]) -> None:
        """`pull`, `inner` and `squared_norms` of these against the loops."""
        loops = torch.stack([self.rows(c) for c in sets])  # [J, T, P, N, n]
        close(self.jacobian.pull(sets, "batch"), loops.sum((1, 3)))
        close(self.jacobian.pull(sets, "column"), loops.sum(1).flatten(1, 2))
        close(self.jacobian.squared_norms(sets), loops.square().sum(-1))
        others = sets[::-1]
        close(self.jacobian.inner(sets, others), (loops * loops.flip(0)).sum(-1))


def close(found: Tensor, wanted: Tensor, rtol: float = 1e-9) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_every_depth_and_activation(name: str, hidden: tuple[int, ...], activation: str) -> None:
    case = Case(name, hidden, activation)
    case.check(case.cotangents(2))


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_with_fewer_and_more_estimators_than_outputs(name: str, count: int) -> None:
    case = Case(name)
    case.check(case.cotangents(count))


@pytest.mark.parametrize("name", ["categorical", "padded"])
def test_action_masks_are_kept_to(name: str) -> None:
    case = Case(name, masked=True)
    case.check(case.cotangents(2))


@pytest.mark.parametrize("name", ["categorical", "padded", "bounded logits"])
def test_cotangents_that_do_not_sum_to_zero_are_not_reduced(name: str) -> None:
    case = Case(name)
    case.check(case.cotangents(2, centred=False))


def test_one_estimator_that_does_not_sum_to_zero_beside_one_of_a_million_times_its_size() -> None:
    """Its sums are below the rounding of the other's, and not of its own."""
    case = Case("categorical")
    large = [[1e6 * g for g in case.cotangents(1)[0]]]
    small = case.cotangents(2, centred=False)[1:]
    found = case.jacobian.pull([*large, *small], "batch")
    close(found[1], case.rows(small[0]).sum((0, 2)))
    close(found[0], case.rows(large[0]).sum((0, 2)))


def test_what_is_zero_gives_zero() -> None:
    case = Case("categorical")
    zeros = [[torch.zeros_like(g) for g in case.cotangents(1)[0]]]
    assert float(case.jacobian.pull(zeros, "column").abs().max()) == 0.0
    assert float(case.jacobian.squared_norms(zeros).abs().max()) == 0.0


@pytest.mark.parametrize("unit", ["column", "batch"])
@pytest.mark.parametrize("name", ["padded", "std from the network"])
def test_chunks_change_nothing(name: str, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(name)
    sets = case.cotangents(3)
    whole = case.jacobian.pull(sets, unit)
    monkeypatch.setattr(module, "CACHE", 1)  # one unit at a time
    assert [s.stop - s.start for s in case.jacobian._chunks(4, 6)] == [1] * 4
    close(case.jacobian.pull(sets, unit), whole, rtol=1e-13)
    monkeypatch.setattr(module, "CACHE", 6 * T * 3 * 4 * 3)  # chunks that do not divide the units
    close(case.jacobian.pull(sets, unit), whole, rtol=1e-13)


def test_a_single_row_and_the_rows_of_replay() -> None:
    """One row a replicate, and `[1, P, B]`."""
    case = Case("categorical")
    sets = case.cotangents(2)
    loops = torch.stack([case.rows(c) for c in sets])
    one = Jacobian(case.policy, case.parameters, case.obs[:1, :1, :1])
    close(one.pull([[g[:1, :1, :1] for g in c] for c in sets], "batch")[:, 0], loops[:, 0, 0, 0])
    wide = Jacobian(case.policy, case.parameters, case.obs[1:2])
    close(wide.pull([[g[1:2] for g in c] for c in sets], "batch"), loops[:, 1].sum(2))


def test_weights_and_sections() -> None:
    case = Case("gaussian")
    (grads,) = case.cotangents(1)
    weight = normal(T, P, N, key=61).abs()
    weighted = pair_cotangents(grads, weight)
    close(case.jacobian.pull([weighted], "batch")[0], (case.rows(grads) * weight.unsqueeze(-1)).sum((0, 2)))
    found = sections(case.parameters)
    assert list(found) == ["layer0", "layer1", "layer2", "log_std"]
    covered = sorted(i for part in found.values() for i in range(part.start, part.stop))
    assert covered == list(range(case.parameters.size))
    sizes = {name: part.stop - part.start for name, part in found.items()}
    assert sizes == {"layer0": (SIZE + 1) * 5, "layer1": 6 * 3, "layer2": 4 * 2, "log_std": 2}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(FAMILIES))
def test_on_a_gpu_it_is_the_same(name: str) -> None:
    case = Case(name)
    sets = case.cotangents(3)
    flat = case.parameters.flat.cuda()
    if case.policy.padding is not None:
        case.policy.padding = case.policy.padding.cuda()
    there = Jacobian(case.policy, Parameters(case.parameters.shapes, flat), case.obs.cuda())
    moved = [[g.cuda() for g in c] for c in sets]
    for unit in ("column", "batch"):
        close(there.pull(moved, unit).cpu(), case.jacobian.pull(sets, unit))  # type: ignore[arg-type]
    close(there.squared_norms(moved).cpu(), case.jacobian.squared_norms(sets))


def test_the_size_of_a_pull() -> None:
    case = Case("beta", (3,))
    assert case.jacobian.pull(case.cotangents(2), "column").shape == (2, P * N, case.parameters.size)
    assert case.parameters.size == sum(math.prod(s) for s in case.parameters.shapes.values())
