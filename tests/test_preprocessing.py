"""Running moments against numpy over all valid rows; a batch is seen through earlier batches only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spine import generator, normal

from pglab.config import PreprocessingConfig
from pglab.preprocessing import Preprocessor, merge_moments

CPU = torch.device("cpu")


def blocks(count: int = 4, t: int = 6, p: int = 2, n: int = 3, o: int = 2):
    """Blocks of different lengths: observations with offsets, and which rows are valid."""
    for i in range(count):
        g = generator(i)
        x = torch.from_numpy(100 + 7 * g.standard_normal((t + i, p, n, o)))
        yield x, torch.from_numpy(g.random((t + i, p, n)) < 0.7)


def rows_of(parts, p: int) -> np.ndarray:
    return np.concatenate([x[:, p][v[:, p]].numpy() for x, v in parts])


def running(parts, members=2, size=2):
    state = (
        torch.zeros(members, size).double(),
        torch.ones(members, size).double(),
        torch.zeros(members, size).double(),
    )
    for x, valid in parts:
        state = merge_moments(*state, x, valid.unsqueeze(-1).expand_as(x), (0, 2))
    return state


def test_merged_moments_equal_numpys_over_all_valid_rows():
    parts = list(blocks())
    mean, var, count = running(parts)
    for p in range(2):
        rows = rows_of(parts, p)
        np.testing.assert_allclose(mean[p], rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(var[p], rows.var(0), rtol=1e-10)
        assert count[p].tolist() == [len(rows)] * 2


def test_the_order_of_merging_does_not_matter():
    parts = list(blocks())
    for a, b in zip(running(parts), running(parts[::-1]), strict=True):
        torch.testing.assert_close(a, b)


def test_one_block_equals_its_halves():
    x, valid = next(blocks(1, t=8))
    for a, b in zip(running([(x, valid)]), running([(x[:3], valid[:3]), (x[3:], valid[3:])]), strict=True):
        torch.testing.assert_close(a, b)


def test_a_block_without_valid_rows_changes_nothing():
    parts = list(blocks())
    x = torch.full((3, 2, 3, 2), 1e9).double()
    for a, b in zip(running(parts), running([*parts, (x, torch.zeros(3, 2, 3, dtype=torch.bool))]), strict=True):
        assert torch.equal(a, b)


def test_float32_moments_survive_a_large_offset():
    x = (1e4 + normal(400, 1, 5, 1)).float()
    state = (torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1))
    for part in x.split(20):
        state = merge_moments(*state, part, torch.ones_like(part, dtype=torch.bool), (0, 2))
    assert float(state[1]) == pytest.approx(float(x.double().var(correction=0)), rel=1e-2)


def block(reward: torch.Tensor, ended: torch.Tensor, valid: torch.Tensor | None = None):
    valid = torch.ones_like(ended) if valid is None else valid
    return torch.zeros(*reward.shape, 2), reward, ended, valid, torch.tensor([[0.5]])


def test_observations_are_seen_through_earlier_batches_and_clipped():
    pre = Preprocessor(PreprocessingConfig(normalize_observations=True), 2, 3, 2, CPU)
    x, valid = next(blocks(1))
    x = x.float()
    torch.testing.assert_close(pre.observations(x), x.clamp(-10, 10))
    pre.update(x, torch.zeros(6, 2, 3), torch.zeros(6, 2, 3, dtype=torch.bool), valid, torch.tensor([[0.9]]))
    y = pre.observations(x)
    for p in range(2):
        rows = rows_of([(x, valid)], p)
        np.testing.assert_allclose(y[:, p].numpy(), (x[:, p].numpy() - rows.mean(0)) / rows.std(0), atol=2e-4)
    assert float(pre.observations(x + 1e6).max()) == 10.0
    torch.testing.assert_close(pre.observations(x[0]), y[0])


def test_fixed_scale_comes_before_the_statistics():
    config = PreprocessingConfig(observation_scale=[0.1, 10.0], normalize_observations=True)
    pre = Preprocessor(config, 2, 3, 2, CPU)
    x, valid = next(blocks(1))
    pre.update(x.float(), torch.zeros(6, 2, 3), torch.zeros(6, 2, 3, dtype=torch.bool), valid, torch.tensor([[0.9]]))
    np.testing.assert_allclose(pre.state["obs"]["mean"][0], rows_of([(x, valid)], 0).mean(0) * [0.1, 10.0], rtol=1e-5)
    plain = Preprocessor(PreprocessingConfig(observation_scale=[0.1, 10.0]), 2, 3, 2, CPU)
    torch.testing.assert_close(plain.observations(torch.ones(2, 3, 2)), torch.tensor([0.1, 10.0]).expand(2, 3, 2))


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    pre = Preprocessor(PreprocessingConfig(normalize_returns=True, reward_scale=3.0), 1, 2, 2, CPU)
    reward = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]])
    ended = torch.tensor([[[False, True]], [[False, False]], [[True, False]]])
    torch.testing.assert_close(pre.rewards(reward), 3 * reward)
    pre.update(*block(reward, ended))
    seen = [1.0, 3.5, 6.75, 2.0, 4.0, 8.0]  # column 0: 1, 3 + .5, 5 + 1.75; column 1: 2 | 4, 6 + 2
    assert pre.state["returns"]["running"].tolist() == [[0.0, 8.0]]
    torch.testing.assert_close(pre.rewards(reward), 3 * reward / float(np.std(seen)))
    pre.update(*block(torch.ones(1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.bool)))
    seen += [1.0, 5.0]  # the second column goes on from 8
    assert float(pre.state["returns"]["var"]) == pytest.approx(np.var(seen), rel=1e-5)


def test_rows_that_are_not_valid_do_not_enter_the_returns():
    pre = Preprocessor(PreprocessingConfig(normalize_returns=True), 1, 1, 2, CPU)
    reward = torch.tensor([[[1.0]], [[0.0]], [[4.0]]])
    ended = torch.tensor([[[True]], [[False]], [[False]]])
    pre.update(*block(reward, ended, torch.tensor([[[True]], [[False]], [[True]]])))
    assert float(pre.state["returns"]["mean"]) == 2.5
    assert float(pre.state["returns"]["count"]) == 2


def test_whole_episodes_one_after_another_each_start_at_0():
    """Whole-episode collection begins every batch afresh; rows past an environment's last episode weigh nothing, and so
    nothing is carried from one batch to the next."""
    pre = Preprocessor(PreprocessingConfig(normalize_returns=True), 1, 2, 2, CPU)
    reward = torch.tensor([[[1.0, 2.0]], [[1.0, 3.0]], [[4.0, 0.0]], [[2.0, 0.0]]])  # two episodes in each column
    ended = torch.tensor([[[False, True]], [[True, True]], [[False, False]], [[True, True]]])
    valid = torch.tensor([[[True, True]], [[True, True]], [[True, False]], [[True, False]]])
    pre.update(*block(reward, ended, valid))
    pre.update(*block(reward, ended, valid))
    seen = [1.0, 1.5, 4.0, 4.0, 2.0, 3.0] * 2  # 1, 1 + .5 | 4, 2 + 2; 2 | 3
    assert float(pre.state["returns"]["mean"]) == pytest.approx(np.mean(seen))
    assert float(pre.state["returns"]["var"]) == pytest.approx(np.var(seen))
    assert pre.state["returns"]["running"].tolist() == [[0.0, 0.0]]


def test_nothing_asked_for_changes_nothing():
    pre = Preprocessor(PreprocessingConfig(), 2, 3, 2, CPU)
    x = normal(4, 2, 3, 2)
    assert torch.equal(pre.observations(x), x)
    assert torch.equal(pre.rewards(x[..., 0]), x[..., 0])
    assert pre.state == {}
