"""Saved models that try to run code, are damaged or hold what cannot be read; VecNormalize's statistics."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sb3_toys import SMALL, Payload, close, observations, rewritten, torch_bytes, trained, weights, with_fields
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from pglab.errors import PglabError
from pglab.integrations import sb3_files
from pglab.integrations.sb3_models import imported, read_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.zip"
    trained(A2C, steps=20).save(path)
    return path


# -- files that nobody should trust


def test_payloads_run_where_they_are_unpickled(tmp_path):
    """Else the tests below would show nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_payload_in_data_is_never_decoded(saved, tmp_path):
    import base64

    planted = base64.b64encode(pickle.dumps(Payload(tmp_path / "ran"))).decode()
    entry = {":type:": "<class 'dict'>", ":serialized:": planted}
    bad = with_fields(
        saved, tmp_path / "bad.zip", policy_kwargs=entry, policy_class=entry, lr_schedule=entry, extra=entry
    )
    with pytest.raises(FileExistsError):  # stable-baselines3's own loader runs it, and again
        A2C.load(bad)
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").rmdir()
    found = read_model(bad, "CartPole-v1")
    assert not (tmp_path / "ran").exists()
    assert torch.equal(
        found.agent.policy_parameters.flat, read_model(saved, "CartPole-v1").agent.policy_parameters.flat
    )
    assert any("could not be read" in note for note in found.notes)


@pytest.mark.parametrize("entry", ["policy_pth", "pytorch_variables_pth"])
@pytest.mark.parametrize("how", ["torch", "within", "pickle"])
def test_a_payload_among_tensors_is_refused(saved, tmp_path, entry, how):
    payload = Payload(tmp_path / "ran")
    content = {
        "torch": lambda: torch_bytes(payload),
        "within": lambda: torch_bytes({**weights(saved), "x": payload}),
        "pickle": lambda: pickle.dumps(payload),
    }[how]()
    bad = rewritten(saved, tmp_path / "bad.zip", **{entry: content})
    with pytest.raises(PglabError, match="was not loaded") as error:
        read_model(bad, "CartPole-v1")
    assert entry.replace("_pth", ".pth") in str(error.value)
    assert how == "pickle" or "posix.mkdir" in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_payload_in_an_entry_that_is_not_needed_is_left_alone(saved, tmp_path):
    bad = rewritten(saved, tmp_path / "bad.zip", policy_optimizer_pth=None)
    with zipfile.ZipFile(bad, "a") as out:
        out.writestr("../outside", pickle.dumps(Payload(tmp_path / "ran")))
    read_model(bad, "CartPole-v1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip"]


def test_files_that_are_too_large_or_damaged(saved, tmp_path, monkeypatch):
    def refuses(message: str, path: Path) -> None:
        with pytest.raises(PglabError, match=message):
            read_model(path, "CartPole-v1")

    bomb = rewritten(saved, tmp_path / "bomb.zip", zipfile.ZIP_DEFLATED, data=b" " * (2**26 + 1))
    assert bomb.stat().st_size < 2**18
    refuses("takes 67,108,865 bytes unpacked; at most 67,108,864", bomb)
    refuses("other than deflate", rewritten(saved, tmp_path / "bz2.zip", zipfile.ZIP_BZIP2))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data.pkl", b" " * 1000)
    refuses("was not loaded", rewritten(saved, tmp_path / "inner.zip", policy_pth=inner.getvalue()))
    wide = torch.zeros(1).expand(2**40)  # four bytes in the file
    refuses("tensors of more than", rewritten(saved, tmp_path / "wide.zip", policy_pth=torch_bytes({"log_std": wide})))
    nan = {**weights(saved), "action_net.bias": torch.tensor([0.0, torch.nan])}
    refuses(
        "'action_net.bias' holds numbers that are not finite",
        rewritten(saved, tmp_path / "nan.zip", policy_pth=torch_bytes(nan)),
    )
    refuses("where tensors by name", rewritten(saved, tmp_path / "list.zip", policy_pth=torch_bytes([1, 2])))
    refuses("dense numbers", rewritten(saved, tmp_path / "int.zip", policy_pth=torch_bytes({"a": torch.arange(3)})))
    refuses("has no entry 'policy.pth'", rewritten(saved, tmp_path / "none.zip", policy_pth=None))
    refuses("not JSON", rewritten(saved, tmp_path / "text.zip", data=b"\xff{"))
    refuses("not JSON", rewritten(saved, tmp_path / "deep.zip", data=b"[" * 10**6))
    refuses("where a mapping is wanted", rewritten(saved, tmp_path / "number.zip", data=b"7"))
    (tmp_path / "cut.zip").write_bytes(saved.read_bytes()[:5000])
    refuses("not a zip file", tmp_path / "cut.zip")
    (tmp_path / "noise.zip").write_bytes(saved.read_bytes().replace(b"gamma", b"gamna"))
    refuses("damaged", tmp_path / "noise.zip")  # its checksum tells
    refuses("no file", tmp_path / "missing.zip")
    refuses("cannot be read", tmp_path)
    monkeypatch.setattr(sb3_files, "LARGEST", 1000)
    refuses("at most 1,000 are read", saved)


