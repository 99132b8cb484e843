"""TorchVectorEnv as gymnasium's users meet it, and its functions as pglab calls them."""

from __future__ import annotations

import subprocess
import sys
from statistics import NormalDist

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from pglab_envs import (
    TORCH_ENVS,
    Acrobot,
    CartPole,
    MountainCar,
    MountainCarContinuous,
    Pendulum,
    TorchVectorEnv,
)

IDS = ["Acrobot-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
CLASSES = [Acrobot, CartPole, MountainCar, MountainCarContinuous, Pendulum]
# Middle and half width of what each number of `reset_noise_size` is turned into; the rest of the state starts at 0.
STARTS: list[tuple[type[TorchVectorEnv], float, tuple[float, ...]]] = [
    (Acrobot, 0.0, (0.1,) * 4),
    (CartPole, 0.0, (0.05,) * 4),
    (MountainCar, -0.5, (0.1,)),
    (MountainCarContinuous, -0.5, (0.1,)),
    (Pendulum, 0.0, (np.pi, 1.0)),
]
MODES = list(AutoresetMode)


def make_both(
    env_id: str, mode: AutoresetMode, num_envs: int = 5, limit: int | None = None
) -> tuple[TorchVectorEnv, SyncVectorEnv]:
    """The torch environment in double precision, and gymnasium's in a SyncVectorEnv."""
    kwargs = {} if limit is None else {"max_episode_steps": limit}
    ours = TORCH_ENVS[env_id](num_envs, autoreset_mode=mode, dtype=torch.float64, **kwargs)
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make(env_id, disable_env_checker=True, **kwargs)] * num_envs, autoreset_mode=mode
    )
    return ours, theirs


def draw_actions(env: TorchVectorEnv, rng: np.random.Generator) -> np.ndarray:
    space = env.single_action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return rng.integers(space.n, size=env.num_envs)
    return rng.uniform(space.low, space.high, size=(env.num_envs, *space.shape)).astype(np.float32)


def assert_same_infos(ours: dict, theirs: dict, atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, dict):
            assert_same_infos(ours[key], value, atol)
            continue
        assert ours[key].dtype == value.dtype
        for mine, other in zip(ours[key], value, strict=True):
            if isinstance(other, np.ndarray):
                assert mine.dtype == other.dtype
                np.testing.assert_allclose(mine, other, atol=atol)
            else:
                assert mine == other


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit", [None, 9])
def test_same_seeds_give_the_episodes_of_sync_vector_env(env_id: str, mode: AutoresetMode, limit: int | None) -> None:
    """Nothing is forced here: states, resets and infos follow from the seeds, on both sides, through many episodes."""
    ours, theirs = make_both(env_id, mode, limit=limit)
    # Gymnasium rounds the state of MountainCarContinuous to float32 in every step, and ours is kept in float64 here.
    atol = 1e-4 if env_id == "MountainCarContinuous-v0" else 2e-6
    # Gymnasium takes the first cosines and sines of Acrobot in float32.
    first_atol = 1e-7 if env_id == "Acrobot-v1" else 0
    rng = np.random.default_rng(11)
    (obs, infos), (expected, expected_infos) = ours.reset(seed=42), theirs.reset(seed=42)
    assert obs.dtype == np.float32
    np.testing.assert_allclose(obs, expected, rtol=0, atol=first_atol)
    assert infos == expected_infos == {}
    assert ours.np_random_seed == theirs.np_random_seed
    episodes = 0
    steps = 450 if env_id in ("Acrobot-v1", "CartPole-v1") else 2 * ours.max_episode_steps + 10
    for _ in range(steps if limit is None else 60):
        actions = draw_actions(ours, rng)
        if env_id == "Acrobot-v1":
            # Mostly with the joint's rotation, to end early: its motion is chaotic, and differences of 1e-16 would
            # become visible within some hundred steps.
            actions = np.where(rng.random(ours.num_envs) < 0.2, actions, 2 * (expected[:, 5] >= 0))
        got, wanted = ours.step(actions), theirs.step(actions)
        expected = wanted[0]
        assert [x.dtype for x in got[:4]] == [x.dtype for x in wanted[:4]]
        np.testing.assert_allclose(got[0], wanted[0], atol=atol)
        np.testing.assert_allclose(got[1], wanted[1], atol=1e-6)
        assert np.array_equal(got[2], wanted[2])
        assert np.array_equal(got[3], wanted[3])
        assert_same_infos(got[4], wanted[4], atol)
        ended = got[2] | got[3]
        episodes += int(ended.sum())
        assert ours.observation_space.contains(got[0])
        if mode is AutoresetMode.DISABLED and ended.any():
            obs, _ = ours.reset(options={"reset_mask": ended})
            expected, _ = theirs.reset(options={"reset_mask": ended.copy()})
            np.testing.assert_allclose(obs, expected, atol=atol)
    assert episodes >= 2 * ours.num_envs


