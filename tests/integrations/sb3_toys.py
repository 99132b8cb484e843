"""Shared by the tests of imported models: small models, environments with all kinds of spaces, and tampered files."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3

SMALL = {"net_arch": {"pi": [8], "vf": [9], "qf": [9]}}


class Toy(gymnasium.Env):
    """Spaces of every kind, for episodes of ten steps."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, observation: spaces.Space, action: spaces.Space):
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), 1.0, False, self.t == 10, {}


BOX = spaces.Box(-1, 1, (3,), np.float32)
TOYS = {
    "MultiDiscrete": (spaces.Discrete(4), spaces.MultiDiscrete([2, 4, 3])),
    "MultiBinary": (spaces.MultiBinary(3), spaces.MultiBinary(3)),
    "Lopsided": (BOX, spaces.Box(np.float32([-1, 0]), np.float32([3, 0.5]), (2,), np.float32)),
    "Image": (spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Discrete(2)),
    "Dict": (spaces.Dict({"a": BOX}), spaces.Discrete(2)),
}
for _name, (_obs, _act) in TOYS.items():
    gymnasium.register(f"sb3_toy/{_name}-v0", Toy, kwargs={"observation": _obs, "action": _act}, max_episode_steps=20)


def trained(kind, env="CartPole-v1", steps=300, policy="MlpPolicy", **kwargs):
    rollout = {"n_steps": 64, "batch_size": 32} if kind is PPO else {}
    replay = {"learning_starts": 100, "buffer_size": 1000, "batch_size": 32} if kind in (SAC, TD3, DQN) else {}
    model = kind(policy, env, seed=3, device="cpu", **{**rollout, **replay, **kwargs})
    return model.learn(steps)


def observations(model, n: int = 50) -> torch.Tensor:
    space = model.observation_space
    if isinstance(space, spaces.Box):
        return torch.from_numpy(np.random.default_rng(0).standard_normal((n, *space.shape)).astype(np.float32))
    space.seed(0)
    return torch.from_numpy(np.stack([space.sample() for _ in range(n)]))


def units(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Middle and half of a bounded box of actions."""
    low, high = torch.from_numpy(model.action_space.low), torch.from_numpy(model.action_space.high)
    return (low + high) / 2, (high - low) / 2


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.detach().float(), b.detach().float(), rtol=tolerance, atol=tolerance)


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def rewritten(source: Path, target: Path, method: int = zipfile.ZIP_STORED, **changed: bytes | None) -> Path:
    """A copy of a zip file with some entries changed (`policy_pth` is policy.pth), or left out for None."""
    new = {name.replace("_pth", ".pth"): content for name, content in changed.items()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as out:
        for name in old.namelist():
            content = new.get(name, old.read(name))
            if content is not None:
                out.writestr(name, content)
    return target


def with_fields(source: Path, target: Path, **fields) -> Path:
    with zipfile.ZipFile(source) as old:
        data = json.loads(old.read("data"))
    data = {k: v for k, v in {**data, **fields}.items() if v is not ...}
    return rewritten(source, target, data=json.dumps(data).encode())


def torch_bytes(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def weights(source: Path) -> dict:
    with zipfile.ZipFile(source) as old:
        return torch.load(io.BytesIO(old.read("policy.pth")), weights_only=True)
