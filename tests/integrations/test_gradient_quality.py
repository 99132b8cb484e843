"""Gradients measured while stable-baselines3 trains, against those of the models it saves, and against training alone."""

from __future__ import annotations

import random
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from sb3_toys import SMALL, Toy
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger
from stable_baselines3.common.vec_env import VecNormalize

import pglab
from pglab.errors import PglabError
from pglab.integrations.gradient_quality import GradientQuality, figures
from pglab.integrations.sb3_memory import statistics_of
from pglab.integrations.sb3_subjects import of_model, of_sb3
from pglab.lab.measuring import Measured, measure

FEW = {"replicates": 16, "reference": 32, "fit": 1}
KINDS = {
    "A2C": (A2C, {"n_steps": 8, "ent_coef": 0.01}),
    "PPO": (PPO, {"n_steps": 32, "batch_size": 16, "n_epochs": 2}),
    # A discount as small keeps what is played past the time limit, and so the reference, short.
    "SAC": (SAC, {"learning_starts": 40, "buffer_size": 400, "batch_size": 16, "gamma": 0.8}),
}


class Shared(gymnasium.Env):
    """Draws what it shows from numpy's, torch's and Python's own generators."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def _seen(self) -> np.ndarray:
        drawn = [np.random.normal(), torch.randn(()).item(), random.gauss()]  # noqa: NPY002
        return np.float32(drawn)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action):
        self.t += 1
        return self._seen(), float(action), False, self.t == 10, {}


gymnasium.register("sb3_toy/Shared-v0", Shared, max_episode_steps=20)


class Written(KVWriter):
    """Keeps what is logged: a mapping for every dump, by its step."""

    def __init__(self):
        self.rows: list[tuple[int, dict]] = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append((step, dict(key_values)))

    def close(self):
        pass

    @property
    def measured(self) -> list[tuple[int, dict]]:
        return [(step, row) for step, row in self.rows if "gradient/nsr" in row]


class Saving(BaseCallback):
    """Saves the model at the ends of rollouts, which is when it is measured, with VecNormalize's statistics."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        path = self.folder / f"{self.num_timesteps}"
        self.model.save(path)
        if (found := statistics_of(self.model)) is not None:
            np.savez(path.with_suffix(".npz"), **found)


def made(name: str, env, **kwargs):
    kind, settings = KINDS[name]
    model = kind("MlpPolicy", env, seed=3, device="cpu", policy_kwargs=dict(SMALL), **{**settings, **kwargs})
    written = Written()
    model.set_logger(Logger(None, [written]))
    return model, written


def same(a: Measured, b: Measured) -> None:
    """All that was found, exactly."""
    assert a.names == b.names
    np.testing.assert_array_equal(a.head, b.head)
    np.testing.assert_array_equal(a.reference.gradient, b.reference.gradient)
    for section, statistics in a.quality.estimates.items():
        assert statistics.keys() == b.quality.estimates[section].keys()
        for name, estimate in statistics.items():
            for part in ("value", "low", "high", "reliable"):
                other = getattr(b.quality.estimates[section][name], part)
                np.testing.assert_array_equal(getattr(estimate, part), other, err_msg=f"{section} {name} {part}")
    assert all(figures(a, i) == figures(b, i) for i in range(len(a.pairs)))