@pytest.mark.parametrize("env_id", IDS)
def test_next_step_resets_one_step_late_and_rewards_it_with_zero(env_id: str) -> None:
    env = TORCH_ENVS[env_id](3, max_episode_steps=4)
    env.reset(seed=0)
    env.set_state(env.get_state(), elapsed=torch.tensor([2, 0, 0]))
    rng = np.random.default_rng(0)
    env.step(draw_actions(env, rng))
    obs, _, terminated, truncated, infos = env.step(draw_actions(env, rng))
    assert truncated.tolist() == [True, False, False]
    assert not terminated.any()
    assert infos == {}
    assert np.array_equal(obs, env.observe(env.get_state()).numpy())  # the last observation, not a new episode's
    assert env.ended.tolist() == [True, False, False]
    _, reward, terminated, truncated, _ = env.step(draw_actions(env, rng))
    assert reward[0] == 0
    assert not terminated[0]
    assert not truncated[0]
    assert env.elapsed.tolist() == [0, 3, 3]
    assert not env.ended.any()


def test_same_step_hands_out_the_last_observation() -> None:
    env = CartPole(2, autoreset_mode="SameStep")
    env.reset(seed=0)
    falling = torch.tensor([[0.0, 0.0, 0.2094, 1.0], [0.0, 0.0, 0.0, 0.0]])
    env.set_state(falling)
    obs, reward, terminated, truncated, infos = env.step(np.array([0, 0]))
    expected, _, _ = env.transition(falling, torch.tensor([0, 0]))
    assert terminated.tolist() == [True, False]
    assert not truncated.any()
    assert reward.tolist() == [1.0, 1.0]
    assert np.array_equal(infos["final_obs"][0], expected[0].numpy())
    assert infos["final_obs"][1] is None
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [True, False]
    assert infos["final_info"] == {}
    assert np.abs(obs[0]).max() <= 0.05
    assert np.array_equal(obs[1], expected[1].numpy())
    assert env.elapsed.tolist() == [0, 1]
    assert not env.ended.any()


def test_termination_in_the_last_step_is_also_truncated() -> None:
    env = CartPole(1, max_episode_steps=3)
    env.set_state(torch.tensor([[0.0, 0.0, 0.2094, 1.0]]), elapsed=2)
    _, _, terminated, truncated, _ = env.step(np.array([0]))
    assert terminated.all()
    assert truncated.all()


def test_disabled_waits_for_a_masked_reset() -> None:
    env = Pendulum(3, max_episode_steps=5, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=1)
    env.set_state(env.get_state(), elapsed=torch.tensor([4, 0, 4]))
    actions = np.zeros((3, 1))
    env.step(actions)
    before = env.get_state()
    with pytest.raises(ResetNeeded, match=r"\[0, 2\]"):
        env.step(actions)
    assert torch.equal(env.get_state(), before)
    env.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(ResetNeeded, match=r"\[2\]"):
        env.step(actions)
    obs, _ = env.reset(options={"reset_mask": np.array([False, False, True])})
    after = env.get_state()
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])
    assert np.array_equal(obs, env.observe(after).numpy())
    assert env.elapsed.tolist() == [0, 1, 0]
    env.step(actions)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"reset_mask": [True, False]}, TypeError),
        ({"reset_mask": np.array([1, 0])}, TypeError),
        ({"reset_mask": np.array([True])}, ValueError),
        ({"reset_mask": np.array([False, False])}, ValueError),
        ({"low": -0.1}, ValueError),
    ],
)
def test_reset_refuses_bad_options(options: dict, error: type[Exception]) -> None:
    env = CartPole(2)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(error, match=r"reset_mask|reset option"):
        env.reset(options=options)
    assert torch.equal(env.get_state(), before)


