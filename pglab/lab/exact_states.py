"""The exact gradient of the critic's expected value at given states, and of the entropy beside it.

Letters: rows `[T, P, N]`, D action dimensions, M outcomes or nodes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pglab.agents import ActorCriticAgent
from pglab.distributions import Distribution
from pglab.distributions.categorical import MAX_OUTCOMES
from pglab.environments.contract import ActionSpec
from pglab.errors import PglabError
from pglab.estimators import Critic
from pglab.estimators.enumeration import enumerated
from pglab.gradients import entropy

EVALUATIONS = 2**18
"""Evaluations of the critic at a time."""
NODES = 128
"""Nodes of the quadrature over one continuous action."""
WIDTH = 6.0
"""The quadrature covers so many standard deviations to each side: 2e-9 of the probability is left out."""


def exact_cotangents(agent: ActorCriticAgent, distribution: Distribution, obs: Tensor) -> list[Tensor]:
    """The gradient of E[Q(s, a)] + alpha H at the parameters of the distribution, row by row `[1, P, B]`; `obs` `[P, B, O]`
    as the networks see them.

    Actions that can be enumerated are; one Gaussian (or squashed) action is integrated over by the trapezoidal rule in its
    noise, which errs by about 1e-4 of the gradient where Q has kinks. Raises PglabError elsewhere (see `has_exact`).
    """
    found = _of_critic(distribution, critic_at(agent, obs))
    alpha = agent.entropy_weight()
    if alpha is None:
        return found
    with torch.enable_grad():
        leaf, parameters = distribution.cut()
        if leaf.has_entropy:
            h = leaf.entropy().sum(-1)
        else:
            z, w = _nodes(leaf)
            h = (w * torch.stack([entropy(leaf, z[i].expand(leaf.noise_shape)) for i in range(len(z))], -1)).sum(-1)
        grads = torch.autograd.grad((alpha * h).sum(), parameters, allow_unused=True)
    return [a if g is None else a + g for a, g in zip(found, grads, strict=True)]


def has_exact(distribution: type[Distribution], action: ActionSpec) -> bool:
    """Whether `exact_cotangents` knows this family with these actions."""
    if distribution.kind == "continuous":
        return action.factors == 1 and distribution.noise_kind == "normal"
    return (2 if distribution.kind == "binary" else action.categories) ** action.factors <= MAX_OUTCOMES


def critic_at(agent: ActorCriticAgent, obs: Tensor) -> Critic:
    """Q at the states `[P, B, O]`, of actions `[*lead, 1, P, B, *event]` as a distribution executes them."""
    event = len(agent.spec.action.event_shape)
    on_rows = agent.critic.at(agent.critic.parameters, obs.unsqueeze(0), event, agent.settings.critic.actor_value)
    return lambda action: on_rows(agent.policy.present(action))


def _of_critic(distribution: Distribution, critic: Critic) -> list[Tensor]:
    with torch.enable_grad():
        leaf, parameters = distribution.cut()
        if distribution.kind != "continuous":
            values, log_prob = enumerated(leaf, _in_parts(critic))
            expected = (log_prob.exp() * values).sum(0)
        else:
            expected = _integrated(leaf, _in_parts(critic))
        found = torch.autograd.grad(expected.sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _in_parts(critic: Critic) -> Critic:
    """The critic as a constant at actions `[M, *rows, *event]`, a part of the M at a time."""

    def found(action: Tensor) -> Tensor:
        few = max(1, EVALUATIONS // math.prod(action.shape[1:4]))
        with torch.no_grad():
            return torch.cat([critic(part) for part in action.split(few)])

    return found


def _nodes(distribution: Distribution) -> tuple[Tensor, Tensor]:
    """Values of the noise `[M]` and their weights."""
    if distribution.noise_kind != "normal" or distribution.noise_shape[-1] != 1:
        raise PglabError(
            f"The exact gradient of the critic is integrated over one Gaussian action, not {distribution.noise_shape[-1]} of "
            f"{type(distribution).__name__}."
        )
    mean = distribution.parameters[0]
    like = getattr(distribution, mean)
    z = torch.linspace(-WIDTH, WIDTH, NODES, device=like.device, dtype=like.dtype)
    w = torch.exp(-0.5 * z * z)
    return z, w / w.sum()


def _integrated(leaf: Distribution, critic: Critic) -> Tensor:
    """A surrogate whose gradient is the quadrature of Q x score: no derivative of Q is taken, so its kinks do no harm."""
    z, w = _nodes(leaf)
    noise = z.view(-1, *[1] * len(leaf.noise_shape)).expand(-1, *leaf.noise_shape)  # [M, *rows, 1]
    frozen = leaf.detach()
    with torch.no_grad():
        drawn = torch.stack([frozen.sample(n) for n in noise])  # [M, *rows, 1]
        values = critic(frozen.executed(drawn))  # [M, *rows]
        values = values - (w.view(-1, *[1] * (values.ndim - 1)) * values).sum(0)
    scores = torch.stack([leaf.log_prob(a, n).sum(-1) for a, n in zip(drawn, noise, strict=True)])
    return (w.view(-1, *[1] * (values.ndim - 1)) * values * scores).sum(0)
