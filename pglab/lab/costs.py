"""What an estimate costs, in evaluations of f: counted, on one small problem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pglab.agents import Agent
from pglab.distributions import Distribution
from pglab.estimators import Draw, Signal
from pglab.noise import Noise, Purpose


def evaluations(agent: Agent, distribution: Distribution) -> float:
    """Evaluations of f per row: of the critic, and one for the value where the estimator reads it. A gradient of f counts as
    the evaluation it is taken with; an enumeration counts every outcome.

    `distribution` is one like those the agent has; only its family and action dimensions matter."""
    estimator, rows = agent.config.estimator, (1, 1, 2)
    event = tuple(distribution.noise_shape[len(distribution.batch_shape) :])
    noise = Noise.of_seeds([0], agent.noise.device)
    one = _first_rows(distribution)
    kind = distribution.noise_kind
    drawn = noise.of_kind(kind, Purpose.ACTION, (0,), (2, *event)).unsqueeze(0)  # [1, 1, 2, *event]
    extra = {
        name: noise.of_kind(k, Purpose.EXTRA, (i,), (2, *shape)).unsqueeze(0)
        for i, (name, (k, shape)) in enumerate(sorted(estimator.extra_noise(kind, event).items()))
    }
    counted = 0

    def critic(action: Tensor) -> Tensor:
        nonlocal counted
        axes = tuple(range(action.ndim - one.event_ndim, action.ndim))
        value = (action * action).sum(axes) + action.sum(axes)
        counted += value.numel()
        return value

    obs = torch.zeros(*rows, agent.spec.observation_size, device=agent.noise.device)
    value = torch.ones(rows, device=agent.noise.device)
    baseline: dict[str, Any] = {"baseline": torch.zeros_like(value)} if estimator.uses_baseline else {}
    signal = Signal(value=value, critic=critic, obs=obs, **baseline)
    estimator.surrogate(one, Draw(one.sample(drawn), drawn, extra), signal, agent.estimator_state())
    return counted / 2 + ("value" in estimator.needs)


def _first_rows(distribution: Distribution) -> Distribution:
    """Its first two rows `[1, 1, 2]` (one row twice where there is one)."""
    import dataclasses

    index = (slice(0, 1), slice(0, 1), torch.tensor([0, min(1, distribution.batch_shape[2] - 1)]))
    rows = tuple(distribution.batch_shape)
    parts = {}
    for field in dataclasses.fields(distribution):
        value = getattr(distribution, field.name)
        whole = isinstance(value, Tensor) and value.shape[: len(rows)] == rows
        parts[field.name] = value[index] if whole else value
    return dataclasses.replace(distribution, **parts)