def test_seeds() -> None:
    env = CartPole(3)
    first, _ = env.reset(seed=5)
    listed, _ = env.reset(seed=[5, 6, 7])
    assert np.array_equal(first, listed)
    going_on, _ = env.reset()
    assert not np.isclose(going_on, first).any()
    mixed, _ = env.reset(seed=[None, 6, None])
    assert np.array_equal(mixed[1], first[1])
    assert not np.isclose(mixed[[0, 2]], first[[0, 2]]).any()
    assert env.np_random_seed == (5, 6, 7)
    with pytest.raises(ValueError, match="seeds"):
        env.reset(seed=[1, 2])
    assert not np.array_equal(CartPole(3).reset()[0], CartPole(3).reset()[0])


@pytest.mark.parametrize(
    ("cls", "actions", "message"),
    [
        (CartPole, np.array([0]), r"must be \(2,\)"),
        (CartPole, np.array([[0], [1]]), r"must be \(2,\)"),
        (CartPole, np.array([0, 2]), r"0\.\.1"),
        (CartPole, np.array([-1, 0]), r"0\.\.1"),
        (CartPole, np.array([0.0, 1.0]), "integers"),
        (Acrobot, np.array([0, 3]), r"0\.\.2"),
        (MountainCar, np.array([0, 3]), r"0\.\.2"),
        (MountainCarContinuous, np.array([[0.0], [np.nan]]), "NaN"),
        (Pendulum, np.array([0.0, 1.0]), r"must be \(2, 1\)"),
        (Pendulum, np.array([[0.0], [np.nan]]), "NaN"),
        (Pendulum, np.array([["a"], ["b"]]), "real"),
    ],
)
def test_step_refuses_bad_actions(cls: type[TorchVectorEnv], actions: np.ndarray, message: str) -> None:
    env = cls(2)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert torch.equal(env.get_state(), before)
    assert env.elapsed.tolist() == [0, 0]


def test_other_refusals() -> None:
    with pytest.raises(ResetNeeded):
        CartPole(2).step(np.array([0, 1]))
    with pytest.raises(ResetNeeded):
        CartPole(2).reset(options={"reset_mask": np.array([True, False])})
    for kwargs in ({"num_envs": 0}, {"max_episode_steps": 0}, {"autoreset_mode": "Never"}, {"render_mode": "human"}):
        with pytest.raises(ValueError, match=r"num_envs|max_episode_steps|Never|render_mode"):
            CartPole(**kwargs)
    env = Pendulum(2)
    with pytest.raises(ValueError, match=r"state must be \(2, 2\)"):
        env.set_state(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="elapsed"):
        env.set_state(torch.zeros(2, 2), elapsed=torch.zeros(3))
    with pytest.raises(ValueError, match="ended"):
        env.set_state(torch.zeros(2, 2), ended=np.zeros(3))
    with pytest.raises(ValueError, match="np_random"):
        env.np_random = (np.random.default_rng(0),)


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_get_state_and_set_state_repeat_the_trajectory_bit_for_bit(env_id: str, mode: AutoresetMode) -> None:
    """Also over resets, taken right after an episode has ended (with NEXT_STEP, its reset is then still to come)."""

    def play(env: TorchVectorEnv, actions: list[np.ndarray]) -> list[np.ndarray]:
        return [x for action in actions for x in env.step(action)[:4]]

    cls, rng = TORCH_ENVS[env_id], np.random.default_rng(2)
    env = cls(4, max_episode_steps=12, autoreset_mode=mode)
    env.reset(seed=3)
    play(env, [draw_actions(env, rng) for _ in range(12)])
    state, elapsed, ended = env.get_state(), env.elapsed, env.ended
    generators = [g.bit_generator.state for g in env.np_random]
    assert ended.any() == (mode is AutoresetMode.NEXT_STEP)
    actions = [draw_actions(env, rng) for _ in range(40)]
    first = play(env, actions)

    other = cls(4, max_episode_steps=12, autoreset_mode=mode)
    other.set_state(state, elapsed, ended)
    for generator, saved in zip(other.np_random, generators, strict=True):
        generator.bit_generator.state = saved
    again = play(other, actions)
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert torch.equal(env.get_state(), other.get_state())
    assert torch.equal(env.elapsed, other.elapsed)


