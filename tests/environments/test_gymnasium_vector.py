import io
import time

import gymnasium
import numpy as np
import pytest
import torch

from pglab.environments.gymnasium_state import random_state, set_random_state
from pglab.environments.gymnasium_vector import GymnasiumEnvironment
from pglab.environments.spaces import observation_encoder, to_env_actions
from pglab.errors import PglabError
from pglab.noise import Noise, Purpose

from . import toys  # noqa: F401  (registers its environments)

# gymnasium prints what its workers raise as warnings.
pytestmark = pytest.mark.filterwarnings("ignore:.*ERROR:")

MODES = ("disabled", "next_step", "same_step")
P, N = 2, 3
NOISE = Noise.of_seeds([5, 11])


def make(env_id, mode="disabled", **options):
    return GymnasiumEnvironment(env_id, P, N, autoreset_mode=mode, **options)


def draw_actions(env, rng):
    """Random encoded actions [P, N, *event]."""
    spec = env.spec.action
    shape = (env.num_members, env.num_envs, *spec.event_shape)
    if spec.kind == "discrete":
        index = rng.integers(np.array(spec.sizes), size=shape[:-1])
        return torch.from_numpy(np.eye(spec.categories, dtype=np.float32)[index])
    if spec.kind == "binary":
        return torch.from_numpy(rng.integers(0, 2, shape).astype(np.float32))
    return torch.from_numpy(rng.uniform(-1.2, 1.2, shape).astype(np.float32))


def play(env, steps, rng):
    """Steps taken with random actions, and those actions."""
    actions = [draw_actions(env, rng) for _ in range(steps)]
    return [env.step(a) for a in actions], actions


def by_hand(env_id, seed, actions, mode, **options):
    """One environment of `gymnasium.make`, driven by hand: what the contract wants, row by row."""
    env = gymnasium.make(env_id, **options)
    encoder = observation_encoder(env.observation_space)

    def encode(obs):
        return encoder.encode({k: np.array([v]) for k, v in obs.items()} if isinstance(obs, dict) else obs[None], 1)[0]

    obs, _ = env.reset(seed=seed)
    rows, over = [(encode(obs),)], False
    for action in actions:
        if over and mode == "next_step":
            obs, over = env.reset()[0], False
            rows.append((encode(obs), np.float32(0), False, False, encode(obs), False))
            continue
        final_obs, reward, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
        obs = env.reset()[0] if over and mode != "next_step" else final_obs
        rows.append((encode(obs), np.float32(reward), terminated, truncated, encode(final_obs), True))
    env.close()
    return rows


def same(step, other):
    for a, b in zip(step, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("toys/Counter-v0", {}),
        ("toys/Counter-v0", {"max_episode_steps": 2}),
        ("toys/Walk-v0", {}),
        ("CartPole-v1", {"max_episode_steps": 15}),
        ("Pendulum-v1", {"max_episode_steps": 7}),
    ],
)
def test_each_environment_is_one_driven_by_hand(env_id, options, mode):
    env = make(env_id, mode, **options)
    seeds = NOISE.integers(Purpose.ENVIRONMENT, (3, 1), (N,), 2**31 - 1)
    first = env.reset(NOISE, (3, 1))
    steps, actions = play(env, 40, np.random.default_rng(0))
    assert first.obs.dtype == torch.float32
    assert steps[0].obs.shape == (P, N, env.spec.observation_size)
    ended = 0
    for p in range(P):
        for i in range(N):
            own = [to_env_actions(env.spec.action, a[p, i][None])[0] for a in actions]
            rows = by_hand(env_id, int(seeds[p, i]), own, mode, **options)
            np.testing.assert_array_equal(first.obs[p, i], rows[0][0])
            for step, row in zip(steps, rows[1:], strict=True):
                for got, want in zip(step[:6], row, strict=True):
                    np.testing.assert_array_equal(got[p, i], want)
                ended += row[2] or row[3]
    assert ended > P * N


