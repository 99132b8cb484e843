"""Rollouts: step numbers and episode sums against plain loops; whole episodes one after another."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from spine import generator, normal
from torch import Tensor

from pglab.agents import OnPolicyAgent
from pglab.config import Config, merge
from pglab.noise import Noise
from pglab.rollout import Position, Rollout, episode_sums, step_numbers, whole_episodes
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
    """3 episodes of 4 steps and 2 rows between them that only reset, in blocks of 1: 14 steps, of which 12 are kept."""
    env = {"id": "Pendulum-v1", "max_episode_steps": 4, "backend": "gymnasium", "autoreset_mode": "next_step"}
    rollout = collected(3, env=env, agent={"block": 1})
    assert len(rollout) == 12
    assert bool(rollout.valid.all())
    assert torch.equal((rollout.ended & rollout.valid).sum(0), torch.full((2, 3), 3))


class Coins:
    """Environments whose episodes end where a step's noise is below `p`, or at the limit; the observation numbers a member's
    steps, and the reward is the noise. With `resets`, an end is followed by a step that only resets."""

    def __init__(self, envs: int, p: float, limit: int | None, resets: bool = False) -> None:
        self.num_envs, self.p, self.limit, self.resets = envs, p, limit, resets
        self.spec: Any = SimpleNamespace(id="coins", max_episode_steps=limit, reset_noise_size=0)
        self.seen: list[Tensor] = []  # the noise of every block

    def reset(self, noise: Noise, counter: tuple[int, ...]) -> Any:
        self.over = torch.zeros(len(noise), self.num_envs, dtype=torch.bool)
        return SimpleNamespace(obs=torch.zeros(len(noise), self.num_envs, 1), action_mask=None)

    def play(self, position: Position, noise: Tensor, _: Tensor | None) -> tuple[Rollout, Position]:
        self.seen.append(noise)
        rows, now, at = [], position.time, sum(map(len, self.seen[:-1]))
        for x in noise:
            valid = ~self.over
            ended = valid & ((x < self.p) | (now + 1 == self.limit))
            number = (at * self.num_envs + torch.arange(self.num_envs)).expand(x.shape).float().unsqueeze(-1)
            rows.append((number, number, x, x * valid, ended, ended, number, valid, now))
            now, at = torch.where(ended, 0, now + valid), at + 1
            if self.resets:
                self.over = ended
        return Rollout(*map(torch.stack, zip(*rows, strict=True))), Position(position.obs, now, None)

    def episodes(self, count: int, own: bool) -> list[list[list[int]]]:
        """The steps of every member's `count` episodes (by the order in which they begin, or by environment), by a loop over
        its steps."""
        noise = torch.cat(self.seen)
        found: list[list[list[int]]] = []
        for p in range(noise.shape[1]):
            played: list[list[int]] = [[] for _ in range(self.num_envs)]
            mine, over = list(range(self.num_envs)), [False] * self.num_envs
            for t in range(len(noise)):
                for n in range(self.num_envs):
                    if over[n]:
                        over[n] = False
                        continue
                    if mine[n] < len(played):
                        played[mine[n]].append(t * self.num_envs + n)
                    if float(noise[t, p, n]) < self.p or len(played[mine[n]]) == self.limit:
                        mine[n] = mine[n] + self.num_envs if own else len(played)
                        played += [[] for _ in range(mine[n] + 1 - len(played))]
                        over[n] = self.resets
            found.append(played[:count])
        return found


@pytest.mark.parametrize("resets", [False, True], ids=["same step", "next step"])
@pytest.mark.parametrize("own", [False, True], ids=["a queue", "their own"])
@pytest.mark.parametrize(("limit", "block"), [(None, 7), (6, 1), (40, 16)])
def test_episodes_that_begin_first_lie_in_columns_in_turn(limit, block, own, resets):
    envs, episodes = 3, 4
    env: Any = Coins(envs, 0.15, limit, resets)
    whole = whole_episodes(env, env.play, Noise.of_seeds([1, 2, 5]), (0,), block, ("uniform", ()), episodes, own)
    expected = env.episodes(envs * episodes, own)
    for p, played in enumerate(expected):
        for n in range(envs):
            mine = whole.valid[:, p, n]
            assert whole.obs[mine, p, n, 0].tolist() == [i for k in range(n, len(played), envs) for i in played[k]]
            assert whole.time[mine, p, n].tolist() == [
                i for k in range(n, len(played), envs) for i in range(len(played[k]))
            ]
            assert int(whole.ended[mine, p, n].sum()) == episodes
            if not (own and resets):
                assert bool(mine[: int(mine.sum())].all())
    assert bool(whole.valid[-1].any())
    assert not whole.reward[~whole.valid].any()
    wanted = whole.final_obs.squeeze(-1).long()
    noise = torch.cat(env.seen)[wanted // envs, torch.arange(3)[:, None], wanted % envs]
    assert torch.equal(whole.noise[whole.valid], noise[whole.valid])
    assert torch.equal(whole.reward[whole.valid], noise[whole.valid])


def test_episodes_of_a_queue_are_as_long_as_any():
    """Geometric lengths have mean 1 / p and variance (1 - p) / p^2; false alarms: 1e-6 (4.9 standard deviations). The first
    episodes to finish would be far shorter."""
    p, envs, episodes, members = 0.05, 8, 3, 400
    env: Any = Coins(envs, p, None)
    whole = whole_episodes(env, env.play, Noise.of_seeds(range(members)), (0,), 16, ("uniform", ()), episodes)
    count = members * envs * episodes
    assert int((whole.ended & whole.valid).sum()) == count
    mean = int(whole.valid.sum()) / count
    assert abs(mean - 1 / p) < 4.9 * math.sqrt((1 - p) / p**2 / count)
    # How long one column is says nothing of how long the others are (28 pairs; 1e-6 of all is 5.5 deviations of one). Left as they
    # were played they would be about equally long.
    assert bool(((whole.ended & whole.valid).sum(0) == episodes).all())
    lengths = whole.valid.sum(0).double()  # [P, N], of `episodes` each
    pairs = torch.corrcoef(lengths.T)[*torch.triu_indices(envs, envs, 1)]
    assert float(pairs.abs().max()) < 5.5 / math.sqrt(members)
    spread, expected = float(lengths.var(0).mean()), episodes * (1 - p) / p**2
    kurtosis = 3 + (6 + p**2 / (1 - p)) / episodes  # of a sum of geometric lengths
    assert abs(spread - expected) < 4.9 * expected * math.sqrt((kurtosis - 1) / (members * envs))


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