def same_weights(a, b) -> None:
    mine, theirs = a.policy.state_dict(), b.policy.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_measured_in_training_is_what_the_saved_model_gives(name, tmp_path):
    env_id = "Pendulum-v1" if name == "SAC" else "CartPole-v1"
    fill = {"fill_buffer": 150} if name == "SAC" else {}
    pairs = ["score_function"] if name == "A2C" else None
    every, total = {"A2C": (48, 120), "PPO": (128, 150), "SAC": (60, 90)}[name]

    def env():
        vector = make_vec_env(env_id, 2, seed=0)
        return VecNormalize(vector) if name == "PPO" else vector

    model, written = made(name, env())
    callback = GradientQuality(every, pairs, **FEW, **fill)
    model.learn(total, callback=[callback, Saving(tmp_path)])

    steps = [step for step, _ in callback.measurements]
    assert steps == {"A2C": [48, 96], "PPO": [128], "SAC": [60]}[name]
    for step, measured in callback.measurements:
        normalize = tmp_path / f"{step}.npz" if name == "PPO" else None
        (saved,) = of_sb3(tmp_path / f"{step}", env_id, "tanh" if name != "SAC" else None, normalize=normalize, **fill)
        for one in (saved, measured.subject):
            assert (one.stage, one.steps, one.at) == ("model", step, step / total)
        same(measured, measure([saved], pairs=measured.names, **FEW).measured[0])
        assert any("played by the model itself" in note for note in measured.notes) == (name == "SAC")

    assert [step for step, _ in written.measured] == steps
    for (_, measured), (_, row) in zip(callback.measurements, written.measured, strict=True):
        own = "pathwise" if name == "SAC" else "score_function/value"
        wanted = figures(measured, 0)
        assert {"nsr", "nsr_low", "nsr_high", "trace", "squared_norm", "pairwise_cosine"} <= wanted.keys()
        assert ("cosine" in wanted) == ("mse" in wanted) == measured.reference.supported
        assert all(row[f"gradient/{k}"] == row[f"gradient/{own}/{k}"] == v for k, v in wanted.items())
        assert (row.get("gradient/score_function/trace") == figures(measured, 1)["trace"]) if pairs else True
        assert row["time/gradient_quality"] == measured.seconds > 0

    alone, _ = made(name, env())
    alone.learn(total)
    same_weights(model, alone)


def test_a_live_sac_model_is_measured_on_its_own_buffer():
    model, _ = made("SAC", make_vec_env("Pendulum-v1", 2, seed=0))
    callback = GradientQuality(60, replicates=16, reference=32)
    model.learn(70, callback=callback)
    ((step, measured),) = callback.measurements
    assert step == 60
    assert "Its replay buffer's 60 transitions were taken over." in measured.notes
    assert "States are redrawn from them." in measured.notes
    assert measured.subject.agent.replay.data.shape[1] == 1  # not kept
    own, played, again = (of_model(model, fill_buffer=n)[0] for n in (None, 90, 90))
    assert own.agent.replay.count == 70
    assert played.agent.replay.count == 90
    assert torch.equal(played.agent.replay.data, again.agent.replay.data)
    assert not any("replay buffer's" in note for note in played.notes)
    assert model.replay_buffer.size() == 35


def test_training_is_left_alone_where_the_environment_draws_from_shared_generators():
    def played(callback):
        model, _ = made("A2C", "sb3_toy/Shared-v0")
        model.learn(40, callback=callback)
        arrays = np.random.rand()  # noqa: NPY002
        return model, random.random(), arrays, torch.rand(()).item(), model.action_space.sample()

    model, *after = played(callback := GradientQuality(16, **FEW))
    assert [step for step, _ in callback.measurements] == [16, 32]
    alone, *wanted = played(None)
    same_weights(model, alone)
    assert after == wanted


def test_measurements_go_on_where_training_does():
    model, _ = made("A2C", "CartPole-v1")
    model.learn(24)
    callback = GradientQuality(32, **FEW)
    model.learn(56, callback=callback, reset_num_timesteps=False)
    assert [(step, measured.subject.at) for step, measured in callback.measurements] == [(32, 0.4), (64, 0.8)]


def test_tables_on_the_screen_have_the_model_s_own_pair_alone(tmp_path):
    """Names of other pairs are long, and become the same where a table cuts them short."""
    model, written = made("A2C", "CartPole-v1")
    with (tmp_path / "table.txt").open("w") as file:
        model.set_logger(Logger(None, [written, HumanOutputFormat(file)]))
        pairs = ["straight_through_gumbel_softmax", "decoupled_straight_through_gumbel_softmax"]
        model.learn(16, callback=GradientQuality(16, pairs, **FEW))
    text = (tmp_path / "table.txt").read_text()
    assert "nsr_low" in text
    assert "straight" not in text
    ((_, row),) = written.measured
    assert "gradient/decoupled_straight_through_gumbel_softmax/pairwise_cosine" in row


