"""Rollouts: step numbers and episode sums against plain loops; whole episodes one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spine import generator, normal

from pglab.agents import OnPolicyAgent
from pglab.config import Config, merge
from pglab.rollout import Rollout, episode_sums, step_numbers
from pglab.training import Trainer


def ends(t: int, p: int, n: int, key: int, resets: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ended and valid `[T, P, N]`. `next_step`: each end is followed by a row that only resets; `any`: rows that
    are not valid anywhere, ends among them."""
    g = generator(key)
    ended = torch.from_numpy(g.random((t, p, n)) < 0.3)
    valid = torch.ones_like(ended)
    if resets == "next_step":
        for i in range(1, t):
            valid[i] = ~(ended[i - 1] & valid[i - 1])
            ended[i] &= valid[i]
    elif resets == "any":
        valid = torch.from_numpy(g.random((t, p, n)) < 0.7)
    return ended, valid


RESETS = ["same_step", "next_step", "any"]


@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("t", [1, 2, 12])
def test_step_numbers_equal_a_loop(resets, t):
    for key in range(5):
        ended, valid = ends(t, 2, 3, key, resets)
        time = torch.from_numpy(generator(key, 1).integers(0, 9, (2, 3)))
        found, after = step_numbers(time, ended, valid)
        assert found.dtype == after.dtype == torch.int64
        for p in range(2):
            for n in range(3):
                now = int(time[p, n])
                for i in range(t):
                    assert int(found[i, p, n]) == now
                    now = 0 if ended[i, p, n] else now + int(valid[i, p, n])
                assert int(after[p, n]) == now


def of(reward: torch.Tensor, ended: torch.Tensor, valid: torch.Tensor, time: torch.Tensor) -> Rollout:
    obs = torch.zeros(*reward.shape, 1)
    return Rollout(obs, obs, obs, reward, ended, ended, obs, valid, time)


@pytest.mark.parametrize("resets", RESETS)
def test_episode_sums_equal_a_loop_over_blocks(resets):
    """Through several blocks, with episodes that cross them."""
    members, envs, steps = 2, 3, 7
    running = torch.zeros(members, envs).double()
    time = torch.zeros(members, envs, dtype=torch.int64)
    under_way = [[0.0] * envs for _ in range(members)]
    now = [[0] * envs for _ in range(members)]
    for key in range(6):
        ended, valid = ends(steps, members, envs, key, resets)
        reward = normal(steps, members, envs, key=key) * valid
        numbers, time = step_numbers(time, ended, valid)
        total, length, count, running = episode_sums(of(reward, ended, valid, numbers), running)
        for p in range(members):
            returns, lengths = [], []
            for n in range(envs):
                for i in range(steps):
                    under_way[p][n] += float(reward[i, p, n])
                    if ended[i, p, n] and valid[i, p, n]:
                        returns.append(under_way[p][n])
                        lengths.append(now[p][n] + 1)
                        under_way[p][n] = 0.0
                    now[p][n] = 0 if ended[i, p, n] else now[p][n] + int(valid[i, p, n])
            assert float(total[p]) == pytest.approx(sum(returns), abs=1e-9)
            assert (float(length[p]), float(count[p])) == (sum(lengths), len(lengths))
        torch.testing.assert_close(running, torch.tensor(under_way).double())


EPISODES: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 3},
    "agent": {"name": "on_policy", "collect": "episodes", "block": 5},
    "policy": {"hidden": [4]},
    "seeds": 2,
}


def collected(episodes: int, **more: Any) -> Rollout:
    config = merge(merge(EPISODES, {"agent": {"episodes": episodes}}), more)
    trainer = Trainer(Config.read(config))
    assert isinstance(trainer.agent, OnPolicyAgent)
    try:
        return trainer.agent.collect(trainer.env, (4,))
    finally:
        trainer.env.close()


MODES = ["disabled", "next_step", "same_step"]


