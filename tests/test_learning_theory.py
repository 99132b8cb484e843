"""What must hold of learning whatever the settings: known values, unbiased collection."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats

from pglab.config import Config
from pglab.training import Trainer


class Constant(gymnasium.Env):
    """Reward 1 for ever; the same observation; cut by the time limit."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.ones(1, np.float32), 1.0, False, False, {}


class TwoLengths(Constant):
    """An episode lasts 2 steps or 20, with probability 1/2 each, decided by its first observation."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = 2 if self.np_random.random() < 0.5 else 20
        return np.array([self.left / 20], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


@pytest.fixture(autouse=True, scope="module")
def registered() -> Any:
    gymnasium.register("test/Constant-v0", lambda: Constant(), max_episode_steps=7)
    gymnasium.register("test/TwoLengths-v0", lambda: TwoLengths(), max_episode_steps=50)
    yield
    for name in ("test/Constant-v0", "test/TwoLengths-v0"):
        gymnasium.registry.pop(name)


@pytest.mark.parametrize("returns", [{"name": "gae", "lam": 0.9}, {"name": "n_step", "n": 3}, {"name": "monte_carlo"}])
@pytest.mark.parametrize("mode", ["disabled", "next_step", "same_step"])
def test_with_reward_1_and_truncation_v_learns_1_over_1_minus_gamma(returns: dict[str, Any], mode: str) -> None:
    """Truncation is bootstrapped: the value is 10 at discount 0.9, not the 5.2 that seven steps bring at most."""
    config = Config.read(
        {
            "env": {"id": "test/Constant-v0", "num_envs": 2, "autoreset_mode": mode},
            "agent": {"steps": 8, "returns": returns, "value": {"max_grad_norm": None}},
            "baseline": "value",
            "discount": 0.9,
            "learning_rate": 1e-2,
            "seeds": 2,
        }
    )
    trainer = Trainer(config)
    for _ in range(600):
        trainer.agent.update(trainer.env)
    v = trainer.agent.v(torch.ones(1, 2, 1, 1))  # type: ignore[attr-defined]
    assert torch.allclose(v, torch.tensor(10.0), atol=0.05)


def test_a_learned_q_of_reward_1_and_truncation_is_1_over_1_minus_gamma() -> None:
    config = Config.read(
        {
            "env": {"id": "test/Constant-v0", "num_envs": 2},
            "agent": {
                "name": "actor_critic",
                "critic": {"target_action": "expectation", "target_rate": 0.05},
                "replay": {"batch_size": 32, "warmup": 16},
            },
            "estimator": "enumeration",
            "discount": 0.9,
            "learning_rate": 3e-3,
            "seeds": 2,
        }
    )
    trainer = Trainer(config)
    for _ in range(1500):
        trainer.agent.update(trainer.env)
    agent: Any = trainer.agent
    q = agent.critic.reduced(agent.critic.parameters, torch.ones(2, 1, 1), torch.eye(2)[0].expand(2, 1, 2))
    assert torch.allclose(q, torch.tensor(10.0), atol=0.1)


@pytest.mark.statistical
@pytest.mark.parametrize("waves", [1, 3])
def test_whole_episode_collection_does_not_favour_short_episodes(waves: int) -> None:
    """Lengths 2 and 20 with probability 1/2: the mean is 11. False-alarm rate 1e-6 (normal approximation, two-sided)."""
    config = Config.read(
        {
            "env": {"id": "test/TwoLengths-v0", "num_envs": 50},
            "agent": {"collect": "episodes", "episodes": waves, "block": 8},
            "seeds": 2,
        }
    )
    trainer = Trainer(config)
    lengths = []
    for update in range(12 // waves):
        rollout = trainer.agent.collect(trainer.env, (update,))  # type: ignore[attr-defined]
        assert rollout.valid.shape[2] == 50
        ends = rollout.ended & rollout.valid  # [T, P, N]
        assert torch.equal(ends.sum(0), torch.full((2, 50), waves))
        per_episode = (rollout.time + 1)[ends]
        assert int(rollout.valid.sum()) == int(per_episode.sum())
        lengths.append(per_episode)
    drawn = torch.cat(lengths).double().numpy()
    assert len(drawn) == 1200
    z = abs(drawn.mean() - 11) / (9 / np.sqrt(len(drawn)))
    assert z < stats.norm.isf(0.5e-6)


def test_step_wise_collection_counts_episode_time_and_crosses_blocks() -> None:
    config = Config.read({"env": {"id": "test/Constant-v0", "num_envs": 1}, "agent": {"steps": 5}, "seeds": 1})
    trainer = Trainer(config)
    times, ended = [], []
    for update in range(4):
        rollout = trainer.agent.collect(trainer.env, (update,))  # type: ignore[attr-defined]
        times += rollout.time.flatten().tolist()
        ended += rollout.ended.flatten().tolist()
    assert times == [t % 7 for t in range(20)]
    assert ended == [t % 7 == 6 for t in range(20)]
