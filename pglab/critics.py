"""Q(s, a) for a population: single or twin, with target networks.

Letters: P population, B rows, C copies (2 for twins), L leading axes of the action (outcomes of an enumeration).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pglab.config import CriticConfig
from pglab.environments.contract import ActionSpec
from pglab.estimators import Critic
from pglab.networks import MLP, Parameters, by_member
from pglab.noise import Noise


class QCritic:
    """The critic's network and its target. Actions come flattened: one-hot, relaxed or continuous, `[..., P, B, E]`."""

    def __init__(self, config: CriticConfig, observation_size: int, action_size: int, noise: Noise) -> None:
        self.config = config
        self.copies = 2 if config.twin else 1
        self.network = MLP((observation_size + action_size, *config.hidden, 1), config.activation, 1.0, stream=2)
        self.parameters = self.network.initial(noise, copies=self.copies)
        self.target = self.parameters.frozen_copy()

    def all(self, parameters: Parameters, obs: Tensor, action: Tensor) -> Tensor:
        """Every copy's value: obs `[P, B, O]`, action `[*L, P, B, E]`, result `[C, *L, P, B]`. Carries the gradient of the
        action, not of the parameters, which `regression` gives."""
        views = {name: view.detach() for name, view in parameters.views.items()}
        return self._values(self.network(views, self._inputs(obs, action)), action)

    def _inputs(self, obs: Tensor, action: Tensor) -> Tensor:
        """What the network reads, `[P*C, L*B, O+E]`."""
        *lead, p, b, _ = action.shape
        x = torch.cat([obs.expand(*lead, p, b, obs.shape[-1]), action], dim=-1)  # [*L, P, B, O+E]
        x = x.flatten(0, len(lead) - 1).transpose(0, 1).flatten(1, 2) if lead else x  # [P, L*B, O+E]
        return x.repeat_interleave(self.copies, 0) if self.copies > 1 else x

    def _values(self, out: Tensor, action: Tensor) -> Tensor:
        """The network's output `[P*C, L*B, 1]` as `[C, *L, P, B]`."""
        *lead, p, b, _ = action.shape
        return out.reshape(p, self.copies, -1, b).permute(1, 2, 0, 3).reshape(self.copies, *lead, p, b)

    def regression(self, obs: Tensor, action: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Every copy's value `[C, P, B]`, and the gradient `[P, C * n]` of half the `weight`ed squared error to `y`, summed
        over rows and copies; action `[P, B, E]`, y and weight `[P, B]`. To be called where nothing is differentiated."""
        views, x = self.parameters.views, self._inputs(obs, action)
        weights = [views[name] for name in self.network.layer_names]
        hidden, out = self.network.run(weights, x)
        q = self._values(out, action)
        error = (q - y) * weight
        cotangent = error.transpose(0, 1).reshape(*out.shape)  # [P*C, B, 1]
        wanted = [False] + [True] * len(weights)
        found = self.network.pull_in_parts(weights, x, hidden, cotangent, wanted)[1:]
        return q, self.parameters.flattened([g for g in found if g is not None])

    def reduced(
        self, parameters: Parameters, obs: Tensor, action: Tensor, how: Literal["min", "mean"] = "min"
    ) -> Tensor:
        """One value `[*L, P, B]`: the smaller of the twins (Fujimoto et al. 2018), or their mean."""
        q = self.all(parameters, obs, action)
        if self.copies == 1:
            return q[0]
        return torch.minimum(q[0], q[1]) if how == "min" else q.mean(0)

    def at(self, parameters: Parameters, obs: Tensor, event_ndim: int, how: Literal["min", "mean"]) -> Critic:
        """f(a) = Q(s, a) at the states `obs` `[*rows, O]`, rows `[T, P, N]`: actions `[*lead, *rows, *event]` to
        `[*lead, *rows]`."""
        states = by_member(obs)  # [P, T*N, O]

        def critic(action: Tensor) -> Tensor:
            flat = action.flatten(-event_ndim).transpose(-4, -3)  # [*lead, P, T, N, E]
            value = self.reduced(parameters, states, flat.flatten(-3, -2), how)  # [*lead, P, T*N]
            return value.unflatten(-1, flat.shape[-3:-1]).transpose(-3, -2)

        return critic

    def between(
        self,
        against: Parameters,
        obs: Tensor,
        action: Tensor,
        y: Tensor,
        w: Tensor,
        spec: ActionSpec,
        allowed: Tensor | None,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Actions blended by `config.blend` x `w` and what they are worth (see `CriticConfig.blend_target`), `[P, B, E]` and
        `[P, B]`: action `[P, B, E]`, y and w `[P, B]`; where they are `interpolated`, the other actions are drawn by exponential
        `noise` `[P, B, *event]` and valued `against` these parameters."""
        w = self.config.blend * w
        if self.config.blend_target == "same":
            return blended(action, w, spec, allowed), y
        assert noise is not None
        other = another(action, noise, spec, allowed)
        return torch.lerp(action, other, w.unsqueeze(-1)), torch.lerp(y, self.reduced(against, obs, other), w)

    def move_target(self) -> None:
        """One step of the target towards the critic."""
        self.target.flat.lerp_(self.parameters.flat, self.config.target_rate)


def another(action: Tensor, noise: Tensor, spec: ActionSpec, allowed: Tensor | None) -> Tensor:
    """One of the other allowed categories of every factor, drawn uniformly by exponential `noise` `[P, B, D, K]`; the same
    one where there is no other. `[P, B, E]`."""
    if spec.kind == "binary":
        return 1 - action
    a = action.unflatten(-1, spec.event_shape)
    others = a < 0.5
    if allowed is not None:
        others = others & allowed
    index = torch.where(others, noise, torch.inf).argmin(-1, keepdim=True)
    drawn = torch.zeros_like(a).scatter_(-1, index, 1.0)
    return torch.where(others.any(-1, keepdim=True), drawn, a).flatten(2)


def blended(action: Tensor, w: Tensor, spec: ActionSpec, allowed: Tensor | None) -> Tensor:
    """(1 - w) a + w (uniform over the other allowed categories), per factor: `[P, B, E]`, w `[P, B]`, allowed
    `[P, B, D, K]` bool (or `[D, K]`; None: all)."""
    a = action.unflatten(-1, spec.event_shape)
    if spec.kind == "binary":
        return torch.lerp(action, 1 - action, w.unsqueeze(-1))
    allowed = torch.ones_like(a, dtype=torch.bool) if allowed is None else allowed.expand_as(a)
    others = allowed.to(a.dtype) - a
    count = others.sum(-1, keepdim=True)
    share = w[..., None, None] * (count > 0)
    return ((1 - share) * a + share * others / count.clamp_min(1)).flatten(2)
