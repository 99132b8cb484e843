"""The clipped surrogate of proximal policy optimization."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.estimators.base import Draw, Estimator, Signal, State, register_estimator
from pglab.estimators.importance_weighted import advantages, ratios
from pglab.schedules import Schedule, Swept


@register_estimator("ppo_clip")
class PPOClip(Estimator):
    """min(r A, clip(r, 1 - clip, 1 + clip) A) with r = p(z) / behaviour(z) and A = f(z) - b (Schulman, Wolski, Dhariwal,
    Radford & Klimov 2017, eq. 7).

    At r = 1, the first step on a batch, its gradient is `score_function`'s. Afterwards rows whose ratio has left the clip
    in the direction that A asks for give none, which is no gradient of E[f]. A baseline per factor gives every factor its
    own A; the ratio stays that of the joint action. For several steps set agent.epochs and agent.minibatches.
    """

    clip: Swept = [Schedule(start=0.2)]
    """How far the ratio may move from 1, above 0: a number, a schedule, or a list of them to sweep."""

    needs = frozenset({"value"})
    kinds = frozenset({"discrete", "binary", "continuous"})
    unbiased = False
    bias = "after the first step on a batch: rows whose ratio is clipped give no gradient"
    evaluations = "1"
    paper = "Schulman et al. 2017, eq. 7"
    scheduled = ("clip",)
    uses_baseline = True
    reweights = True

    def model_post_init(self, context: object) -> None:
        for schedule in self.clip:
            if schedule.start <= 0 or (schedule.end is not None and schedule.end <= 0):
                raise ValueError(f"clip must stay above 0, not {schedule.start} to {schedule.end}")

    def surrogate(self, distribution: Distribution, draw: Draw, signal: Signal, state: State) -> Tensor:
        log_prob = distribution.log_prob(draw.action, draw.noise)  # [*rows, D]
        clip, a = state["clip"], advantages(log_prob, signal)
        moved = log_prob - log_prob.detach()
        if a.shape[-1] == 1:
            moved = moved.sum(-1, keepdim=True)
        value = ratios(log_prob, signal)
        ratio = value.unsqueeze(-1) * torch.exp(moved)  # of the joint action, with the gradient by each factor of a
        clipped = value.clamp(1 - clip, 1 + clip).unsqueeze(-1)
        return torch.where(ratio * a <= clipped * a, ratio * a, clipped * a).sum(-1)