def test_what_is_handed_out_and_in_is_copied() -> None:
    env = CartPole(2)
    obs, _ = env.reset(seed=0)
    kept = env.get_state()
    for shared in (obs, env.get_state(), env.elapsed, env.ended):
        shared[:] = 1
    assert torch.equal(env.get_state(), kept)
    assert env.elapsed.tolist() == [0, 0]
    assert not env.ended.any()
    given, elapsed, ended = kept.clone(), torch.tensor([1, 2]), np.array([False, False])
    env.set_state(given, elapsed, ended)
    given[:], elapsed[:], ended[:] = 7, 7, True
    assert torch.equal(env.get_state(), kept)
    assert env.elapsed.tolist() == [1, 2]
    assert not env.ended.any()
    held, _, _, _, _ = env.step(np.array([0, 1]))
    copy = held.copy()
    env.step(np.array([0, 1]))
    assert np.array_equal(held, copy)


def test_instances_share_no_space() -> None:
    first, second = CartPole(2), CartPole(2)
    assert first.single_action_space is not second.single_action_space
    first.action_space.seed(0)
    first.single_action_space.seed(0)
    assert CartPole.single_action_space._np_random is None


@pytest.mark.parametrize("env_id", IDS)
def test_make_vec(env_id: str) -> None:
    env = gymnasium.make_vec(f"pglab/{env_id}", num_envs=4)
    assert type(env) is TORCH_ENVS[env_id] is TORCH_ENVS[f"pglab/{env_id}"]
    assert env.spec.id == env.id == f"pglab/{env_id}"
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    own = gymnasium.make_vec(env_id, num_envs=4, vectorization_mode="sync")
    assert env.observation_space == own.observation_space
    assert env.action_space == own.action_space
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    env.action_space.seed(0)
    for _ in range(30):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert obs.shape == (4, env.observation_size)
        assert reward.shape == terminated.shape == truncated.shape == (4,)
    env.close()

    other = gymnasium.make_vec(f"pglab/{env_id}", num_envs=2, autoreset_mode="SameStep", max_episode_steps=7)
    assert other.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert other.max_episode_steps == 7
    assert type(other).max_episode_steps == own.spec.max_episode_steps
    assert type(other).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    with pytest.raises(gymnasium.error.Error, match="make_vec"):
        gymnasium.make(f"pglab/{env_id}")
    with pytest.raises(gymnasium.error.Error, match="default vectorization mode"):
        gymnasium.make_vec(f"pglab/{env_id}", num_envs=2, vectorization_mode="sync")


def test_vector_wrappers_see_what_they_see_of_sync_vector_env() -> None:
    ours, theirs = (RecordEpisodeStatistics(env) for env in make_both("CartPole-v1", AutoresetMode.NEXT_STEP))
    ours.reset(seed=9)
    theirs.reset(seed=9)
    rng = np.random.default_rng(1)
    for _ in range(200):
        actions = rng.integers(2, size=5)
        ours.step(actions)
        theirs.step(actions)
    assert list(ours.return_queue) == list(theirs.return_queue)
    assert list(ours.length_queue) == list(theirs.length_queue)
    assert len(ours.return_queue) > 20