@pytest.mark.parametrize("mode", MODES)
def test_async_gives_what_sync_gives(mode):
    streams = []
    for vectorization in ("sync", "async"):
        env = make("toys/Walk-v0", mode, vectorization=vectorization)
        assert vectorization in env.spec.description
        stream = [env.reset(NOISE, (0,)), *play(env, 15, np.random.default_rng(0))[0]]
        if mode == "disabled":
            mask = torch.tensor([[True, False, True], [False, False, True]])
            stream.append(env.reset_where(mask, NOISE, (4,)))
            stream += play(env, 5, np.random.default_rng(1))[0]
        streams.append(stream)
        env.close()
    for a, b in zip(*streams, strict=True):
        same(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_a_reset_forgets_what_was_played_before(mode):
    env = make("toys/Counter-v0", mode)
    env.reset(NOISE, (0,))
    first = play(env, 12, np.random.default_rng(0))[0]
    env.reset(NOISE, (1,))
    other = play(env, 13, np.random.default_rng(0))[0]
    assert not torch.equal(first[5].obs, other[5].obs)
    env.reset(NOISE, (0,))
    for a, b in zip(first, play(env, 12, np.random.default_rng(0))[0], strict=True):
        same(a, b)


def test_a_member_does_not_depend_on_the_others():
    def stream(seeds, member):
        noise = Noise.of_seeds(seeds)
        env = GymnasiumEnvironment("toys/Walk-v0", len(seeds), N)
        rows = [env.reset(noise, (2,)).obs[member]]
        rng = np.random.default_rng(0)
        for _ in range(20):
            action = torch.from_numpy(rng.uniform(-1, 1, (N, 2)).astype(np.float32)).expand(len(seeds), N, 2)
            step = env.step(action)
            rows += [step.obs[member], step.reward[member]]
        return rows

    for alone, together in zip(stream([7], 0), stream([4, 1, 0, 7], 3), strict=True):
        assert torch.equal(alone, together)


def test_reset_where_resets_only_there():
    env = make("toys/Walk-v0")
    all_new = env.reset(NOISE, (9,)).obs
    env.reset(NOISE, (0,))
    before = play(env, 4, np.random.default_rng(0))[0][-1].obs
    nowhere = env.reset_where(torch.zeros(P, N, dtype=torch.bool), NOISE, (9,)).obs
    assert torch.equal(nowhere, before)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    after = env.reset_where(mask, NOISE, (9,)).obs
    assert torch.equal(after, torch.where(mask[..., None], all_new, before))
    for mode in ("next_step", "same_step"):
        with pytest.raises(PglabError, match=mode):
            make("toys/Walk-v0", mode).reset_where(mask, NOISE, (9,))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("ragged", "vectorization"), [(False, "sync"), (True, "sync"), (True, "async")])
def test_action_masks_belong_to_the_observation(mode, ragged, vectorization):
    env = make("toys/Masked-v0", mode, kwargs={"ragged": ragged}, vectorization=vectorization)
    assert env.spec.has_action_mask
    rows = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]]).bool()
    mask = env.reset(NOISE, (0,)).action_mask
    stream = [(torch.zeros(P, N, 1), mask)]
    for step in play(env, 9, np.random.default_rng(0))[0]:
        stream.append((step.obs, step.action_mask))
    for obs, mask in stream:
        t = int(obs[0, 0])
        assert mask.shape == (P, N, *env.spec.action.event_shape)
        if t == 3:  # NEXT_STEP's last observation: nothing is allowed, but the answer is not used
            assert mode == "next_step"
            padding = env.spec.action.padding_mask()
            assert (mask == (True if padding is None else padding)).all()
        elif ragged:
            assert (mask[..., 0, :] == torch.tensor([True, t % 2 == 1, False])).all()
            assert (mask[..., 1, :] == rows[t]).all()
        else:
            assert (mask[..., 0, :] == rows[t]).all()
    assert {int(obs[0, 0]) for obs, _ in stream} == ({0, 1, 2, 3} if mode == "next_step" else {0, 1, 2})
    env.close()


@pytest.mark.parametrize(("fault", "says"), [("forget", "no longer"), ("forbid", "allows no action")])
def test_a_missing_or_empty_action_mask_is_refused(fault, says):
    env = make("toys/Masked-v0", kwargs={fault: True})
    env.reset(NOISE, (0,))
    with pytest.raises(PglabError, match=f"toys/Masked-v0.*{says}.*environment 0 of member 0"):
        play(env, 1, np.random.default_rng(0))


