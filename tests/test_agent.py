"""A trained member as stable-baselines3 sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import pglab
from pglab.config import merge
from pglab.errors import PglabError

SMALL: dict[str, Any] = {"seeds": [3, 7], "total_steps": 200, "env": {"id": "CartPole-v1", "num_envs": 2}}
DICT_SPACE = gymnasium.spaces.Dict(
    {"place": gymnasium.spaces.Discrete(3, start=1), "speed": gymnasium.spaces.Box(-1, 1, (2, 2))}
)
RAGGED = gymnasium.spaces.MultiDiscrete([2, 4, 3])


class Toy(gymnasium.Env):
    """Random observations of a Dict space, ragged MultiDiscrete actions, ten steps."""

    observation_space = DICT_SPACE

    def __init__(self, actions: str = "ragged") -> None:
        self.action_space = {
            "ragged": RAGGED,
            "binary": gymnasium.spaces.MultiBinary(3),
            "box": gymnasium.spaces.Box(np.array([-3.0, 0.0]), np.array([1.0, 10.0]), dtype=np.float64),
        }[actions]

    def _observe(self) -> dict[str, Any]:
        return {
            "place": np.int64(self.np_random.integers(1, 4)),
            "speed": self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32),
        }

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict]:
        assert self.action_space.contains(np.asarray(action)), action
        self.t += 1
        return self._observe(), float(np.sum(action)), self.t == 10, False, {}


@pytest.fixture(autouse=True, scope="module")
def registered() -> Any:
    gymnasium.register("test/Toy-v0", Toy)
    yield
    gymnasium.registry.pop("test/Toy-v0")


def test_evaluate_policy_accepts_it_unchanged_and_agrees_with_pglabs_own_evaluation(tmp_path: Path) -> None:
    """The same deterministic policy from the same states: SB3 on gymnasium's environment, pglab on its own."""
    config = merge(SMALL, {"env": {"backend": "gymnasium"}, "total_steps": 3000, "learning_rate": 1e-2})
    trained = pglab.train(config, tmp_path / "run")
    for member in range(2):
        agent = pglab.load_agent(tmp_path / "run", member)
        env = make_vec_env("CartPole-v1", n_envs=4, seed=1)
        returns, lengths = evaluate_policy(agent, env, n_eval_episodes=8, return_episode_rewards=True)
        assert returns == lengths  # reward 1 a step
        single = gymnasium.make("CartPole-v1")
        obs, _ = single.reset(seed=5)
        ours: list[int] = []
        state = trained.agent
        for _ in range(20):
            action, hidden = agent.predict(obs, deterministic=True)
            assert hidden is None
            assert action.shape == ()
            assert single.action_space.contains(action)
            rows = torch.tensor(np.stack([obs, obs])).unsqueeze(1)  # [P, 1, O]
            ours.append(int(state.act(rows, None).mode()[member, 0, 0].argmax()))
            assert ours[-1] == int(action)
            obs, *_ = single.step(action)


def test_stochastic_predictions_follow_the_policys_probabilities(tmp_path: Path) -> None:
    pglab.train(SMALL, tmp_path / "run")
    agent = pglab.load_agent(tmp_path / "run", 1)
    obs = np.tile(np.array([0.5, -0.5, 0.1, 0.2], np.float32), (4000, 1))
    drawn = np.concatenate([agent.predict(obs)[0] for _ in range(5)])
    again = pglab.load_agent(tmp_path / "run", 1)
    assert (again.predict(obs)[0] == drawn[:4000]).all()
    rows = torch.tensor(obs[:1]).unsqueeze(0)
    p = agent.policy.distribution(agent._parameters, rows).probs()[0, 0, 0, 1].item()  # type: ignore[attr-defined]
    z = abs(drawn.mean() - p) / np.sqrt(p * (1 - p) / len(drawn))
    assert z < 4.9  # false-alarm rate 1e-6


@pytest.mark.parametrize("actions", ["ragged", "binary", "box"])
@pytest.mark.parametrize("kind", ["on_policy", "actor_critic"])
def test_every_space_trains_saves_loads_and_predicts(actions: str, kind: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "env": {"id": "test/Toy-v0", "num_envs": 2, "kwargs": {"actions": actions}},
        "seeds": 2,
        "total_steps": 120,
        "evaluation": {"episodes": 2, "final_episodes": 2},
        "preprocessing": {"normalize_observations": True},
    }
    if kind == "actor_critic":
        estimator = "pathwise" if actions == "box" else "straight_through_gumbel_softmax"
        config |= {
            "agent": {
                "name": kind,
                "critic": {"blend": 0 if actions == "box" else 0.3},
                "replay": {"batch_size": 8, "warmup": 40},
            },
            "estimator": estimator,
        }
    pglab.train(config, tmp_path / "run")
    agent = pglab.load_agent(tmp_path / "run", 1)
    env = Toy(actions)
    obs, _ = env.reset(seed=0)
    many = {key: np.stack([env._observe()[key] for _ in range(5)]) for key in obs}
    for deterministic in (True, False):
        action, _ = agent.predict(obs, deterministic=deterministic)
        assert env.action_space.contains(action)
        actions_many, _ = agent.predict(many, deterministic=deterministic)
        assert all(env.action_space.contains(a) for a in actions_many)
    saved = agent.save(tmp_path / "one")
    again = pglab.load_agent(saved)
    assert again.member == agent.member
    assert (again.predict(many, deterministic=True)[0] == agent.predict(many, deterministic=True)[0]).all()


def test_bernoulli_serves_discrete_2_and_agrees_with_the_two_way_categorical(tmp_path: Path) -> None:
    config = merge(SMALL, {"policy": {"distribution": "bernoulli"}})
    pglab.train(config, tmp_path / "run")
    action, _ = pglab.load_agent(tmp_path / "run").predict(np.zeros((6, 4), np.float32))
    assert action.shape == (6,)
    assert set(action.tolist()) <= {0, 1}
    with pytest.raises(PglabError, match="bernoulli"):
        pglab.train(merge(SMALL, {"env": {"id": "Acrobot-v1"}, "policy": {"distribution": "bernoulli"}}))


def test_a_member_that_is_not_there_is_refused(tmp_path: Path) -> None:
    pglab.train(SMALL, tmp_path / "run")
    with pytest.raises(PglabError, match="members 0 to 1, not 2"):
        pglab.load_agent(tmp_path / "run", 2)
