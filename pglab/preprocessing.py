"""Observation and reward scaling inside the agent.

A batch is always seen through statistics of *earlier* batches; they are updated afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pglab.config import PreprocessingConfig
from pglab.trees import kept_in_place


def merge_moments(
    mean: Tensor, var: Tensor, count: Tensor, x: Tensor, valid: Tensor, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Running mean, variance and count joined with those of `x` over `dims` where `valid` (Chan, Golub & LeVeque 1983)."""
    w = valid.to(x.dtype)
    n = w.sum(dims)
    safe = n.clamp_min(1)
    batch_mean = (x * w).sum(dims) / safe
    expanded = batch_mean
    for d in sorted(dims):
        expanded = expanded.unsqueeze(d)
    batch_var = ((x - expanded).square() * w).sum(dims) / safe
    total = count + n
    share = n / total.clamp_min(1)
    delta = batch_mean - mean
    new_var = var * (1 - share) + batch_var * share + delta.square() * share * (1 - share)
    return mean + delta * share, new_var, total


class Preprocessor:
    """Scales observations and rewards for a population; `state` is a tree of tensors with the member axis first."""

    def __init__(
        self, config: PreprocessingConfig, members: int, envs: int, observation_size: int, device: torch.device
    ):
        self.config = config
        self.scale = None if config.observation_scale is None else torch.tensor(config.observation_scale, device=device)
        self.state: dict[str, Any] = {}
        if config.normalize_observations:
            self.state["obs"] = {
                "mean": torch.zeros(members, observation_size, device=device),
                "var": torch.ones(members, observation_size, device=device),
                "count": torch.zeros(members, observation_size, device=device),
            }
        if config.normalize_returns:
            self.state["returns"] = {
                "mean": torch.zeros(members, device=device),
                "var": torch.ones(members, device=device),
                "count": torch.zeros(members, device=device),
                "running": torch.zeros(members, envs, device=device),
            }

    def observations(self, obs: Tensor) -> Tensor:
        """Observations `[..., P, N, O]` as the networks see them."""
        if self.scale is not None:
            obs = obs * self.scale
        if "obs" in self.state:
            s = self.state["obs"]
            obs = ((obs - s["mean"].unsqueeze(1)) * torch.rsqrt(s["var"].unsqueeze(1) + 1e-8)).clamp(-10, 10)
        return obs

    def rewards(self, reward: Tensor) -> Tensor:
        """Rewards `[..., P, N]` as the agent learns from them."""
        factor = self.config.reward_scale
        if "returns" in self.state:
            return reward * (factor * torch.rsqrt(self.state["returns"]["var"] + 1e-8)).unsqueeze(1)
        return reward if factor == 1 else reward * factor

    def update(self, obs: Tensor, reward: Tensor, ended: Tensor, valid: Tensor, discount: Tensor) -> None:
        """Learn from a block: obs `[T, P, N, O]`, reward, ended and valid `[T, P, N]`, discount `[P, 1]`."""
        if "obs" in self.state:
            s = self.state["obs"]
            x = obs if self.scale is None else obs * self.scale
            w = valid.unsqueeze(-1).expand_as(x)
            found = merge_moments(s["mean"], s["var"], s["count"], x, w, (0, 2))
            kept_in_place(s, dict(zip(("mean", "var", "count"), found, strict=True)))
        if "returns" in self.state:
            s = self.state["returns"]
            running, seen = s["running"], []
            for t in range(len(reward)):
                running = running * discount + reward[t]
                seen.append(running)
                running = running * ~ended[t]
            found = merge_moments(s["mean"], s["var"], s["count"], torch.stack(seen), valid, (0, 2))
            kept_in_place(s, dict(zip(("running", "mean", "var", "count"), (running, *found), strict=True)))