def test_importing_the_package_leaves_torch_alone() -> None:
    code = (
        "import sys, pglab_envs, gymnasium; assert 'torch' not in sys.modules; assert 'pglab' not in sys.modules; "
        "gymnasium.make_vec('pglab/Pendulum-v1'); assert 'torch' in sys.modules; assert 'pglab' not in sys.modules; "
        "assert set(pglab_envs.__all__) <= set(dir(pglab_envs))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.statistical
@pytest.mark.parametrize(("cls", "middle", "half_widths"), STARTS)
def test_initial_states_are_uniform(cls: type[TorchVectorEnv], middle: float, half_widths: tuple[float, ...]) -> None:
    """Bounds, four moments and the products of pairs against the uniform's; false-alarm rate 1e-6 for all together."""
    n = 200_000
    noise = np.random.default_rng(20).random((n, cls.reset_noise_size), dtype=np.float32)
    state = cls(1).initial_state(torch.from_numpy(noise))  # [n, S] float32
    assert state.dtype == torch.float32
    size = cls.reset_noise_size
    assert (state[:, size:] == 0).all()
    unit = (state[:, :size].double().numpy() - middle) / half_widths  # [n, size], on [-1, 1] if right
    assert np.abs(unit).max() <= 1 + 1e-6
    assert np.abs(unit).max() > 1 - 1e-3

    # E u^k = 1/(k+1) for even k, 0 for odd k; Var u^k = 1/(2k+1) - (E u^k)^2
    checks = [(unit[:, i] ** k, (1 - k % 2) / (k + 1), 1 / (2 * k + 1)) for i in range(size) for k in (1, 2, 3, 4)]
    checks += [(unit[:, i] * unit[:, j], 0.0, 1 / 9) for i in range(size) for j in range(i)]
    bound = NormalDist().inv_cdf(1 - 1e-6 / (2 * len(checks)))
    for sample, mean, second in checks:
        z = (sample.mean() - mean) / np.sqrt((second - mean**2) / n)
        assert abs(z) < bound


@pytest.mark.parametrize(("cls", "middle", "half_widths"), STARTS)
def test_initial_states_at_the_ends_of_the_noise(
    cls: type[TorchVectorEnv], middle: float, half_widths: tuple[float, ...]
) -> None:
    env = cls(1)
    ends = env.initial_state(torch.tensor([[0.0], [0.5], [1.0]]).expand(3, cls.reset_noise_size).double())
    expected = torch.zeros(3, cls.state_size, dtype=torch.float64)
    offsets = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64) * torch.tensor(half_widths)
    expected[:, : cls.reset_noise_size] = middle + offsets
    torch.testing.assert_close(ends, expected, atol=1e-7, rtol=0)