RESUMES = [
    ("CartPole-v1", "exact", 25),
    ("Pendulum-v1", "exact", 11),
    ("Acrobot-v1", "exact", 11),
    ("MountainCar-v0", "exact", 11),
    ("MountainCarContinuous-v0", "exact", 11),
    ("toys/Walk-v0", "replay", None),
    ("toys/Masked-v0", "replay", None),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("env_id", "kind", "limit"), RESUMES)
def test_resuming_is_bit_exact_at_every_point(env_id, kind, limit, mode):
    env = make(env_id, mode, max_episode_steps=limit)
    assert env.spec.resume == kind
    some = torch.tensor([[True, False, True], [False, False, True]])
    rng = np.random.default_rng(0)
    seen = env.reset(NOISE, (0,))
    for stop in (0, 1, 5, 3, 2, 6):  # the limit of 11 is reached at one of the points
        for step in play(env, stop, rng)[0]:
            seen = step
        if mode == "disabled" and stop == 6:
            seen = env.reset_where(some, NOISE, (1,))
        file = io.BytesIO()
        torch.save(env.get_state(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        go_on = rng.integers(2**31)
        rest = play(env, 30, np.random.default_rng(go_on))[0]
        # Into a fresh one, and into one that is somewhere else.
        for other in (make(env_id, mode, max_episode_steps=limit), env):
            same(other.set_state(saved)[:2], (seen.obs, seen.action_mask))
            if mode == "disabled":  # the first thing after resuming may be a reset of some
                assert torch.equal(other.reset_where(some, NOISE, (2,)).obs[~some], seen.obs[~some])
                other.set_state(saved)
            for a, b in zip(rest, play(other, 30, np.random.default_rng(go_on))[0], strict=True):
                same(a, b)
        assert any((step.terminated | step.truncated).any() for step in rest)
        env.set_state(saved)


@pytest.mark.parametrize("mode", MODES)
def test_what_cannot_be_redone_is_begun_again_with_a_warning(mode):
    # Its own generator is not restored. (Likewise toys/Counter-v0, which counts its episodes since the seed.)
    env = make("toys/Forgetful-v0", mode)
    env.reset(NOISE, (0,))
    play(env, 7, np.random.default_rng(0))
    saved = env.get_state()
    other = make("toys/Forgetful-v0", mode)
    with pytest.warns(UserWarning, match=r"toys/Forgetful-v0: \d of 6 episodes .* begin again"):
        again = other.set_state(saved)
    changed = (again.obs.reshape(P * N, -1) != saved["obs"]).any(1)
    assert changed.any()
    assert (again.obs.reshape(P * N, -1)[changed, 0] == 1).all()  # n = 1, the first category: a new episode
    play(other, 20, np.random.default_rng(0))


@pytest.mark.parametrize("mode", MODES)
def test_async_begins_episodes_again(mode):
    env = make("toys/Counter-v0", mode, vectorization="async")
    assert env.spec.resume == "restart"
    first = env.reset(NOISE, (0,)).obs
    play(env, 5, np.random.default_rng(0))
    saved = env.get_state()
    again = env.set_state(saved).obs
    assert (again[..., 1] == 0).all()
    assert not torch.equal(again, first)  # not the same episodes once more
    assert torch.equal(env.set_state(saved).obs, again)
    assert all(step.valid.all() for step in play(env, 1, np.random.default_rng(0))[0])
    env.close()


def test_a_state_of_something_else_is_refused():
    saved = make("CartPole-v1").get_state()
    for env in (make("Acrobot-v1"), GymnasiumEnvironment("CartPole-v1", N, P), make("CartPole-v1", "same_step")):
        with pytest.raises(PglabError, match="saved state"):
            env.set_state(saved)


@pytest.mark.parametrize(("fault", "says"), [("nan_reward", "reward nan"), ("inf_obs", r"observation \[0.0, inf\]")])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_is_named(fault, says, mode):
    env = make("toys/Faulty-v0", mode, kwargs={"fault": fault})
    env.reset(NOISE, (0,))
    mask = torch.tensor([[True] * N, [True, False, True]])
    play(env, 1, np.random.default_rng(0))
    if mode == "disabled":  # only environment (1, 1) comes to its third step
        env.reset_where(mask, NOISE, (0,))
    play(env, 1, np.random.default_rng(0))
    place = "environment 1 of member 1" if mode == "disabled" else "environment 0 of member 0"
    with pytest.raises(PglabError, match=f"toys/Faulty-v0 gave the {says} in {place}"):
        play(env, 1, np.random.default_rng(0))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_exception_of_the_environment_is_named(vectorization):
    env = make("toys/Faulty-v0", kwargs={"fault": "raise"}, vectorization=vectorization)
    env.reset(NOISE, (0,))
    with pytest.raises(PglabError, match=r"toys/Faulty-v0 raised an error in step \(RuntimeError: the toy broke\)\."):
        play(env, 3, np.random.default_rng(0))
    env.close()


@pytest.mark.parametrize("how", ["die", "killed", "unpicklable"])
def test_a_dead_worker_is_an_error_and_no_hang(how, monkeypatch):
    monkeypatch.setattr("pglab.environments.gymnasium_make.PATIENCE", 1.0)
    env = make("toys/Faulty-v0", kwargs={"fault": how}, vectorization="async")
    env.reset(NOISE, (0,))
    if how == "killed":
        play(env, 1, np.random.default_rng(0))
        env.vector.processes[4].kill()
    begin = time.monotonic()
    says = {"die": r"\(exit code 7\) died", "killed": r"4 \(exit code -9\) died", "unpicklable": "cannot be sent"}[how]
    with pytest.raises(PglabError, match=f"toys/Faulty-v0.*{says}"):
        play(env, 3, np.random.default_rng(0))
    env.close()
    assert time.monotonic() - begin < 10
    assert not any(process.is_alive() for process in env.vector.processes)


def test_closing_after_a_worker_died_between_steps():
    env = make("toys/Faulty-v0", vectorization="async")
    env.vector.processes[0].kill()
    begin = time.monotonic()
    env.close()
    env.close()
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize(
    ("env_id", "options", "says"),
    [
        ("CartPol-v1", {}, "Unknown environment 'CartPol-v1'.*'CartPole-v1'"),
        ("cartpole-v1", {}, "Did you mean 'CartPole-v1'"),
        ("toyz/Walk-v0", {}, "Did you mean 'toys/Walk-v0'"),
        ("no_such_module:Some-v0", {}, "no_such_module"),
        ("CartPole-v1", {"kwargs": {"gravitas": 1}}, "CartPole-v1.*gravitas"),
        ("CartPole-v1", {"vectorization": "threads"}, "vectorization 'threads'"),
        ("CartPole-v1", {"autoreset_mode": "never"}, "autoreset mode 'never'"),
        ("CartPole-v1", {"max_episode_steps": 0}, "max_episode_steps"),
    ],
)
def test_what_cannot_be_made_is_said(env_id, options, says):
    with pytest.raises(PglabError, match=says):
        GymnasiumEnvironment(env_id, P, N, **options)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_generators_are_saved_as_text(kind):
    env = gymnasium.make("toys/Walk-v0")
    env.unwrapped.np_random = np.random.Generator(kind(3))
    env.unwrapped.np_random.integers(10, size=7)
    saved = random_state(env)
    wanted = env.unwrapped.np_random.integers(2**40, size=9)
    set_random_state(env, saved)
    np.testing.assert_array_equal(env.unwrapped.np_random.integers(2**40, size=9), wanted)


def test_the_spec():
    spec = make("CartPole-v1").spec
    assert (spec.observation_size, spec.max_episode_steps, spec.reset_noise_size) == (4, 500, 0)
    assert spec.description == "CartPole-v1 through gymnasium, sync, autoreset disabled"
    assert not spec.has_action_mask
    assert make("CartPole-v1", max_episode_steps=9).spec.max_episode_steps == 9