def test_what_cannot_be_measured_is_said_before_training():
    def refused(model, match, **kwargs):
        with pytest.raises(PglabError, match=match):
            model.learn(64, callback=GradientQuality(**kwargs))
        assert model.num_timesteps == 0

    refused(DQN("MlpPolicy", "CartPole-v1", device="cpu"), "A DQN cannot be imported: models of A2C, PPO, SAC can")
    anonymous = Toy(gymnasium.spaces.Box(-1, 1, (4,), np.float32), gymnasium.spaces.Discrete(2))
    refused(made("A2C", anonymous)[0], "no environment with a gymnasium id: give env_id")
    refused(made("A2C", anonymous)[0], "Nowhere-v7", env_id="Nowhere-v7")
    refused(made("A2C", anonymous)[0], "observation_space", env_id="Pendulum-v1")
    refused(made("A2C", "CartPole-v1")[0], "Unknown estimator 'nothing'", pairs=["nothing"])
    refused(made("A2C", "CartPole-v1")[0], "pathwise", pairs=["pathwise"])
    refused(made("A2C", "Pendulum-v1", use_sde=True)[0], "gSDE")
    frugal = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    refused(made("SAC", "Pendulum-v1", **frugal)[0], "ReplayBuffer, is of a kind that is not read: set fill_buffer")


def test_the_environment_that_is_measured_in():
    anonymous = Toy(gymnasium.spaces.Box(-10, 10, (4,), np.float32), gymnasium.spaces.Discrete(2))
    (given,) = of_model(made("A2C", anonymous)[0], "CartPole-v1")
    # What the id stands for itself, spaces here, is not among the arguments.
    (own,) = of_model(made("A2C", "sb3_toy/MultiDiscrete-v0")[0])
    (told,) = of_model(made("A2C", gymnasium.make("Acrobot-v1", render_mode="rgb_array"))[0])
    assert [s.config.env.id for s in (given, own, told)] == ["CartPole-v1", "sb3_toy/MultiDiscrete-v0", "Acrobot-v1"]
    assert not own.config.env.kwargs
    assert not told.config.env.kwargs
    other = gymnasium.make("sb3_toy/MultiDiscrete-v0", action=gymnasium.spaces.Discrete(2))
    with pytest.raises(PglabError, match=r"argument action is of type Discrete, .*: register an id"):
        of_model(made("A2C", other)[0])


def test_a_measurement_that_fails_does_not_end_training():
    model, written = made("A2C", "CartPole-v1")

    class Broken(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            with torch.no_grad():
                self.model.policy.value_net.bias.fill_(float("inf") if self.num_timesteps == 16 else 0.0)

    callback = GradientQuality(16, **FEW)
    with pytest.warns(UserWarning, match="The gradient at step 16 was not measured: .*not finite"):
        model.learn(16, callback=[Broken(), callback])
    assert not callback.measurements
    assert not written.measured


@pytest.mark.parametrize(
    "given", [{"every": 0}, {"replicates": 7}, {"reference": 31}, {"fit": 0}, {"fill_buffer": 0}], ids=str
)
def test_numbers_that_are_too_small(given):
    (name,) = given
    with pytest.raises(PglabError, match=f"needs {name} of at least"):
        GradientQuality(**given)


def test_a_sac_model_without_transitions_wants_some():
    model, _ = made("SAC", "Pendulum-v1")
    with pytest.raises(PglabError, match=r"empty or of another kind than ReplayBuffer.*set fill_buffer"):
        of_model(model)
    with pytest.raises(PglabError, match="fill_buffer must be at least 1"):
        of_model(model, fill_buffer=0)
    (subject,) = of_model(model, fill_buffer=20)
    assert (subject.at, subject.steps, subject.agent.replay.count) == (1.0, 0, 20)


def test_it_is_loaded_when_it_is_asked_for():
    assert pglab.GradientQuality is GradientQuality
    said = "import sys, pglab; print('stable_baselines3' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
