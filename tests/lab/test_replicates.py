"""A stream of units against the same units held at once, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pglab.errors import PglabError
from pglab.lab import replicates as module
from pglab.lab.replicates import Replicates, merged

J, N = 3, 5


def units(r: int, mean: float = 0.5, noise: float = 1.0, key: int = 0) -> Tensor:
    """[J, r, N] float32 with a mean and a scale for every parameter."""
    g = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(key,)))
    scale = noise * np.linspace(0.5, 1.5, N)
    x = mean * np.arange(1, N + 1) + scale * g.standard_normal((J, r, N))
    return torch.from_numpy(x.astype(np.float32))


def fed(x: Tensor, chunks: tuple[int, ...], **options: int) -> Replicates:
    """Units in chunks of the given sizes, in turn."""
    found = Replicates(J, N, **options)
    start = 0
    while start < x.shape[1]:
        for size in chunks:
            found.add(x[:, start : start + size])
            start += size
    return found


def assert_holds(found: Replicates, x: Tensor) -> None:
    """Moments and groups are those of x [J, R, N], computed in two passes."""
    wide = x.double().numpy()
    assert found.units == x.shape[1] == int(found.counts.sum())
    np.testing.assert_allclose(found.mean, wide.mean(1), rtol=1e-13)
    np.testing.assert_allclose(found.variance, wide.var(1, ddof=1), rtol=1e-9)
    y = wide - found.anchor.numpy()[:, None]
    starts = np.cumsum([0, *found.counts.tolist()])[:-1]
    sums, squares = np.add.reduceat(y, starts, axis=1), np.add.reduceat(y**2, starts, axis=1)
    np.testing.assert_allclose(found.sums, sums, rtol=1e-9, atol=1e-12 * np.abs(y).max())
    np.testing.assert_allclose(found.squares, squares, rtol=1e-5)  # stored in float32
    assert found.squares.dtype == torch.float32
    assert found.sums.dtype == torch.float64


@pytest.mark.parametrize("chunks", [(64,), (1,), (7, 50, 1), (333,), (16, 16)])
def test_a_stream_is_what_it_was_made_of(chunks: tuple[int, ...]) -> None:
    x = units(1000)
    assert_holds(fed(x, chunks, groups=32), x)


@pytest.mark.parametrize("ratio", [1e-3, 1e-6])
def test_nothing_cancels_where_the_noise_is_a_millionth_of_the_mean(ratio: float) -> None:
    x = units(600, mean=1000.0, noise=1000.0 * ratio)
    assert len(np.unique(x.numpy())) > 20  # float32 itself leaves some noise
    assert_holds(fed(x, (40, 8), groups=64), x)


def test_squares_in_float32_do_not_drift() -> None:
    # The worst case: one unit at a time into few groups, so that every addition rounds.
    x = units(8192)
    found = fed(x, (1,), groups=16)
    exact = (x.double() - found.anchor[:, None]).square().unflatten(1, (len(found.counts), -1)).sum(2)
    assert float((found.squares.double() / exact - 1).abs().max()) < 1e-5
    assert_holds(found, x)


def test_blocks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x = units(500)
    monkeypatch.setattr(module, "CHUNK", 30 * J * N)
    assert_holds(fed(x, (250,), groups=32), x)


def test_groups_double_when_they_are_full_and_stay_within_bounds() -> None:
    x, found = units(3000), Replicates(J, N, groups=32)
    for start in range(0, 3000, 3):
        found.add(x[:, start : start + 3])
        assert len(found.counts) <= 32
        assert found.units <= 32 or len(found.counts) >= 16
        assert (found.counts[:-1] == found.per_group).all()
        assert 1 <= int(found.counts[-1]) <= found.per_group
    assert found.per_group == 128
    assert found.counts.tolist() == [128] * 23 + [56]
    assert found._sums.shape[1] <= 32


def test_the_first_chunk_may_be_larger_than_all_groups_hold() -> None:
    x = units(1000)
    found = fed(x, (1000,), groups=16)
    assert found.counts.tolist() == [64] * 15 + [40]
    assert_holds(found, x)


@pytest.mark.parametrize("sizes", [(300, 500), (500, 300), (5, 1000), (1000, 5), (64, 64)])
def test_two_streams_merged_are_one(sizes: tuple[int, int]) -> None:
    a, b = units(sizes[0], key=1), units(sizes[1], key=2)
    first, second = fed(a, (50,), groups=32, head=8), fed(b, (5,), groups=32, head=8)
    before = [t.clone() for r in (first, second) for t in (r.sums, r.squares, r.m2, r.offset, r.counts)]
    both = merged(first, second)
    x = torch.cat([a, b], 1)
    assert_holds(both, x)
    assert torch.equal(both.head, torch.cat([first.head, second.head], 1)[:, :8])
    both.add(units(70, key=3))
    assert_holds(both, torch.cat([x, units(70, key=3)], 1))
    assert len(both.counts) <= 32
    after = [t for r in (first, second) for t in (r.sums, r.squares, r.m2, r.offset, r.counts)]
    assert all(torch.equal(s, t) for s, t in zip(before, after, strict=True))


def test_an_empty_stream_adds_nothing() -> None:
    x = units(40)
    for both in (merged(fed(x, (40,)), Replicates(J, N)), merged(Replicates(J, N), fed(x, (40,)))):
        assert_holds(both, x)


def test_the_head_has_the_first_training_size_gradients() -> None:
    x = units(60)
    found = fed(x, (6, 12), per_gradient=3, head=5)
    np.testing.assert_allclose(found.head, x[:, :15].unflatten(1, (5, 3)).mean(2), rtol=1e-6)
    assert fed(x, (6,), head=0).head.shape == (J, 0, N)


def test_a_constant_has_variance_zero_exactly() -> None:
    x = units(100)
    x[:, :, 2] = 0.1
    found = merged(fed(x[:, :50], (7,), groups=16), fed(x[:, 50:], (9,), groups=16))
    assert (found.variance[:, 2] == 0).all()
    assert (found.squares[:, :, 2] == 0).all()


def test_the_cpu_has_it_all() -> None:
    found = fed(units(50), (10,))
    assert found.cpu() is found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_keeps_the_same() -> None:
    x = units(1000)
    found = Replicates(J, N, groups=32)
    for part in x.split(90, 1):
        found.add(part.cuda())
    assert found.sums.is_cuda
    assert_holds(found.cpu(), x)


def test_what_does_not_fit_is_refused_and_nothing_taken_in() -> None:
    found = Replicates(J, N, per_gradient=2)
    x = units(4)
    with pytest.raises(PglabError, match=r"\[3, U, 5\] is wanted"):
        found.add(x[:2])
    with pytest.raises(PglabError, match="float32 is wanted"):
        found.add(x.double())
    with pytest.raises(PglabError, match="not a multiple of the 2"):
        found.add(x[:, :3])
    broken = x.clone()
    broken[1, 2, 3] = torch.nan
    with pytest.raises(PglabError, match=r"pairs \[1\] are not finite"):
        found.add(broken)
    assert found.units == 0
    assert found.head.shape[1] == 0
    with pytest.raises(PglabError, match="at least 2 replicates"):
        _ = found.variance
    for options in ({"groups": 8}, {"per_gradient": 0}, {"head": -1}):
        with pytest.raises(PglabError, match="must be at least"):
            Replicates(J, N, **options)
    with pytest.raises(PglabError, match="most_groups is 256 and 32"):
        merged(Replicates(J, N), Replicates(J, N, groups=32))
