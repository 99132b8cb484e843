"""pglab_envs against gymnasium's own classic control, step by step and in double precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
import torch
from pglab_envs import TORCH_ENVS

IDS = ["Acrobot-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
TOLERANCE = 1e-9
Policy = Callable[[np.ndarray, np.random.Generator], int | np.ndarray]  # of gymnasium's float64 state


def random_of_2(state: np.ndarray, rng: np.random.Generator) -> int:
    return int(rng.integers(2))


def random_of_3(state: np.ndarray, rng: np.random.Generator) -> int:
    return int(rng.integers(3))


def balance(state: np.ndarray, rng: np.random.Generator) -> int:
    return int(state @ (0.1, 0.5, 5.0, 1.0) > 0)


def random_torque(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-2.5, 2.5, size=1)  # beyond the bounds, so that clipping is compared too


def random_force(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1.25, 1.25, size=1)


def rock(state: np.ndarray, rng: np.random.Generator) -> int:
    """Push the way that the car is rolling: every push adds energy."""
    return 2 if state[1] >= 0 else 0


def rock_by_force(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.uniform(0.8, 1.25) * (1.0 if state[1] >= 0 else -1.0)])


def pump(state: np.ndarray, rng: np.random.Generator) -> int:
    """Torque the way that the joint is turning: likewise."""
    return 2 if state[3] >= 0 else 0


def swing_up(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pump energy up to that of standing upright; within reach of it, hold the rod with a PD law."""
    theta, theta_dot = np.mod(state[0] + np.pi, 2 * np.pi) - np.pi, state[1]
    if abs(theta) < 0.4:
        torque = -20.0 * theta - 4.0 * theta_dot
    else:
        energy = theta_dot**2 / 6 + 5.0 * np.cos(theta)  # J; m = l = 1, g = 10: 5 J when upright and at rest
        torque = (5.0 - energy) * np.sign(theta_dot)
    return np.array([torque])


@dataclass
class Recording:
    """Episodes of gymnasium, padded to the longest: E episodes, T steps."""

    states: np.ndarray  # [T, E, S] float64, before the step
    actions: np.ndarray  # [T, E] or [T, E, A]
    next_states: np.ndarray  # [T, E, S] of gymnasium's dtype
    observations: np.ndarray  # [T, E, O], after the step
    rewards: np.ndarray  # [T, E]
    terminated: np.ndarray  # [T, E]
    truncated: np.ndarray  # [T, E]
    live: np.ndarray  # [T, E], False in the padding


def record(env_id: str, policy: Policy, episodes: int, seed: int) -> Recording:
    env = gymnasium.make(env_id, disable_env_checker=True)
    base, rng = env.unwrapped, np.random.default_rng(seed)
    rows: list[list[tuple]] = []
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        steps, over = [], False
        while not over:
            base.state = state = np.array(base.state, dtype=np.float64)
            action = policy(state, rng)
            observation, reward, terminated, truncated, _ = env.step(action)
            steps.append((state, action, np.array(base.state), observation, reward, terminated, truncated, True))
            over = terminated or truncated
        rows.append(steps)
    length = max(map(len, rows))
    columns = []
    for column in zip(*(step for steps in rows for step in steps), strict=True):
        values = np.array(column)
        padded = np.zeros((length, episodes, *values.shape[1:]), dtype=values.dtype)
        start = 0
        for e, steps in enumerate(rows):
            padded[: len(steps), e] = values[start : start + len(steps)]
            start += len(steps)
        columns.append(padded)
    return Recording(*columns)


@pytest.mark.parametrize(
    ("env_id", "policy", "episodes", "endings"),
    [
        ("Acrobot-v1", random_of_3, 150, "both"),  # as many as some seconds allow; so, too, of Continuous
        ("Acrobot-v1", pump, 500, "both"),
        ("CartPole-v1", random_of_2, 1000, "terminated"),
        ("CartPole-v1", balance, 100, "truncated"),
        ("MountainCar-v0", random_of_3, 1000, "truncated"),
        ("MountainCar-v0", rock, 1000, "terminated"),
        ("MountainCarContinuous-v0", random_force, 300, "both"),
        ("MountainCarContinuous-v0", rock_by_force, 1000, "terminated"),
        ("Pendulum-v1", random_torque, 1000, "truncated"),
        ("Pendulum-v1", swing_up, 100, "truncated"),
    ],
)
def test_every_step_equals_gymnasium(env_id: str, policy: Policy, episodes: int, endings: str) -> None:
    """The torch environment starts each step from gymnasium's state, but counts the steps of an episode on its own.

    Gymnasium's MountainCarContinuous rounds every new state to float32, and computes the next step partly in float32
    and partly in float64, depending on the action's type and on whether it is clipped. `record` therefore hands the
    state back to gymnasium as float64 before each step, which changes no bit of it but makes all arithmetic double, and
    here the torch environment's new float64 state is rounded as gymnasium's is. The rounded states have to be equal
    bit for bit, which a difference of 1e-12 before rounding would not survive for so many steps.
    """
    recorded = record(env_id, policy, episodes, seed=10_000)
    length = len(recorded.states)
    env = TORCH_ENVS[env_id](num_envs=episodes, autoreset_mode="Disabled", dtype=torch.float64)
    largest = {"state": 0.0, "reward": 0.0, "observation": 0.0}
    for t in range(length):
        live = recorded.live[t]  # [E]; a padded row is stepped from zeros, and not compared
        env.set_state(recorded.states[t], elapsed=env.elapsed)
        observations, rewards, terminations, truncations, _ = env.step(recorded.actions[t])
        differences = {
            "state": env.get_state().numpy().astype(recorded.next_states.dtype) - recorded.next_states[t],
            "reward": rewards - recorded.rewards[t],
            "observation": observations - recorded.observations[t],
        }
        for name, difference in differences.items():
            largest[name] = max(largest[name], float(np.abs(difference[live]).max()))
        assert np.array_equal(terminations[live], recorded.terminated[t][live])
        assert np.array_equal(truncations[live], recorded.truncated[t][live])
    print(f"\n{env_id} {policy.__name__}: {recorded.live.sum()} steps, largest absolute differences {largest}")
    assert largest["state"] < TOLERANCE
    assert recorded.next_states.dtype == np.float64 or largest["state"] == 0
    assert largest["reward"] < TOLERANCE
    assert largest["observation"] < 1e-6  # float32 on both sides: one unit in the last place of numbers up to 8
    # The comparison is worth little unless episodes end the way that they were meant to.
    assert recorded.live[recorded.terminated | recorded.truncated].sum() == episodes
    if endings == "truncated":
        assert length == env.max_episode_steps
        assert recorded.truncated.sum() == episodes
    elif endings == "terminated":
        assert recorded.terminated.sum() == episodes
    else:
        assert recorded.terminated.any()
        assert recorded.truncated.any()


