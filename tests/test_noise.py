"""Noise is a pure function of (seed, purpose, prefix, counter)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from spine import assert_law, assert_mean

from pglab.noise import ChunkedNoise, Member, Noise, Purpose, generator

KINDS = ["uniform", "normal", "exponential"]


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_same_block_whatever_was_drawn_before(kind):
    first = Noise.of_seeds([3]).of_kind(kind, Purpose.ACTION, (4,), (5, 2))
    busy = Noise.of_seeds([3])
    busy.of_kind(kind, Purpose.ACTION, (3,), (100,))
    assert torch.equal(busy.of_kind(kind, Purpose.ACTION, (4,), (5, 2)), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_members_noise_depends_neither_on_the_population_nor_on_its_place_in_it(kind):
    alone = Noise.of_seeds([7]).of_kind(kind, Purpose.UPDATE, (1, 2), (4,))[0]
    among = Noise.of_seeds([2, 7, 0]).of_kind(kind, Purpose.UPDATE, (1, 2), (4,))
    turned = Noise.of_seeds([7, 0, 2]).of_kind(kind, Purpose.UPDATE, (1, 2), (4,))
    assert torch.equal(among[1], alone)
    assert torch.equal(turned, among[[1, 2, 0]])


def test_the_same_seed_twice_sees_common_random_numbers():
    block = Noise.of_seeds([5, 5]).normal(Purpose.ACTION, (0,), (8,))
    assert torch.equal(block[0], block[1])


def test_environment_1_of_seed_0_is_not_environment_0_of_seed_1():
    block = Noise.of_seeds(range(6)).uniform(Purpose.RESET, (0,), (1, 8), axis=1)[0]  # [P, N]
    assert len(block.unique()) == block.numel()


def test_the_member_axis_stands_where_asked_and_moves_no_number():
    noise = Noise.of_seeds([0, 1])
    front = noise.uniform(Purpose.ACTION, (0,), (3, 4))
    middle = noise.uniform(Purpose.ACTION, (0,), (3, 4), axis=1)
    assert middle.shape == (3, 2, 4)
    assert torch.equal(middle.transpose(0, 1), front)


def keys(noise: Noise, counters) -> set[tuple]:
    return {tuple(generator(m, p, c).integers(2**63, size=2)) for m in noise.members for p in Purpose for c in counters}


def test_training_evaluation_and_measurement_share_no_stream():
    """Every purpose, seeds 0 to 3 and every counter of length 1 to 3 over these numbers, two purposes' among them."""
    noise, apart = Noise.of_seeds(range(4)), (Purpose.EVALUATION, Purpose.MEASUREMENT)
    counters = [c for n in (1, 2, 3) for c in itertools.product((0, 1, *map(int, apart)), repeat=n)]
    streams = [
        keys(noise, counters),
        keys(noise.apart(Purpose.EVALUATION), counters),
        keys(noise.apart(Purpose.MEASUREMENT, 0), counters),
        keys(noise.apart(Purpose.MEASUREMENT, 1), counters),
    ]
    wanted = len(noise) * len(Purpose) * len(counters)
    assert [len(s) for s in streams] == [wanted] * 4
    assert len(set.union(*streams)) == 4 * wanted


def test_replicates_differ_and_repeat_exactly():
    noise = Noise.of_seeds([0, 1]).apart(Purpose.MEASUREMENT, 3)
    all_four = noise.replicated(range(4)).normal(Purpose.ACTION, (0,), (2,))
    assert len(all_four.unique()) == 16
    later = noise.replicated(range(2, 4)).normal(Purpose.ACTION, (0,), (2,))
    assert torch.equal(later, all_four[[2, 3, 6, 7]])


class Extreme:
    """A generator whose draws are the ends of their range."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, size, dtype):
        return np.full(size, self.value, dtype)

    standard_exponential = random


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ends_of_the_range_give_finite_logits_and_gumbels(monkeypatch, dtype):
    noise = Noise.of_seeds([0])
    for value in (0.0, 1 - np.finfo(dtype).eps / 2):  # the least and the greatest that numpy draws
        monkeypatch.setattr("pglab.noise.generator", lambda *_, value=value: Extreme(value))
        u = noise.uniform(Purpose.ACTION, (0,), (1,), dtype=dtype)
        e = noise.exponential(Purpose.ACTION, (0,), (1,), dtype=dtype)
        assert 0 < float(u) < 1
        assert torch.isfinite(torch.logit(u)).all()
        assert float(e) > 0
        assert torch.isfinite(e.log()).all()


def test_many_float32_draws_stay_inside():
    noise = Noise.of_seeds([0])
    u = noise.uniform(Purpose.ACTION, (0,), (3_000_000,))
    assert u.min() > 0
    assert u.max() < 1
    assert noise.exponential(Purpose.ACTION, (0,), (3_000_000,)).min() > 0


@pytest.mark.statistical
@pytest.mark.parametrize(("kind", "law"), [("uniform", "uniform"), ("normal", "norm"), ("exponential", "expon")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_laws(kind, law, dtype):
    noise = Noise.of_seeds([11])
    assert_law(getattr(noise, kind)(Purpose.ACTION, (0,), (100_000,), dtype=dtype)[0].double(), law)


@pytest.mark.statistical
def test_neighbouring_seeds_and_counters_are_uncorrelated():
    noise = Noise.of_seeds(range(3))
    x = torch.cat([noise.normal(Purpose.ACTION, (c,), (50_000,)) for c in range(3)]).double()  # [9, n]
    i, j = torch.triu_indices(9, 9, offset=1)
    assert_mean((x[i] * x[j]).T, torch.zeros(len(i)), resolution=0.05)


def test_integers():
    noise = Noise.of_seeds([0, 1])
    x = noise.integers(Purpose.REPLAY, (0,), (1000,), 7)
    assert sorted(x.unique().tolist()) == list(range(7))


@pytest.mark.parametrize("kind", KINDS)
def test_chunked_noise_does_not_depend_on_where_one_starts(kind):
    members = Noise.of_seeds([0, 9])
    forward = ChunkedNoise(members, size=4)
    blocks = [forward.take(kind, Purpose.UPDATE, i, (3,)) for i in range(10)]
    assert blocks[0].shape == (2, 3)
    resumed = ChunkedNoise(members, size=4)
    for i in (7, 9, 2):
        assert torch.equal(resumed.take(kind, Purpose.UPDATE, i, (3,)), blocks[i])
    assert len(torch.stack(blocks).unique()) == 60
    assert not torch.equal(forward.take(kind, Purpose.UPDATE, 9, (3,), stream=1), blocks[9])


def test_a_member_is_its_seed_and_prefix():
    a = generator(Member(3, (1, 2)), Purpose.ACTION, (4,)).random(3)
    b = np.random.Generator(np.random.SFC64(np.random.SeedSequence(3, spawn_key=(1, 1, 2, 4)))).random(3)
    np.testing.assert_array_equal(a, b)