# -- what does not fit


def test_models_that_do_not_fit(saved, tmp_path):
    def refuses(message: str, path: Path = saved, env: str = "CartPole-v1", **kwargs) -> None:
        with pytest.raises(PglabError, match=message) as error:
            read_model(path, env, **kwargs)
        assert "\n" not in str(error.value)

    refuses(
        r"its observation_space is Box of shape \[4\], but that of Pendulum-v1 is Box of shape \[3\]", env="Pendulum-v1"
    )
    refuses("Unknown environment", env="CartPole-v7")
    refuses("names a module to import", env="os:CartPole-v1")
    refuses("Unknown activation 'gelu'", activation="gelu")
    refuses("Unknown algorithm 'ddpg'", algorithm="ddpg")
    refuses("is a model of A2C, but algorithm is 'PPO'", algorithm="PPO")
    silent = with_fields(saved, tmp_path / "silent.zip", observation_space=..., action_space=...)
    refuses("policy takes 4 numbers to 2, but Acrobot-v1 wants 6 to 3", silent, "Acrobot-v1")
    refuses("other actions than .*continuous", silent, "MountainCarContinuous-v0")
    refuses("gamma is None, where a number", with_fields(saved, tmp_path / "a.zip", gamma=...))
    refuses("gamma is 'x', where a number", with_fields(saved, tmp_path / "b.zip", gamma="x"))
    refuses("discount must lie in", with_fields(saved, tmp_path / "c.zip", gamma=2))
    numpy = {":type:": "<class 'numpy.float32'>", ":serialized:": "x"}
    refuses("keeps gamma as a pickle", with_fields(saved, tmp_path / "d.zip", gamma=numpy))
    refuses("n_envs is .* where a whole number", with_fields(saved, tmp_path / "e.zip", n_envs=10**15))
    refuses("use_sde must be false", with_fields(saved, tmp_path / "f.zip", use_sde=True))
    refuses("does not tell its algorithm", with_fields(saved, tmp_path / "g.zip", batch_size=4))

    alone = read_model(with_fields(saved, tmp_path / "alone.zip", n_envs=None), "CartPole-v1")
    assert any("how many environments" in note for note in alone.notes)
    foreign = {":type:": "<class 'abc.ABCMeta'>", ":serialized:": "x", "__module__": "mine.policies"}
    assert any(
        "'mine.policies'" in x
        for x in read_model(with_fields(saved, tmp_path / "p.zip", policy_class=foreign), "CartPole-v1").notes
    )
    relu = with_fields(
        saved, tmp_path / "relu.zip", policy_kwargs={"activation_fn": "<class 'torch.nn.modules.activation.ReLU'>"}
    )
    assert read_model(relu, "CartPole-v1").config.policy.activation == "relu"
    refuses("has activation relu, .* but activation is 'tanh'", relu, activation="tanh")
    own = with_fields(saved, tmp_path / "own.zip", policy_kwargs={"activation_fn": "<class '__main__.Mine'>"})
    refuses("has activation __main__.Mine", own)
    assert read_model(own, "CartPole-v1", activation="silu").config.policy.activation == "silu"
    leaky = with_fields(
        saved, tmp_path / "l.zip", policy_kwargs={"activation_fn": "<class 'torch.nn.modules.activation.GELU'>"}
    )
    refuses("activation.GELU, which is none of pglab's", leaky, activation="tanh")
    refuses(
        "features extractor of its own",
        with_fields(saved, tmp_path / "h.zip", policy_kwargs={"features_extractor_class": "x.Y"}),
    )
    assert read_model(saved, "CartPole-v1", activation="elu", algorithm="a2c").config.policy.activation == "elu"
    assert read_model(str(saved)[:-4], "CartPole-v1").algorithm == "A2C"


