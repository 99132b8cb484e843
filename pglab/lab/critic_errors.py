"""How wrong a learned critic is about what estimators ask it: differences between actions, and its slope in the action.

An estimator that evaluates Q climbs the critic's differences; a pathwise, relaxed or straight-through one climbs its slope,
|grad_a Q|, which a regression on values does not teach. Both are held here to the policy's own returns: an environment is put
into states of the buffer and played on from two actions with the same noise, twice over. The product of two independent
errors has the squared error as its mean, so the returns' noise adds nothing.

Letters: M states, D action dimensions, K categories.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pglab.agents import ActorCriticAgent
from pglab.environments.torch_native import TorchEnvironment
from pglab.lab.exact_states import critic_at
from pglab.lab.intervals import left_out, ratio_interval
from pglab.lab.jacobian import Jacobian
from pglab.lab.onward import onward, settable, tail
from pglab.lab.sampling import REFERENCE
from pglab.lab.subject import Subject
from pglab.noise import Purpose

GROUPS = 32
"""Groups of states that are left out for an interval."""
STEP = 0.1
"""Half the distance of the two continuous actions, in standard deviations of the policy."""


@dataclass(frozen=True)
class CriticErrors:
    """Root mean square errors of a critic, relative to the root mean square of the true quantity."""

    slope: tuple[float, float, float]
    """Value, low, high (95 %). Continuous: of dQ/da at drawn actions (before a squash). Discrete: of the slope at the drawn action towards another one,
    against the true difference of the two."""
    difference: tuple[float, float, float]
    """Value, low, high. Of the critic's own difference between the same two actions."""
    definition: str

    @property
    def said(self) -> str:
        slope, difference = _said(self.slope), _said(self.difference)
        return (
            f"The critic's share, as |error| over the true size: of its slope in the action, |grad_a Q|, {slope}; of its differences "
            f"between actions, {difference} (root mean squares; {self.definition})."
        )


def _said(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return (
        f"{value:.2g} ({low:.2g} to {high:.2g})" if math.isfinite(high) else "not resolved (more states: --reference)"
    )


def critic_errors(subject: Subject, states: int) -> CriticErrors | None:
    """The critic's errors at `states` states of the buffer; None where the environment cannot be set to a state, actions
    have several dimensions, or a step from a drawn one may leave the family's support (beta)."""
    agent = subject.agent
    assert isinstance(agent, ActorCriticAgent)
    action = agent.policy.action
    with closing(subject.environment(1, 2 * states, 10**9)) as env:
        if not settable(env) or action.factors != 1 or agent.policy.family == "beta":
            return None
        assert isinstance(env, TorchEnvironment)
        twin = agent.replicated(range(1), subject.number, REFERENCE, 1)
        rows = agent.replay.sample(twin.noise.uniform(Purpose.REPLAY, (0,), (states,)), agent.newest)
        raw = rows.obs[0]
        obs = agent.preprocessor.observations(rows.obs)  # [1, M, O]
        distribution = Jacobian(agent.policy, agent.policy_parameters, obs.unsqueeze(0)).distribution
        kind, shape = agent.event
        drawn = distribution.sample(
            twin.noise.of_kind(kind, Purpose.UPDATE, (0,), (states, *shape)).unsqueeze(0)
        )  # [1, 1, M, *event]
        critic = critic_at(agent, obs)
        if distribution.kind == "continuous":
            spread = distribution.log_std.exp()  # type: ignore[attr-defined]
            step = STEP * spread
            first, second, distance = drawn + step, drawn - step, (2 * step)[0, 0, :, 0]
            definition = f"at drawn actions +- {STEP:g} standard deviations"
        else:
            first, second, distance = _other(drawn, twin, states), drawn, torch.ones(states, device=drawn.device)
            definition = "between the drawn action and another one, both of equal weight"
        with torch.enable_grad():
            leaf = drawn.detach().requires_grad_()
            (grad,) = torch.autograd.grad(critic(distribution.executed(leaf)).sum(), leaf)
            along = (grad * (first - second)).flatten(3).sum(-1)[0, 0]  # [M]: the slope's idea of the difference
        with torch.no_grad():
            believed = (critic(distribution.executed(first)) - critic(distribution.executed(second)))[0, 0]
        both = torch.stack([first[0, 0], second[0, 0]])  # [2, M, *event]
        steps = tail(float(agent.hyper("discount")[0, 0]))
        played = [onward(agent, env, raw, both, steps, twin.noise, (9, k)) for k in range(2)]
        true = [(q[0] - q[1]) / distance for q in played]  # two independent ones
    weight = rows.valid[0]

    def error(claimed: Tensor) -> tuple[float, float, float]:
        off = (true[0] - claimed / distance) * (true[1] - claimed / distance) * weight
        return _root_ratio(off, true[0] * true[1] * weight)

    return CriticErrors(error(along), error(believed), definition)


def _root_ratio(top: Tensor, bottom: Tensor) -> tuple[float, float, float]:
    """The root of the ratio of two means over states `[M]`, with its interval by leaving out groups of states. A few states whose
    returns turn on an action may hold most of both means: then the interval is wide."""
    groups = min(GROUPS, len(top))
    sums = [np.array([float(g.sum()) for g in x.double().cpu().tensor_split(groups)]) for x in (top, bottom)]
    counts = np.full(groups, 1.0)
    parts = [left_out(x.sum(keepdims=True), ((x.sum() - x) * groups / (groups - 1))[None], counts)[0] for x in sums]
    low, high = ratio_interval(parts[0], parts[1], parts[0].variance, parts[1].variance)
    value = float(sums[0].sum() / sums[1].sum()) if sums[1].sum() > 0 else math.nan
    root = [math.nan if math.isnan(x) else math.sqrt(max(0.0, x)) for x in (value, float(low[0]), float(high[0]))]
    return root[0], root[1], root[2]


def _other(drawn: Tensor, twin: ActorCriticAgent, states: int) -> Tensor:
    """Another action than the drawn one, uniformly."""
    u = twin.noise.uniform(Purpose.BLEND, (0,), (states,)).view(1, 1, states)
    if drawn.ndim == 4:  # a Bernoulli's [1, 1, M, 1]
        return 1 - drawn
    k = drawn.shape[-1]
    index = (drawn.argmax(-1).squeeze(-1) + 1 + (u * (k - 1)).long().clamp_max(k - 2)) % k
    return torch.nn.functional.one_hot(index, k).to(drawn.dtype).unsqueeze(-2)
