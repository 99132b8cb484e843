"""What a policy gets from given states on, without a time limit: environments put into a state and played.

Letters: M states, O observation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pglab.agents import Agent
from pglab.environments.contract import Environment
from pglab.environments.torch_native import TorchEnvironment
from pglab.gradients import entropy
from pglab.noise import Counter, Noise, Purpose

LOOK = 32
"""Steps between two looks at whether any column still plays."""
SMALL = 1e-2
"""Discounting below this is as good as an end."""
LONGEST = 2000
"""No tail is played for longer."""


def tail(discount: float) -> int:
    """Steps after which what follows is discounted to a hundredth, at most 2,000."""
    if discount >= 1:
        return LONGEST
    return 1 if discount <= 0 else min(LONGEST, math.ceil(math.log(SMALL) / math.log(discount)))


def settable(env: Environment) -> bool:
    """Whether an observation tells a state of this environment that can be gone on from."""
    if not isinstance(env, TorchEnvironment):
        return False
    return env.env.state_of(torch.zeros(1, env.spec.observation_size)) is not None


def onward(
    agent: Agent, env: TorchEnvironment, obs: Tensor, action: Tensor, steps: int, noise: Noise, counter: Counter
) -> Tensor:
    """The discounted sum of rewards, as the agent learns from them, from states `obs` `[M, O]` (raw) on, where one of the
    two actions `[2, M, *event]` is taken first and the policy is followed then for at most `steps` steps: `[2, M]`.

    What follows the two is drawn with the same noise: given the state, it is independent of either action, and the
    difference of two returns is far less noisy than one of them. Episodes end where they terminate, not at a time limit:
    `env`, of 1 x 2M, must have none shorter. With an entropy weight, the entropy of every later action is a reward too, as
    in the critic's target (Haarnoja et al. 2018, eq. 3).
    """
    discount = float(agent.hyper("discount")[0, 0])
    # A critic whose target takes the mode knows of no later entropies.
    critic = getattr(agent.config.agent, "critic", None)
    alpha = None if critic is not None and critic.target_action == "mode" else entropy_weight(agent)
    (kind, shape), size, m = agent.event, env.spec.reset_noise_size, len(obs)
    with torch.no_grad():
        state = env.env.state_of(obs)
        assert state is not None
        env.state = state.repeat(2, 1).unsqueeze(0).to(env.state.dtype)  # [1, 2M, S]
        env.elapsed = torch.zeros_like(env.elapsed)
        alive = torch.ones(1, 2 * m, dtype=torch.bool, device=obs.device)
        total = torch.zeros(1, 2 * m, device=obs.device)
        now, factor = action.flatten(0, 1).unsqueeze(0), 1.0
        for start in range(0, steps, LOOK):
            few = min(LOOK, steps - start)
            drawn = noise.of_kind(kind, Purpose.ACTION, (*counter, start), (few, m, *shape), axis=1)
            drawn = torch.cat([drawn, drawn], 2)  # [few, 1, 2M, *event]
            starts = None
            if size:
                uniform = noise.uniform(Purpose.RESET, (*counter, start), (few, m, size), axis=1)
                starts = env.starts(torch.cat([uniform, uniform], 2))
            for t in range(few):
                executed = agent.policy.present(agent.policy.executed(now))
                step = env.advance(executed, None if starts is None else starts[t])
                total += torch.where(alive, factor * agent.preprocessor.rewards(step.reward), 0.0)
                alive = alive & ~step.ended
                factor *= discount
                distribution = agent.act(step.obs, step.action_mask)
                now = distribution.sample(drawn[t])
                if alpha is not None:
                    total += torch.where(alive, factor * alpha * entropy(distribution, drawn[t]), 0.0)
            if not bool(alive.any()):
                break
    return total.view(2, -1)


def entropy_weight(agent: Agent) -> float | None:
    """The weight of the entropy in the agent's objective at this moment; None where there is none."""
    if not agent.uses_entropy:
        return None
    own = getattr(agent, "entropy_weight", None)
    weight = agent.hyper("entropy_weight") if own is None else own()
    return None if weight is None else float(weight[0, 0])