@pytest.mark.parametrize(
    ("env_id", "key", "own", "real"),
    [("Pendulum-v1", "high", "[3.]", "[2.]"), ("sb3_toy/MultiDiscrete-v0", "nvec", "[2 3 4]", "[2 4 3]")],
)
def test_action_spaces_are_compared(env_id, key, own, real, tmp_path):
    trained(A2C, env_id, steps=10).save(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as old:
        space = json.loads(old.read("data"))["action_space"]
    assert space[key] == real
    other = with_fields(tmp_path / "m.zip", tmp_path / "n.zip", action_space={**space, key: own})
    with pytest.raises(
        PglabError, match=rf"its action_space is .* with {key} .*, but that of {env_id} is .* with {key}"
    ):
        read_model(other, env_id)


def test_models_that_cannot_be_read(tmp_path):
    def refuses(model, message: str, env_id: str = "CartPole-v1") -> None:
        model.save(tmp_path / "m.zip")
        with pytest.raises(PglabError, match=message):
            read_model(tmp_path / "m.zip", env_id)
        if isinstance(model, A2C | PPO | SAC):
            with pytest.raises(PglabError, match=message):
                imported(model, env_id)

    small = {"net_arch": [4]}
    refuses(
        A2C("CnnPolicy", "sb3_toy/Image-v0", policy_kwargs=small),
        "a feature extractor with weights",
        "sb3_toy/Image-v0",
    )
    refuses(A2C("MlpPolicy", "sb3_toy/Image-v0", policy_kwargs=small), "images as observations", "sb3_toy/Image-v0")
    refuses(
        A2C("MultiInputPolicy", "sb3_toy/Dict-v0", policy_kwargs=small),
        "(MultiInput|features extractor)",
        "sb3_toy/Dict-v0",
    )
    refuses(A2C("MlpPolicy", "Pendulum-v1", use_sde=True), "gSDE", "Pendulum-v1")
    refuses(
        SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={**small, "n_critics": 3}, buffer_size=9),
        "more than two critics",
        "Pendulum-v1",
    )
    refuses(DQN("MlpPolicy", "CartPole-v1", policy_kwargs=small, buffer_size=9), "has DQN .*: A2C, PPO and SAC")
    refuses(TD3("MlpPolicy", "Pendulum-v1", policy_kwargs=small, buffer_size=9), "has TD3 or DDPG", "Pendulum-v1")
    with pytest.raises(PglabError, match="A DQN cannot be imported: models of A2C, PPO, SAC can"):
        imported(DQN("MlpPolicy", "CartPole-v1", policy_kwargs=small, buffer_size=9))
    lstm = torch_bytes({"lstm_actor.weight_ih_l0": torch.zeros(4, 4)})
    A2C("MlpPolicy", "CartPole-v1").save(tmp_path / "m.zip")
    with pytest.raises(PglabError, match="a recurrent policy"):
        read_model(rewritten(tmp_path / "m.zip", tmp_path / "n.zip", policy_pth=lstm), "CartPole-v1")