def test_the_controllers_do_their_task() -> None:
    """`swing_up` visits both regimes: it pumps from below and holds the rod upright at the end."""
    recorded = record("Pendulum-v1", swing_up, 20, seed=1)
    final = recorded.observations[-1]  # [E, O]
    assert (final[:, 0] > 0.99).mean() > 0.9
    assert (recorded.observations[..., 0] < -0.5).any()


@pytest.mark.parametrize(("env_id", "policy"), [("MountainCar-v0", rock), ("MountainCarContinuous-v0", rock_by_force)])
def test_the_cars_meet_the_wall(env_id: str, policy: Policy) -> None:
    recorded = record(env_id, policy, 100, seed=10_000)
    stopped = recorded.next_states[recorded.live] == np.array([-1.2, 0.0], dtype=recorded.next_states.dtype)
    assert stopped.all(-1).any()


@pytest.mark.parametrize("env_id", IDS)
def test_clipped_and_extreme_states(env_id: str) -> None:
    """States far outside what episodes visit: several turns, top speed, both sides of every limit."""
    rng = np.random.default_rng(7)
    env = gymnasium.make(env_id, disable_env_checker=True)
    env.reset(seed=0)
    cls = TORCH_ENVS[env_id]
    middle, scale = {
        "Acrobot-v1": (0.0, (np.pi, np.pi, 4 * np.pi, 9 * np.pi)),
        "CartPole-v1": (0.0, (2.6, 5.0, 0.25, 5.0)),
        "MountainCar-v0": ((-0.3, 0.0), (1.0, 0.08)),
        "MountainCarContinuous-v0": ((-0.3, 0.0), (1.0, 0.08)),
        "Pendulum-v1": (0.0, (40.0, 8.0)),
    }[env_id]
    states = middle + rng.uniform(-1, 1, size=(2000, cls.state_size)) * scale
    discrete = isinstance(cls.single_action_space, gymnasium.spaces.Discrete)
    actions = rng.integers(cls.single_action_space.n, size=2000) if discrete else rng.uniform(-6, 6, size=(2000, 1))
    next_states, rewards, terminated = (
        x.numpy()
        for x in cls(1).transition(torch.from_numpy(states), torch.from_numpy(actions))  # [2000, S], [2000], [2000]
    )
    for i in range(2000):
        env.unwrapped.state = states[i]
        if env_id == "CartPole-v1":
            env.unwrapped.steps_beyond_terminated = None  # each state is one's own episode
        action = int(actions[i]) if discrete else actions[i]
        _, reward, ended, _, _ = env.unwrapped.step(action)
        expected = np.array(env.unwrapped.state)  # float32 of MountainCarContinuous
        assert np.abs(next_states[i].astype(expected.dtype) - expected).max() < TOLERANCE
        assert abs(rewards[i] - reward) < TOLERANCE
        assert terminated[i] == ended
    if env_id != "Pendulum-v1":
        assert 0.05 < terminated.mean() < 0.8


@pytest.mark.parametrize("env_id", IDS)
def test_spaces_and_limits_are_gymnasiums(env_id: str) -> None:
    own, cls = gymnasium.make(env_id), TORCH_ENVS[env_id]
    assert cls.single_observation_space == own.observation_space
    assert cls.single_action_space == own.action_space
    assert cls.max_episode_steps == own.spec.max_episode_steps
    assert cls.observation_size == own.observation_space.shape[0]
    own.reset(seed=0)
    assert cls.state_size == len(own.unwrapped.state)
    ours = gymnasium.spec(f"pglab/{env_id}")
    assert (ours.max_episode_steps, ours.reward_threshold) == (own.spec.max_episode_steps, own.spec.reward_threshold)


@pytest.mark.parametrize("env_id", IDS)
def test_single_precision_stays_close(env_id: str) -> None:
    cls = TORCH_ENVS[env_id]
    env = cls(1)
    noise = torch.from_numpy(np.random.default_rng(3).random((500, cls.reset_noise_size)))
    state = env.initial_state(noise)  # [500, S] float64
    space = cls.single_action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        action = torch.arange(500) % int(space.n)
    else:
        action = torch.linspace(-3, 3, 500, dtype=torch.float64)[:, None]
    exact, exact_reward, _ = env.transition(state, action)
    action = action if action.dtype == torch.int64 else action.float()
    rounded, reward, _ = env.transition(state.float(), action)
    assert rounded.dtype == reward.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, atol=2e-6, rtol=0)
    torch.testing.assert_close(reward.double(), exact_reward, atol=1e-5, rtol=0)
