"""Finite Markov decision processes: the tables, what is played from them, and gymnasium's own toy texts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from pglab_envs import (
    TORCH_ENVS,
    Chain,
    CliffWalkingTable,
    FrozenLakeTable,
    GridWorld,
    Tables,
    TabularEnv,
    TaxiTable,
)

from pglab.config import Config
from pglab.environments import make_environment
from pglab.environments.torch_native import TorchEnvironment
from pglab.errors import PglabError
from pglab.noise import Noise, Purpose
from pglab.training import Trainer

P, N = 2, 3
NOISE = Noise.of_seeds([5, 11])
# The class, its arguments, gymnasium's id and arguments.
TWINS: list[tuple[type[TabularEnv], dict[str, Any], str, dict[str, Any]]] = [
    (FrozenLakeTable, {}, "FrozenLake-v1", {}),
    (FrozenLakeTable, {"map_name": "8x8"}, "FrozenLake8x8-v1", {}),
    (FrozenLakeTable, {"is_slippery": False}, "FrozenLake-v1", {"is_slippery": False}),
    (CliffWalkingTable, {}, "CliffWalking-v1", {"max_episode_steps": 200}),
    (CliffWalkingTable, {"is_slippery": True}, "CliffWalkingSlippery-v1", {"max_episode_steps": 200}),
    (TaxiTable, {}, "Taxi-v4", {}),
    (TaxiTable, {"is_rainy": True}, "Taxi-v4", {"is_rainy": True}),
]
OWN: list[tuple[type[TabularEnv], dict[str, Any]]] = [
    (Chain, {}),
    (Chain, {"n": 3, "slip": 0.0, "horizon": 7}),
    (GridWorld, {}),
    (GridWorld, {"size": 3, "slip": 1.0, "horizon": 9}),
]
ALL = [*OWN, *((cls, kwargs) for cls, kwargs, _, _ in TWINS)]


def ids(value: Any) -> str | None:
    if isinstance(value, type):
        return value.__name__
    return ",".join(f"{k}={v}" for k, v in value.items()) or "default" if isinstance(value, dict) else value


def index(obs: np.ndarray | torch.Tensor) -> np.ndarray:
    """The state that one-hot observations `[..., S]` show."""
    obs = np.asarray(obs)
    assert ((obs == 1).sum(-1) == 1).all()
    assert ((obs == 0).sum(-1) == obs.shape[-1] - 1).all()
    return obs.argmax(-1)


# -- gymnasium's own


@pytest.mark.parametrize(("cls", "kwargs", "env_id", "options"), TWINS, ids=ids)
def test_every_outcome_of_gymnasiums_table(
    cls: type[TabularEnv], kwargs: dict[str, Any], env_id: str, options: dict[str, Any]
) -> None:
    ours, theirs = cls(**kwargs, dtype=torch.float64), gymnasium.make(env_id, **options)
    inner: Any = theirs.unwrapped
    assert ours.max_episode_steps == theirs.spec.max_episode_steps
    assert ours.single_action_space == theirs.action_space
    assert ours.observation_size == theirs.observation_space.n
    inputs, wanted = [], []
    weights: dict[tuple[int, int, int], float] = {}
    for s in range(ours.observation_size):
        for a in range(int(theirs.action_space.n)):
            below = 0.0
            for p, s2, r, terminated in inner.P[s][a]:
                inputs.append((s, a, below + p / 2))  # the middle of the outcome's interval
                wanted.append((s2, r, terminated))
                weights[s, a, int(s2)] = weights.get((s, a, int(s2)), 0.0) + p
                below += p
    s, a, u = torch.tensor(inputs, dtype=torch.float64).unbind(-1)
    found = torch.stack([x.double().flatten() for x in ours.transition(s[:, None], a.long(), u[:, None])], -1)
    assert torch.equal(found, torch.tensor(wanted, dtype=torch.float64))
    table = ours.tables.transition_probability()
    assert float(table.sum()) == pytest.approx(table.shape[0] * table.shape[1])
    for key, p in weights.items():
        assert float(table[key]) == pytest.approx(p, rel=1e-12)
    assert torch.equal(ours.tables.initial, torch.as_tensor(inner.initial_state_distrib).double())


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(("cls", "kwargs", "env_id", "options"), TWINS, ids=ids)
def test_same_seeds_give_gymnasiums_episodes(
    cls: type[TabularEnv], kwargs: dict[str, Any], env_id: str, options: dict[str, Any], mode: AutoresetMode
) -> None:
    options = {**options, "max_episode_steps": 12}
    ours = cls(4, autoreset_mode=mode, max_episode_steps=12, **kwargs)
    theirs = SyncVectorEnv([lambda: gymnasium.make(env_id, **options)] * 4, autoreset_mode=mode)
    rng, episodes = np.random.default_rng(0), 0
    (obs, _), (state, _) = ours.reset(seed=42), theirs.reset(seed=42)
    assert np.array_equal(index(obs), state)
    for _ in range(60):
        actions = rng.integers(ours.single_action_space.n, size=4)
        got, wanted = ours.step(actions), theirs.step(actions)
        assert np.array_equal(index(got[0]), wanted[0])
        for x, y in zip(got[1:4], wanted[1:4], strict=True):
            assert np.array_equal(x, y)
        if mode is AutoresetMode.SAME_STEP and (got[2] | got[3]).any():
            for x, y in zip(got[4]["final_obs"], wanted[4]["final_obs"], strict=True):
                assert (x is None and y is None) or index(x) == y
        episodes += int((got[2] | got[3]).sum())
        if mode is AutoresetMode.DISABLED and (ended := got[2] | got[3]).any():
            obs, _ = ours.reset(options={"reset_mask": ended})
            assert np.array_equal(index(obs), theirs.reset(options={"reset_mask": ended.copy()})[0])
    assert episodes >= 12


def test_gymnasiums_tables_are_read_when_one_is_made_and_not_before() -> None:
    code = (
        "import sys, pglab_envs; from pglab_envs import TORCH_ENVS, TaxiTable; "
        "assert not any('toy_text' in m for m in sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ids_leave_gymnasiums_alone() -> None:
    for cls in (FrozenLakeTable, CliffWalkingTable, TaxiTable, Chain, GridWorld):
        bare = cls.id.removeprefix("pglab/")
        assert bare not in gymnasium.registry
        assert TORCH_ENVS[bare] is TORCH_ENVS[cls.id] is cls
        assert type(gymnasium.make_vec(cls.id, num_envs=2)) is cls


def test_an_environment_that_gymnasium_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gymnasium.registry, "Taxi-v4")
    with pytest.raises(PglabError, match=r"pglab/TaxiTable-v4: gymnasium [\d.]+ has no Taxi-v4"):
        make_environment("TaxiTable-v4", P, N)


# -- own ones


def test_chain_by_hand() -> None:
    p, r = Chain(n=3, slip=0.25).tables.transition_probability(), Chain(n=3, slip=0.25).tables.expected_reward()
    on, back = [[0.25, 0.75, 0.0], [0.25, 0.0, 0.75], [0.25, 0.0, 0.75]], [[0.75, 0.25, 0.0]]
    assert p[:, 0].tolist() == on
    assert p[0, 1].tolist() == back[0]
    assert p[2, 1].tolist() == [0.75, 0.0, 0.25]
    torch.testing.assert_close(r, torch.tensor([[0.5, 1.5], [0.5, 1.5], [8.0, 4.0]]).double())
    assert not Chain().tables.terminated.any()
    assert not TorchEnvironment(Chain, 1, 1).spec.terminates


def test_grid_world_by_hand() -> None:
    t = GridWorld(size=3, slip=0.2).tables
    p = t.transition_probability()
    assert p[4, 2].nonzero().flatten().tolist() == [1, 5, 7]  # right, or up or down
    torch.testing.assert_close(p[4, 2, [1, 5, 7]], torch.tensor([0.1, 0.8, 0.1]).double())
    torch.testing.assert_close(p[0, 0, [0, 3]], torch.tensor([0.9, 0.1]).double())  # against the walls, or down
    assert (t.terminated == (t.next_state == 8)).all()
    assert (t.reward == -1).all()
    env = GridWorld(slip=0.0)
    env.reset(seed=0)
    rewards = [env.step(np.array([a])) for a in (1, 1, 1, 2, 2, 2)]
    assert [bool(x[2][0]) for x in rewards] == [False] * 5 + [True]


@pytest.mark.parametrize(("cls", "kwargs"), ALL, ids=ids)
def test_both_interfaces_play_the_tables(cls: type[TabularEnv], kwargs: dict[str, Any]) -> None:
    ours = cls(3, autoreset_mode="SameStep", **kwargs)
    theirs = SyncVectorEnv([lambda: gymnasium.make(cls.id, **kwargs)] * 3, autoreset_mode="SameStep")
    assert np.array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    rng = np.random.default_rng(0)
    for _ in range(25):
        actions = rng.integers(ours.single_action_space.n, size=3)
        for x, y in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
            assert x.dtype == y.dtype
            assert np.array_equal(x, y)
    # as functions of tensors, of any batch shape
    state = torch.from_numpy(rng.integers(ours.observation_size, size=(2, 5, 1))).float()
    action, noise = torch.from_numpy(rng.integers(2, size=(2, 5))), torch.from_numpy(rng.random((2, 5, 1)))
    results = ours.transition(state, action, noise)
    assert [tuple(x.shape) for x in results] == [(2, 5, 1), (2, 5), (2, 5)]
    assert [x.dtype for x in results] == [torch.float32, torch.float32, torch.bool]
    assert ours.initial_state(noise.float()).shape == (2, 5, 1)
    for x, y in zip(torch.vmap(torch.vmap(ours.transition))(state, action, noise), results, strict=True):
        assert torch.equal(x, y)
    assert np.array_equal(index(ours.observe(state)), state[..., 0].numpy())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("cls", [Chain, GridWorld, FrozenLakeTable], ids=ids)
def test_a_single_one_passes_gymnasiums_check(cls: type[TabularEnv]) -> None:
    check_env(gymnasium.make(cls.id).unwrapped, skip_render_check=True)


def test_outcomes_of_probability_zero_never_happen() -> None:
    p = [[[0.0, 0.3, 0.7 - 2**-55]], [[1 / 3, 1 / 3, 1 / 3]], [[0.0, 1.0, 0.0]]]
    env = TabularEnv(1, Tables.dense(p, np.zeros((3, 1)), initial=[0.0, 0.5, 0.5]), horizon=5)
    ends = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    for s, wanted in ((0.0, [1, 2]), (1.0, [0, 2]), (2.0, [1, 1])):
        found = env.transition(torch.full((2, 1), s), torch.zeros(2, dtype=torch.int64), ends)[0]
        assert found.flatten().tolist() == wanted
    assert env.initial_state(ends).flatten().tolist() == [1, 2]


def test_dense_tables_take_rewards_and_ends_in_short() -> None:
    p = np.full((2, 3, 2), 0.5)
    short = Tables.dense(p, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [False, True])
    assert torch.equal(short.expected_reward(), torch.arange(6.0).view(2, 3).double())
    assert torch.equal(short.terminated, (torch.arange(2) == 1).expand(2, 3, 2))
    assert short.initial.tolist() == [1.0, 0.0]
    assert torch.equal(short.transition_probability(), torch.from_numpy(p))
    full = Tables.dense(p, np.arange(12.0).reshape(2, 3, 2), np.zeros((2, 3, 2), dtype=bool), [0.5, 0.5])
    torch.testing.assert_close(full.expected_reward(), torch.arange(0.5, 12, 2).view(2, 3).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": np.full((2, 3, 2), 0.4)}, "probability must be at least 0 and sum to 1"),
        ({"probability": np.full((2, 3), 0.5)}, r"probability must be \[states, actions, states\], got \(2, 3\)"),
        ({"reward": np.zeros((2, 2))}, r"reward must be \(2, 3, 2\)"),
        ({"reward": np.full((2, 3), np.inf)}, "reward must be finite"),
        ({"initial": [0.5, 0.6]}, "initial must be at least 0"),
        ({"terminated": [True]}, "terminated must be"),
    ],
)
def test_wrong_tables_are_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tables.dense(**({"probability": np.full((2, 3, 2), 0.5), "reward": np.zeros((2, 3))} | change))


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (Chain, {"n": 1}, "n must be an integer of at least 2, got 1"),
        (Chain, {"slip": 1.5}, r"slip must lie in 0\.\.1, got 1\.5"),
        (GridWorld, {"size": 2.0}, "size must be an integer"),
        (GridWorld, {"horizon": 0}, "horizon must be an integer of at least 1"),
        (FrozenLakeTable, {"map_name": "3x3"}, "map_name must be one of 4x4, 8x8, got '3x3'"),
        (FrozenLakeTable, {"is_slippery": "no"}, "is_slippery must be true or false, got 'no'"),
        (CliffWalkingTable, {"horizon": -1}, "horizon must be"),
        (TaxiTable, {"is_rainy": 1}, "is_rainy must be true or false"),
    ],
)
def test_wrong_values_are_said(cls: type[TabularEnv], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)
    with pytest.raises(PglabError, match=message):
        make_environment(cls.id, P, N, kwargs=kwargs)


# -- for a population


def test_steps_of_a_population() -> None:
    env = TorchEnvironment(FrozenLakeTable, P, N, max_episode_steps=6)
    pure = env.env
    assert env.spec.reset_noise_size == 2
    assert env.spec.observation_size == 16
    state = pure.initial_state(NOISE.uniform(Purpose.RESET, (0,), (N, 1)))
    assert torch.equal(env.reset(NOISE, (0,)).obs, pure.observe(state))
    rng, elapsed, ends = np.random.default_rng(0), torch.zeros(P, N), 0
    for t in range(40):
        action = torch.from_numpy(rng.integers(4, size=(P, N)))
        noise = NOISE.uniform(Purpose.RESET, (1, t), (N, 2))
        step = env.step(torch.nn.functional.one_hot(action, 4).float().unsqueeze(-2), noise)
        state, reward, terminated = pure.transition(state, action, noise[..., 1:])
        elapsed += 1
        assert torch.equal(step.final_obs, pure.observe(state))
        assert torch.equal(step.reward, reward)
        assert torch.equal(step.terminated, terminated)
        done = terminated | (elapsed >= 6)
        assert torch.equal(step.ended, done)
        state = torch.where(done.unsqueeze(-1), pure.initial_state(noise[..., :1]), state)
        elapsed[done] = 0
        assert torch.equal(step.obs, pure.observe(state))
        ends += int(terminated.sum())
    assert ends > 0


@pytest.mark.parametrize(
    "config",
    [
        {"baseline": "leave_one_out", "agent": {"name": "on_policy", "collect": "episodes"}},
        {"estimator": "enumeration", "agent": {"name": "actor_critic"}},
        {"agent": {"name": "evolution"}},
    ],
    ids=["on_policy", "actor_critic", "evolution"],
)
def test_agents_train_on_it(config: dict[str, Any]) -> None:
    base = {"env": {"id": "GridWorld-v0", "num_envs": 4}, "seeds": 2, "policy": {"hidden": []}}
    trainer = Trainer(Config.read({**base, **config}))
    for _ in range(3):
        trainer.agent.update(trainer.env)
    assert trainer.agent.policy_parameters.flat.isfinite().all()