def far_from_kinks(cls: type[TorchVectorEnv]) -> tuple[torch.Tensor, torch.Tensor]:
    """States and actions in double precision whose neighbourhoods have no limit, clipping bound or wrap in them."""
    rng = np.random.default_rng(4)
    middle, scale = {
        Acrobot: (0.0, (2.0, 2.0, 3.0, 3.0)),
        CartPole: (0.0, (2.0, 2.0, 0.2, 2.0)),
        MountainCar: ((-0.4, 0.0), (0.7, 0.06)),
        MountainCarContinuous: ((-0.4, 0.0), (0.7, 0.06)),
        Pendulum: (0.0, (3.0, 6.0)),
    }[cls]
    state = torch.from_numpy(middle + rng.uniform(-1, 1, size=(3, 4, cls.state_size)) * scale)
    space = cls.single_action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return state, torch.from_numpy(rng.integers(space.n, size=(3, 4)))
    return state, torch.from_numpy(0.95 * rng.uniform(space.low, space.high, size=(3, 4, 1)))


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients(cls: type[TorchVectorEnv]) -> None:
    env = cls(1)
    state, action = far_from_kinks(cls)
    state.requires_grad_()
    if cls.differentiable:
        action.requires_grad_()

    def outputs(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        next_state, reward, _ = env.transition(inputs[0], inputs[1] if len(inputs) > 1 else action)
        outcome = (next_state, env.observe(next_state))
        return (*outcome, reward) if reward.requires_grad else outcome

    assert torch.autograd.gradcheck(outputs, (state, action) if cls.differentiable else (state,))
    terminated = env.transition(state, action)[2]
    assert terminated.dtype == torch.bool
    assert not terminated.requires_grad


def test_no_gradient_through_what_is_clipped() -> None:
    state = torch.tensor([[0.3, 7.9], [0.3, 0.0]], dtype=torch.float64)
    action = torch.tensor([[1.9], [2.5]], dtype=torch.float64, requires_grad=True)  # the first reaches top speed
    next_state, _, _ = Pendulum(1).transition(state, action)
    (gradient,) = torch.autograd.grad(next_state.sum(), action)
    assert next_state[0, 1] == 8.0
    assert gradient.tolist() == [[0.0], [0.0]]


def test_a_force_has_its_cost_even_where_it_moves_nothing() -> None:
    """At top speed, beyond the largest force, against the wall; the wall takes the velocity."""
    state = torch.tensor([[-0.5, 0.0699], [-0.5, 0.0], [-1.19, -0.05]], dtype=torch.float64)
    action = torch.tensor([[0.9], [1.5], [0.5]], dtype=torch.float64, requires_grad=True)
    next_state, reward, _ = MountainCarContinuous(1).transition(state, action)
    (moved,) = torch.autograd.grad(next_state.sum(), action, retain_graph=True)
    (cost,) = torch.autograd.grad(reward.sum(), action)
    assert next_state[0, 1] == 0.07
    assert next_state[2].tolist() == [-1.2, 0.0]
    assert moved.tolist() == [[0.0], [0.0], [0.0]]
    torch.testing.assert_close(cost, -0.2 * action.detach())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_functions_take_any_batch_shape_and_change_nothing(cls: type[TorchVectorEnv]) -> None:
    env = cls(1)
    state, action = far_from_kinks(cls)  # [3, 4, S]
    state, action = state.float(), action.float() if action.is_floating_point() else action
    before = state.clone(), action.clone()
    results = env.transition(state, action)
    assert torch.equal(state, before[0])
    assert torch.equal(action, before[1])
    assert [tuple(x.shape) for x in results] == [(3, 4, cls.state_size), (3, 4), (3, 4)]
    assert [x.dtype for x in results] == [torch.float32, torch.float32, torch.bool]
    assert env.observe(state).shape == (3, 4, cls.observation_size)
    assert env.initial_state(torch.rand(2, 3, cls.reset_noise_size)).shape == (2, 3, cls.state_size)
    # bit for bit the same as without the batch and under vmap
    flat = env.transition(state[1, 2], action[1, 2])
    assert all(torch.equal(x, y[1, 2]) for x, y in zip(flat, results, strict=True))
    mapped = torch.vmap(torch.vmap(env.transition))(state, action)
    assert all(torch.equal(x, y) for x, y in zip(mapped, results, strict=True))
    # and on the class, where no instance is wanted
    assert all(torch.equal(x, y) for x, y in zip(cls.transition(state, action), results, strict=True))


def test_the_tensor_interface_plays_the_same_episode_as_step() -> None:
    env = Pendulum(3)
    env.reset(seed=6)
    state = env.get_state()
    rng = np.random.default_rng(6)
    for _ in range(50):
        actions = draw_actions(env, rng)
        obs, rewards, _, _, _ = env.step(actions)
        state, reward, _ = env.transition(state, torch.from_numpy(actions))
        assert np.array_equal(obs, env.observe(state).numpy())
        assert np.array_equal(rewards, reward.double().numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("env_id", IDS)
def test_cuda_steps_like_the_cpu(env_id: str) -> None:
    cls, rng = TORCH_ENVS[env_id], np.random.default_rng(8)
    pair = [cls(4, dtype=torch.float64, device=device) for device in ("cpu", "cuda")]
    first, second = (env.reset(seed=1)[0] for env in pair)
    assert np.array_equal(first, second)
    for _ in range(100):
        actions = draw_actions(pair[0], rng)
        first, second = (env.step(actions) for env in pair)
        for x, y in zip(first[:4], second[:4], strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    assert pair[1].get_state().device.type == "cuda"