@pytest.mark.parametrize(
    "env",
    [{}, {"max_episode_steps": 9}, *({"backend": "gymnasium", "autoreset_mode": m} for m in MODES)],
    ids=["torch", "limit", *MODES],
)
def test_every_environment_plays_as_many_whole_episodes_one_after_another(env):
    rollout = collected(3, env=env)
    done = rollout.ended & rollout.valid
    assert torch.equal(done.sum(0), torch.full((2, 3), 3))
    assert bool((rollout.time[0] == 0).all())
    assert bool(rollout.valid[-1].any())
    assert not rollout.reward[~rollout.valid].any()
    for p in range(2):
        for n in range(3):
            mine = rollout.valid[:, p, n]
            last = int(done[:, p, n].nonzero().max())
            assert not mine[last + 1 :].any()
            # Played through: times count up from 0 to each end.
            expected, now = [], 0
            for end in done[mine.nonzero()[:, 0], p, n].tolist():
                expected.append(now)
                now = 0 if end else now + 1
            assert rollout.time[mine.nonzero()[:, 0], p, n].tolist() == expected


@pytest.mark.parametrize("env", [{}, {"max_episode_steps": 9}], ids=["own limit", "limit 9"])
def test_the_first_of_several_episodes_is_the_one_that_is_played_alone(env):
    alone, several = collected(1, env=env), collected(3, env=env)
    assert len(several) > len(alone)
    for p in range(2):
        for n in range(3):
            length = int(alone.valid[:, p, n].sum())
            assert bool(several.valid[:length, p, n].all())
            for name in ("obs", "action", "reward", "ended", "final_obs", "time", "noise"):
                a, b = getattr(alone, name), getattr(several, name)
                assert torch.equal(a[:length, p, n], b[:length, p, n]), name


def test_several_episodes_that_are_all_cut_fill_their_columns():
    rollout = collected(3, env={"id": "Pendulum-v1", "max_episode_steps": 7})
    assert len(rollout) == 21
    assert bool(rollout.valid.all())
    assert torch.equal(rollout.time[:, 0, 0], torch.arange(21) % 7)
    assert torch.equal(rollout.ended[:, 0, 0], torch.arange(21) % 7 == 6)
    assert not rollout.terminated.any()


def test_rows_that_only_reset_may_need_several_more_blocks():
    """3 episodes of 4 steps and 2 rows between them that only reset, in blocks of 1: 14 rows."""
    env = {"id": "Pendulum-v1", "max_episode_steps": 4, "backend": "gymnasium", "autoreset_mode": "next_step"}
    rollout = collected(3, env=env, agent={"block": 1})
    assert len(rollout) == 14
    assert torch.equal((rollout.ended & rollout.valid).sum(0), torch.full((2, 3), 3))


@pytest.mark.parametrize("episodes", [1, 3])
@pytest.mark.parametrize("discount_states", [False, True])
def test_mean_over_episodes_weighs_every_step_by_the_number_of_episodes(episodes, discount_states):
    config = merge(
        EPISODES,
        {
            "agent": {"episodes": episodes, "reduction": "mean_over_episodes", "discount_states": discount_states},
            "discount": 0.9,
        },
    )
    trainer = Trainer(Config.read(config))
    agent: Any = trainer.agent
    rollout = agent.collect(trainer.env, (0,))
    prepared = agent.prepare(rollout)
    expected = rollout.valid.float() / (3 * episodes)
    if discount_states:
        expected = expected * 0.9**rollout.time
    torch.testing.assert_close(prepared.weight, expected)
    if not discount_states:
        # What the weights add up to is the mean length of the episodes.
        lengths = ((rollout.time + 1) * (rollout.ended & rollout.valid)).sum((0, 2))
        torch.testing.assert_close(prepared.weight.sum((0, 2)), lengths / (3 * episodes))
    torch.testing.assert_close(prepared.value_weight.sum((0, 2)), torch.ones(2))