def test_a_model_without_an_environment(tmp_path):
    trained(A2C, steps=10).save(tmp_path / "m.zip")
    model = A2C.load(tmp_path / "m.zip")
    with pytest.raises(PglabError, match="give env_id"):
        imported(model)
    assert imported(model, "CartPole-v1").algorithm == "A2C"


def test_environment_arguments_of_the_model_itself():
    found = imported(
        trained(SAC, make_vec_env("Pendulum-v1", 1, env_kwargs={"g": 5.0}), steps=5, policy_kwargs=dict(SMALL))
    )
    assert found.config.env.kwargs == {"g": 5.0}


def test_reading_does_not_import_stable_baselines3():
    code = "import sys, pglab.integrations.sb3_models; sys.exit('stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- VecNormalize


def normalised(tmp_path: Path, **kwargs):
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0), **kwargs)
    model = trained(A2C, env, policy_kwargs=dict(SMALL))
    model.save(tmp_path / "model.zip")
    env.save(str(tmp_path / "vec.pkl"))
    return model, env


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_vec_normalize(ending, tmp_path):
    model, env = normalised(tmp_path, epsilon=1e-2)
    with pytest.raises(PglabError, match="never opened") as refused:
        read_model(tmp_path / "model.zip", "Pendulum-v1", normalize=tmp_path / "vec.pkl")
    code = "\n".join(line.strip() for line in str(refused.value).splitlines()[1:])
    subprocess.run([sys.executable, "-c", code], check=True)  # what the message says does what it says
    path = tmp_path / f"vec.{ending}"
    if ending == "safetensors":
        from safetensors.numpy import save_file

        save_file({name: np.atleast_1d(x) for name, x in np.load(tmp_path / "vec.npz").items()}, path)
    found = read_model(tmp_path / "model.zip", "Pendulum-v1", normalize=path)
    live = imported(model, "Pendulum-v1")
    raw = observations(model) * torch.tensor([1.0, 1.0, 5.0])
    for agent in (found.agent, live.agent):
        seen = agent.preprocessor.observations(raw[None])
        close(seen[0], torch.from_numpy(env.normalize_obs(raw.numpy())))
        rewards = np.linspace(-2, 2, 5, dtype=np.float32)
        close(
            agent.preprocessor.rewards(torch.from_numpy(rewards)[None])[0],
            torch.from_numpy(env.normalize_reward(rewards)),
        )
        close(agent.act(raw[None], None).mean[0] * 2, model.policy.get_distribution(seen[0]).distribution.mean)
    assert any("+-10, pglab does not" in note for note in found.notes)


def test_statistics_that_do_not_fit(tmp_path):
    model, _ = normalised(tmp_path, clip_obs=5.0, norm_reward=False)
    assert any("+-5, pglab to +-10" in note for note in imported(model, "Pendulum-v1").notes)
    assert any("trained with VecNormalize" in note for note in read_model(tmp_path / "model", "Pendulum-v1").notes)

    def reads(name: str, message: str) -> None:
        with pytest.raises(PglabError, match=message):
            read_model(tmp_path / "model.zip", "Pendulum-v1", normalize=tmp_path / name)

    np.savez(tmp_path / "short.npz", mean=np.zeros(2), var=np.ones(2))
    reads("short.npz", "2 and 2 numbers; Pendulum-v1 wants 3 each")
    np.savez(tmp_path / "none.npz", clip_obs=10.0)
    reads("none.npz", "neither mean and var")
    np.savez(tmp_path / "object.npz", mean=np.array([Payload(tmp_path / "ran")], dtype=object), var=np.ones(3))
    reads("object.npz", "not a file of arrays")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    reads("pickle.npz", "not a zip file")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    reads("bad.safetensors", "not a file of arrays")
    reads("missing.npz", "no file")
    assert not (tmp_path / "ran").exists()
