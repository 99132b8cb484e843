"""A plug-in of methods with the faults that are easy to make, and their faultless twins. Not a test by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import pglab
from pglab.distributions import Bernoulli, Categorical, Gaussian, SquashedGaussian
from pglab.estimators import Draw, Estimator, Signal
from pglab.estimators.base import leading

# -- baselines


@pglab.register_baseline("own_sample")
class OwnSample(pglab.Baseline):
    """Half of the very value that it is subtracted from."""

    def predict(self, state, batch):
        return 0.5 * batch.value


@pglab.register_baseline("batch_mean")
class BatchMean(pglab.Baseline):
    """The mean over the batch, the row itself included."""

    couples_rows = True

    def predict(self, state, batch):
        count = batch.valid.sum((0, 2), keepdim=True)
        return ((batch.value * batch.valid).sum((0, 2), keepdim=True) / count).expand_as(batch.value)


@pglab.register_baseline("peeking")
class Peeking(pglab.Baseline):
    """A function of the action."""

    needs = frozenset({"action"})

    def predict(self, state, batch):
        return batch.action.flatten(3)[..., 0]


@pglab.register_baseline("first_batch")
class FirstBatch(pglab.Baseline):
    """A running mean that looks at the batch itself as long as there is no other."""

    couples_rows = True
    adapts = True

    def initial(self, members, device):
        return {"mean": torch.zeros(members, device=device), "seen": torch.zeros(members, device=device)}

    def predict(self, state, batch):
        now = (batch.value * batch.valid).sum((0, 2)) / batch.valid.sum((0, 2))
        return torch.where(state["seen"] > 0, state["mean"], now)[:, None].expand_as(batch.value)

    def update(self, state, batch):
        now = (batch.value * batch.valid).sum((0, 2)) / batch.valid.sum((0, 2))
        return {"mean": 0.9 * state["mean"] + 0.1 * now, "seen": state["seen"] + 1}, {}


@pglab.register_baseline("mixing")
class Mixing(pglab.Baseline):
    """The mean over all members of the population: so many that the own value hardly counts."""

    couples_rows = True

    def predict(self, state, batch):
        return batch.value.mean().expand_as(batch.value)


@pglab.register_baseline("undeclared")
class Undeclared(pglab.Baseline):
    """The next environment's value, without saying that rows are coupled."""

    def predict(self, state, batch):
        return batch.value.roll(1, 2) if batch.value.shape[2] > 1 else torch.zeros_like(batch.value)


@pglab.register_baseline("wrong_shape")
class WrongShape(pglab.Baseline):
    """One number too few."""

    def predict(self, state, batch):
        return batch.value[..., :1]


# -- estimators


@pglab.register_estimator("small_rebar")
class SmallRebar(Estimator):
    """REBAR with eta = 1, for one critic."""

    fault: Literal["none", "noise detached", "all detached", "wrong maximum"] = "none"
    """What is wrong with the relaxed draw given the action."""

    needs = frozenset({"value", "critic_gradient", "critic_relaxed"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = True
    evaluations = "3"
    paper = "Tucker et al. 2017"
    uses_noise = True

    def extra_noise(self, kind, event):
        return {"conditional": (kind, event)}

    def given(self, d, action: Tensor, fresh: Tensor) -> Tensor:
        if self.fault == "wrong maximum":
            return wrong_maximum(d, action, fresh)
        noise = d.noise_given(action, fresh)
        return noise.detach() if self.fault == "noise detached" else noise

    def surrogate(self, distribution, draw: Draw, signal: Signal, state) -> Tensor:
        free = signal.critic(distribution.relax(draw.noise, 0.7))
        soft = distribution.relax(self.given(distribution, draw.action, draw.extra["conditional"]), 0.7)
        bound = signal.critic(soft.detach() if self.fault == "all detached" else soft)
        return distribution.log_prob(draw.action).sum(-1) * (signal.value - bound.detach()) + free - bound


def wrong_maximum(d, action: Tensor, fresh: Tensor) -> Tensor:
    """The winner's perturbed logit is drawn around its own logit instead of the log-sum-exp, the others below it."""
    if isinstance(d, Bernoulli):
        p = torch.sigmoid(d.logits)
        return torch.where(action > 0.5, 1 - p * fresh.square(), (1 - p) * fresh)
    first = (fresh * action).sum(-1, keepdim=True) / (d.probs() * action).sum(-1, keepdim=True)
    return torch.where(action > 0.5, fresh, fresh + d.probs() * first)


@pglab.register_estimator("small_gumbel_rao")
class SmallGumbelRao(Estimator):
    """Straight-through Gumbel-Softmax, averaged over noise that makes the same draw."""

    detach: bool = True
    """Whether that noise is kept from being differentiated, as it must be."""

    needs = frozenset({"critic_gradient"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = False
    bias = "that of straight_through_gumbel_softmax"
    same_mean_as = "straight_through_gumbel_softmax"
    evaluations = "1, with its gradient"
    paper = "Paulus et al. 2021"

    def extra_noise(self, kind, event):
        return {"conditional": (kind, (3, *event))}

    def surrogate(self, distribution, draw: Draw, signal: Signal, state) -> Tensor:
        noise = distribution.noise_given(draw.action, leading(draw.extra["conditional"], distribution))
        soft = distribution.relax(noise.detach() if self.detach else noise, 1.0).mean(0)
        return signal.critic((draw.action - soft).detach() + soft)


@pglab.register_estimator("small_set")
class SmallSet(Estimator):
    """The unordered set estimator for two different outcomes."""

    differentiate_ratio: bool = False
    """Whether the ratio is differentiated too, as it must not be."""

    needs = frozenset({"critic"})
    kinds = frozenset({"discrete", "binary"})
    unbiased = True
    evaluations = "2"
    paper = "Kool et al. 2020"

    def extra_noise(self, kind, event):
        return {"arrivals": ("exponential", (event[1] ** event[0] if len(event) == 2 else 2 ** event[0],))}

    def surrogate(self, distribution, draw: Draw, signal: Signal, state) -> Tensor:
        outcomes = distribution.enumerate()
        lead = outcomes.reshape(len(outcomes), *[1] * len(distribution.batch_shape), *outcomes.shape[1:])
        log_p = distribution.log_prob(lead).sum(-1).movedim(0, -1)  # [*rows, M]
        both = (log_p - draw.extra["arrivals"].log()).topk(2, -1).indices  # [*rows, 2]
        p = log_p.exp().gather(-1, both)
        f = signal.critic(outcomes[both].movedim(len(distribution.batch_shape), 0)).movedim(0, -1).detach()
        after = p.flip(-1) / (1 - p)  # the other one, once this one is gone
        ratio = after / (p * after).sum(-1, keepdim=True)
        return (p * (ratio if self.differentiate_ratio else ratio.detach()) * f).sum(-1)


# -- distributions


@dataclass(frozen=True)
class NakedSquashedGaussian(SquashedGaussian):
    """Without the log-determinant of tanh."""

    def log_prob(self, action, noise=None):
        return Gaussian.log_prob(self, action, noise)


@dataclass(frozen=True)
class WrongMaximum(Categorical):
    """Conditional noise with the wrong law for the winner."""

    def noise_given(self, action, fresh):
        return wrong_maximum(self, action, fresh)


@dataclass(frozen=True)
class Detached(Bernoulli):
    """Conditional noise that is not differentiated."""

    def noise_given(self, action, fresh):
        return super().noise_given(action, fresh).detach()


@dataclass(frozen=True)
class Shifted(Gaussian):
    """Draws that are not where the density is."""

    def rsample(self, noise):
        return super().rsample(noise) + 0.1
