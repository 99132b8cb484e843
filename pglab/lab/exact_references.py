"""grad J where the environment has it exactly: finite MDPs, the LQR under a linear policy, one-step objectives.

Letters: T steps, S states of a table, A actions, n parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pglab.agents import Agent, OnPolicyAgent
from pglab.environments.contract import Environment
from pglab.environments.torch_native import TorchEnvironment
from pglab.lab.jacobian import Jacobian
from pglab.lab.onward import entropy_weight, tail
from pglab.lab.reference import Reference, reduced, said_of
from pglab.lab.subject import Subject


def exact_reference(subject: Subject, agent: OnPolicyAgent, env: Environment) -> Reference | None:
    from pglab_envs import LQR, TabularEnv

    if not isinstance(env, TorchEnvironment):
        return None
    if isinstance(env.env, TabularEnv) and agent.policy.family == "categorical":
        return _of_tables(agent, env, env.env)
    if isinstance(env.env, LQR) and _linear(agent):
        return _of_lqr(agent, env, env.env)
    if hasattr(env.env, "exact_gradient") and env.spec.max_episode_steps == 1:
        return _of_objective(subject, agent, env)
    return None


def _both(agent: OnPolicyAgent, plain: Tensor, discounted: Tensor, steps: float, said: str) -> Reference:
    discounts = agent.settings.discount_states
    used, other = (discounted, plain) if discounts else (plain, discounted)
    conventions = ("step t weighs gamma^t", "every step weighs the same")
    mine, others = conventions if discounts else conventions[::-1]
    gradient, second = (reduced(agent, x.double().cpu().numpy(), steps) for x in (used, other))
    return Reference(f"{said}; {mine}", gradient, second, others)


def _scale(agent: Agent) -> float:
    """What rewards are multiplied by before the agent learns from them."""
    return float(agent.preprocessor.rewards(torch.ones(1, 1, device=agent.noise.device)))


def _of_tables(agent: OnPolicyAgent, env: TorchEnvironment, tables: Any) -> Reference:
    """By dynamic programming over the tables (see `pglab.lab.exact_control`), pushed through the network at every state."""
    from pglab.lab.exact_control import tabular_gradient

    discount, limit = float(agent.hyper("discount")[0, 0]), env.spec.max_episode_steps or 1
    beyond = tail(discount) if agent.bootstraps else 0
    states = torch.eye(env.spec.observation_size, device=agent.noise.device)[None, None]  # [1, 1, S, S]
    jacobian = Jacobian(agent.policy, agent.policy_parameters, agent.preprocessor.observations(states))
    # Rounded to float32, probabilities add up to 1 within 1e-7 only.
    p = torch.softmax(getattr(jacobian.distribution, "logits").double(), -1)[0, 0, :, 0]  # noqa: B009  [S, A]
    found = tabular_gradient(tables, p.cpu(), limit + beyond, discount, False)
    advantage = (found.q - found.v.unsqueeze(-1))[:limit] * _scale(agent)  # [T, S, A]
    occupancy = found.occupancy[:limit]  # [T, S]
    powers = discount ** torch.arange(limit, dtype=torch.float64)
    pulled = []
    alpha = entropy_weight(agent)
    for w in (torch.ones_like(powers), powers):
        visits = w[:, None] * occupancy  # [T, S]
        logits = (visits[:, :, None] * p.cpu() * advantage).sum(0)  # [S, A]
        if alpha is not None:
            logp = p.cpu().log()
            h = -(p.cpu() * logp).sum(-1, keepdim=True)
            logits = logits + alpha * visits.sum(0)[:, None] * (-p.cpu() * (logp + h))
        cotangent = logits.float().to(agent.noise.device)[None, None, :, None]  # [1, 1, S, 1, A]
        pulled.append(jacobian.pull([[cotangent]], "batch")[0, 0])
    steps = float(occupancy.sum())
    return _both(agent, pulled[0], pulled[1], steps, f"By dynamic programming: {said_of(agent, limit, beyond)}")


def _linear(agent: OnPolicyAgent) -> bool:
    """Whether the policy is Gaussian with a mean that is linear in the raw state, and its horizon the time limit."""
    c, plain = agent.config.preprocessing, agent.policy.config
    scaled = c.observation_scale is not None or c.normalize_observations
    family = agent.policy.family == "gaussian" and not agent.policy.std_from_network and plain.learn_std
    if not family or plain.hidden or scaled or agent.bootstraps:
        return False
    low, high = plain.log_std_bounds
    log_std = agent.policy_parameters.views["log_std"]
    return bool(((log_std > low) & (log_std < high)).all())  # elsewhere it has no gradient


def _of_lqr(agent: OnPolicyAgent, env: TorchEnvironment, lqr: Any) -> Reference:
    from pglab.lab.exact_control import lqr_gradient

    views, scale = agent.policy_parameters.views, agent.policy.config.mean_scale
    gain = views["weight0"][0].detach().double().T * scale  # [A, S]
    offset = views["bias0"][0, 0].detach().double() * scale
    log_std = views["log_std"][0, 0].detach().double()
    discount = float(agent.hyper("discount")[0, 0])
    alpha, horizon = entropy_weight(agent), env.spec.max_episode_steps or 1
    lqr = copy.copy(lqr)
    lqr.max_episode_steps = horizon  # env.max_episode_steps may be another than its own
    pulled = []
    for discounts in (False, True):
        found = lqr_gradient(lqr, gain, offset, log_std, discount, discounts)
        parts = {
            "weight0": found.gain.T * scale * _scale(agent),
            "bias0": found.offset * scale * _scale(agent),
            "log_std": found.log_std * _scale(agent),
        }
        if alpha is not None:
            weights = discount ** np.arange(horizon) if discounts else np.ones(horizon)
            parts["log_std"] = parts["log_std"] + alpha * float(weights.sum())
        pulled.append(torch.cat([parts[name].flatten() for name in agent.policy_parameters.shapes]))
    said = f"In closed form: {said_of(agent, horizon, 0)}"
    return _both(agent, pulled[0], pulled[1], float(horizon), said)


def _of_objective(subject: Subject, agent: OnPolicyAgent, env: TorchEnvironment) -> Reference | None:
    """Of a one-step objective, at the one state it has, from its own closed form."""
    reset = env.reset(agent.noise, (0,))
    obs = agent.preprocessor.observations(reset.obs[:, :1]).unsqueeze(0)  # [1, 1, 1, O]
    jacobian = Jacobian(agent.policy, agent.policy_parameters, obs)
    distribution = jacobian.distribution
    given = {name: getattr(distribution, name)[0, 0, 0].double() for name in distribution.parameters}
    if agent.spec.action.bounded or entropy_weight(agent) is not None:
        return None  # clipped actions and entropies are not in the closed form
    try:
        exact: Mapping[str, Tensor] = env.env.exact_gradient(**given)  # type: ignore[attr-defined]
    except TypeError:  # of other parameters than this policy has
        return None
    grads = [exact[name].float().view(1, 1, 1, *given[name].shape) * _scale(agent) for name in distribution.parameters]
    pulled = jacobian.pull([grads], "batch")[0, 0]
    return _both(agent, pulled, pulled, 1.0, "In closed form: the objective's own gradient")
